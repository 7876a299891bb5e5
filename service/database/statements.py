"""Statements: compiled once, run on either database, and within bounded time."""

import asyncio
import sqlite3
from asyncio import CancelledError
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from functools import partial
from traceback import clear_frames
from typing import Any, NamedTuple, TypeVar, cast

import aiosqlite
import orjson
from sqlalchemy import (
    ARRAY,
    Boolean,
    ClauseElement,
    Column,
    ColumnElement,
    Table,
    bindparam,
    func,
    select,
)
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.dialects.postgresql.asyncpg import PGDialect_asyncpg
from sqlalchemy.dialects.sqlite.aiosqlite import SQLiteDialect_aiosqlite
from sqlalchemy.engine import Dialect
from sqlalchemy.sql.compiler import SQLCompiler
from sqlalchemy.types import TypeEngine

from service import settings
from service.database.connections import DIALECT, connection, decode
from service.database.errors import LOST, REFUSED, TROUBLE, DatabaseUnavailable
from service.tables import Row

Result = TypeVar("Result")

_SQLITE = SQLiteDialect_aiosqlite()

# How often a statement or a transaction is begun, where each time the connection is out of date.
TRIES = 3


class Statement(NamedTuple):
    """A statement's SQL, and the names of its parameters in the order of their places."""

    sql: str
    names: list[str]
    values: dict[str, Any]
    writes: bool
    searches: bool
    # What SQLite needs for types that it has not, such as dates: by parameter, and by column.
    to_database: dict[str, Callable[[Any], Any]]
    from_database: dict[str, Callable[[Any], Any]]


def prepare(statement: ClauseElement, searches: bool = False) -> Statement:
    """Compiles a statement once, for `fetch`; encode/databases does so at every call.

    `searches` is for statements whose best plan depends on the parameters, and which may read every
    row. Each call is planned anew, where PostgreSQL keeps one plan for all of a prepared
    statement's calls otherwise; and they leave connections to the others.
    """
    dialect: type[Dialect] = SQLiteDialect_aiosqlite if DIALECT == "sqlite" else PGDialect_asyncpg
    compiled = statement.compile(dialect=dialect())
    assert isinstance(compiled, SQLCompiler)
    return Statement(
        compiled.string,
        list(compiled.positiontup or []),
        dict(compiled.params),
        compiled.isinsert or compiled.isupdate or compiled.isdelete,
        searches,
        *(_conversions(compiled) if DIALECT == "sqlite" else ({}, {})),
    )


Conversions = dict[str, Callable[[Any], Any]]


def _conversions(compiled: SQLCompiler) -> tuple[Conversions, Conversions]:
    parameters = {name: bind.type for name, bind in compiled.binds.items()}
    columns = {column.keyname: column.type for column in compiled._result_columns}
    return (
        {name: use for name, kind in parameters.items() if (use := _writer(kind))},
        {name: use for name, kind in columns.items() if (use := _reader(kind))},
    )


def _writer(kind: TypeEngine[Any]) -> Callable[[Any], Any] | None:
    """How SQLite keeps a value; None where the driver knows."""
    return None if isinstance(kind, Boolean) else kind.dialect_impl(_SQLITE).bind_processor(_SQLITE)


def _reader(kind: TypeEngine[Any]) -> Callable[[Any], Any] | None:
    # Booleans are left to the schemas, which are asked for every value anyway.
    return (
        None
        if isinstance(kind, Boolean)
        else kind.dialect_impl(_SQLITE).result_processor(_SQLITE, None)
    )


