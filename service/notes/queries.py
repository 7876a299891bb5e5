"""The queries on notes, without HTTP."""

from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from typing import Any, NamedTuple

from sqlalchemy import BigInteger, ColumnElement, bindparam, false, func, select, true

from service import settings
from service.database.dialect import dialect
from service.database.operations import LARGE, Operation, PageBounds
from service.database.statements import Run, fetch
from service.notes.schemas import note_in, note_out
from service.schemas.fields import MAX_ID
from service.tables import Row, notes

PAGE_LENGTH = 1000
# A note may have MAX_BODY_BYTES, and a page has to fit into memory. 1,001 notes that are not large
# are no long page. The index `notes_large` has the same bound.
BOUNDS = PageBounds(max_bytes=2_000_000, short=17, large=1998)
# Pages of so many notes share a statement, so many at a time. They have to be small.
SHARED_LENGTH = 100
MAX_SHARED = 50
_SHARED_BOUNDS = PageBounds(max_bytes=200_000, short=0, large=1998)
# A page is read under these bounds first. Longer ones hold up no others, in a lane of their own.
_SHORT_BOUNDS = PageBounds(max_bytes=200_000, short=1, large=1998)

# Notes of so many characters share an INSERT, so many at a time: 200,000 characters at most. Larger
# ones go alone.
SMALL, MAX_SMALL = 2_000, 100
MAX_MEDIUM = 4

# The columns that clients get, and the names of the columns that clients give.
COLUMNS = [dialect.shown(notes.c[name]) for name in note_out.dump_fields]
GIVEN = list(note_in.load_fields)
_ID = (notes.c.id,)


class Selection(NamedTuple):
    """The filters and the order of a listing."""

    descending: bool = False
    completed: bool | None = None
    q: str = ""


def fold(text: str) -> str | None:
    """The value of the column `folded`: None for ASCII, where lower() gives the same."""
    return None if text.isascii() else text.casefold()


def _selected(completed: bool | None, by_text: bool) -> list[ColumnElement[bool]]:
    conditions = []
    if completed is not None:
        # Not a parameter: how many notes are completed makes the plan.
        conditions.append(notes.c.completed == (true() if completed else false()))
    if by_text:
        conditions.append(dialect.contains(notes.c.text, notes.c.folded, "q"))
    return conditions


@cache
def _page(
    descending: bool,
    completed: bool | None,
    by_text: bool,
    bounds: PageBounds,
    columns: Sequence[ColumnElement[Any]] = tuple(COLUMNS),
) -> Operation:
    query = select(*columns).where(*_selected(completed, by_text))
    page = dialect.page(query, notes.c.id, notes.c.text, bounds, descending, searches=by_text)
    return page if by_text or bounds is _SHORT_BOUNDS else page._replace(lane="large_read")


@cache
def _pages(descending: bool, completed: bool | None) -> Operation | None:
    query = select(*COLUMNS).where(*_selected(completed, by_text=False))
    return dialect.pages(query, notes.c.id, notes.c.text, _SHARED_BOUNDS, descending)


def is_shared(selection: Selection, limit: int) -> bool:
    """Whether a page may be read in a statement with other pages of its selection."""
    # The best plan of a search depends on all parameters.
    if limit > SHARED_LENGTH or selection.q:
        return False
    return _pages(selection.descending, selection.completed) is not None


@cache
def _count(completed: bool | None, by_text: bool) -> Operation:
    # Listings have no other ids, which another program may have stored.
    query = select(func.count().label("total")).where(notes.c.id.between(1, MAX_ID))
    # It reads every note, or an entry of an index for each, as a search does.
    return dialect.prepare(query.where(*_selected(completed, by_text)), searches=True)


_THIS = notes.c.id == bindparam("note_id", type_=BigInteger)
# The note still has the values :old_...
_SAME = [
    dialect.compared(notes.c[name]).is_not_distinct_from(
        bindparam(f"old_{name}", type_=notes.c[name].type)
    )
    for name in GIVEN
]


@cache
def _update(names: tuple[str, ...], conditional: bool) -> Operation:
    """The update of some values, possibly none."""
    given = [*names, "folded"] if "text" in names else names
    values: dict[str, ColumnElement[Any]] = {
        name: bindparam(f"new_{name}", type_=notes.c[name].type) for name in given
    }
    conditions = _SAME if conditional else []
    return dialect.update(notes, values or {"id": notes.c.id}, _THIS, COLUMNS, *conditions)


