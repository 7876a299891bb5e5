"""PostgreSQL, through encode/databases and asyncpg."""

import asyncio
import math
import time
from asyncio import CancelledError
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any
from typing import cast as as_type

import asyncpg
from asyncpg.prepared_stmt import PreparedStatement
from databases import Database
from databases.core import Connection
from sqlalchemy import (
    ARRAY,
    ClauseElement,
    Column,
    ColumnElement,
    Integer,
    Select,
    String,
    Table,
    bindparam,
    cast,
    collate,
    column,
    func,
    literal_column,
    select,
    true,
)
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.dialects.postgresql.asyncpg import PGDialect_asyncpg
from sqlalchemy.engine import Dialect
from sqlalchemy.types import TypeEngine

from service import settings
from service.database import returning
from service.database.compiling import compile_statement
from service.database.connecting import (
    COMMITS_SAFELY,
    WRITABLE,
    EncodingIsNotUTF8,
    NoWritableHost,
    Session,
    check_kind,
    connect,
)
from service.database.operations import Lane, Operation, PageBounds, Result, slots_of_server
from service.tables import Row

UNAVAILABLE: tuple[type[Exception], ...] = (
    OSError,  # includes TimeoutError
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
# A table changed after the statement was prepared, or the server became read-only, or it rolled the
# transaction back because of another one.
OUT_OF_DATE: tuple[type[Exception], ...] = (
    asyncpg.DeadlockDetectedError,
    asyncpg.InvalidCachedStatementError,
    asyncpg.ReadOnlySQLTransactionError,
    asyncpg.SerializationError,
)
CONFLICT: tuple[type[Exception], ...] = (asyncpg.IntegrityConstraintViolationError,)
REJECTED: tuple[type[Exception], ...] = (
    *CONFLICT,
    asyncpg.DataError,
    asyncpg.ProgramLimitExceededError,  # too long for an index
    asyncpg.RaiseError,  # a trigger's
)
# The server is gone, or takes no writes any more.
SERVER_LOST: tuple[type[Exception], ...] = (
    *CONNECTION_LOST,
    asyncpg.ReadOnlySQLTransactionError,
)
NO_WRITES: tuple[type[Exception], ...] = (
    NoWritableHost,
    asyncpg.TargetServerAttributeNotMatched,
    asyncpg.ReadOnlySQLTransactionError,
)
# Through PgBouncer the session may be of other defaults, so each transaction sets what it needs, in
# the same message.
BEGIN = (
    "BEGIN"
    if settings.DATABASE_STATEMENT_CACHE
    else "BEGIN ISOLATION LEVEL READ COMMITTED;" + COMMITS_SAFELY.format(is_local="true")
)

_DIALECT: Dialect = PGDialect_asyncpg()  # type: ignore[no-untyped-call]

# Whether the URL asks for a server that takes writes, or leaves that open.
_WRITES = settings.DATABASE_ARGUMENTS.get("target_session_attrs") not in (
    *("standby", "prefer-standby", "read-only"),
)

# PgBouncer keeps its clients when its server ends and begins again as a standby. So with one
# beside each of several servers, reads ask at times what they read from.
_KIND = settings.DATABASE_ARGUMENTS.get("target_session_attrs", "any")
_ASKS = _KIND in WRITABLE and not settings.DATABASE_STATEMENT_CACHE
ASK_SECONDS = 1

CANCEL_SECONDS = 1
IDLE_SECONDS = 60
EXPIRE_SECONDS = 1
# PostgreSQL plans so many first uses of a prepared statement for their values. Later it may reuse
# one plan for any values (its documentation of PREPARE).
PLANNED_USES = 5


class RightMissing(asyncpg.InsufficientPrivilegeError):
    """The role may not write."""


def state(error: BaseException | None) -> str:
    match error:
        case asyncpg.UndefinedTableError() | asyncpg.UndefinedColumnError():
            return "is not migrated"
        case RightMissing():
            return "denies a right that writes need"
        case asyncpg.DiskFullError():
            return "has no space left"
        case EncodingIsNotUTF8():
            return "can't store UTF-8"
    if _WRITES and isinstance(error, NO_WRITES):
        return "takes no writes"
    return "is unavailable"


def file() -> Path | None:
    return None


class _Connection(Session):
    """A connection that can fetch with a plan for the given values."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        # For each SQL a statement, and how often it was used.
        self.planned: dict[str, tuple[PreparedStatement[Any], int]] = {}
        # The statements hold the connection: a reference cycle.
        self.add_termination_listener(lambda _: self.planned.clear())

    async def fetch_planned(self, sql: str, *values: Any) -> list[asyncpg.Record]:
        # It is put back after its use only, so one that failed is never used again.
        statement, uses = self.planned.pop(sql, (None, 0))
        if statement is None:
            statement = await self.prepare(sql)
        try:
            rows = await statement.fetch(*values)
        except asyncpg.InvalidCachedStatementError:
            if uses == 0:
                raise
            # A table was altered after the statement was prepared.
            return await self.fetch_planned(sql, *values)
        if uses + 1 < PLANNED_USES:
            self.planned[sql] = statement, uses + 1
        return rows


async def _keep_session(connection: _Connection) -> None:
    """Replaces asyncpg's reset query, which costs a round trip at every release.

    This is safe because no code here changes a session: no SET, LISTEN, advisory lock or cursor.
    It forgets the planned statements, which asyncpg would refuse after the release.
    """
    connection.planned.clear()


def _options() -> dict[str, Any]:
    # The server ends slow statements itself. PgBouncer refuses these parameters, and a cache size
    # of 0 means PgBouncer.
    milliseconds = str(round(settings.DATABASE_STATEMENT_TIMEOUT * 1000))
    own = {"statement_timeout": milliseconds, "default_transaction_isolation": "read committed"}
    limits = own if settings.DATABASE_STATEMENT_CACHE else {}
    return {
        "connect": connect,
        "connection_class": _Connection,
        # The pool opens no connection at the start, so the service starts without the database.
        "min_size": 0,
        "max_size": settings.DATABASE_POOL_MAX,
        "timeout": settings.DATABASE_CONNECT_TIMEOUT,
        # One second later than the server's own timeout, for a server that hangs.
        "command_timeout": settings.DATABASE_STATEMENT_TIMEOUT + 1,
        "statement_cache_size": settings.DATABASE_STATEMENT_CACHE,
        "server_settings": settings.DATABASE_SERVER_SETTINGS | limits,
        "ssl": settings.DATABASE_SSL,
        **settings.DATABASE_ARGUMENTS,
        "reset": _keep_session,
    }


class Pool:
    """An asyncpg pool, and a list of idle connections in front of it.

    The list exists because a release to the pool and an acquire cost as much as a statement.
    """

    def __init__(self) -> None:
        self._database = Database(settings.DATABASE_URL, **_options())
        self.slots = slots_of_server(settings.DATABASE_POOL_MAX)
        self._idle: list[Connection] = []
        # A connection is not reused if the generation changed while it was in use.
        self._generation = 0
        self._expired_at = -math.inf
        self._asked_at = -math.inf
        # While closing, connections go back to the pool, because the pool waits for them.
        self._is_closing = False

    async def open(self) -> None:
        await self._database.connect()
        self._renewing = asyncio.create_task(self._renew_idle())

    async def close(self) -> None:
        """Waits for the connections in use. If cancelled, asyncpg terminates them."""
        self._renewing.cancel()
        self._is_closing = True
        await self._release_idle()
        await self._database.disconnect()

    async def use(self, lane: Lane, work: Callable[[Any], Awaitable[Result]]) -> Result:
        generation = self._generation
        connection = await self._take()
        raw = connection.raw_connection
        try:
            if _ASKS and lane != "write":
                await self._ask(raw)
            return await work(raw)
        except (TimeoutError, CancelledError) as error:
            # A slow search says nothing about the server.
            if isinstance(error, TimeoutError) and lane != "search":
                await self._expire()
            # asyncpg has sent a cancel request. `close` waits for it, but the server may hang.
            with suppress(*UNAVAILABLE):
                await raw.close(timeout=CANCEL_SECONDS)
            raise
        except SERVER_LOST:
            await self._expire()
            raise
        finally:
            if generation != self._generation:
                _terminate(connection)
            if _is_usable(connection) and not self._is_closing:
                self._idle.append(connection)
            else:
                await connection.__aexit__()

    async def _ask(self, raw: Any) -> None:
        now = time.monotonic()
        if now - self._asked_at >= ASK_SECONDS:
            self._asked_at = now
            await check_kind(raw, _KIND)

    async def _take(self) -> Connection:
        while True:
            while self._idle:
                connection = self._idle.pop()
                if _is_usable(connection):
                    return connection
                await connection.__aexit__()
            # encode/databases has one connection for each task. Also, if the caller is cancelled
            # now, the new connection is not lost.
            opened = await asyncio.create_task(self._add_idle())
            if opened.raw_connection.is_closed():
                raise asyncpg.ConnectionDoesNotExistError("it ended as soon as it was open")

    async def _add_idle(self) -> Connection:
        try:
            opened = await self._database.connection().__aenter__()
        except asyncpg.PostgresError as error:
            if isinstance(error, UNAVAILABLE):
                raise
            # The server refuses an option of the URL.
            raise asyncpg.CannotConnectNowError(str(error)) from error
        self._idle.append(opened)
        return opened

    async def _release_idle(self) -> None:
        while self._idle:
            with suppress(*UNAVAILABLE):
                await self._idle.pop().__aexit__()

    async def _renew_idle(self) -> None:
        """Returns idle connections to the pool, which closes old ones."""
        while True:
            await asyncio.sleep(IDLE_SECONDS)
            await self._release_idle()

    async def _expire(self) -> None:
        """Closes all connections: idle ones now, the others after their current use.

        They may lead to a server that is gone or hangs, or to the former primary, now read-only and
        stale. Reads there never fail. This runs at most once in EXPIRE_SECONDS: if the server stays
        read-only, reads still need connections.
        """
        now = time.monotonic()
        if now - self._expired_at < EXPIRE_SECONDS:
            return
        self._expired_at = now
        self._generation += 1
        for idle in self._idle:
            _terminate(idle)
        pool: asyncpg.Pool[Any] = as_type("Any", self._database)._backend._pool
        await pool.expire_connections()


def connections() -> Pool:
    return Pool()


def _is_usable(connection: Connection) -> bool:
    raw = connection.raw_connection
    try:
        return not (raw.is_closed() or raw.is_in_transaction())
    except asyncpg.InterfaceError:
        # The pool has already released it.
        return False


def _terminate(connection: Connection) -> None:
    """Closes a connection without waiting for the server, which may hang."""
    # The pool may have released a lost connection already.
    with suppress(asyncpg.InterfaceError):
        connection.raw_connection.terminate()


async def roll_back(raw: Any, error: BaseException) -> None:
    # After a timeout or a cancellation `Pool.use` closes the connection.
    if not isinstance(error, TimeoutError | CancelledError):
        with suppress(*UNAVAILABLE):
            await raw.execute("ROLLBACK")


def prepare(statement: ClauseElement, searches: bool = False) -> Operation:
    sql, names, constants, lane = compile_statement(statement, _DIALECT)[:4]

    async def run(raw: Any, values: Mapping[str, Any]) -> Sequence[Row]:
        given = {**constants, **values}
        return as_type("Sequence[Row]", await raw.fetch(sql, *[given[name] for name in names]))

    async def write(raw: Any, values: Mapping[str, Any]) -> Sequence[Row]:
        if raw.is_in_transaction() or not raw.lacks_defaults:
            return await run(raw, values)
        try:
            await raw.execute(BEGIN)
            rows = await run(raw, values)
            await raw.execute("COMMIT")
            return rows
        except BaseException as error:
            await roll_back(raw, error)
            raise

    async def plan_and_run(raw: Any, values: Mapping[str, Any]) -> Sequence[Row]:
        given = {**constants, **values}
        found = await raw.fetch_planned(sql, *[given[name] for name in names])
        return as_type("Sequence[Row]", found)

    if searches:
        return Operation("search", plan_and_run if settings.DATABASE_STATEMENT_CACHE else run)
    return Operation(lane, write if lane == "write" else run)


# Rights on columns are enough for the service, and so is either right on the sequence of the ids.
MAY_WRITE = """
has_any_column_privilege('{0}', 'SELECT') AND has_any_column_privilege('{0}', 'INSERT')
AND has_any_column_privilege('{0}', 'UPDATE') AND has_table_privilege('{0}', 'DELETE')
AND NOT EXISTS (
    SELECT FROM pg_attrdef
    JOIN pg_depend ON pg_depend.classid = 'pg_attrdef'::regclass
        AND pg_depend.objid = pg_attrdef.oid AND pg_depend.refclassid = 'pg_class'::regclass
    JOIN pg_class ON pg_class.oid = pg_depend.refobjid
    WHERE pg_attrdef.adrelid = '{0}'::regclass AND CASE pg_class.relkind
        WHEN 'S' THEN NOT has_sequence_privilege(pg_class.oid, 'USAGE, UPDATE') END
)
"""


def prepare_on_writable(query: Select[Any], tables: Sequence[Table]) -> Operation:
    if not _WRITES:
        return prepare(query)
    read_only = func.current_setting("transaction_read_only") == "on"
    may_write: ColumnElement[bool] = literal_column(
        " AND ".join(MAY_WRITE.format(table.name) for table in tables)
    )
    checked = prepare(query.add_columns(read_only.label("read_only"), may_write.label("may_write")))

    async def run(raw: Any, values: Mapping[str, Any]) -> Sequence[Row]:
        rows = await checked.run(raw, values)
        if any(row["read_only"] for row in rows):
            raise asyncpg.ReadOnlySQLTransactionError("the server takes no writes")
        if not all(row["may_write"] for row in rows):
            raise RightMissing("the role may not write")
        return rows

    return Operation(checked.lane, run)


def insert_many(
    table: Table, names: Sequence[str], columns: Sequence[ColumnElement[Any]]
) -> Operation:
    arrays = [_parameter(name, ARRAY(table.c[name].type)) for name in names]
    unnest = func.unnest(*arrays)
    new = unnest.table_valued(*names, with_ordinality="position", name="new").render_derived()
    rows = select(*(new.c[name] for name in names)).order_by(new.c.position)
    insert_arrays = prepare(table.insert().from_select(list(names), rows).returning(*columns))
    row = {name: bindparam(name, type_=table.c[name].type) for name in names}
    insert_one = prepare(table.insert().values(row).returning(*columns))

    async def run(raw: Any, values: Mapping[str, Any]) -> Sequence[Row]:
        if len(values["rows"]) == 1:
            return await insert_one.run(raw, values["rows"][0])
        arrays = {name: [row[name] for row in values["rows"]] for name in names}
        return await insert_arrays.run(raw, arrays)

    return Operation("write", run)


insert_or_replace = partial(returning.insert_or_replace, prepare, insert)
update = partial(returning.update, prepare)
delete = partial(returning.delete, prepare)


def _parameter(name: str, type_: TypeEngine[Any]) -> ColumnElement[Any]:
    # PostgreSQL can't see the value when it plans. So a plan for these values never looks better
    # than the one for any, and after five calls PostgreSQL keeps that and plans no more.
    return select(bindparam(name, type_=type_)).scalar_subquery()


# PostgreSQL knows the length of a large text without reading the text.
page = partial(returning.page, prepare, _parameter, func.octet_length)


def pages(
    query: Select[Any], key: Column[Any], large: Column[Any], bounds: PageBounds, descending: bool
) -> Operation:
    arrays = [_parameter("afters", ARRAY(key.type)), _parameter("limits", ARRAY(Integer()))]
    wanted = func.unnest(*arrays).table_valued(
        column("after", key.type), column("most", Integer()), with_ordinality="page", name="wanted"
    )
    wanted = wanted.render_derived()
    rows = returning.bounded(
        func.octet_length,
        query,
        key,
        large,
        bounds,
        descending,
        wanted.c.after,
        wanted.c.most,
        wanted,
    ).lateral("found")
    found = rows.c[key.name]
    last = query.with_only_columns((func.min if descending else func.max)(key))
    every = select(*rows.c, wanted.c.page, last.scalar_subquery().label("last"))
    every = every.select_from(wanted.outerjoin(rows, true()))
    return prepare(every.order_by(wanted.c.page, found.desc() if descending else found))


def is_one_of(column: Column[Any], name: str) -> ColumnElement[bool]:
    return column == func.any(cast(_parameter(name, ARRAY(column.type)), ARRAY(column.type)))


def contains(text: Column[Any], folded: Column[Any], name: str) -> ColumnElement[bool]:
    pattern: ColumnElement[str] = bindparam(name, type_=String)
    for special in ("\\", "%", "_"):
        pattern = func.replace(pattern, special, "\\" + special, type_=String)
    # The index for searches, which a migration makes, has the same expression.
    searched = func.coalesce(folded, func.lower(collate(text, "C")))
    return searched.like("%" + pattern + "%")


def shown(column: Column[Any]) -> ColumnElement[Any]:
    return column


def compared(column: Column[Any]) -> ColumnElement[Any]:
    return column
