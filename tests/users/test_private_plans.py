"""Which rows the statements of ACCESS=private read, and the plans for them."""

from collections.abc import Iterator
from typing import Any, NamedTuple

import pytest

from service import settings
from service.database.connections import use
from service.notes.resource import NOTES, usual
from service.resources.orders import is_served
from service.resources.queries import MAX_SHARED, Selection
from service.tables import OWNER
from tests.database.test_plans import FIRST_CALLS
from tests.notes.test_search_index import create
from tests.support import databases
from tests.support.databases import NewDatabase, kind_of
from tests.support.debian import running_cluster
from tests.support.processes import Run, new_process

queries = usual.items.queries
NEW = NOTES.new.load({"text": "new", "completed": False})
BOB, ALICE, CAROL = 1, 2, 3
MANY, FEW = 50_000, 10


class Plans(NamedTuple):
    """Calls on a database where bob has many notes and alice few, of which its statistics know
    nothing."""

    database_url: str
    run: Run


@pytest.fixture(scope="module", params=["postgresql", "mysql", "pg_trgm"])
def plans(request: pytest.FixtureRequest, new_database: NewDatabase) -> Iterator[Plans]:
    with pytest.MonkeyPatch.context() as patch:
        if request.param == "pg_trgm":
            cluster = request.getfixturevalue("debian")
            url = create(cluster)
            databases.migrate(url)
        else:
            url = new_database(request.param)
        fill(url)
        patch.setenv("DATABASE_URL", url)
        patch.setenv("DATABASE_POOL_MAX", "1")
        patch.setenv("ACCESS", "private")
        with new_process() as run:
            yield Plans(url, run)


@pytest.fixture(scope="module")
def debian() -> Iterator[Any]:
    with running_cluster() as cluster:
        yield cluster


def fill(url: str) -> None:
    databases.fill(url, MANY, "a note")
    analyze = "ANALYZE TABLE notes" if kind_of(url) == "mysql" else "ANALYZE notes"
    alices = ", ".join([f"('a note', true, {ALICE})"] * FEW)
    databases.execute(
        url,
        f"UPDATE notes SET owner_id = {BOB}",
        analyze,
        f"INSERT INTO notes (text, completed, owner_id) VALUES {alices}",
    )


async def rows_read() -> int:
    """How many rows of notes this session has read."""
    if settings.DATABASE_URL.startswith("mysql"):
        sql = "SHOW SESSION STATUS LIKE 'Handler_read%'"
        answer = await use("read", lambda raw: raw.execute(sql))
        return sum(int(value) for _, value in answer.rows)
    await use("read", lambda raw: raw.fetch("SELECT pg_stat_force_next_flush()"))
    sql = "SELECT seq_tup_read + idx_tup_fetch FROM pg_stat_user_tables WHERE relname = 'notes'"
    return int(await use("read", lambda raw: raw.fetchval(sql)))


async def read_as_alice() -> dict[str, int]:
    """How many rows the last of many calls of each kind has read."""
    mine, _ = await queries.list_page(Selection(values=(None,), owner=ALICE))
    ids = [row["id"] for row in mine]
    assert len(ids) == FEW
    found = {}
    for name, q in (("list", ""), ("search", "note"), ("search for nothing", "none")):
        for descending in (False, True):
            for completed in (None, True, False):
                selection = Selection(descending, (completed,), q, ALICE)
                for _ in range(FIRST_CALLS + 2):
                    before = await rows_read()
                    await queries.list_page(selection, limit=100)
                found[f"{name} {descending} {completed}"] = await rows_read() - before
    every = Selection(values=(None,), owner=ALICE)
    for _ in range(FIRST_CALLS + 2):
        before = await rows_read()
        await queries.list_pages(every, [(ids[3], 4), (0, 4)])
        found["pages"] = await rows_read() - before
        before = await rows_read()
        assert await queries.count(every) == FEW
        found["count"] = await rows_read() - before
        before = await rows_read()
        assert len(await queries.get(range(1, 100), ALICE)) == 0
        assert len(await queries.get(ids, ALICE)) == FEW
        found["get"] = await rows_read() - before
    return found


