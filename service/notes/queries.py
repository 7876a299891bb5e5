"""What can be done with notes: one statement each, no HTTP in sight."""

from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from typing import Any, NamedTuple

from sqlalchemy import (
    ARRAY,
    BigInteger,
    BindParameter,
    Column,
    Integer,
    LargeBinary,
    String,
    bindparam,
    case,
    cast,
    collate,
    func,
    select,
)
from sqlalchemy.sql import ColumnElement, Insert
from sqlalchemy.sql.dml import ReturningDelete

from service.database.connections import DIALECT
from service.database.statements import Run, Statement, fetch, is_one_of, listed, prepare, to_json
from service.notes.schemas import note_in, note_out
from service.schemas.fields import MAX_ID
from service.tables import Row, notes

# A page has FEW notes at the most where as many as it could have would be more than HEAVY bytes:
# notes can be as large as MAX_BODY_BYTES, and a page has to fit into memory.
PAGE = 1000
FEW = 17
HEAVY = 2_000_000


def _read(column: Column[Any]) -> ColumnElement[Any]:
    """A column's value, as a text where SQLite may have bytes of another program in its place."""
    if DIALECT == "sqlite" and isinstance(column.type, String):
        return cast(column, String).label(column.name)
    return column


# A note's columns as clients get them, and the names of those whose values clients give.
COLUMNS = [_read(notes.c[name]) for name in note_out.dump_fields]
GIVEN = list(note_in.load_fields)


class Selection(NamedTuple):
    """Which notes a listing has, and in which order."""

    descending: bool = False
    completed: bool | None = None
    q: str = ""


def fold(text: str) -> str | None:
    """What the column `folded` keeps of a text: nothing where ASCII's lower() does as well."""
    return None if text.isascii() else text.casefold()


def _contains() -> ColumnElement[bool]:
    """Whether a note has the text :q, given as a pattern of LIKE on PostgreSQL."""
    if DIALECT == "sqlite":
        return (
            func.instr(func.coalesce(notes.c.folded, func.lower(notes.c.text)), bindparam("q")) > 0
        )
    lower = func.lower(collate(notes.c.text, "C"))
    return func.coalesce(notes.c.folded, lower).like(bindparam("q"))


def _pattern(q: str) -> str:
    q = q.casefold()
    if DIALECT == "sqlite":
        return q
    return "%" + q.replace("\\", r"\\").replace("%", r"\%").replace("_", r"\_") + "%"


@cache
def _page(descending: bool, by_completed: bool, by_text: bool) -> Statement:
    after = bindparam("after", type_=BigInteger)
    page = select(*COLUMNS)
    if descending:
        page = page.where(notes.c.id < after).order_by(notes.c.id.desc())
    else:
        page = page.where(notes.c.id > after).order_by(notes.c.id)
    if by_completed:
        page = page.where(notes.c.completed == bindparam("completed"))
    if by_text:
        page = page.where(_contains())
    limit = bindparam("limit", type_=Integer)
    texts = page.with_only_columns(notes.c.text).limit(limit).subquery()
    # On PostgreSQL the length of a large text is known without reading the text.
    length = func.length if DIALECT == "sqlite" else func.octet_length
    load = select(func.sum(length(texts.c.text))).scalar_subquery()
    limited = page.limit(case(((load > HEAVY) & (limit > FEW), FEW), else_=limit))
    return prepare(limited, searches=by_text)


def _insert() -> Insert:
    """Inserts any number of notes with one statement of constant text, in the order given."""
    names = [*GIVEN, "folded"]
    values: list[ColumnElement[Any]]
    if DIALECT == "sqlite":
        new = func.json_each(bindparam("notes")).table_valued("key", "value", name="new")
        values = [func.json_extract(new.c.value, f"$.{name}") for name in names]
        order = new.c.key
    else:
        arrays = [bindparam(name, type_=ARRAY(notes.c[name].type)) for name in names]
        unnest = func.unnest(*arrays)
        new = unnest.table_valued(*names, with_ordinality="position", name="new").render_derived()
        values = [new.c[name] for name in names]
        order = new.c.position
    return notes.insert().from_select(names, select(*values).order_by(order)).returning(*COLUMNS)


