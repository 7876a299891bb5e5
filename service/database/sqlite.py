"""SQLite, through encode/databases and aiosqlite."""

import asyncio
import sqlite3
import threading
from asyncio import CancelledError
from collections.abc import Awaitable, Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from traceback import clear_frames
from typing import Any, cast, get_args

import aiosqlite
import databases.backends.sqlite  # noqa: F401 - a later import fails when no file descriptors are left
import orjson
from databases import Database, DatabaseURL
from sqlalchemy import (
    Boolean,
    ClauseElement,
    Column,
    ColumnElement,
    LargeBinary,
    Select,
    String,
    Table,
    TypeDecorator,
    bindparam,
    func,
    select,
)
from sqlalchemy import cast as sql_cast
from sqlalchemy.dialects.sqlite import insert
from sqlalchemy.dialects.sqlite.aiosqlite import SQLiteDialect_aiosqlite
from sqlalchemy.types import TypeEngine

from service import settings
from service.database import returning
from service.database.compiling import compile_statement
from service.database.operations import Lane, Operation, PageBounds, Result
from service.tables import Row

UNAVAILABLE: tuple[type[Exception], ...] = (OSError, sqlite3.OperationalError)
CONNECTION_LOST: tuple[type[Exception], ...] = ()
OUT_OF_DATE: tuple[type[Exception], ...] = ()
BEGIN = "BEGIN IMMEDIATE"

THREAD_SECONDS = 5
INTERRUPT_SECONDS = 0.1

_DIALECT = SQLiteDialect_aiosqlite()


def is_not_migrated(error: BaseException | None) -> bool:
    return "no such" in str(error)


def takes_no_writes(error: BaseException | None) -> bool:
    return False


def file() -> Path | None:
    return Path(DatabaseURL(settings.DATABASE_URL).database)


def decode(stored: bytes | None) -> str | None:
    """A text with U+FFFD for bytes of other programs that are not UTF-8."""
    return None if stored is None else stored.decode("utf-8", "replace")


class Connections:
    """One connection for each lane, so that reads never wait for writes or searches.

    encode/databases would open the file and start a thread for each statement.
    """

    def __init__(self) -> None:
        # `timeout`: seconds to wait for another writer.
        self._database = Database(
            settings.DATABASE_URL, timeout=settings.DATABASE_STATEMENT_TIMEOUT
        )
        # One statement at a time. In the thread's queue a statement would still run after its
        # caller timed out.
        self.slots: dict[Lane, list[asyncio.Semaphore]] = {
            lane: [asyncio.Semaphore(1)] for lane in get_args(Lane)
        }
        self._connections: dict[Lane, aiosqlite.Connection] = {}

    async def open(self) -> None:
        """Raises sqlite3.DatabaseError for an unusable file."""
        await self._database.connect()
        for lane in get_args(Lane):
            # encode/databases has one connection for each task.
            opened = await asyncio.create_task(self._open())
            self._connections[lane] = opened
            opened.row_factory = sqlite3.Row
            if lane == "write":
                # A read runs again if its rows are not UTF-8. A write must not run twice.
                opened.text_factory = decode
                await opened.create_function("decode", 1, decode)
            await _check(opened)

    async def _open(self) -> aiosqlite.Connection:
        others = threading.enumerate()
        try:
            connection = await self._database.connection().__aenter__()
        except sqlite3.Error:
            # aiosqlite doesn't wait for its thread, and the thread still uses the event loop.
            for thread in set(threading.enumerate()).difference(others):
                thread.join(THREAD_SECONDS)
            raise
        return cast("aiosqlite.Connection", connection.raw_connection)

    async def close(self) -> None:
        for connection in self._connections.values():
            await connection.interrupt()
            await connection.close()
        await self._database.disconnect()

    async def use(self, lane: Lane, work: Callable[[Any], Awaitable[Result]]) -> Result:
        return await work(self._connections[lane])


def connections() -> Connections:
    return Connections()


async def _check(raw: aiosqlite.Connection) -> None:
    """Raises an error for an unusable file. Opening the file doesn't read it."""
    try:
        await raw.execute_fetchall("PRAGMA schema_version")
    except sqlite3.OperationalError as error:
        if error.sqlite_errorcode & 0xFF != sqlite3.SQLITE_BUSY:
            raise


async def roll_back(raw: Any, error: BaseException) -> None:
    try:
        await raw.execute("ROLLBACK")
    except UNAVAILABLE as refused:
        # aiosqlite's frames hold the error: a cycle, which would keep the callers' frames too.
        refused.with_traceback(None)


def prepare(statement: ClauseElement, searches: bool = False) -> Operation:
    compiled = compile_statement(statement, _DIALECT)
    sql, names, constants, lane = compiled[:4]
    # For types that SQLite lacks, such as dates.
    to_database = {
        name: use for name, kind in compiled.parameters.items() if (use := _writer(kind))
    }
    from_database = {name: use for name, kind in compiled.columns.items() if (use := _reader(kind))}

    async def run(raw: aiosqlite.Connection, values: Mapping[str, Any]) -> Sequence[Row]:
        given = {**constants, **values}
        for name, convert in to_database.items():
            given[name] = convert(given[name])
        rows = await _run_in_thread(raw, sql, [given[name] for name in names])
        if from_database:
            return [_convert(row, from_database) for row in rows]
        return rows

    return Operation("search" if searches else lane, run)