def test_no_statement_reads_what_others_have(plans: Plans) -> None:
    """However many notes another user has, a user's listing, search or count reads their own."""
    found = plans.run(read_as_alice)
    assert len(found) == 21
    assert {name: rows for name, rows in found.items() if rows > 150} == {}


def test_indexes_serve_the_filters_of_an_owner() -> None:
    """Listings of a user's notes read in an index, with and without the filter."""
    for equal in ({OWNER}, {OWNER, "completed"}):
        assert is_served(NOTES.table, equal, set(), (("id", False),))


DEFINITIONS = {
    "sqlite": "SELECT sql FROM sqlite_master WHERE name LIKE 'notes_owner%'",
    "postgresql": "SELECT indexdef FROM pg_indexes WHERE indexname LIKE 'notes_owner%'",
}


@pytest.mark.parametrize("kind", DEFINITIONS)
def test_notes_without_an_owner_are_in_no_index_of_owners(
    new_database: NewDatabase, kind: str
) -> None:
    """An open service doesn't pay for these indexes, except on MySQL and MariaDB."""
    found = databases.fetch(new_database(kind), DEFINITIONS[kind])
    assert len(found) == 2
    assert all("owner_id IS NOT NULL" in definition for (definition,) in found)


async def call_all(sizes: list[int]) -> list[tuple[str, int, int]]:
    """Calls each hot operation for both users in turn, many times; gives plans by statement."""
    for size in sizes * FIRST_CALLS * 3:
        for owner in (BOB, ALICE):
            for completed in (None, True):
                of = Selection(False, (completed,), owner=owner)
                await queries.list_page(of, limit=size)
                await queries.list_pages(of, [(n, size) for n in range(min(size, MAX_SHARED))])
            await queries.get(range(size), owner)
            await queries.get([size], owner)
            await queries.insert([queries.created(NEW, owner)] * min(size, 20))
            await queries.update(size, NEW, owner=owner)
            await queries.delete(-size, owner=owner)
    plans = "SELECT statement, generic_plans, custom_plans FROM pg_prepared_statements"
    return [tuple(row) for row in await use("read", lambda raw: raw.fetch(plans))]


@pytest.mark.parametrize("plans", ["postgresql"], indirect=True)
def test_hot_statements_keep_one_plan(plans: Plans) -> None:
    """PostgreSQL plans a hot statement for its first calls only, whoever calls."""
    databases.execute(plans.database_url, "ALTER TABLE notes SET (autovacuum_enabled = false)")
    hot = [plan for plan in plans.run(call_all, [1, 2, 1000]) if "notes" in plan[0]]
    assert len(hot) >= 9
    for statement, generic, custom in hot:
        if "pg_stat" not in statement and "LIKE" not in statement and "count(" not in statement:
            assert (custom, generic > FIRST_CALLS) == (FIRST_CALLS, True), statement


async def search_as_carol() -> list[int]:
    """How many rows the search of a word reads that others have, and of one that nobody has."""
    found = []
    for word in ("needle", "nobody"):
        for _ in range(FIRST_CALLS + 2):
            before = await rows_read()
            rows, _ = await queries.list_page(Selection(values=(None,), q=word, owner=CAROL))
            assert not rows
        found.append(await rows_read() - before)
    return found


@pytest.mark.parametrize("plans", ["pg_trgm"], indirect=True)
def test_a_search_takes_no_time_for_what_others_have(plans: Plans) -> None:
    """A user's search reads as much, whether or not the notes of others contain the word."""
    databases.execute(
        plans.database_url,
        f"UPDATE notes SET text = 'a needle' WHERE id % 100 = 0 AND owner_id = {BOB}",
        "INSERT INTO notes (text, completed, owner_id)"
        f" SELECT 'a note', true, {CAROL} FROM generate_series(1, 20000)",
        "VACUUM ANALYZE notes",
    )
    found = plans.run(search_as_carol)
    assert found[0] == found[1] >= 20_000
