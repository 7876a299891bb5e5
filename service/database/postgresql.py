"""PostgreSQL, through encode/databases and asyncpg."""

import asyncio
import math
import time
from asyncio import CancelledError
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any, cast

import asyncpg
from databases import Database
from databases.core import Connection
from sqlalchemy import (
    ARRAY,
    ClauseElement,
    Column,
    ColumnElement,
    String,
    Table,
    bindparam,
    collate,
    func,
    select,
)
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.dialects.postgresql.asyncpg import PGDialect_asyncpg
from sqlalchemy.engine import Dialect

from service import settings
from service.database import returning
from service.database.compiling import compile_statement
from service.database.operations import Lane, Operation, Result
from service.tables import Row

UNAVAILABLE: tuple[type[Exception], ...] = (
    OSError,  # its subclass TimeoutError too
    asyncpg.InterfaceError,
    asyncpg.InternalClientError,
    asyncpg.InvalidCachedStatementError,
    asyncpg.PostgresConnectionError,
    asyncpg.InsufficientPrivilegeError,
    asyncpg.InsufficientResourcesError,
    asyncpg.InvalidAuthorizationSpecificationError,
    asyncpg.InvalidCatalogNameError,
    asyncpg.ObjectNotInPrerequisiteStateError,
    asyncpg.OperatorInterventionError,
    asyncpg.PostgresSystemError,
    asyncpg.ReadOnlySQLTransactionError,
    asyncpg.SequenceGeneratorLimitExceededError,  # no ids are left
    asyncpg.TransactionRollbackError,
    asyncpg.UndefinedColumnError,
    asyncpg.UndefinedTableError,
)
CONNECTION_LOST: tuple[type[Exception], ...] = (
    ConnectionError,
    asyncpg.InterfaceError,
    asyncpg.InternalClientError,
    asyncpg.PostgresConnectionError,
    asyncpg.AdminShutdownError,
    asyncpg.CrashShutdownError,
)
# Since the statement was prepared a table has changed, or the server has become read-only.
OUT_OF_DATE: tuple[type[Exception], ...] = (
    asyncpg.InvalidCachedStatementError,
    asyncpg.ReadOnlySQLTransactionError,
)
BEGIN = "BEGIN"

_DIALECT: Dialect = PGDialect_asyncpg()  # type: ignore[no-untyped-call]

CANCEL_SECONDS = 1
IDLE_SECONDS = 60
EXPIRE_SECONDS = 1


def is_not_migrated(error: BaseException | None) -> bool:
    return isinstance(error, asyncpg.UndefinedTableError | asyncpg.UndefinedColumnError)


def file() -> Path | None:
    return None


async def _keep(connection: Any) -> None:
    """Stands in for asyncpg's reset query, a round trip at every release.

    Nothing here changes a session's state: no SET, LISTEN, advisory lock or open cursor.
    """


def _options() -> dict[str, Any]:
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
        "server_settings": settings.DATABASE_SERVER_SETTINGS | limits,
        "ssl": settings.DATABASE_SSL,
        **settings.DATABASE_ARGUMENTS,
        "reset": _keep,
    }


