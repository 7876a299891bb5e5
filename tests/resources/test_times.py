"""The times that the service sets: when an item was stored, and when it was changed last."""

import time
from datetime import date, datetime
from typing import Any

import httpx2
import pytest
from sqlalchemy import BigInteger, Column

from service.schemas.fields import Timestamp
from tests.resources.conftest import Shop
from tests.resources.test_fitting import define, table
from tests.support import databases, shop
from tests.support.processes import new_process

NEW = {"name": "a", "archived": False, "due": "2026-02-28", "rank": 1}
# A client's own times.
TIMES = {"created_at": "2001-01-01T00:00:00Z", "updated_at": "2001-01-01T00:00:00Z"}
BEFORE = 1_700_000_000
SHOWN = "2023-11-14T22:13:20Z"


def seconds(shown: str) -> int:
    """The seconds since the epoch of a time in UTC. ValueError for another form."""
    return int(datetime.strptime(f"{shown}+0000", "%Y-%m-%dT%H:%M:%SZ%z").timestamp())


def are_now(item: dict[str, Any], *names: str) -> bool:
    return all(time.time() - 60 < seconds(item[name]) <= time.time() for name in names)


@pytest.fixture
def aged(open_shop: Shop, repairs: httpx2.Client) -> dict[str, Any]:
    """A repair that was stored, and changed last, some time ago."""
    created = repairs.post("/repairs/", json=NEW).json()
    change = f"UPDATE repairs SET created_at = {BEFORE}, updated_at = {BEFORE}"
    databases.execute(open_shop.database_url, change)
    item: dict[str, Any] = repairs.get(f"/repairs/{created['id']}").json()
    assert (item["created_at"], item["updated_at"]) == (SHOWN, SHOWN)
    return item


def test_new_items_have_the_time_of_now(repairs: httpx2.Client) -> None:
    """Both times are those of the write, whatever the client sends; each is behind the fields."""
    answers = [
        repairs.post("/repairs/", json={**NEW, **TIMES}).json(),
        *repairs.post("/repairs/batch", json=[{**NEW, **TIMES}] * 2).json(),
    ]
    for item in answers:
        assert list(item) == ["id", *NEW, "created_at", "updated_at"]
        assert item["created_at"] == item["updated_at"]
        assert are_now(item, "created_at", "updated_at")
    assert repairs.get("/repairs/").json() == answers


@pytest.mark.parametrize(
    ("method", "body"), [("PUT", {**NEW, **TIMES}), ("PATCH", {"rank": 1}), ("PATCH", NEW)]
)
@pytest.mark.parametrize("is_conditional", [False, True])
def test_an_update_sets_the_time_of_the_change(
    repairs: httpx2.Client,
    aged: dict[str, Any],
    method: str,
    body: dict[str, Any],
    is_conditional: bool,
) -> None:
    """A write changes the time of the last change alone, even if no other value differs."""
    url = f"/repairs/{aged['id']}"
    headers = {"if-match": repairs.get(url).headers["etag"]} if is_conditional else {}
    changed = repairs.request(method, url, json=body, headers=headers).json()
    assert are_now(changed, "updated_at")
    assert changed == {**aged, "updated_at": changed["updated_at"]}
    assert repairs.get(url).json() == changed
    if is_conditional:
        # It is another representation now.
        assert repairs.patch(url, json={}, headers=headers).status_code == 412


def test_a_change_of_nothing_is_none(repairs: httpx2.Client, aged: dict[str, Any]) -> None:
    """A PATCH without fields that clients may send leaves the times as they are."""
    for body in ({}, TIMES):
        assert repairs.patch(f"/repairs/{aged['id']}", json=body).json() == aged


def test_a_time_that_clients_send_is_theirs() -> None:
    """The service sets no time that clients send."""
    times = [Column(name, BigInteger, nullable=False) for name in TIMES]
    own = define(table(*times), {"created_at": Timestamp(required=True)}, "thing", "updated_at")
    assert own.times == ["updated_at"]


def test_times_are_described(repairs: httpx2.Client) -> None:
    """The document has the times in what clients get, and not in what they send."""
    schemas = repairs.get("/openapi.json").json()["components"]["schemas"]
    assert not {*TIMES} & {*schemas["RepairIn"]["properties"], *schemas["RepairPatch"]}
    for name in TIMES:
        described = schemas["Repair"]["properties"][name]
        assert (described["type"], described["format"]) == ("string", "date-time")
        assert name in schemas["Repair"]["required"]


async def change_twice() -> list[bool]:
    """Whether changes happen that another change, of the time alone, was faster than."""
    queries = shop.usual.items.queries
    (row,) = await queries.insert([{**NEW, "due": date(2026, 2, 28)}])
    old = {name: row[name] for name in NEW} | {"updated_at": BEFORE}
    updated = await queries.update(row["id"], {"rank": 2}, old)
    return [updated is not None, await queries.delete(row["id"], old)]


def test_another_change_in_between_is_noticed(
    open_shop: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A write under a condition doesn't happen if an item has the same values, changed later."""
    monkeypatch.setenv("DATABASE_URL", open_shop.database_url)
    with new_process() as run:
        assert run(change_twice) == [False, False]
