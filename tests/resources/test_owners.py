"""A resource whose rows have owners: nobody sees those of others."""

from concurrent.futures import ThreadPoolExecutor

import httpx2
import pytest
from sqlalchemy import Column, MetaData, Table

from service.resources.definition import Definition, with_id
from service.schemas.fields import Input
from service.tables import ID
from tests.support.notes import follow

ANN, BOB = {"user": "1"}, {"user": "2"}


def test_an_owner_is_known_by_its_column() -> None:
    """Owners are in the column that the operators' commands know, and no other one is taken."""
    things = Table("things", MetaData(), Column("id", ID, primary_key=True), Column("user_id", ID))
    options = {"table": things, "name": "thing", "new": Input(), "shape": with_id(Input, "Thing")}
    for kind in ("owner", "creator"):
        with pytest.raises(ValueError, match="owner_id"):
            Definition(**options, **{kind: things.c.user_id})  # type: ignore[arg-type]


@pytest.fixture
def lists(library: httpx2.Client) -> dict[str, list[dict[str, object]]]:
    """What each of two users has, after both have created lists of the same names in turn."""
    for user in (ANN, BOB):
        for item in library.get("/lists/", headers=user).json():
            library.delete(f"/lists/{item['id']}", headers=user)
    created: dict[str, list[dict[str, object]]] = {"1": [], "2": []}
    for number in range(6):
        for user in (ANN, BOB):
            new = {"name": f"n{number}", "shared": number % 2 == 0}
            answer = library.post("/lists/", json=new, headers=user)
            assert answer.status_code == 200
            created[user["user"]].append(answer.json())
    return created


def test_listings_have_the_users_own(
    library: httpx2.Client, lists: dict[str, list[dict[str, object]]]
) -> None:
    """Listings, pages, filters, searches and counts know nothing of what others have."""
    for user in (ANN, BOB):
        mine = lists[user["user"]]
        assert library.get("/lists/", headers=user).json() == mine
        library.headers.update(user)
        pages = [page.json() for page in follow(library, "/lists/?limit=4")]
        assert pages == [mine[:4], mine[4:]]
        answer = library.get("/lists/?shared=1&q=N", headers={"prefer": "count=exact"})
        assert answer.json() == mine[::2]
        assert answer.headers["x-total-count"] == "3"
        again = {"if-none-match": library.get("/lists/").headers["etag"]}
        assert library.get("/lists/", headers=again).status_code == 304
    assert library.get("/lists/", headers={**ANN, **again}).status_code == 200
    del library.headers["user"]


def test_what_others_have_is_not_there(
    library: httpx2.Client, lists: dict[str, list[dict[str, object]]]
) -> None:
    """Another's item is a 404 for each method, and stays as it is."""
    item = lists["1"][0]
    url = f"/lists/{item['id']}"
    for headers in (BOB, {**BOB, "if-match": "*"}, {**BOB, "if-none-match": '"x"'}):
        assert library.get(url, headers=headers).status_code == 404
        assert library.put(url, json={"name": "x"}, headers=headers).status_code == 404
        assert library.patch(url, json={"name": "x"}, headers=headers).status_code == 404
        assert library.delete(url, headers=headers).status_code == 404
    assert library.get(url, headers=ANN).json() == item
    assert library.patch(url, json={"name": "x"}, headers=ANN).json() == {**item, "name": "x"}
    assert library.delete(url, headers=ANN).status_code == 204


def test_users_who_ask_at_once_get_their_own(
    library: httpx2.Client, lists: dict[str, list[dict[str, object]]]
) -> None:
    """Requests of different users that share queries of one kind mix nothing up."""

    def ask(number: int) -> bool:
        user = (ANN, BOB)[number % 2]
        mine, others = lists[user["user"]], lists[str(3 - int(user["user"]))]
        one, other = mine[number % 6], others[number % 6]
        limit = 5 + number % 3
        return (
            library.get(f"/lists/?limit={limit}", headers=user).json() == mine[:limit]
            and library.get(f"/lists/{one['id']}", headers=user).json() == one
            and library.get(f"/lists/{other['id']}", headers=user).status_code == 404
        )

    with ThreadPoolExecutor(20) as threads:
        assert all(threads.map(ask, range(100)))


def test_values_are_unique_for_each_owner(
    library: httpx2.Client, lists: dict[str, list[dict[str, object]]]
) -> None:
    """The second list of a name is refused, and only to the user who has one already."""
    for user in (ANN, BOB):
        answer = library.post("/lists/", json={"name": "n1"}, headers=user)
        assert answer.status_code == 409
        assert [error["loc"] for error in answer.json()["detail"]] == [["body", "name"]]
        answer = library.post("/lists/batch", json=[{"name": "m"}, {"name": "n2"}], headers=user)
        assert [error["loc"] for error in answer.json()["detail"]] == [["body", 1, "name"]]
        other = lists[user["user"]][3]["id"]
        answer = library.patch(f"/lists/{other}", json={"name": "n2"}, headers=user)
        assert (answer.status_code, answer.json()["detail"][0]["loc"]) == (409, ["body", "name"])
