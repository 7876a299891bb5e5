"""The one database: its options, its statements, and what its drivers raise in trouble."""

import asyncio
import sqlite3
from asyncio import CancelledError
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Sequence
from contextlib import asynccontextmanager, suppress
from functools import partial
from typing import Any, NamedTuple, Protocol, cast

import aiosqlite
import asyncpg
import orjson
from databases import Database
from databases.core import Connection
from sqlalchemy import ARRAY, ClauseElement, Column, ColumnElement, bindparam, func, select
from sqlalchemy.dialects import postgresql, sqlite
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
IDLE_SECONDS = 60


class Row(Protocol):
    """A row of either driver; columns are taken by name."""

    def __getitem__(self, name: str, /) -> Any: ...


class DatabaseUnavailable(Exception):
    """The database is away, full or slow; the statement may or may not have been carried out."""

    is_logged = False

    def reason(self) -> str:
        """What is the matter, in a sentence without details."""
        cause = self.__cause__
        missing = isinstance(cause, asyncpg.UndefinedTableError | asyncpg.UndefinedColumnError)
        if missing or "no such" in str(cause):
            return f"The database is not migrated: {type(cause).__name__}"
        return f"The database is unavailable: {type(cause).__name__}"


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
        # A server that answers ends statements itself, a moment before.
        "command_timeout": settings.DATABASE_STATEMENT_TIMEOUT + 1,
        "statement_cache_size": settings.DATABASE_STATEMENT_CACHE,
        "server_settings": limits,
        "ssl": settings.DATABASE_SSL,
        "reset": _keep,
    }


database = Database(settings.DATABASE_URL, **_options(settings.DATABASE_URL))
DIALECT = database.url.dialect


# What a statement waits for before it gets a connection, by whether it writes: encode/databases
# itself waits without end for a connection of an exhausted pool. A connection to SQLite serves one
# at a time too; who waited too long would be carried out, after its caller was told that it failed,
# if it stood in the queue of the connection's thread.
_turns: dict[bool, asyncio.Semaphore] = {}

# Connections to PostgreSQL that no statement uses. To give one back to asyncpg's pool and take it
# out again takes as long as a statement.
_idle: list[Connection] = []

# At the end connections go back to the pool, which waits for them.
_is_closing = False

# The connections to SQLite, one for reads and one for writes, so that nobody reads behind a writer
# that waits; encode/databases would open a file and start a thread for each statement.
_files: dict[bool, aiosqlite.Connection] = {}


@asynccontextmanager
async def connected() -> AsyncIterator[None]:
    """Opens the database for the life of the service, and closes it within bounded time."""
    global _is_closing
    _is_closing = False
    await database.connect()
    if DIALECT == "sqlite":
        for writes in (False, True):
            await asyncio.create_task(_open())
            _files[writes] = _idle.pop().raw_connection
            _files[writes].row_factory = sqlite3.Row
            _turns[writes] = asyncio.Semaphore(1)
    else:
        _turns[False] = _turns[True] = asyncio.Semaphore(settings.DATABASE_POOL_MAX)
    idling = asyncio.create_task(_give_back_idle())
    try:
        yield
    finally:
        idling.cancel()
        _is_closing = True
        # What is left of the time between SIGTERM and SIGKILL; asyncpg then closes by force.
        with suppress(TimeoutError):
            async with asyncio.timeout(CLOSE_SECONDS):
                for file in _files.values():
                    await file.interrupt()
                    await file.close()
                _files.clear()
                await _give_back()
                await database.disconnect()


async def _open() -> None:
    """Adds a connection to the idle ones, where it isn't lost if its caller is cancelled just then.

    Runs as a task of its own, as encode/databases has one connection for each task.
    """
    _idle.append(await database.connection().__aenter__())


async def _take() -> Connection:
    while True:
        while _idle:
            connection = _idle.pop()
            if _is_usable(connection):
                return connection
            await connection.__aexit__()
        await asyncio.create_task(_open())


