"""Which plans databases make for pages in an order that an index has."""

from collections.abc import Iterator, Sequence
from datetime import date, timedelta
from itertools import permutations, product
from typing import Any

import pytest

from service.database.connections import use
from service.resources.orders import Order
from service.resources.queries import Selection
from tests.resources.conftest import Shop
from tests.support import databases, shop
from tests.support.databases import NewDatabase
from tests.support.processes import Run, new_process

queries = shop.usual.items.queries
ANALYZE = {"sqlite": "ANALYZE", "postgresql": "ANALYZE repairs", "mysql": "ANALYZE TABLE repairs"}
# What plans say of rows that are sorted after they were read.
SORTS = ("Sort", "TEMP B-TREE", "filesort")
# What plans say of rows that are looked up in an index, instead of read from its begin.
LOOKS_UP = {"sqlite": "SEARCH", "postgresql": "Index Cond", "mysql": "range"}
DUE = date(2026, 2, 28)


class Plan(Exception):
    """The plan of a statement, which did not run."""


class Explaining:
    """A connection of any driver, which explains what it should run."""

    def __init__(self, raw: Any) -> None:
        self._raw = raw

    async def fetch(self, sql: str, *values: Any) -> None:
        raise Plan(str(await self._raw.fetch(f"EXPLAIN {sql}", *values)))

    fetch_planned = fetch

    async def execute_fetchall(self, sql: str, values: Sequence[Any]) -> None:
        rows = await self._raw.execute_fetchall(f"EXPLAIN QUERY PLAN {sql}", values)
        raise Plan(str([tuple(row) for row in rows]))

    async def execute(self, sql: str, values: Sequence[Any]) -> None:
        raise Plan(str((await self._raw.execute(f"EXPLAIN {sql}", values)).rows))


async def explain(order: Order, after: tuple[Any, ...], archived: bool | None) -> str:
    """The plan of a page behind a place."""
    filters = (archived, *[None] * (len(shop.REPAIRS.filters) - 1))
    statement = queries._sorted_page(order, filters, False, True)
    values = {f"after_{number}": value for number, value in enumerate(after)}
    try:
        await use("read", lambda raw: statement.run(Explaining(raw), {**values, "limit": 101}))
    except Plan as plan:
        return str(plan)
    raise AssertionError("the statement was not explained")


async def fill(count: int) -> None:
    for first in range(0, count, 1000):
        await queries.insert(
            [
                {
                    "name": f"Repair {number}",
                    "archived": number % 100 == 0,
                    "due": DUE + timedelta(number % 700),
                    "rank": number % 50,
                }
                for number in range(first, first + 1000)
            ]
        )


@pytest.mark.parametrize(
    ("order", "after", "archived", "index"),
    [
        ((("due", False), ("id", False)), (DUE, 3), None, "repairs_due"),
        ((("due", True), ("id", True)), (DUE, 3), None, "repairs_due"),
        ((("due", True), ("id", True)), (DUE, 3), True, "repairs_archived_due"),
        ((("name", False), ("id", False)), ("Repair 7", 3), None, "repairs_name"),
        (
            (("rank", True), ("name", False), ("id", False)),
            (7, "Repair 7", 3),
            None,
            "repairs_rank",
        ),
        (
            (("rank", False), ("name", True), ("id", True)),
            (7, "Repair 7", 3),
            None,
            "repairs_rank",
        ),
    ],
)
def test_pages_in_the_order_of_an_index_are_read_from_it(
    order: Order,
    after: tuple[Any, ...],
    archived: bool | None,
    index: str,
    filled: tuple[Run, str],
) -> None:
    """No database sorts rows for such a page, or reads those before it."""
    run, kind = filled
    plan = run(explain, order, after, archived)
    assert index in plan
    assert LOOKS_UP[kind] in plan
    assert not any(word in plan for word in SORTS), plan


@pytest.fixture(scope="module")
def filled(open_shop: Shop) -> Iterator[tuple[Run, str]]:
    """A process on the shop with more repairs than it pays to read, and the kind of database."""
    kind = databases.kind_of(open_shop.database_url)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DATABASE_URL", open_shop.database_url)
        with new_process() as run:
            run(fill, 10_000)
            databases.execute(open_shop.database_url, ANALYZE[kind])
            yield run, kind


async def search_in_many_orders() -> int:
    """How many statements a server keeps after a client has combined orders and filters."""
    names = ("due", "name", "rank")
    for turned in product((False, True), repeat=4):
        for first, second in permutations(names, 2):
            order = tuple(zip((first, second, "id"), turned, strict=False))
            for archived in (None, False):
                values = (archived, None, DUE if turned[3] else None, None, None)
                await queries.list_page(Selection(order=order, values=values), limit=1)
    count = "SELECT count(*) FROM pg_prepared_statements"
    return int(await use("read", lambda raw: raw.fetchval(count)))


def test_many_orders_leave_few_statements(
    new_database: NewDatabase, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A connection to PostgreSQL keeps so many statements for searches, and no more."""
    url = new_database("postgresql")
    shop.create_tables(url)
    monkeypatch.setenv("DATABASE_URL", url)
    monkeypatch.setenv("DATABASE_POOL_MAX", "1")
    monkeypatch.setenv("DATABASE_STATEMENT_CACHE", "10")
    with new_process() as run:
        assert run(search_in_many_orders) <= 50 + 10
