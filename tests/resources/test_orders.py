"""Listings in the order of declared columns, and filters by range."""

import json
from collections.abc import Iterator
from datetime import date, timedelta
from itertools import product
from typing import Any

import httpx2
import pytest
from marshmallow import Schema
from marshmallow.fields import Field
from openapi_spec_validator import OpenAPIV31SpecValidator, validate
from sqlalchemy import BigInteger, Boolean, Column, Date, Index, MetaData, String, Table

from service.notes.resource import usual as usual_notes
from service.resources.definition import AtLeast, AtMost, Definition, with_id
from service.resources.orders import Sort, is_served, read_cursor, unique_columns, write_cursor
from service.schemas import fields
from service.tables import ID, sorted_text
from tests.resources.conftest import Shop
from tests.support import databases, shop
from tests.support.notes import follow, next_url

# In the order of their code points.
NAMES = ["A", "Z", "a", "a\u0001", "a ", "z", "\u00e9", "\uffff", "\U0001f600"]
SORTS = [
    "due",
    "-due",
    "id",
    "-id",
    "due,-id",
    "-due,id",
    "name",
    "-name,rank",
    "rank,-name",
    "-rank,name",
    "rank,-due,name,-id",
    "name,-rank,due",
    "-id,due",
    "due,-due,rank",
]
FILTERS: list[dict[str, Any]] = [
    {},
    {"archived": False},
    {"rank": 1},
    {"due_from": "2026-02-28", "due_to": "2026-03-01"},
    {"archived": True, "due_from": "2026-02-28", "created_from": "2020-01-01T00:00:00+01:00"},
    {"created_from": "2100-01-01T00:00:00Z"},
]


def repair(number: int) -> dict[str, Any]:
    """A repair that has most values in common with others."""
    due = date(2026, 2, 27) + timedelta(number % 4)
    return {
        "name": NAMES[number * 7 % len(NAMES)],
        "archived": number % 3 == 0,
        "due": str(due),
        "rank": number % 5 - 2,
    }


@pytest.fixture(scope="module")
def stored(open_shop: Shop) -> list[dict[str, Any]]:
    """The repairs of a shop whose tests only read."""
    databases.execute(open_shop.database_url, "DELETE FROM repairs")
    answer = open_shop.client.post("/repairs/batch", json=[repair(n) for n in range(50)])
    return list(answer.json())


def in_order(items: list[dict[str, Any]], sort: str) -> list[dict[str, Any]]:
    """The items as `sort` wants them, found by another way than the service's."""
    parts = sort.split(",")
    names = [part.removeprefix("-") for part in parts]
    if "id" not in names:
        parts.append("-id" if parts[-1].startswith("-") else "id")
    for part in reversed(parts):
        name = part.removeprefix("-")
        items = sorted(items, key=lambda item: item[name], reverse=part.startswith("-"))
    return items


def fits(item: dict[str, Any], filters: dict[str, Any]) -> bool:
    """Whether an item is selected. Texts of dates are in the order of the dates."""
    same = all(item[name] == filters[name] for name in ("archived", "rank") if name in filters)
    is_due = filters.get("due_from", "") <= item["due"] <= filters.get("due_to", "9")
    return bool(same and is_due and filters.get("created_from", "") <= item["created_at"])


def walk(client: httpx2.Client, **parameters: Any) -> Iterator[dict[str, Any]]:
    for page in follow(client, str(httpx2.URL("/repairs/", params=parameters))):
        yield from page.json()


@pytest.mark.parametrize("sort", SORTS)
def test_pages_are_in_the_order_that_clients_name(
    open_shop: Shop, stored: list[dict[str, Any]], sort: str
) -> None:
    """In any order the pages of any filters have each selected item once, in its place."""
    client = open_shop.client
    assert client.get("/repairs/", params={"sort": sort}).json() == in_order(stored, sort)
    for filters in FILTERS:
        wanted = in_order([item for item in stored if fits(item, filters)], sort)
        assert list(walk(client, sort=sort, limit=7, **filters)) == wanted