def _shown(name: str) -> ColumnElement[Any]:
    """A column as clients see it; SQLite may hold bytes that no text of a client equals."""
    column = notes.c[name]
    if DIALECT == "sqlite" and isinstance(column.type, String):
        return func.decode(cast(column, LargeBinary), type_=String)
    return column


def _bind(name: str, column: Column[Any]) -> BindParameter[Any]:
    return bindparam(name, type_=column.type)


def _where(conditional: bool) -> list[ColumnElement[bool]]:
    """The note :note_id, if it is still what :old_… say where that is a condition."""
    old = {name: _bind(f"old_{name}", notes.c[name]) for name in GIVEN}
    same = [_shown(name).is_not_distinct_from(old[name]) for name in GIVEN if conditional]
    return [notes.c.id == bindparam("note_id"), *same]


@cache
def _update(names: tuple[str, ...], conditional: bool) -> Statement:
    """Changes the values that are given; a statement that gives none changes nothing."""
    values: dict[str, Any] = {name: _bind(f"new_{name}", notes.c[name]) for name in names}
    if "text" in names:
        values["folded"] = _bind("new_folded", notes.c.folded)
    change = notes.update().values(values or {"id": notes.c.id})
    return prepare(change.where(*_where(conditional)).returning(*COLUMNS))


def _delete(conditional: bool) -> ReturningDelete[Any]:
    return notes.delete().where(*_where(conditional)).returning(notes.c.id)


_INSERT = prepare(_insert())
_BY_IDS = prepare(select(*COLUMNS).where(is_one_of(notes.c.id, "ids")))
_DELETE = {conditional: prepare(_delete(conditional)) for conditional in (False, True)}


async def list_notes(
    selection: Selection = Selection(),  # noqa: B008 - it is immutable
    after: int | None = None,
    most: int = PAGE,
) -> tuple[Sequence[Row], bool]:
    """The selection's notes behind an id, and whether there are others behind these.

    They are as many as `most` unless there are fewer or they are very large.
    """
    if after is None:
        after = MAX_ID + 1 if selection.descending else 0
    statement = _page(selection.descending, selection.completed is not None, bool(selection.q))
    chosen = {"completed": selection.completed, "q": _pattern(selection.q)}
    rows = await fetch(statement, after=after, limit=most + 1, **chosen)
    if len(rows) > most:
        return rows[:most], True
    if len(rows) == FEW:
        # Either there are no more, or they would have been too heavy.
        after = rows[-1]["id"]
        return rows, bool(await fetch(statement, after=after, limit=1, **chosen))
    return rows, False


async def get_notes(ids: Iterable[int]) -> dict[int, Row]:
    """Those of the notes that there are, by id."""
    rows = await fetch(_BY_IDS, ids=listed(ids))
    return {row["id"]: row for row in rows}


async def insert_notes(new: Sequence[Mapping[str, Any]], run: Run = fetch) -> Sequence[Row]:
    """Stores notes, each with all values but the id: all or none.

    Gives them with their ids, which rise in the order given.
    """
    new = [{**note, "folded": fold(note["text"])} for note in new]
    if DIALECT == "sqlite":
        rows = await run(_INSERT, notes=to_json(notes, new))
    else:
        rows = await run(_INSERT, **{name: [note[name] for note in new] for name in new[0]})
    # RETURNING promises no order.
    return sorted(rows, key=lambda row: row["id"])


async def update_note(
    note_id: int, changes: Mapping[str, Any], old: Row | None = None
) -> Row | None:
    """Changes the values given; None if there is no such note, or it is no longer as `old`."""
    values = {f"new_{name}": value for name, value in changes.items()}
    if "text" in changes:
        values["new_folded"] = fold(changes["text"])
    statement = _update(tuple(changes), old is not None)
    rows = await fetch(statement, note_id=note_id, **values, **_old(old))
    return rows[0] if rows else None


async def delete_note(note_id: int, old: Row | None = None) -> bool:
    """Whether there was such a note, still as `old` where that is given."""
    return bool(await fetch(_DELETE[old is not None], note_id=note_id, **_old(old)))


def _old(old: Row | None) -> dict[str, Any]:
    return {} if old is None else {f"old_{name}": old[name] for name in GIVEN}