def _writer(kind: TypeEngine[Any]) -> Callable[[Any], Any] | None:
    """Converts a value for SQLite; None if the driver does it."""
    if isinstance(kind, Boolean):
        return None
    return kind.dialect_impl(_DIALECT).bind_processor(_DIALECT)


def _reader(kind: TypeEngine[Any]) -> Callable[[Any], Any] | None:
    # The schemas convert booleans anyway.
    if isinstance(kind, Boolean):
        return None
    return kind.dialect_impl(_DIALECT).result_processor(_DIALECT, None)


def _convert(row: Any, conversions: Mapping[str, Callable[[Any], Any]]) -> dict[str, Any]:
    return dict(row) | {name: convert(row[name]) for name, convert in conversions.items()}


async def _run_in_thread(
    raw: aiosqlite.Connection, sql: str, arguments: list[Any]
) -> Sequence[Any]:
    """Runs a statement. At a timeout or a cancellation, interrupts it and waits for its end."""
    running = asyncio.ensure_future(raw.execute_fetchall(sql, arguments))
    try:
        async with asyncio.timeout(settings.DATABASE_STATEMENT_TIMEOUT):
            return cast("Sequence[Any]", await asyncio.shield(running))
    except sqlite3.OperationalError as error:
        # Python's default decoding is faster, so `decode` is used only after it failed.
        if raw.text_factory is decode or "decode to UTF-8" not in str(error):
            raise
        # The frames hold the cursor, and an open cursor keeps an old snapshot of the database.
        clear_frames(error.__traceback__)
    except sqlite3.IntegrityError as error:
        # The message of the trigger `notes_last_id`.
        if "no ids are left" in str(error):
            raise sqlite3.OperationalError(str(error)) from None
        raise
    except (TimeoutError, CancelledError):
        # An interrupt before the thread has begun the statement does nothing.
        while not running.done():
            await raw.interrupt()
            await asyncio.wait([running], timeout=INTERRUPT_SECONDS)
        if interrupted := running.exception():
            # aiosqlite's frames hold the future: a reference cycle.
            interrupted.with_traceback(None)
        raise
    raw.text_factory = decode
    return await _run_in_thread(raw, sql, arguments)


def prepare_on_writable(query: Select[Any]) -> Operation:
    return prepare(query)


def insert_many(
    table: Table, names: Sequence[str], columns: Sequence[ColumnElement[Any]]
) -> Operation:
    writers = {name: use for name in names if (use := _writer(table.c[name].type))}
    new = func.json_each(bindparam("rows")).table_valued("key", "value", name="new")
    values = [func.json_extract(new.c.value, f"$.{name}") for name in names]
    insert_json = prepare(
        table.insert()
        .from_select(list(names), select(*values).order_by(new.c.key))
        .returning(*columns)
    )

    async def run(raw: aiosqlite.Connection, values: Mapping[str, Any]) -> Sequence[Row]:
        rows = values["rows"]
        if writers:
            rows = [
                {**row, **{name: write(row[name]) for name, write in writers.items()}}
                for row in rows
            ]
        return await insert_json.run(raw, {"rows": orjson.dumps(rows).decode()})

    return Operation("write", run)


insert_or_replace = partial(returning.insert_or_replace, prepare, insert)
update = partial(returning.update, prepare)
delete = partial(returning.delete, prepare)


def _parameter(name: str, type_: TypeEngine[Any]) -> ColumnElement[Any]:
    return bindparam(name, type_=type_)


def _bytes(text: ColumnElement[Any]) -> ColumnElement[Any]:
    return func.length(sql_cast(text, LargeBinary))


page = partial(returning.page, prepare, _parameter, _bytes)


def pages(
    query: Select[Any], key: Column[Any], large: Column[Any], bounds: PageBounds, descending: bool
) -> Operation | None:
    """None: a subquery can't use columns of the outer query in its LIMIT."""
    return None


class _List(TypeDecorator[list[Any]]):
    """A list as JSON, for json_each."""

    impl = String
    cache_ok = True

    def process_bind_param(self, value: list[Any] | None, dialect: Any) -> str:
        return orjson.dumps(value).decode()


def is_one_of(column: Column[Any], name: str) -> ColumnElement[bool]:
    values = func.json_each(bindparam(name, type_=_List())).table_valued("value")
    return column.in_(select(values.c.value))


def contains(text: Column[Any], folded: Column[Any], name: str) -> ColumnElement[bool]:
    return func.instr(func.coalesce(folded, func.lower(text)), bindparam(name)) > 0


def shown(column: Column[Any]) -> ColumnElement[Any]:
    """Converts bytes that another program stored to a text."""
    if isinstance(column.type, String):
        return sql_cast(column, String).label(column.name)
    return column


def compared(column: Column[Any]) -> ColumnElement[Any]:
    """Decodes bytes as `shown` does; SQLite never finds bytes equal to a text."""
    if isinstance(column.type, String):
        return func.decode(sql_cast(column, LargeBinary), type_=String)
    return column