@pytest.mark.parametrize("filters", FILTERS)
def test_filters_select_in_the_order_of_the_ids(
    open_shop: Shop, stored: list[dict[str, Any]], filters: dict[str, Any]
) -> None:
    """Without `sort` pages of any filters lead on by ids, in either direction, and have counts."""
    client = open_shop.client
    wanted = [item for item in stored if fits(item, filters)]
    for order, items in (("asc", wanted), ("desc", wanted[::-1])):
        assert list(walk(client, order=order, limit=7, **filters)) == items
        page = client.get("/repairs/", params={**filters, "order": order, "limit": 1})
        if len(items) > 1:
            assert (next_url(page) or "").endswith(f"&after={items[0]['id']}")
    for sort in ({}, {"sort": "-due,rank"}):
        counted = client.get(
            "/repairs/", params={**filters, **sort, "limit": 1}, headers={"prefer": "count=exact"}
        )
        assert counted.headers["x-total-count"] == str(len(wanted))


def test_long_listings_have_an_order_too(repairs: httpx2.Client) -> None:
    """A listing of more than a page is whole and in order, as JSON and as lines."""
    items: list[dict[str, Any]] = []
    for _ in range(3):
        new = [repair(number) for number in range(len(items), len(items) + 700)]
        items += repairs.post("/repairs/batch", json=new).json()
    for sort in ("-due,name", "due"):
        answer = repairs.get("/repairs/", params={"sort": sort})
        assert answer.json() == in_order(items, sort)
        lines = repairs.get(
            "/repairs/", params={"sort": sort}, headers={"accept": "application/x-ndjson"}
        )
        assert [json.loads(line) for line in lines.text.splitlines()] == answer.json()


def test_a_cursor_holds_values(repairs: httpx2.Client) -> None:
    """The next page is the same after the last item of the one before was changed, or deleted."""
    new = [{**repair(number), "due": f"2026-02-{number + 1:02}"} for number in range(8)]
    items = repairs.post("/repairs/batch", json=new).json()
    page = repairs.get("/repairs/?sort=due&limit=3")
    assert page.json() == items[:3]
    url = next_url(page) or ""
    last = f"/repairs/{items[2]['id']}"
    assert repairs.patch(last, json={"due": "2025-01-01"}).status_code == 200
    assert repairs.get(url).json() == items[3:6]
    assert repairs.delete(last).status_code == 204
    assert repairs.get(url).json() == items[3:6]


def test_pages_in_an_order_have_tags(repairs: httpx2.Client) -> None:
    """Pages of two orders are no answers to each other's tags, even if they are the same."""
    first = repairs.get("/repairs/", params={"sort": "id"})
    known = {"if-none-match": first.headers["etag"]}
    assert repairs.get("/repairs/", params={"sort": "id"}, headers=known).status_code == 304
    other = repairs.get("/repairs/", params={"order": "asc"}, headers=known)
    assert (other.status_code, other.content) == (200, first.content)


CURSOR = write_cursor((date(2026, 2, 28), 7))