def to_json(table: Table, rows: Iterable[Mapping[str, Any]]) -> str:
    """Rows as JSON, with their values as SQLite keeps them."""
    writers = {column.name: use for column in table.c if (use := _writer(column.type))}
    if writers:
        rows = [
            {**row, **{name: write(row[name]) for name, write in writers.items() if name in row}}
            for row in rows
        ]
    return orjson.dumps(rows).decode()


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
    more; a write never is, as it may have been carried out. Either is run anew where the server
    refused it, as its connection was out of date.
    """
    tries = 0
    while True:
        tries += 1
        try:
            async with connection(statement.writes, statement.searches) as raw:
                return await _run(raw, statement, **values)
        except TROUBLE as error:
            again = isinstance(error, REFUSED) and tries < TRIES
            lost = isinstance(error, LOST) and tries == 1 and not statement.writes
            if not (again or lost):
                # The drivers' frames hold the error, and its traceback all frames up to this one.
                raise DatabaseUnavailable(str(error)) from error.with_traceback(None)


async def transact(work: Callable[[Run], Awaitable[Result]]) -> Result:
    """What `work` gives; its statements are carried out all or not at all.

    It is called with a function like `fetch`, and anew, in a fresh transaction, where a statement
    was refused as the connection was out of date. Raises DatabaseUnavailable.
    """
    tries = 0
    while True:
        tries += 1
        try:
            async with connection(writes=True) as raw:
                return await _transact(raw, work)
        except TROUBLE as error:
            if not (isinstance(error, REFUSED) and tries < TRIES):
                raise DatabaseUnavailable(str(error)) from error.with_traceback(None)


async def _transact(raw: Any, work: Callable[[Run], Awaitable[Result]]) -> Result:
    try:
        await raw.execute("BEGIN IMMEDIATE" if DIALECT == "sqlite" else "BEGIN")
        result = await work(partial(_run, raw))
        await raw.execute("COMMIT")
        return result
    except BaseException as error:
        # A connection to PostgreSQL is closed in these cases, which does as well.
        if DIALECT == "sqlite" or not isinstance(error, TimeoutError | CancelledError):
            with suppress(*TROUBLE):
                await raw.execute("ROLLBACK")
        raise


async def _run(raw: Any, statement: Statement, **values: Any) -> Sequence[Row]:
    values = statement.values | values
    for name, convert in statement.to_database.items():
        values[name] = convert(values[name])
    arguments = [values[name] for name in statement.names]
    if DIALECT == "sqlite":
        rows = await _run_in_thread(raw, statement.sql, arguments)
        if statement.from_database:
            rows = [_convert(row, statement.from_database) for row in rows]
    elif statement.searches and settings.DATABASE_STATEMENT_CACHE:
        rows = await (await raw.prepare(statement.sql)).fetch(*arguments)
    else:
        rows = await raw.fetch(statement.sql, *arguments)
    return cast("Sequence[Row]", rows)


def _convert(row: Any, conversions: Conversions) -> dict[str, Any]:
    return dict(row) | {name: convert(row[name]) for name, convert in conversions.items()}


async def _run_in_thread(raw: aiosqlite.Connection, sql: str, arguments: list[Any]) -> Any:
    """Runs a statement on SQLite; one that has no more time is interrupted and waited for."""
    running = asyncio.ensure_future(raw.execute_fetchall(sql, arguments))
    try:
        async with asyncio.timeout(settings.DATABASE_STATEMENT_TIMEOUT):
            return await asyncio.shield(running)
    except sqlite3.OperationalError as error:
        # Python's own decoding is faster, so that another is used only where it has failed.
        if raw.text_factory is decode or "decode to UTF-8" not in str(error):
            raise
        # Its frames hold the cursor, which would keep the connection's view of the database.
        clear_frames(error.__traceback__)
    except sqlite3.IntegrityError as error:
        # The trigger `notes_last_id` says so.
        if "no ids are left" in str(error):
            raise sqlite3.OperationalError(str(error)) from None
        raise
    except (TimeoutError, CancelledError):
        await raw.interrupt()
        await asyncio.wait([running])
        if interrupted := running.exception():
            # aiosqlite's frames hold the future.
            interrupted.with_traceback(None)
        raise
    raw.text_factory = decode
    return await _run_in_thread(raw, sql, arguments)
