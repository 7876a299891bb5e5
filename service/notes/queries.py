"""What can be done with notes: one operation each, no HTTP in sight."""

from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from typing import Any, NamedTuple

from sqlalchemy import BigInteger, ColumnElement, bindparam, func, select

from service.database.dialect import dialect
from service.database.operations import Operation
from service.database.statements import Run, fetch
from service.notes.schemas import note_in, note_out
from service.schemas.fields import MAX_ID
from service.tables import Row, notes

PAGE_LENGTH = 1000
# Notes can be as large as MAX_BODY_BYTES, and a page has to fit into memory. A page that would have
# more bytes of text than MAX_PAGE_BYTES has SHORT_PAGE_LENGTH notes at most.
MAX_PAGE_BYTES = 2_000_000
SHORT_PAGE_LENGTH = 17

# A note's columns as clients get them, and the names of those whose values clients give.
COLUMNS = [dialect.shown(notes.c[name]) for name in note_out.dump_fields]
GIVEN = list(note_in.load_fields)


class Selection(NamedTuple):
    """Which notes a listing has, and in which order."""

    descending: bool = False
    completed: bool | None = None
    q: str = ""


def fold(text: str) -> str | None:
    """What the column `folded` keeps of a text: nothing where ASCII's lower() does as well."""
    return None if text.isascii() else text.casefold()


def _selected(by_completed: bool, by_text: bool) -> list[ColumnElement[bool]]:
    conditions = []
    if by_completed:
        conditions.append(notes.c.completed == bindparam("completed"))
    if by_text:
        conditions.append(dialect.contains(notes.c.text, notes.c.folded, "q"))
    return conditions


@cache
def _page(descending: bool, by_completed: bool, by_text: bool) -> Operation:
    after = bindparam("after", type_=BigInteger)
    query = select(*COLUMNS)
    if descending:
        query = query.where(notes.c.id < after).order_by(notes.c.id.desc())
    else:
        query = query.where(notes.c.id > after).order_by(notes.c.id)
    query = query.where(*_selected(by_completed, by_text))
    return dialect.page(query, notes.c.text, SHORT_PAGE_LENGTH, MAX_PAGE_BYTES, by_text)


@cache
def _count(by_completed: bool, by_text: bool) -> Operation:
    query = select(func.count().label("total")).select_from(notes)
    # It reads every note, or an entry of an index for each, as a search does.
    return dialect.prepare(query.where(*_selected(by_completed, by_text)), searches=True)


_THIS = notes.c.id == bindparam("note_id", type_=BigInteger)
# The note is still what :old_... say.
_SAME = [
    dialect.compared(notes.c[name]).is_not_distinct_from(
        bindparam(f"old_{name}", type_=notes.c[name].type)
    )
    for name in GIVEN
]


@cache
def _update(names: tuple[str, ...], conditional: bool) -> Operation:
    """Changes the values that are given; a statement that gives none changes nothing."""
    given = [*names, "folded"] if "text" in names else names
    values: dict[str, ColumnElement[Any]] = {
        name: bindparam(f"new_{name}", type_=notes.c[name].type) for name in given
    }
    conditions = _SAME if conditional else []
    return dialect.update(notes, values or {"id": notes.c.id}, _THIS, COLUMNS, *conditions)


_INSERT = dialect.insert_many(notes, [*GIVEN, "folded"], COLUMNS)
_BY_IDS = dialect.prepare(select(*COLUMNS).where(dialect.is_one_of(notes.c.id, "ids")))
_DELETE = {
    False: dialect.delete(notes, _THIS),
    True: dialect.delete(notes, _THIS, *_SAME),
}


async def list_notes(
    selection: Selection = Selection(),  # noqa: B008 - it is immutable
    after: int | None = None,
    limit: int = PAGE_LENGTH,
) -> tuple[Sequence[Row], bool]:
    """The selection's notes behind an id, and whether there are others behind these.

    They are as many as `limit` unless there are fewer or they are very large.
    """
    if after is None:
        after = MAX_ID + 1 if selection.descending else 0
    statement = _page(selection.descending, selection.completed is not None, bool(selection.q))
    chosen = {"completed": selection.completed, "q": selection.q.casefold()}
    rows = await fetch(statement, after=after, limit=limit + 1, **chosen)
    if len(rows) > limit:
        return rows[:limit], True
    if len(rows) == SHORT_PAGE_LENGTH:
        # Either there are no more, or they would have been too large.
        after = rows[-1]["id"]
        return rows, bool(await fetch(statement, after=after, limit=1, **chosen))
    return rows, False


async def count_notes(selection: Selection) -> int:
    """How many notes there are of the selection."""
    statement = _count(selection.completed is not None, bool(selection.q))
    chosen = {"completed": selection.completed, "q": selection.q.casefold()}
    (row,) = await fetch(statement, **chosen)
    return int(row["total"])


async def get_notes(ids: Iterable[int]) -> dict[int, Row]:
    """Those of the notes that there are, by id."""
    rows = await fetch(_BY_IDS, ids=list(ids))
    return {row["id"]: row for row in rows}


async def insert_notes(new: Sequence[Mapping[str, Any]], run: Run = fetch) -> Sequence[Row]:
    """Stores notes, each with all values but the id: all or none.

    Gives them with their ids, which rise in the order given.
    """
    new = [{**note, "folded": fold(note["text"])} for note in new]
    rows = await run(_INSERT, rows=new)
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