_INSERT = dialect.insert_many(notes, [*GIVEN, "folded"], COLUMNS)
_BY_ID = dialect.prepare(select(*COLUMNS).where(_THIS))
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
    """The notes of a selection after an id, and whether more notes follow.

    There are fewer than `limit` only at the end, or if the notes are very large.
    """
    statement = _page(selection.descending, selection.completed, bool(selection.q), BOUNDS)
    q = selection.q.casefold()
    rows = await fetch(statement, after=_place(selection, after), limit=limit + 1, q=q)
    if len(rows) > limit:
        return rows[:limit], True
    if len(rows) == BOUNDS.short:
        # Either this is the end, or more notes would be too large.
        after = rows[-1]["id"]
        return rows, bool(await fetch(statement, after=after, limit=1, q=q))
    return rows, False


def most_bytes(limit: int) -> int:
    """The most bytes that the texts of a page have, if MAX_BODY_BYTES was never larger."""
    return max(BOUNDS.max_bytes, min(limit, BOUNDS.short) * settings.MAX_BODY_BYTES)


async def list_short(
    selection: Selection, after: int | None, limit: int
) -> tuple[Sequence[Row], bool] | None:
    """Like `list_notes`; None if the notes may be large."""
    kind = selection.descending, selection.completed, bool(selection.q), _SHORT_BOUNDS
    q = selection.q.casefold()
    rows = await fetch(_page(*kind), after=_place(selection, after), limit=limit + 1, q=q)
    if len(rows) == 1 and await fetch(_page(*kind, _ID), after=rows[0]["id"], limit=1, q=q):
        # It is not the last one, so more would be too large.
        return None
    return rows[:limit], len(rows) > limit


async def list_pages(
    selection: Selection, pages: Sequence[tuple[int | None, int]]
) -> Sequence[tuple[Sequence[Row], bool] | None]:
    """Like `list_notes`, for several `after` and `limit` of shared pages, in one statement.

    None for a page that is too long, and has to be read alone.
    """
    statement = _pages(selection.descending, selection.completed)
    if len(pages) == 1 or statement is None:
        return [await list_short(selection, *page) for page in pages]
    afters = [_place(selection, after) for after, _ in pages]
    limits = [limit + 1 for _, limit in pages]
    found: list[list[Row] | None] = [[] for _ in pages]
    for row in await fetch(statement, afters=afters, limits=limits):
        place = row["page"] - 1
        if row["id"] is not None:
            found[place].append(row)
        elif _is_behind(selection, row["last"], afters[place]):
            found[place] = None
    return [
        None if rows is None else (rows[:limit], len(rows) > limit)
        for rows, (_, limit) in zip(found, pages, strict=True)
    ]


def _is_behind(selection: Selection, note_id: int | None, after: int) -> bool:
    """Whether a note comes after an id in the order of a selection."""
    if note_id is None:
        return False
    return note_id < after if selection.descending else note_id > after


def _place(selection: Selection, after: int | None) -> int:
    """The id after which a page begins."""
    if after is None:
        return MAX_ID + 1 if selection.descending else 0
    return after


async def count_notes(selection: Selection) -> int:
    """The number of the selection's notes."""
    statement = _count(selection.completed, bool(selection.q))
    (row,) = await fetch(statement, q=selection.q.casefold())
    return int(row["total"])


async def get_notes(ids: Iterable[int]) -> dict[int, Row]:
    """The existing notes with these ids, by id."""
    found = list(ids)
    if len(found) == 1:
        rows = await fetch(_BY_ID, note_id=found[0])
    else:
        rows = await fetch(_BY_IDS, ids=found)
    return {row["id"]: row for row in rows}


def _by_size(write: Operation, is_large: bool) -> Operation:
    return write._replace(lane="large_write") if is_large else write


async def insert_notes(new: Sequence[Mapping[str, Any]], run: Run = fetch) -> Sequence[Row]:
    """Stores all of the notes or none. Returns them with ids, which ascend in the given order."""
    new = [{**note, "folded": fold(note["text"])} for note in new]
    size = sum(len(note["text"]) for note in new)
    rows = await run(_by_size(_INSERT, size > LARGE * min(len(new), MAX_MEDIUM)), rows=new)
    return sorted(rows, key=lambda row: row["id"])


async def update_note(
    note_id: int, changes: Mapping[str, Any], old: Row | None = None
) -> Row | None:
    """Updates a note; None if there is no such note, or it differs from `old`."""
    values = {f"new_{name}": value for name, value in changes.items()}
    statement = _update(tuple(changes), old is not None)
    if "text" in changes:
        values["new_folded"] = fold(changes["text"])
        statement = _by_size(statement, len(changes["text"]) > LARGE)
    rows = await fetch(statement, note_id=note_id, **values, **_old(old))
    return rows[0] if rows else None


async def delete_note(note_id: int, old: Row | None = None) -> bool:
    """Deletes a note; False if there is no such note, or it differs from `old`."""
    return bool(await fetch(_DELETE[old is not None], note_id=note_id, **_old(old)))


def _old(old: Row | None) -> dict[str, Any]:
    return {} if old is None else {f"old_{name}": old[name] for name in GIVEN}