@pytest.mark.parametrize(
    ("query", "place", "kind"),
    [
        ("sort=", "sort", "string_pattern_mismatch"),
        ("sort=created_at", "sort", "string_pattern_mismatch"),
        ("sort=--due", "sort", "string_pattern_mismatch"),
        ("sort=due,", "sort", "string_pattern_mismatch"),
        ("sort=due%0A", "sort", "string_pattern_mismatch"),
        ("sort=due&after=3", "after", "extra_forbidden"),
        ("after=3&sort=due", "after", "extra_forbidden"),
        ("sort=due&order=asc", "order", "extra_forbidden"),
        (f"cursor={CURSOR}", "cursor", "extra_forbidden"),
        (f"sort=rank&cursor={CURSOR}", "cursor", "cursor_invalid"),
        (f"sort=due,rank&cursor={CURSOR}", "cursor", "cursor_invalid"),
        (f"sort=due&cursor={CURSOR[:-1]}", "cursor", "cursor_invalid"),
        (f"sort=due&cursor={write_cursor(('2026-02-28', 2**63))}", "cursor", "cursor_invalid"),
        (f"sort=rank&cursor={write_cursor((2**31, 7))}", "cursor", "cursor_invalid"),
        (f"sort=name&cursor={write_cursor(('a' + chr(0), 7))}", "cursor", "cursor_invalid"),
        (f"sort=due&cursor={write_cursor((None, 7))}", "cursor", "cursor_invalid"),
        ("sort=due&cursor=7", "cursor", "cursor_invalid"),
        ("sort=due&cursor=e30", "cursor", "cursor_invalid"),
        ("sort=due&cursor=%C3%A4", "cursor", "cursor_invalid"),
        ("due_from=2026-2-28", "due_from", "date_parsing"),
        ("created_from=2026-02-28", "created_from", "datetime_parsing"),
    ],
)
def test_what_is_no_order_is_told(open_shop: Shop, query: str, place: str, kind: str) -> None:
    """A wrong order, cursor or range is a 422 that names the parameter."""
    answer = open_shop.client.get(f"/repairs/?{query}")
    assert answer.status_code == 422
    (error,) = answer.json()["detail"]
    assert (error["type"], error["loc"]) == (kind, ["query", place])


def test_orders_and_ranges_are_described(open_shop: Shop) -> None:
    """The document is valid, and has the parameters with their types."""
    document = open_shop.client.get("/openapi.json").json()
    validate(document, cls=OpenAPIV31SpecValidator)
    parameters = document["paths"]["/repairs/"]["get"]["parameters"]
    schemas = {one["name"]: one["schema"] for one in parameters}
    assert schemas["sort"]["pattern"] == "^-?(due|id|name|rank)(,-?(due|id|name|rank))*$"
    assert schemas["cursor"]["type"] == "string"
    assert [schemas[name]["format"] for name in ("due_from", "due_to")] == ["date", "date"]
    assert schemas["created_from"]["format"] == "date-time"
    assert "sort" in document["paths"]["/repairs/"]["get"]["description"]


@pytest.mark.parametrize("values", [("", 1), ("\U0001f600 ?&=", 2**53 - 1)])
def test_a_cursor_is_read_as_it_was_written(values: tuple[str, int]) -> None:
    """A cursor of any values is a text for URLs that has the values again."""
    cursor = write_cursor(values)
    assert cursor.replace("-", "").replace("_", "").isalnum()
    assert read_cursor(cursor, [Column("a", String), Column("id", ID)]) == values


@pytest.mark.parametrize(
    ("sort", "expected"),
    [
        ("due", [("due", False), ("id", False)]),
        ("-due", [("due", True), ("id", True)]),
        ("due,-rank,-due", [("due", False), ("rank", True), ("id", True)]),
        ("-due,id,rank", [("due", True), ("id", False)]),
        ("due,-name,rank", [("due", False), ("name", True)]),
    ],
)
def test_an_order_ends_with_a_unique_column(sort: str, expected: list[tuple[str, bool]]) -> None:
    """The ids come last, as the column before, unless a column's values are unique."""
    read: Any = Sort(["due", "rank", "name"], {"id", "name"})
    assert read.deserialize(sort) == tuple(expected)
    things = table(Column("name", sorted_text(5), unique=True), Column("due", Date, index=True))
    assert unique_columns(things) == {"id", "name"}


READ: dict[str, Field[Any]] = {
    "text": fields.Text(5, required=True),
    "due": fields.Date(required=True),
    "share": fields.Integer(required=True),
    "done": fields.Boolean(required=True),
}


def new_of(*columns: Column[Any]) -> type[Schema]:
    """The shape of those columns that clients send."""
    names = [one.name for one in columns if one.name in READ]
    return fields.Input.from_dict({name: READ[name] for name in names})


def table(*columns: Column[Any]) -> Table:
    return Table("things", MetaData(), Column("id", ID, primary_key=True), *columns)


