"""Unique columns and foreign keys of a resource."""

from concurrent.futures import ThreadPoolExecutor

import httpx2
import pytest

from tests.support import databases
from tests.support.databases import kind_of


@pytest.fixture
def author(library: httpx2.Client) -> int:
    """The id of a new author."""
    for path in ("/books/", "/authors/"):
        for item in library.get(path).json():
            assert library.delete(f"{path}{item['id']}").status_code == 204
    return int(library.post("/authors/", json={"name": "Ada"}).json()["id"])


NOT_UNIQUE = {"type": "not_unique", "msg": "Another item already has this value"}
NOT_FOUND = {"type": "not_found", "msg": "No item has this value"}


def test_a_value_that_another_item_has(library: httpx2.Client, author: int) -> None:
    """A second item of a unique value is a 409 that names the field, for each way to write it."""
    other = library.post("/authors/", json={"name": "Bob"}).json()["id"]
    told = [{**NOT_UNIQUE, "loc": ["body", "name"], "input": "Ada"}]
    for answer in (
        library.post("/authors/", json={"name": "Ada"}),
        library.post("/authors/", json={"name": "Ada"}, headers={"idempotency-key": "k"}),
        library.put(f"/authors/{other}", json={"name": "Ada"}),
        library.patch(f"/authors/{other}", json={"name": "Ada"}),
    ):
        assert (answer.status_code, answer.json()["detail"]) == (409, told)
    assert library.patch(f"/authors/{author}", json={"name": "Ada"}).status_code == 200
    assert library.post("/authors/", json={"name": "ada"}).status_code == 200


def test_values_of_a_batch(library: httpx2.Client, author: int) -> None:
    """A batch tells of every value that another item has, or that is in it twice."""
    names = ["Zoe", "Ada", "Zoe", "Max"]
    answer = library.post("/authors/batch", json=[{"name": name} for name in names])
    assert answer.status_code == 409
    assert answer.json()["detail"] == [
        {**NOT_UNIQUE, "loc": ["body", place, "name"], "input": names[place]} for place in (1, 2)
    ]
    assert [item["name"] for item in library.get("/authors/").json()] == ["Ada"]


def test_what_is_referred_to_has_to_be_there(library: httpx2.Client, author: int) -> None:
    """An id of nothing is a 422 that names the place, for each way to write it."""
    book = library.post("/books/", json={"author_id": author, "title": "a"}).json()["id"]
    nobody = {"author_id": 999_999, "title": "b"}
    told = [{**NOT_FOUND, "loc": ["body", "author_id"], "input": 999_999}]
    for answer in (
        library.post("/books/", json=nobody),
        library.put(f"/books/{book}", json=nobody),
        library.patch(f"/books/{book}", json={"author_id": 999_999}),
    ):
        assert (answer.status_code, answer.json()["detail"]) == (422, told)
    batch = [{"author_id": author, "title": f"{n}"} for n in range(20)]
    answer = library.post("/books/batch", json=[*batch[:17], nobody, *batch[17:]])
    assert answer.status_code == 422
    assert [error["loc"] for error in answer.json()["detail"]] == [["body", 17, "author_id"]]
    assert len(library.get("/books/").json()) == 1


def test_several_columns_are_unique_together(library: httpx2.Client, author: int) -> None:
    """Two authors may have books of one title, and one author may not, also by a PATCH."""
    other = library.post("/authors/", json={"name": "Bob"}).json()["id"]
    for one in (author, other):
        book = {"author_id": one, "title": "a"}
        assert library.post("/books/", json=book).status_code == 200
    told = [{**NOT_UNIQUE, "loc": ["body", "title"], "input": "a"}]
    assert library.post("/books/", json=book).json()["detail"] == told
    second = library.post("/books/", json={"author_id": other, "title": "b"}).json()["id"]
    answer = library.patch(f"/books/{second}", json={"title": "a"})
    assert (answer.status_code, answer.json()["detail"]) == (409, told)


def test_what_is_referred_to_stays(library: httpx2.Client, author: int) -> None:
    """The deletion of an author with a book is a 409, and works without the book."""
    book = library.post("/books/", json={"author_id": author, "title": "a"}).json()["id"]
    answer = library.delete(f"/authors/{author}")
    assert (answer.status_code, answer.json()["detail"]) == (
        409,
        "Other items refer to this author",
    )
    assert library.delete(f"/books/{book}").status_code == 204
    assert library.delete(f"/authors/{author}").status_code == 204


def test_one_caller_of_many_is_at_fault(library: httpx2.Client, author: int) -> None:
    """Of creates that share an INSERT, only those with a broken constraint are refused."""
    new = [{"name": f"n{number}"} for number in range(29)] + [{"name": "Ada"}]
    with ThreadPoolExecutor(30) as threads:
        answers = list(threads.map(lambda one: library.post("/authors/", json=one), new))
    assert [answer.status_code for answer in answers] == [200] * 29 + [409]


def test_retries_at_once_are_refused_alike(library: httpx2.Client, author: int) -> None:
    """Of requests that wait for one Idempotency-Key each is a 409, not only the first one."""

    def create(_: int) -> int:
        headers = {"idempotency-key": "at-once"}
        return library.post("/authors/", json={"name": "Ada"}, headers=headers).status_code

    with ThreadPoolExecutor(30) as threads:
        assert list(threads.map(create, range(30))) == [409] * 30


def test_a_constraint_of_another_kind(library: httpx2.Client, author: int) -> None:
    """A CHECK that a value breaks is a 409, too, and an item that is gone a 404."""
    book = {"author_id": author, "title": "a", "shelf": 13}
    answer = library.post("/books/", json=book)
    told = "The values break a constraint of the database"
    assert (answer.status_code, answer.json()) == (409, {"detail": told})
    stored = library.post("/books/", json={**book, "shelf": 1}).json()["id"]
    # The item's own values are in nobody's way.
    answer = library.put(f"/books/{stored}", json=book)
    assert (answer.status_code, answer.json()) == (409, {"detail": told})
    assert library.put("/books/999999", json=book).status_code == 404


SESSIONS = {
    "postgresql": "SELECT string_agg(pid::text, ',' ORDER BY pid) FROM pg_stat_activity"
    " WHERE datname = current_database() AND pid <> pg_backend_pid()",
    "mysql": "SELECT group_concat(id ORDER BY id) FROM information_schema.processlist"
    " WHERE db = database() AND id <> connection_id()",
}


def test_a_broken_constraint_costs_no_connection(
    database: str, library: httpx2.Client, author: int
) -> None:
    """The connection of a write that was refused serves the next ones."""
    if kind_of(database) in SESSIONS:
        before = databases.execute(database, SESSIONS[kind_of(database)])
        for _ in range(5):
            assert library.post("/authors/", json={"name": "Ada"}).status_code == 409
            unlucky = {"author_id": author, "title": "a", "shelf": 13}
            assert library.post("/books/", json=unlucky).status_code == 409
            assert library.get("/authors/").status_code == 200
        assert databases.execute(database, SESSIONS[kind_of(database)]) == before
