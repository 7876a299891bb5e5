"""MySQL and MariaDB, with the SQL that both document."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import nullcontext, suppress
from functools import partial
from operator import itemgetter
from pathlib import Path
from typing import Any, NamedTuple
from typing import cast as as_type

from asyncmy import errors
from sqlalchemy import (
    ClauseElement,
    Column,
    ColumnElement,
    Integer,
    LargeBinary,
    Select,
    String,
    Table,
    and_,
    bindparam,
    case,
    false,
    func,
    literal_column,
    null,
    select,
)
from sqlalchemy import cast as sql_cast
from sqlalchemy.dialects.mysql import insert
from sqlalchemy.dialects.mysql.asyncmy import MySQLDialect_asyncmy
from sqlalchemy.sql.visitors import iterate

from service.database import keysets, mysql_sessions
from service.database.compiling import Compiled, compile_later, lane_of
from service.database.mysql_sessions import PACKET_MARGIN, Answer, Refused, Session
from service.database.operations import Operation, PageBounds
from service.database.pool import Pool
from service.settings import ACCESS
from service.tables import OWNER, Row

UNAVAILABLE: tuple[type[Exception], ...] = (OSError, Refused)
CONNECTION_LOST: tuple[type[Exception], ...] = (ConnectionError, mysql_sessions.ConnectionLost)
# The server is gone, or takes no writes any more.
SERVER_LOST = (*CONNECTION_LOST, mysql_sessions.ReadOnly)
DEADLOCK: tuple[type[Exception], ...] = (mysql_sessions.Deadlock,)
# The transaction did not happen. There may be another server that is not read-only.
OUT_OF_DATE: tuple[type[Exception], ...] = (*DEADLOCK, mysql_sessions.ReadOnly)
CONFLICT: tuple[type[Exception], ...] = (mysql_sessions.ConstraintBroken,)
# Those that end a transaction, or may have stored something, are Refused.
REJECTED: tuple[type[Exception], ...] = (*CONFLICT, errors.MySQLError)
BEGIN = mysql_sessions.BEGIN

_DIALECT = MySQLDialect_asyncmy()

# JSON's readers read larger ids inexactly, and AUTO_INCREMENT can't end there.
MAX_ID = 2**53 - 1


def state(error: BaseException | None) -> str:
    match error:
        case mysql_sessions.NotMigrated():
            return "is not migrated"
        case mysql_sessions.ReadOnly():
            return "takes no writes"
        case mysql_sessions.CannotStoreUTF8():
            return "can't store UTF-8"
        case mysql_sessions.RightMissing():
            return "denies a right that writes need"
        case mysql_sessions.Full():
            return "has no space left"
    return "is unavailable"


def file() -> Path | None:
    return None


def connections() -> Pool:
    return Pool(mysql_sessions.open_session, SERVER_LOST, mysql_sessions.forget_tls)


async def roll_back(raw: Session, error: BaseException) -> None:
    with suppress(*UNAVAILABLE):
        await raw.roll_back()


Rows = Sequence[tuple[Any, ...]]


class _Ready(NamedTuple):
    """SQL to run, and a function that gives names to the columns of its rows.

    With `has_list` a value is a list, which needs as many places in the SQL as it has values.
    """

    sql: str
    names: list[str]
    constants: dict[str, Any]
    has_list: bool
    name_columns: Callable[[Rows], Sequence[Row]]


def _make_ready(compiled: Compiled) -> _Ready:
    sql, names, constants = compiled[:3]
    has_list = any(_place(name) in sql for name in names)
    return _Ready(sql, names, constants, has_list, _namer(compiled.columns))


def _later(statement: ClauseElement) -> Callable[[], _Ready]:
    return compile_later(statement, _DIALECT, _make_ready)


async def _execute(session: Session, ready: _Ready, values: Mapping[str, Any]) -> Answer:
    """Runs a statement with parameters by name."""
    given = {**ready.constants, **values}
    if not ready.has_list:
        return await session.execute(ready.sql, [given[name] for name in ready.names])
    text, arguments = ready.sql, []
    for name in ready.names:
        value = given[name]
        if isinstance(value, list):
            # Nothing is equal to NULL.
            value = _padded(value, value[-1] if value else None)
            text = text.replace(_place(name), ", ".join(["%s"] * len(value)))
            arguments += value
        else:
            arguments.append(value)
    return await session.execute(text, arguments)


def _place(name: str) -> str:
    """What SQLAlchemy writes in the place of a list."""
    return f"__[POSTCOMPILE_{name}]"


def _padded(values: list[Any], padding: Any) -> list[Any]:
    """The values and padding, up to a power of two: each length is a prepared statement."""
    length = 1 << max(len(values) - 1, 0).bit_length()
    return values + [padding] * (length - len(values))


def prepare(statement: ClauseElement, searches: bool = False) -> Operation:
    ready = _later(statement)

    async def run(session: Session, values: Mapping[str, Any]) -> Sequence[Row]:
        found = ready()
        return found.name_columns((await _execute(session, found, values)).rows)

    return Operation("search" if searches else lane_of(statement), run, lambda: ready().sql)


def _namer(names: Iterable[str]) -> Callable[[Rows], Sequence[Row]]:
    """A function that makes dictionaries of tuples. `dict(zip(…))` takes four times as long."""
    fields = {name: f"field_{place}" for place, name in enumerate(names)}
    if not fields:
        return lambda rows: []
    row = ", ".join(f"{name!r}: {field}" for name, field in fields.items())
    # The source contains only names of columns, and no input.
    made: Any = eval(f"lambda rows: [{{{row}}} for ({', '.join(fields.values())},) in rows]")  # noqa: S307
    return as_type("Callable[[Rows], Sequence[Row]]", made)


def _trials(table: Table) -> list[Callable[[], _Ready]]:
    """Explains writes. The server looks at the rights before, and does nothing afterwards."""
    # Nobody writes owners where nobody has users.
    unused = {table.autoincrement_column, table.c.get(OWNER) if ACCESS == "open" else None}
    columns = [column for column in table.c if column not in unused]
    none = select(*columns).where(false())
    writes = [
        table.insert().from_select([column.name for column in columns], none),
        table.update().values({column: column for column in columns}).where(false()),
        table.delete().where(false()),
    ]
    return [_later(write) for write in writes]


def prepare_on_writable(query: Select[Any], tables: Sequence[Table]) -> Operation:
    trials = [trial for table in tables for trial in _trials(table)]
    conditions = {"read_only": "@@read_only", "not_utf8": f"({mysql_sessions.NOT_UTF8})"}
    columns: list[ColumnElement[Any]] = [
        literal_column(sql).label(name) for name, sql in conditions.items()
    ]
    checked = prepare(query.add_columns(*columns))

    async def run(session: Session, values: Mapping[str, Any]) -> Sequence[Row]:
        rows = await checked.run(session, values)
        for row in rows:
            if row["not_utf8"]:
                raise mysql_sessions.CannotStoreUTF8(row["not_utf8"])
        # Newer servers tell it in words.
        if any(str(row["read_only"]) not in ("0", "OFF") for row in rows):
            raise mysql_sessions.ReadOnly("the server takes no writes")
        for trial in trials:
            await session.execute(f"EXPLAIN {trial().sql}")
        return rows

    return Operation(checked.lane, run, checked.text)


def insert_many(
    table: Table, names: Sequence[str], columns: Sequence[ColumnElement[Any]]
) -> Operation:
    (key,) = table.primary_key
    row = {name: bindparam(name, type_=table.c[name].type) for name in names}
    insert_one = _later(table.insert().values(row))
    delete = _later(table.delete().where(is_one_of(key, "ids")))
    read = prepare(select(*columns).where(is_one_of(key, "ids")))
    is_known = {column.name for column in columns} <= {key.name, *names}

    async def insert_rows(session: Session, rows: Sequence[Mapping[str, Any]]) -> list[int]:
        """Inserts rows, and returns their ids. Those of one statement are a series."""
        if len(rows) == 1:
            return [(await _execute(session, insert_one(), rows[0])).first_id]
        sql, order = insert_one()[:2]
        insert_into, _, one_row = sql.partition(" VALUES ")
        texts = [one_row % tuple(session.literal(row[name]) for name in order) for row in rows]
        packets = list(_packets(texts, session.max_packet - 2 * PACKET_MARGIN))
        ids: list[int] = []
        async with session.transaction() if len(packets) > 1 else nullcontext():
            for packet in packets:
                answer = await session.execute(f"{insert_into} VALUES {', '.join(packet)}")
                first, step = answer.first_id, session.id_step
                ids += range(first, first + step * len(packet), step)
        return ids

    async def run(session: Session, values: Mapping[str, Any]) -> Sequence[Row]:
        rows = values["rows"]
        ids = await insert_rows(session, rows)
        if ids[-1] > MAX_ID:
            await _execute(session, delete(), {"ids": ids})
            raise Refused("no ids are left")
        if is_known:
            return [{**row, key.name: new_id} for row, new_id in zip(rows, ids, strict=True)]
        return await read.run(session, {"ids": ids})

    return Operation("write", run, lambda: insert_one().sql)


def _packets(texts: Sequence[str], max_bytes: int) -> Iterator[list[str]]:
    """The texts, in lists of at most `max_bytes`, or of one text."""
    packet: list[str] = []
    size = 0
    for text in texts:
        length = len(text) if text.isascii() else len(text.encode())
        if packet and size + length > max_bytes:
            yield packet
            packet, size = [], 0
        packet.append(text)
        size += length + len(", ")
    yield packet


def insert_or_replace(
    table: Table,
    values: Mapping[str, Any],
    key: Column[Any],
    columns: Sequence[ColumnElement[Any]],
    replaceable: ColumnElement[bool] | None = None,
) -> Operation:
    new = insert(table).values(**values)
    if replaceable is None:
        # This changes nothing, but waits for the row's lock.
        new = new.on_duplicate_key_update({key.name: key})
    else:
        # Each assignment sees the ones before it, so what the condition reads comes last.
        read_last = {column.name for column in iterate(replaceable) if isinstance(column, Column)}
        assert len(read_last) == 1
        others = [name for name in values if name != key.name]
        others.sort(key=read_last.__contains__)
        new = new.on_duplicate_key_update(
            [(name, func.IF(replaceable, values[name], table.c[name])) for name in others]
        )
    change = _later(new)
    # The number of changed rows doesn't tell a new row from one that was kept.
    is_new = [table.c[name].is_not_distinct_from(value) for name, value in values.items()]
    read = prepare(select(*columns).where(*is_new))

    async def run(session: Session, given: Mapping[str, Any]) -> Sequence[Row]:
        async with session.transaction():
            await _execute(session, change(), given)
            return await read.run(session, given)

    return Operation("write", run, lambda: change().sql)


def update(
    table: Table,
    values: Mapping[str, Any],
    row: ColumnElement[bool],
    columns: Sequence[ColumnElement[Any]],
    *conditions: ColumnElement[bool],
) -> Operation:
    change = _later(table.update().values(**values).where(row, *conditions))
    read = prepare(select(*columns).where(row))

    async def run(session: Session, given: Mapping[str, Any]) -> Sequence[Row]:
        async with session.transaction():
            found = (await _execute(session, change(), given)).found
            return await read.run(session, given) if found else []

    return Operation("write", run, lambda: change().sql)


def delete(table: Table, *where: ColumnElement[bool]) -> Operation:
    change = _later(table.delete().where(*where))

    async def run(session: Session, given: Mapping[str, Any]) -> Sequence[Row]:
        return [{}] * (await _execute(session, change(), given)).found

    return Operation("write", run, lambda: change().sql)


def page(
    query: Select[Any],
    key: Column[Any],
    large: Column[Any] | None,
    bounds: PageBounds,
    descending: bool,
    searches: bool,
) -> Operation:
    """The table needs two generated columns for `large`: its `_bytes`, and `_is_large`."""
    query = _behind(query, key, descending)
    plain = prepare(query.limit(_LIMIT), searches)
    if large is None:
        return plain
    next_large = _next_large(key, large, descending)
    # Usually no large value follows. Then the page is read only once.
    unless_large = prepare(query.where(next_large.is_(None)).limit(_LIMIT), searches)

    length = literal_column(f"{large.name}_bytes", Integer).label("bytes")
    lengths = query.with_only_columns(length).limit(_LIMIT).subquery()
    total = select(func.sum(lengths.c.bytes)).scalar_subquery()
    last = query.with_only_columns(key).limit(1).offset(bounds.short - 1).correlate(None)
    # LIMIT takes no expression.
    is_long = and_(next_large.is_not(None), total > bounds.max_bytes)
    end = func.coalesce(case((is_long, last.scalar_subquery())), 0 if descending else MAX_ID)
    bounded = prepare(query.where(key >= end if descending else key <= end).limit(_LIMIT), searches)

    async def run(session: Session, given: Mapping[str, Any]) -> Sequence[Row]:
        if given["limit"] <= bounds.short:
            return await plain.run(session, given)
        # A search that finds nothing has read every row. So it is not tried like this.
        found = [] if searches else await unless_large.run(session, given)
        return found or await bounded.run(session, given)

    return Operation(plain.lane, run, plain.text)


sorted_page = partial(keysets.page, prepare, bindparam)

_LIMIT = bindparam("limit", type_=Integer)


def _is_behind(key: Column[Any], descending: bool) -> ColumnElement[bool]:
    after = bindparam("after", type_=key.type)
    return key < after if descending else key > after


def _behind(query: Select[Any], key: Column[Any], descending: bool) -> Select[Any]:
    """The rows behind the key :after in order."""
    ordered = query.where(_is_behind(key, descending))
    return ordered.order_by(key.desc() if descending else key)


def _next_large(key: Column[Any], large: Column[Any], descending: bool) -> ColumnElement[Any]:
    """The next key behind :after of a row of any large value.

    The server finds it in an index, without a search. It is NULL if there is none.
    """
    is_large = literal_column(f"{large.name}_is_large", Integer) == literal_column("1")
    found = select((func.max if descending else func.min)(key))
    found = found.where(is_large, _is_behind(key, descending))
    return found.correlate(None).scalar_subquery()


def pages(
    query: Select[Any],
    key: Column[Any],
    large: Column[Any] | None,
    bounds: PageBounds,
    descending: bool,
) -> Operation:
    """A UNION of the pages, because LIMIT takes no expression. They end before large values.

    `bounds.large` is fixed by migration 0007.
    """
    number = sql_cast(bindparam("page", type_=Integer), Integer).label("page")
    rows = _behind(query.add_columns(number), key, descending)
    if large is not None:
        next_large = _next_large(key, large, descending)
        end = func.coalesce(next_large, 0 if descending else MAX_ID + 1)
        rows = rows.where(key > end if descending else key < end)
    one_page = _later(rows.limit(_LIMIT))
    # The key that is behind all others has a row of its own, with the number 0.
    last = (func.min if descending else func.max)(key)
    columns = [last if column is key else null() for column in query.selected_columns]
    last_key = _later(query.with_only_columns(*columns, literal_column("0")))

    async def run(session: Session, given: Mapping[str, Any]) -> Sequence[Row]:
        one, of_all = one_page(), last_key()
        wanted = list(zip(given["afters"], given["limits"], strict=True))
        parts, arguments = [], []
        for page, (after, limit) in enumerate(_padded(wanted, (0, 0)), start=1):
            values = {**one.constants, **given, "page": page, "after": after, "limit": limit}
            parts.append(f"({one.sql})")
            arguments += [values[name] for name in one.names]
        parts.append(f"({of_all.sql})")
        values = {**of_all.constants, **given}
        arguments += [values[name] for name in of_all.names]
        found: dict[int, list[Row]] = {page: [] for page in range(len(wanted) + 1)}
        answer = await session.execute(" UNION ALL ".join(parts), arguments)
        for row in one.name_columns(answer.rows):
            found[row["page"]].append(row)
        last_of_all = found.pop(0)[0][key.name]
        if last_of_all is None:
            return []
        for page, (after, limit) in enumerate(wanted, start=1):
            # Only the rows of a part have an order.
            rows = found[page]
            rows.sort(key=itemgetter(key.name), reverse=descending)
            last = rows[-1][key.name] if rows else after
            more = last_of_all < last if descending else last_of_all > last
            if more and len(rows) < limit:
                found[page] = [{key.name: None, "page": page, "last": last_of_all}]
        return [row for rows in found.values() for row in rows]

    return Operation(lane_of(query), run, lambda: one_page().sql)


def is_one_of(column: Column[Any], name: str) -> ColumnElement[bool]:
    return column.in_(bindparam(name, type_=column.type, expanding=True))


def is_owners(column: Column[Any], name: str) -> ColumnElement[bool]:
    return column == bindparam(name, type_=column.type)


def contains(
    text: Column[Any], folded: Column[Any], name: str, indexed: bool = True
) -> ColumnElement[bool]:
    # Bytes are found faster than characters, and of UTF-8 in the same places.
    searched = sql_cast(bindparam(name, type_=String), LargeBinary)
    return func.locate(searched, func.coalesce(folded, func.lower(text))) > 0


def shown(column: Column[Any]) -> ColumnElement[Any]:
    return column


def compared(column: Column[Any]) -> ColumnElement[Any]:
    return column
