"""PostgreSQL, through encode/databases and asyncpg."""

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
from sqlalchemy import (
    ARRAY,
    ClauseElement,
    Column,
    ColumnElement,
    Integer,
    Select,
    String,
    Table,
    and_,
    bindparam,
    cast,
    collate,
    column,
    func,
    literal_column,
    or_,
    select,
    true,
)
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.dialects.postgresql.asyncpg import PGDialect_asyncpg
from sqlalchemy.engine import Dialect
from sqlalchemy.types import TypeEngine

from service import settings
from service.database import keysets, returning
from service.database.compiling import compile_later, lane_of
from service.database.connecting import (
    COMMITS_SAFELY,
    WRITABLE,
    EncodingIsNotUTF8,
    NoWritableHost,
    Session,
    check_kind,
    connect,
)
from service.database.operations import Lane, Operation, PageBounds, Result
from service.database.pool import Pool
from service.tables import Row


class SequenceBehind(Exception):
    """A sequence gave an id that is there: another program has stored it. It goes on behind it."""


UNAVAILABLE: tuple[type[Exception], ...] = (
    OSError,  # includes TimeoutError
    SequenceBehind,
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
DEADLOCK: tuple[type[Exception], ...] = (asyncpg.DeadlockDetectedError,)
# A table changed after the statement was prepared, or the server became read-only, or it rolled the
# transaction back because of another one, or the next id may be free.
OUT_OF_DATE: tuple[type[Exception], ...] = (
    SequenceBehind,
    *DEADLOCK,
    asyncpg.InvalidCachedStatementError,
    asyncpg.ReadOnlySQLTransactionError,
    asyncpg.SerializationError,
)
CONFLICT: tuple[type[Exception], ...] = (
    asyncpg.CheckViolationError,
    asyncpg.ExclusionViolationError,
    asyncpg.ForeignKeyViolationError,
    asyncpg.RestrictViolationError,
    asyncpg.UniqueViolationError,
)
REJECTED: tuple[type[Exception], ...] = (
    asyncpg.IntegrityConstraintViolationError,
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

CLOSE_SECONDS = 1
# PostgreSQL plans this number of uses of a prepared statement for their values. Later it may reuse
# one plan for any values (its documentation of PREPARE).
PLANNED_USES = 5
# The number of them that a connection keeps.
MAX_PLANNED = 50


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
    """A connection that can fetch with a plan for the given values.

    No code changes a session: no SET, LISTEN, advisory lock or cursor. So nothing is reset between
    two uses.
    """

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        # For each SQL a statement, and how often it was used.
        self.planned: dict[str, tuple[PreparedStatement[Any], int]] = {}
        # The statements hold the connection: a reference cycle.
        self.add_termination_listener(lambda _: self.planned.clear())

    @property
    def itself(self) -> "_Connection":
        """The connection, for those who have a proxy from asyncpg's pool."""
        return self

    def is_usable(self) -> bool:
        return not (self.is_closed() or self.is_in_transaction())

    def abort(self) -> None:
        self.terminate()

    async def end(self) -> None:
        with suppress(*UNAVAILABLE):
            await self.close(timeout=CLOSE_SECONDS)

    def forget_statements(self) -> None:
        """Prepares each statement again at its next use."""
        self.planned.clear()
        self._drop_global_statement_cache()  # type: ignore[attr-defined]

    # asyncpg has sent a cancel request, for which `close` waits; but the server may hang.
    kill = end

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
        if len(self.planned) > MAX_PLANNED:
            # It was used least recently. Clients may combine many orders and filters.
            del self.planned[next(iter(self.planned))]
        return rows


def _options() -> dict[str, Any]:
    # The server ends slow statements itself. PgBouncer refuses these parameters, and a cache size
    # of 0 means PgBouncer.
    milliseconds = str(round(settings.DATABASE_STATEMENT_TIMEOUT * 1000))
    own = {"statement_timeout": milliseconds, "default_transaction_isolation": "read committed"}
    limits = own if settings.DATABASE_STATEMENT_CACHE else {}
    return {
        "connect": connect,
        "connection_class": _Connection,
        "min_size": 0,
        "max_size": 1,
        "timeout": settings.DATABASE_CONNECT_TIMEOUT,
        # One second later than the server's own timeout, for a server that hangs.
        "command_timeout": settings.DATABASE_STATEMENT_TIMEOUT + 1,
        "statement_cache_size": settings.DATABASE_STATEMENT_CACHE,
        "server_settings": settings.DATABASE_SERVER_SETTINGS | limits,
        "ssl": settings.DATABASE_SSL,
        **settings.DATABASE_ARGUMENTS,
    }


async def open_session() -> _Connection:
    """Opens a connection. Raises the errors in UNAVAILABLE."""
    # asyncpg's pool, which encode/databases makes, has this one connection and never gets it back:
    # a release and an acquire cost as much as a statement.
    database = Database(settings.DATABASE_URL, **_options())
    try:
        await database.connect()
        connection = await database.connection().__aenter__()
    except asyncpg.PostgresError as error:
        if isinstance(error, UNAVAILABLE):
            raise
        # The server refuses an option of the URL.
        raise asyncpg.CannotConnectNowError(str(error)) from error
    return as_type("_Connection", as_type("Any", connection.raw_connection).itself)


class _AskingPool(Pool):
    """Asks at times what kind of server it reads from."""

    _asked_at = -math.inf

    async def use(self, lane: Lane, work: Callable[[Any], Awaitable[Result]]) -> Result:
        async def ask_and_work(raw: Any) -> Result:
            now = time.monotonic()
            if lane != "write" and now - self._asked_at >= ASK_SECONDS:
                self._asked_at = now
                await check_kind(raw, _KIND)
            return await work(raw)

        return await super().use(lane, ask_and_work)


class _PreparingPool(Pool):
    """Has all connections prepare their statements again, if one of them noticed an alteration.

    Otherwise a transaction could meet one connection after the other that hasn't noticed it.
    """

    async def use(self, lane: Lane, work: Callable[[Any], Awaitable[Result]]) -> Result:
        try:
            return await super().use(lane, work)
        except asyncpg.InvalidCachedStatementError:
            for session in (*self._idle, *self._used):
                as_type("_Connection", session).forget_statements()
            raise


def connections() -> Pool:
    return (_AskingPool if _ASKS else _PreparingPool)(open_session, SERVER_LOST)


async def roll_back(raw: Any, error: BaseException) -> None:
    # After a timeout or a cancellation `Pool.use` closes the connection.
    if not isinstance(error, TimeoutError | CancelledError):
        with suppress(*UNAVAILABLE):
            await raw.execute("ROLLBACK")


def prepare(statement: ClauseElement, searches: bool = False) -> Operation:
    lane = lane_of(statement)
    compiled = compile_later(statement, _DIALECT, lambda found: found[:3])

    async def run(raw: Any, values: Mapping[str, Any]) -> Sequence[Row]:
        sql, names, constants = compiled()
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
        sql, names, constants = compiled()
        given = {**constants, **values}
        found = await raw.fetch_planned(sql, *[given[name] for name in names])
        return as_type("Sequence[Row]", found)

    def text() -> str:
        return compiled()[0]

    if searches:
        return Operation("search", plan_and_run if settings.DATABASE_STATEMENT_CACHE else run, text)
    return Operation(lane, write if lane == "write" else run, text)


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

    return Operation(checked.lane, run, checked.text)


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
    (key,) = table.primary_key
    # As PostgreSQL names it.
    primary_key = table.primary_key.name or f"{table.name}_pkey"
    sequence = f"pg_get_serial_sequence('{table.name}', '{key.name}')"
    hint = f"SELECT setval({sequence}, max({key.name})) FROM {table.name}"  # noqa: S608 - no input

    async def run(raw: Any, values: Mapping[str, Any]) -> Sequence[Row]:
        try:
            return await insert_rows(raw, values)
        except asyncpg.UniqueViolationError as error:
            if error.constraint_name != primary_key:
                raise
        raise SequenceBehind(f"{table.name} has ids of another program; to go on: {hint}")

    async def insert_rows(raw: Any, values: Mapping[str, Any]) -> Sequence[Row]:
        if len(values["rows"]) == 1:
            return await insert_one.run(raw, values["rows"][0])
        arrays = {name: [row[name] for row in values["rows"]] for name in names}
        return await insert_arrays.run(raw, arrays)

    return Operation("write", run, insert_arrays.text)


insert_or_replace = partial(returning.insert_or_replace, prepare, insert)
update = partial(returning.update, prepare)
delete = partial(returning.delete, prepare)


def _parameter(name: str, type_: TypeEngine[Any]) -> ColumnElement[Any]:
    # PostgreSQL can't see the value when it plans. So a plan for these values never looks better
    # than the one for any, and after five calls PostgreSQL keeps that and plans no more.
    return select(bindparam(name, type_=type_)).scalar_subquery()


def page(
    query: Select[Any],
    key: Column[Any],
    large: Column[Any] | None,
    bounds: PageBounds,
    descending: bool,
    searches: bool,
) -> Operation:
    if searches and large is not None:
        return _searched_page(query, key, large, bounds, descending)
    # PostgreSQL knows the length of a large text without reading the text.
    length = func.octet_length
    return returning.page(
        prepare, _parameter, length, query, key, large, bounds, descending, searches
    )


def _searched_page(
    query: Select[Any], key: Column[Any], large: Column[Any], bounds: PageBounds, descending: bool
) -> Operation:
    """A search is planned for its values each time, so it is in its statement only once."""
    after, limit = bindparam("after", type_=key.type), bindparam("limit", type_=Integer())
    found = returning.behind(query, key, descending, after).limit(limit).subquery("found")
    order = found.c[key.name].desc() if descending else found.c[key.name]
    # The sum of NULLs alone is NULL. Another program may have stored them.
    length = func.coalesce(func.octet_length(found.c[large.name]), literal_column("0"))
    counted = select(
        *found.c,
        func.sum(length).over(order_by=order).label("_bytes"),
        func.row_number().over(order_by=order).label("_number"),
        func.lead(found.c[key.name]).over(order_by=order).is_not(None).label("_is_followed"),
    ).subquery("counted")
    rows = select(*(counted.c[column.name] for column in found.c), counted.c._is_followed)
    rows = rows.where(
        or_(counted.c._bytes <= bounds.max_bytes, counted.c._number <= bounds.short)
    ).order_by(counted.c[key.name].desc() if descending else counted.c[key.name])
    return prepare(rows, searches=True)._replace(tells_more=True)


sorted_page = partial(keysets.page, prepare, _parameter)


def pages(
    query: Select[Any],
    key: Column[Any],
    large: Column[Any] | None,
    bounds: PageBounds,
    descending: bool,
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


def is_owners(column: Column[Any], name: str) -> ColumnElement[bool]:
    value = _parameter(name, column.type)
    # If one value is that of most rows, PostgreSQL takes it for that of each call, and looks in the
    # index of the keys, where it would read all rows for another value. It takes bounds to be
    # narrow.
    return and_(column == value, column >= value, column <= value)


def contains(
    text: Column[Any], folded: Column[Any], name: str, indexed: bool = True
) -> ColumnElement[bool]:
    pattern: ColumnElement[str] = bindparam(name, type_=String)
    for special in ("\\", "%", "_"):
        pattern = func.replace(pattern, special, "\\" + special, type_=String)
    # The index for searches, which a migration makes, has the same expression.
    searched: ColumnElement[str] = func.coalesce(folded, func.lower(collate(text, "C")))
    if not indexed:
        searched = searched.op("||")(literal_column("''"))
    return searched.like("%" + pattern + "%")


def shown(column: Column[Any]) -> ColumnElement[Any]:
    return column


def compared(column: Column[Any]) -> ColumnElement[Any]:
    return column