@pytest.mark.parametrize(
    ("column", "why"),
    [
        (Column("text", String(5), nullable=False), "sorted_text"),
        (Column("due", Date), "NULL"),
        (Column("hidden", Date, nullable=False, server_default="2026-01-01"), "not shown"),
        (Column("done", Boolean, nullable=False), "no order"),
    ],
)
def test_no_column_without_one_order_is_sorted_by(column: Column[Any], why: str) -> None:
    """A column that databases order in different ways, or that isn't shown, is refused."""
    things, new = table(column), new_of(column)
    options: dict[str, Any] = {"name": "thing", "new": new(), "shape": with_id(new, "Thing")}
    with pytest.raises(ValueError, match=why):
        Definition(things, **options, sorts=[column])
    if why in ("sorted_text", "no order"):
        for kind in (AtLeast, AtMost):
            with pytest.raises(ValueError, match=why):
                Definition(things, **options, filters={"least": kind(column, "", "")})


def test_large_texts_have_no_other_order() -> None:
    """A resource with a large text can't be sorted: its pages are bounded by an index of ids."""
    columns = (Column("text", String), Column("due", Date, nullable=False))
    things, new = table(*columns), new_of(*columns)
    with pytest.raises(ValueError, match="large"):
        Definition(
            things,
            name="thing",
            new=new(),
            shape=with_id(new, "Thing"),
            large=things.c.text,
            sorts=[things.c.due],
        )


@pytest.mark.parametrize(
    ("equal", "ranges", "order", "expected"),
    [
        ("", "", "id", True),
        ("", "", "due,id", True),
        ("", "", "-due,-id", True),
        ("", "", "-due,id", False),
        ("", "", "rank,-due,id", True),
        ("", "", "-rank,due,-id", True),
        ("", "", "rank,due,id", False),
        ("", "", "due", True),
        ("", "", "rank,id", False),
        ("due", "", "id", True),
        ("due", "", "-id", True),
        ("due", "", "due,id", True),
        ("", "due", "due,id", True),
        ("", "due", "id", False),
        ("", "due rank", "due,id", False),
        ("done", "", "id", False),
        ("due done", "", "id", False),
        ("rank", "due", "-due,id", True),
        ("text", "", "id", True),
        ("text done", "rank", "-due,id", True),
        ("part", "", "id", False),
        ("folded", "", "id", False),
        ("owner", "", "id", True),
        ("owner", "", "due,id", False),
        ("", "", "owner,id", False),
    ],
)
def test_an_index_serves_what_it_has_in_a_row(
    equal: str, ranges: str, order: str, expected: bool
) -> None:
    """An index serves an order with its values, or all of them turned, behind equal ones."""
    things = table(
        *(Column(name, BigInteger) for name in ("due", "rank", "done", "part", "folded", "owner")),
        Column("text", sorted_text(5), unique=True),
    )
    Index("things_due", things.c.due, things.c.id)
    Index("things_rank", things.c.rank, things.c.due.desc(), things.c.id)
    Index("things_part", things.c.part, things.c.id, postgresql_where=things.c.done == 1)
    Index("things_owner", things.c.owner, things.c.id, sqlite_where=things.c.owner.is_not(None))
    Index("things_folded", things.c.folded + 0, things.c.id)
    parts = tuple((part.removeprefix("-"), part.startswith("-")) for part in order.split(","))
    assert is_served(things, set(equal.split()), set(ranges.split()), parts) is expected


def test_indexes_serve_the_filters_of_notes() -> None:
    """Listings of notes read in an index, with and without the filter."""
    assert not usual_notes.items.queries._searches((None,), False)
    assert not usual_notes.items.queries._searches((True,), False)


def test_the_shop_has_orders_with_an_index_and_without() -> None:
    """What an index serves is in the lane of reads, and other orders are in that of searches."""
    queries = shop.usual.items.queries
    nothing = (None,) * len(shop.REPAIRS.filters)
    lanes = {
        order: queries._sorted_page(order, nothing, False, follows).lane
        for order, follows in product(
            ((("due", True), ("id", True)), (("due", True), ("id", False))), (False, True)
        )
    }
    assert list(lanes.values()) == ["read", "search"]
