"""The one database: its options, its statements, and what its drivers raise in trouble."""

import asyncio
import sqlite3
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager, contextmanager, suppress
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

from service import metrics, settings

# What the drivers raise when the database is away, full, slow, refusing or not migrated. Everything
# else is a defect of this service and stays an error 500.
TROUBLE = (
    OSError,  # its subclass TimeoutError too
    asyncpg.InterfaceError,
    asyncpg.InternalClientError,
    asyncpg.PostgresConnectionError,
    asyncpg.InsufficientPrivilegeError,
    asyncpg.InsufficientResourcesError,
    asyncpg.InvalidAuthorizationSpecificationError,
    asyncpg.InvalidCatalogNameError,
    asyncpg.ObjectNotInPrerequisiteStateError,
    asyncpg.OperatorInterventionError,
    asyncpg.PostgresSystemError,
    asyncpg.ReadOnlySQLTransactionError,
    asyncpg.TransactionRollbackError,
    asyncpg.UndefinedColumnError,
    asyncpg.UndefinedTableError,
    sqlite3.OperationalError,
)

# A connection that was lost, as after a restart of the server.
LOST = (
    ConnectionError,
    asyncpg.InterfaceError,
    asyncpg.InternalClientError,
    asyncpg.PostgresConnectionError,
    asyncpg.AdminShutdownError,
    asyncpg.CrashShutdownError,
)

CLOSE_SECONDS = 5
CANCEL_SECONDS = 1


class Row(Protocol):
    """A row of either driver; columns are taken by name."""

    def __getitem__(self, name: str, /) -> Any: ...


class DatabaseUnavailable(Exception):
    """The database is away, full or slow; the statement may or may not have been carried out."""

    is_logged = False


async def _keep(connection: Any) -> None:
    """Stands in for asyncpg's reset query, a round trip at every release.

    Nothing here changes a session's state: no SET, LISTEN, advisory lock or open cursor.
    """


def _options(url: str) -> dict[str, Any]:
    if url.startswith("sqlite"):
        # Seconds to wait for another writer.
        return {"timeout": settings.DATABASE_STATEMENT_TIMEOUT}
    # The server ends a statement itself, so that nothing of it is left. PgBouncer, where no
    # statements are kept, lets no connection say so.
    milliseconds = str(round(settings.DATABASE_STATEMENT_TIMEOUT * 1000))
    limits = {"statement_timeout": milliseconds} if settings.DATABASE_STATEMENT_CACHE else {}
    return {
        # No connection is opened at the start, so the service starts while the database is away.
        "min_size": 0,
        "max_size": settings.DATABASE_POOL_MAX,
        "timeout": settings.DATABASE_CONNECT_TIMEOUT,
        "statement_cache_size": settings.DATABASE_STATEMENT_CACHE,
        "server_settings": limits,
        "ssl": settings.DATABASE_SSL,
        "reset": _keep,
    }


database = Database(settings.DATABASE_URL, **_options(settings.DATABASE_URL))
DIALECT = database.url.dialect


class Lane(NamedTuple):
    """A connection to SQLite, for one statement or transaction at a time.

    Who waits too long for the lock is never queued behind the lock's holder, in a thread that
    would carry the statement out after its caller was told that it failed.
    """

    connection: aiosqlite.Connection
    lock: asyncio.Lock


# What all statements on SQLite go through, by whether they write, so that nobody reads behind a
# writer that waits: encode/databases would open a file and start a thread for each statement.
# Empty on PostgreSQL, where the pool serves.
_lanes: dict[bool, Lane] = {}


@asynccontextmanager
async def connected() -> AsyncIterator[None]:
    """Opens the database for the life of the service, and closes it within bounded time."""
    await database.connect()
    if DIALECT == "sqlite":
        connections = [await asyncio.create_task(_open()) for _ in range(2)]
        for writes, connection in enumerate(connections):
            raw = connection.raw_connection
            raw.row_factory = sqlite3.Row
            _lanes[bool(writes)] = Lane(raw, asyncio.Lock())
    try:
        yield
    finally:
        # What is left of the time between SIGTERM and SIGKILL; asyncpg then closes by force.
        with suppress(TimeoutError):
            async with asyncio.timeout(CLOSE_SECONDS):
                for lane in _lanes.values():
                    await lane.connection.interrupt()
                    await lane.connection.close()
                _lanes.clear()
                await database.disconnect()


