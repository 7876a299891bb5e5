"""Which plans PostgreSQL makes for the statements, and how often."""

import asyncio
from typing import Any

import asyncpg
import pytest

from service import settings
from service.database.connections import use
from service.notes.resource import NOTES, usual
from service.resources.queries import BOUNDS, MAX_SHARED, Selection
from tests.support.databases import NewDatabase
from tests.support.processes import new_process

queries = usual.items.queries
NEW = NOTES.new.load({"text": "new", "completed": False})
# PostgreSQL makes so many plans for single calls before it looks for one for all.
FIRST_CALLS = 5


async def call_all(sizes: list[int]) -> list[tuple[str, int, int]]:
    """Calls each hot operation with these sizes in turn, many times; gives plans by statement."""
    for size in sizes * FIRST_CALLS * 3:
        for descending in (False, True):
            for completed in (None, True):
                await queries.list_page(Selection(descending, (completed,)), limit=size)
                await queries.list_page(Selection(descending, (completed,)), after=3, limit=size)
                pages = [(number, size) for number in range(min(size, MAX_SHARED))] + [(0, 9)]
                await queries.list_pages(Selection(descending, (completed,)), pages)
        await queries.get(range(size))
        await queries.get([size])
        await queries.insert([NEW] * min(size, 20))
        await queries.update(size, NEW)
        await queries.delete(-size)
    plans = "SELECT statement, generic_plans, custom_plans FROM pg_prepared_statements"
    return [tuple(row) for row in await use("read", lambda raw: raw.fetch(plans))]


async def fill(url: str, count: int) -> None:
    connection: Any = await asyncpg.connect(url)
    # It would let the server plan again, at any time.
    await connection.execute("ALTER TABLE notes SET (autovacuum_enabled = false)")
    await connection.execute(
        "INSERT INTO notes (text, completed) SELECT 'Note ' || to_char(i, 'FM0000000'), i % 2 = 0"
        f" FROM generate_series(1, {count}) AS i"
    )
    await connection.execute("ANALYZE notes")
    await connection.close()


@pytest.mark.parametrize("count", [5, 1_000, 200_000])
@pytest.mark.parametrize("sizes", [[1, 2, 1000], [1000, 2, 1]], ids=["rising", "falling"])
def test_hot_statements_keep_one_plan(
    new_database: NewDatabase, monkeypatch: pytest.MonkeyPatch, count: int, sizes: list[int]
) -> None:
    """A hot statement is planned for its first calls only, whatever these ask for."""
    url = new_database("postgresql")
    asyncio.run(fill(url, count))
    monkeypatch.setenv("DATABASE_URL", url)
    monkeypatch.setenv("DATABASE_POOL_MAX", "1")
    with new_process() as run:
        plans = run(call_all, sizes)
    hot = [plan for plan in plans if "notes" in plan[0]]
    assert len(hot) >= 13
    for statement, generic, custom in hot:
        assert (custom, generic > FIRST_CALLS) == (FIRST_CALLS, True), statement


async def search(times: int) -> tuple[list[tuple[int, int]], set[int]]:
    """Searches on one connection, also as if memory were scarce. Gives plans and sessions."""
    sessions = set()
    for number in range(1, times + 1):
        selection = Selection(q=f"note {number:07}")
        page = await queries.list_page(selection)
        short = await queries.list_short(selection, None, 9)
        assert short is not None
        for rows, more in (page, short):
            assert ([row["id"] for row in rows], more) == ([number], False)
        sessions.add(await use("read", lambda raw: raw.fetchval("SELECT pg_backend_pid()")))
    plans = "SELECT generic_plans, custom_plans FROM pg_prepared_statements WHERE statement ~ $1"
    found = await use("read", lambda raw: raw.fetch(plans, "FROM notes"))
    return [tuple(row) for row in found], sessions


def test_searches_are_planned_for_their_text(
    new_database: NewDatabase, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A search never has the plan for any text, and takes one statement."""
    url = new_database("postgresql")
    asyncio.run(fill(url, 1_000))
    monkeypatch.setenv("DATABASE_URL", url)
    monkeypatch.setenv("DATABASE_POOL_MAX", "1")
    with new_process() as run:
        plans, sessions = run(search, FIRST_CALLS + 3)
    assert plans == [(0, 1)]
    assert len(sessions) == 1


async def search_on_all(count: int, number: int = 0) -> None:
    """Searches on each of so many connections, all in use at the same time."""
    if number == count:
        return
    values = {"after": 0, "limit": 5, "q": "note"}

    async def work(raw: Any) -> None:
        assert await queries._page(False, (None,), True, BOUNDS).run(raw, values)
        await search_on_all(count, number + 1)

    await use("read", work)


async def search_and_alter(count: int) -> None:
    await search_on_all(count)
    alter = "ALTER TABLE notes ALTER COLUMN text TYPE text"
    await use("write", lambda raw: raw.execute(alter))
    await search_on_all(count)


def test_searches_on_an_altered_table_are_planned_again(
    new_database: NewDatabase, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each connection notices at its next search that a column has another type."""
    url = new_database("postgresql")
    asyncio.run(fill(url, 5))
    monkeypatch.setenv("DATABASE_URL", url)
    with new_process() as run:
        run(search_and_alter, settings.DATABASE_POOL_MAX)