def _is_usable(connection: Connection) -> bool:
    raw = connection.raw_connection
    try:
        return not (raw.is_closed() or raw.is_in_transaction())
    except asyncpg.InterfaceError:
        # The pool has noticed already.
        return False


async def _give_back() -> None:
    while _idle:
        with suppress(*TROUBLE):
            await _idle.pop().__aexit__()


async def _give_back_idle() -> None:
    """Lets the pool close and replace connections, as it does those that it has for some time."""
    while True:
        await asyncio.sleep(IDLE_SECONDS)
        await _give_back()


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


# INSERT with the clauses that both databases have and the standard has not.
insert = sqlite.insert if DIALECT == "sqlite" else postgresql.insert


def is_one_of(column: Column[Any], name: str) -> ColumnElement[bool]:
    """Whether the column has one of the values that `listed` gives for the parameter."""
    if DIALECT == "sqlite":
        values = func.json_each(bindparam(name)).table_valued("value")
        return column.in_(select(values.c.value))
    return column == func.any(bindparam(name, type_=ARRAY(column.type)))


def listed(values: Iterable[int | str]) -> str | list[int | str]:
    """Values for `is_one_of`, any number of them in a statement of constant text."""
    found = list(values)
    return orjson.dumps(found).decode() if DIALECT == "sqlite" else found


Run = Callable[..., Awaitable[Sequence[Row]]]


async def fetch(statement: Statement, **values: Any) -> Sequence[Row]:
    """Runs a prepared statement, in a transaction of its own, and gives its rows.

    Raises DatabaseUnavailable, within bounded time. A read whose connection was lost is tried once
    more; a write never is, as it may have been carried out.
    """
    may_retry = not statement.writes
    while True:
        try:
            async with _connection(statement.writes) as raw:
                return await _run(raw, statement, **values)
        except TROUBLE as error:
            if not (may_retry and isinstance(error, LOST)):
                raise DatabaseUnavailable(str(error)) from error
            may_retry = False


@asynccontextmanager
async def transaction() -> AsyncIterator[Run]:
    """Gives a function like `fetch` whose statements are carried out all or not at all."""
    try:
        async with _connection(writes=True) as raw:
            try:
                await raw.execute("BEGIN IMMEDIATE" if DIALECT == "sqlite" else "BEGIN")
                yield partial(_run, raw)
                await raw.execute("COMMIT")
            except BaseException as error:
                # A connection to PostgreSQL is closed in these cases, which does as well.
                if DIALECT == "sqlite" or not isinstance(error, TimeoutError | CancelledError):
                    with suppress(*TROUBLE):
                        await raw.execute("ROLLBACK")
                raise
    except TROUBLE as error:
        raise DatabaseUnavailable(str(error)) from error


@asynccontextmanager
async def _connection(writes: bool) -> AsyncIterator[Any]:
    """A connection as the driver has it, waited for and used for bounded times."""
    turns = _turns[writes]
    if turns.locked():
        with metrics.waiting.track_inprogress():
            async with asyncio.timeout(settings.DATABASE_POOL_TIMEOUT):
                await turns.acquire()
    else:
        await turns.acquire()
    metrics.in_use.inc()
    try:
        if DIALECT == "sqlite":
            yield _files[writes]
            return
        connection = await _take()
        raw = connection.raw_connection
        try:
            yield raw
        except (TimeoutError, CancelledError):
            # The server may hang, and never take the cancellation of what it has begun.
            with suppress(*TROUBLE):
                await raw.close(timeout=CANCEL_SECONDS)
            raise
        finally:
            if _is_usable(connection) and not _is_closing:
                _idle.append(connection)
            else:
                await connection.__aexit__()
    finally:
        metrics.in_use.dec()
        turns.release()


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
    except (TimeoutError, CancelledError):
        await raw.interrupt()
        await asyncio.wait([running])
        running.exception()
        raise
