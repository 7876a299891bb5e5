"""The one database: its options, its statements, and what its drivers raise in trouble."""

import asyncio
import sqlite3
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from functools import partial
from typing import Any, NamedTuple, Protocol, cast

import aiosqlite
import asyncpg
from databases import Database
from databases.core import Connection
from sqlalchemy import ClauseElement
from sqlalchemy.dialects.postgresql.asyncpg import PGDialect_asyncpg
from sqlalchemy.dialects.sqlite.aiosqlite import SQLiteDialect_aiosqlite
from sqlalchemy.engine import Dialect
from sqlalchemy.sql.compiler import SQLCompiler

from service import settings

# What the drivers raise when the database is away, full, slow, refusing or not migrated. Everything
# else is a defect of this service and stays an error 500.
TROUBLE = (
    OSError,  # its subclass TimeoutError too
    asyncpg.InterfaceError,
    asyncpg.InternalClientError,
    asyncpg.PostgresConnectionError,
    asyncpg.InsufficientResourcesError,
    asyncpg.InvalidAuthorizationSpecificationError,
    asyncpg.InvalidCatalogNameError,
    asyncpg.ObjectNotInPrerequisiteStateError,
    asyncpg.OperatorInterventionError,
    asyncpg.PostgresSystemError,
    asyncpg.ReadOnlySQLTransactionError,
    asyncpg.TransactionRollbackError,
    asyncpg.UndefinedTableError,
    sqlite3.OperationalError,
)

CLOSE_SECONDS = 5


class Row(Protocol):
    """A row of either driver; columns are taken by name."""

    def __getitem__(self, name: str, /) -> Any: ...


class DatabaseUnavailable(Exception):
    """The database is away, full or slow; the statement may or may not have been carried out."""


async def _keep(connection: Any) -> None:
    """Stands in for asyncpg's reset query, a round trip at every release.

    Nothing here changes a session's state: no SET, LISTEN, advisory lock or open cursor.
    """


def _options(url: str) -> dict[str, Any]:
    if url.startswith("sqlite"):
        # Seconds to wait for another writer.
        return {"timeout": settings.DATABASE_TIMEOUT}
    return {
        # No connection is opened at the start, so the service starts while the database is away.
        "min_size": 0,
        "max_size": settings.DATABASE_POOL_MAX,
        "ssl": settings.DATABASE_SSL,
        "reset": _keep,
    }


database = Database(settings.DATABASE_URL, **_options(settings.DATABASE_URL))
DIALECT = database.url.dialect

# The connections that all statements on SQLite go through, by whether they write, so that nobody
# reads behind a writer that waits: encode/databases would open a file and start a thread for each
# statement. Empty on PostgreSQL, where the pool serves.
_sqlite: dict[bool, aiosqlite.Connection] = {}


@asynccontextmanager
async def connected() -> AsyncIterator[None]:
    """Opens the database for the life of the service, and closes it within bounded time."""
    async with AsyncExitStack() as stack:
        await database.connect()
        stack.push_async_callback(_disconnect)
        if DIALECT == "sqlite":
            for writes in (False, True):
                connection = await asyncio.create_task(_open())
                stack.push_async_exit(connection)
                _sqlite[writes] = connection.raw_connection
                _sqlite[writes].row_factory = sqlite3.Row
        yield


async def _open() -> Connection:
    """A connection of its own: encode/databases gives each task another one."""
    return await database.connection().__aenter__()


async def _disconnect() -> None:
    # What is left of the time between SIGTERM and SIGKILL; asyncpg then closes by force.
    with suppress(TimeoutError):
        async with asyncio.timeout(CLOSE_SECONDS):
            await database.disconnect()


class Statement(NamedTuple):
    """A statement's SQL, and the names of its parameters in the order of their places."""

    sql: str
    names: list[str]
    values: dict[str, Any]
    writes: bool
    plan_anew: bool


def prepare(statement: ClauseElement, plan_anew: bool = False) -> Statement:
    """Compiles a statement once, for `fetch`; encode/databases does so at every call.

    `plan_anew` is for statements whose best plan depends on the parameters: PostgreSQL keeps one
    plan for all of a prepared statement's calls otherwise.
    """
    dialect: type[Dialect] = SQLiteDialect_aiosqlite if DIALECT == "sqlite" else PGDialect_asyncpg
    compiled = statement.compile(dialect=dialect())
    assert isinstance(compiled, SQLCompiler)
    return Statement(
        compiled.string,
        list(compiled.positiontup or []),
        dict(compiled.params),
        compiled.isinsert or compiled.isupdate or compiled.isdelete,
        plan_anew,
    )


Run = Callable[..., Awaitable[Sequence[Row]]]


async def fetch(statement: Statement, **values: Any) -> Sequence[Row]:
    """Runs a prepared statement, in a transaction of its own, and gives its rows.

    Raises DatabaseUnavailable, within bounded time.
    """
    async with _available():
        if _sqlite:
            return await _run(_sqlite[statement.writes], statement, **values)
        async with database.connection() as connection:
            return await _run(connection.raw_connection, statement, **values)


@asynccontextmanager
async def transaction() -> AsyncIterator[Run]:
    """Gives a function like `fetch` whose statements are carried out all or not at all."""
    async with _available(), database.connection() as connection:
        raw = connection.raw_connection
        if DIALECT == "sqlite":
            raw.row_factory = sqlite3.Row
            # The connection is this task's own; closing it rolls back what isn't committed.
            await raw.execute_fetchall("BEGIN IMMEDIATE")
            yield partial(_run, raw)
            await raw.execute_fetchall("COMMIT")
        else:
            async with raw.transaction():
                yield partial(_run, raw)


async def _run(raw: Any, statement: Statement, **values: Any) -> Sequence[Row]:
    values = statement.values | values
    arguments = [values[name] for name in statement.names]
    if DIALECT == "sqlite":
        rows = await raw.execute_fetchall(statement.sql, arguments)
    elif statement.plan_anew:
        rows = await (await raw.prepare(statement.sql)).fetch(*arguments)
    else:
        rows = await raw.fetch(statement.sql, *arguments)
    return cast("Sequence[Row]", rows)


@asynccontextmanager
async def _available() -> AsyncIterator[None]:
    """Turns what the drivers raise for trouble into DatabaseUnavailable, within bounded time."""
    try:
        # encode/databases itself waits without end for a connection of an exhausted pool.
        async with asyncio.timeout(settings.DATABASE_TIMEOUT):
            yield
    except TROUBLE as error:
        raise DatabaseUnavailable(str(error)) from error