class Pool:
    """A pool of asyncpg, and before it the connections that no statement uses just now.

    To give a connection back to the pool and take it out again takes as long as a statement.
    """

    def __init__(self) -> None:
        self._database = Database(settings.DATABASE_URL, **_options())
        all_slots = asyncio.Semaphore(settings.DATABASE_POOL_MAX)
        searches = asyncio.Semaphore(max(1, settings.DATABASE_POOL_MAX // 2))
        self.slots: dict[Lane, list[asyncio.Semaphore]] = {
            "read": [all_slots],
            "write": [all_slots],
            "search": [searches, all_slots],
        }
        self._idle: list[Connection] = []
        # Connections that were taken out in another generation are not used any more.
        self._generation = 0
        self._expired_at = -math.inf
        # At the end connections go back to the pool, which waits for them.
        self._is_closing = False

    async def open(self) -> None:
        await self._database.connect()
        self._renewing = asyncio.create_task(self._renew_idle())

    async def close(self) -> None:
        """Waits for the connections that are in use; asyncpg closes by force when cancelled."""
        self._renewing.cancel()
        self._is_closing = True
        await self._give_back_idle()
        await self._database.disconnect()

    async def use(self, lane: Lane, work: Callable[[Any], Awaitable[Result]]) -> Result:
        generation = self._generation
        connection = await self._take()
        raw = connection.raw_connection
        try:
            return await work(raw)
        except asyncpg.ReadOnlySQLTransactionError:
            await self._expire()
            raise
        except (TimeoutError, CancelledError):
            # The server may hang, and never take the cancellation of what it has begun.
            with suppress(*UNAVAILABLE):
                await raw.close(timeout=CANCEL_SECONDS)
            raise
        finally:
            if generation != self._generation:
                _terminate(connection)
            if _is_usable(connection) and not self._is_closing:
                self._idle.append(connection)
            else:
                await connection.__aexit__()

    async def _take(self) -> Connection:
        while True:
            while self._idle:
                connection = self._idle.pop()
                if _is_usable(connection):
                    return connection
                await connection.__aexit__()
            # encode/databases has one connection for each task. And the new connection isn't lost
            # if the caller is cancelled just then.
            await asyncio.create_task(self._add_idle())

    async def _add_idle(self) -> None:
        try:
            opened = await self._database.connection().__aenter__()
        except asyncpg.PostgresError as error:
            if isinstance(error, UNAVAILABLE):
                raise
            # The server refuses what the options of its URL ask for.
            raise asyncpg.CannotConnectNowError(str(error)) from error
        self._idle.append(opened)

    async def _give_back_idle(self) -> None:
        while self._idle:
            with suppress(*UNAVAILABLE):
                await self._idle.pop().__aexit__()

    async def _renew_idle(self) -> None:
        """Lets the pool close and replace connections, as it does those that it has a while."""
        while True:
            await asyncio.sleep(IDLE_SECONDS)
            await self._give_back_idle()

    async def _expire(self) -> None:
        """Closes all connections: idle ones now, and those that are in use when they come back.

        After a failover they may lead to a server that is read-only now, and reads there would
        never fail. At most once a second, as a server may also stay read-only, and serve reads
        meanwhile.
        """
        now = time.monotonic()
        if now - self._expired_at < EXPIRE_SECONDS:
            return
        self._expired_at = now
        self._generation += 1
        for idle in self._idle:
            _terminate(idle)
        pool: asyncpg.Pool[Any] = cast("Any", self._database)._backend._pool
        await pool.expire_connections()


def connections() -> Pool:
    return Pool()


def _is_usable(connection: Connection) -> bool:
    raw = connection.raw_connection
    try:
        return not (raw.is_closed() or raw.is_in_transaction())
    except asyncpg.InterfaceError:
        # The pool has noticed already.
        return False


def _terminate(connection: Connection) -> None:
    """Closes a connection at once; asyncpg's pool would wait for a server that may hang."""
    # The pool may have noticed that it is lost.
    with suppress(asyncpg.InterfaceError):
        connection.raw_connection.terminate()


async def roll_back(raw: Any, error: BaseException) -> None:
    # The connection is closed in these cases, which does as well.
    if not isinstance(error, TimeoutError | CancelledError):
        with suppress(*UNAVAILABLE):
            await raw.execute("ROLLBACK")


def prepare(statement: ClauseElement, searches: bool = False) -> Operation:
    sql, names, constants, lane = compile_statement(statement, _DIALECT)[:4]

    async def run(raw: Any, values: Mapping[str, Any]) -> Sequence[Row]:
        given = {**constants, **values}
        return cast("Sequence[Row]", await raw.fetch(sql, *[given[name] for name in names]))

    async def plan_and_run(raw: Any, values: Mapping[str, Any]) -> Sequence[Row]:
        # PostgreSQL keeps one plan for all calls of a prepared statement otherwise.
        given = {**constants, **values}
        prepared = await raw.prepare(sql)
        return cast("Sequence[Row]", await prepared.fetch(*[given[name] for name in names]))

    if searches:
        return Operation("search", plan_and_run if settings.DATABASE_STATEMENT_CACHE else run)
    return Operation(lane, run)


def insert_many(
    table: Table, names: Sequence[str], columns: Sequence[ColumnElement[Any]]
) -> Operation:
    arrays = [bindparam(name, type_=ARRAY(table.c[name].type)) for name in names]
    unnest = func.unnest(*arrays)
    new = unnest.table_valued(*names, with_ordinality="position", name="new").render_derived()
    rows = select(*(new.c[name] for name in names)).order_by(new.c.position)
    insert_arrays = prepare(table.insert().from_select(list(names), rows).returning(*columns))

    async def run(raw: Any, values: Mapping[str, Any]) -> Sequence[Row]:
        arrays = {name: [row[name] for row in values["rows"]] for name in names}
        return await insert_arrays.run(raw, arrays)

    return Operation("write", run)


insert_or_replace = partial(returning.insert_or_replace, prepare, insert)
update = partial(returning.update, prepare)
delete = partial(returning.delete, prepare)
# The length of a large text is known without reading the text.
page = partial(returning.page, prepare, func.octet_length)


def is_one_of(column: Column[Any], name: str) -> ColumnElement[bool]:
    return column == func.any(bindparam(name, type_=ARRAY(column.type)))


def contains(text: Column[Any], folded: Column[Any], name: str) -> ColumnElement[bool]:
    pattern: ColumnElement[str] = bindparam(name, type_=String)
    for special in ("\\", "%", "_"):
        pattern = func.replace(pattern, special, "\\" + special, type_=String)
    # The index `notes_search` has this expression.
    searched = func.coalesce(folded, func.lower(collate(text, "C")))
    return searched.like("%" + pattern + "%")


def shown(column: Column[Any]) -> ColumnElement[Any]:
    return column


def compared(column: Column[Any]) -> ColumnElement[Any]:
    return column