async def _open() -> Connection:
    """A connection of its own: encode/databases gives each task another one."""
    return await database.connection().__aenter__()


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

    Raises DatabaseUnavailable, within bounded time. A read whose connection was lost is tried once
    more; a write never is, as it may have been carried out.
    """
    with _trouble():
        try:
            async with _connection(statement.writes) as raw:
                return await _run(raw, statement, **values)
        except LOST:
            if statement.writes:
                raise
            async with _connection(statement.writes) as raw:
                return await _run(raw, statement, **values)


@asynccontextmanager
async def transaction() -> AsyncIterator[Run]:
    """Gives a function like `fetch` whose statements are carried out all or not at all."""
    with _trouble():
        async with _connection(writes=True) as raw:
            try:
                await raw.execute("BEGIN IMMEDIATE" if DIALECT == "sqlite" else "BEGIN")
                yield partial(_run, raw)
                await raw.execute("COMMIT")
            except BaseException as error:
                # A connection to PostgreSQL is closed when this is cancelled, which does as well.
                if DIALECT == "sqlite" or isinstance(error, Exception):
                    with suppress(*TROUBLE):
                        await raw.execute("ROLLBACK")
                raise


def _connection(writes: bool) -> AbstractAsyncContextManager[Any]:
    """A connection as the driver has it, waited for and used for bounded times."""
    return _lane(writes) if DIALECT == "sqlite" else _pooled()


@asynccontextmanager
async def _lane(writes: bool) -> AsyncIterator[Any]:
    lane = _lanes[writes]
    with metrics.waiting.track_inprogress():
        async with asyncio.timeout(settings.DATABASE_POOL_TIMEOUT):
            await lane.lock.acquire()
    try:
        with metrics.in_use.track_inprogress():
            yield lane.connection
    finally:
        lane.lock.release()


@asynccontextmanager
async def _pooled() -> AsyncIterator[Any]:
    with metrics.waiting.track_inprogress():
        # encode/databases itself waits without end for a connection of an exhausted pool.
        async with asyncio.timeout(settings.DATABASE_POOL_TIMEOUT):
            connection = await database.connection().__aenter__()
    raw = connection.raw_connection
    try:
        with metrics.in_use.track_inprogress():
            # A server that answers ends statements itself, a moment before.
            async with asyncio.timeout(settings.DATABASE_STATEMENT_TIMEOUT + 1):
                yield raw
    except (TimeoutError, asyncio.CancelledError):
        # The release would wait without end for a server that hangs to take the cancellation.
        with suppress(*TROUBLE):
            await raw.close(timeout=CANCEL_SECONDS)
        raise
    finally:
        await connection.__aexit__()


async def _run(raw: Any, statement: Statement, **values: Any) -> Sequence[Row]:
    values = statement.values | values
    arguments = [values[name] for name in statement.names]
    if DIALECT == "sqlite":
        rows = await _run_in_thread(raw, statement.sql, arguments)
    elif statement.plan_anew and settings.DATABASE_STATEMENT_CACHE:
        rows = await (await raw.prepare(statement.sql)).fetch(*arguments)
    else:
        rows = await raw.fetch(statement.sql, *arguments)
    return cast("Sequence[Row]", rows)


async def _run_in_thread(raw: aiosqlite.Connection, sql: str, arguments: list[Any]) -> Any:
    """Runs a statement on SQLite; one that has no more time is interrupted and waited for."""
    running = asyncio.ensure_future(raw.execute_fetchall(sql, arguments))
    try:
        async with asyncio.timeout(settings.DATABASE_STATEMENT_TIMEOUT):
            return await asyncio.shield(running)
    except (TimeoutError, asyncio.CancelledError):
        await raw.interrupt()
        await asyncio.wait([running])
        running.exception()
        raise


@contextmanager
def _trouble() -> Iterator[None]:
    """Turns what the drivers raise for trouble into DatabaseUnavailable."""
    try:
        yield
    except TROUBLE as error:
        raise DatabaseUnavailable(str(error)) from error
