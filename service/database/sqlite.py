"""SQLite, through encode/databases and aiosqlite."""

import asyncio
import errno
import sqlite3
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any, NamedTuple

import aiosqlite
import orjson
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

from service.database import keysets, returning
from service.database.compiling import Compiled, compile_later, lane_of
from service.database.operations import Operation, PageBounds
from service.database.sqlite_connections import (
    Connections,
    ConstraintBroken,
    path,
    primary_code,
    run_statement,
)
from service.database.sqlite_file import Damaged, FileLost
from service.tables import Row

UNAVAILABLE: tuple[type[Exception], ...] = (OSError, sqlite3.OperationalError)
CONNECTION_LOST: tuple[type[Exception], ...] = ()
OUT_OF_DATE: tuple[type[Exception], ...] = ()
DEADLOCK: tuple[type[Exception], ...] = ()
CONFLICT: tuple[type[Exception], ...] = (ConstraintBroken,)
# A trigger's error is an IntegrityError, too.
REJECTED: tuple[type[Exception], ...] = (sqlite3.IntegrityError, sqlite3.DataError)
BEGIN = "BEGIN IMMEDIATE"

FULL = (errno.ENOSPC, errno.EDQUOT)
# What has to be free on the disk: room for a request of the usual maximum size.
SPACE_BYTES = 1_000_000

_DIALECT = SQLiteDialect_aiosqlite()


def state(error: BaseException | None) -> str:
    # "no such table", "no such column" and, of an INSERT, "table … has no column named …".
    if any(words in str(error) for words in ("no such", "has no column")):
        return "is not migrated"
    if isinstance(error, FileLost):
        return "file was moved, replaced or deleted"
    if isinstance(error, Damaged):
        return "file is damaged"
    if primary_code(error) == sqlite3.SQLITE_READONLY:
        return "takes no writes"
    full = isinstance(error, OSError) and error.errno in FULL
    if full or primary_code(error) == sqlite3.SQLITE_FULL:
        return "has no space left"
    return "is unavailable"


def file() -> Path | None:
    return path()


def connections() -> Connections:
    return Connections()


async def roll_back(raw: Any, error: BaseException | None = None) -> None:
    try:
        await raw.execute("ROLLBACK")
    except (OSError, sqlite3.DatabaseError) as refused:
        # aiosqlite's frames hold the error: a cycle, which would keep the callers' frames too.
        refused.with_traceback(None)


Conversions = Mapping[str, Callable[[Any], Any]]


class _Ready(NamedTuple):
    """SQL to run, with conversions for types that SQLite lacks, such as dates."""

    sql: str
    names: list[str]
    constants: dict[str, Any]
    to_database: Conversions
    from_database: Conversions


def _make_ready(compiled: Compiled) -> _Ready:
    parameters, columns = compiled.parameters.items(), compiled.columns.items()
    return _Ready(
        *compiled[:3],
        {name: use for name, kind in parameters if (use := _writer(kind))},
        {name: use for name, kind in columns if (use := _reader(kind))},
    )


def prepare(statement: ClauseElement, searches: bool = False) -> Operation:
    ready = compile_later(statement, _DIALECT, _make_ready)

    async def run(raw: aiosqlite.Connection, values: Mapping[str, Any]) -> Sequence[Row]:
        sql, names, constants, to_database, from_database = ready()
        given = {**constants, **values}
        for name, convert in to_database.items():
            given[name] = convert(given[name])
        rows = await run_statement(raw, sql, [given[name] for name in names])
        if from_database:
            return [_convert(row, from_database) for row in rows]
        return rows

    return Operation("search" if searches else lane_of(statement), run, lambda: ready().sql)


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


def _convert(row: Any, conversions: Conversions) -> dict[str, Any]:
    return dict(row) | {name: convert(row[name]) for name, convert in conversions.items()}


def prepare_on_writable(query: Select[Any], tables: Sequence[Table]) -> Operation:
    found = prepare(query)
    trials = []
    for table in tables:
        (key,) = table.primary_key
        last = key == select(func.max(key)).scalar_subquery()
        trials.append(prepare(table.update().values({key: key}).where(last)))

    async def run(raw: aiosqlite.Connection, values: Mapping[str, Any]) -> Sequence[Row]:
        await asyncio.to_thread(_take_space)
        try:
            await raw.execute(BEGIN)
            rows = await found.run(raw, values)
            for trial in trials:
                await trial.run(raw, {})
        finally:
            await roll_back(raw)
        return rows

    return Operation("write", run, found.text)


def _take_space() -> None:
    """Raises OSError if the disk is full. What SQLite rolls back never reaches the disk."""
    # SQLite itself needs no right to the folder while its files exist.
    with suppress(PermissionError), TemporaryFile(dir=path().parent) as trial:
        trial.write(bytes(SPACE_BYTES))


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

    return Operation("write", run, insert_json.text)


insert_or_replace = partial(returning.insert_or_replace, prepare, insert)
update = partial(returning.update, prepare)
delete = partial(returning.delete, prepare)


def _parameter(name: str, type_: TypeEngine[Any]) -> ColumnElement[Any]:
    return bindparam(name, type_=type_)


def _bytes(text: ColumnElement[Any]) -> ColumnElement[Any]:
    return func.length(sql_cast(text, LargeBinary))


page = partial(returning.page, prepare, _parameter, _bytes)
sorted_page = partial(keysets.page, prepare, _parameter)


def pages(
    query: Select[Any],
    key: Column[Any],
    large: Column[Any] | None,
    bounds: PageBounds,
    descending: bool,
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


def is_owners(column: Column[Any], name: str) -> ColumnElement[bool]:
    return column == bindparam(name, type_=column.type)


def contains(
    text: Column[Any], folded: Column[Any], name: str, indexed: bool = True
) -> ColumnElement[bool]:
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
