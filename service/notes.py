"""What can be done with notes: one statement each, no HTTP in sight."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import orjson
from sqlalchemy import ARRAY, Integer, bindparam, case, func, select
from sqlalchemy.sql import ColumnElement, Insert, Select

from service.database import DIALECT, Row, fetch, prepare
from service.tables import notes

# A page has at most PAGE notes, or FEW where as many would be more than HEAVY: notes can be as
# large as MAX_BODY_BYTES, and a page has to fit into memory.
PAGE = 1001
FEW = 17
HEAVY = 2_000_000

# The columns whose values a new note brings.
GIVEN = [column.name for column in notes.c if not column.primary_key]


def _page() -> Select[Any]:
    page = select(notes).where(notes.c.id > bindparam("after")).order_by(notes.c.id)
    texts = page.with_only_columns(notes.c.text).limit(PAGE).subquery()
    # On PostgreSQL the length of a large text is known without reading the text.
    length = func.length if DIALECT == "sqlite" else func.octet_length
    load = select(func.sum(length(texts.c.text))).scalar_subquery()
    return page.limit(case((load > HEAVY, FEW), else_=PAGE))


def _insert() -> Insert:
    """Inserts any number of notes with one statement of constant text, in the order given."""
    if DIALECT == "sqlite":
        new = func.json_each(bindparam("notes")).table_valued("key", "value", name="new")
        values: list[ColumnElement[Any]] = [
            func.json_extract(new.c.value, f"$.{name}") for name in GIVEN
        ]
        order = new.c.key
    else:
        arrays = [bindparam(name, type_=ARRAY(notes.c[name].type)) for name in GIVEN]
        unnest = func.unnest(*arrays)
        new = unnest.table_valued(*GIVEN, with_ordinality="position", name="new").render_derived()
        values = [new.c[name] for name in GIVEN]
        order = new.c.position
    return notes.insert().from_select(GIVEN, select(*values).order_by(order)).returning(*notes.c)


def _by_ids() -> Select[Any]:
    if DIALECT == "sqlite":
        ids = select(func.json_each(bindparam("ids")).table_valued("value").c.value)
        return select(notes).where(notes.c.id.in_(ids))
    return select(notes).where(notes.c.id == func.any(bindparam("ids", type_=ARRAY(Integer))))


_PAGE = prepare(_page())
_INSERT = prepare(_insert())
_BY_IDS = prepare(_by_ids())


async def list_notes(after: int = 0) -> Sequence[Row]:
    """A page of the notes with greater ids, in the order of their ids.

    A page of PAGE or FEW notes may have others behind it; one of any other length has none.
    """
    return await fetch(_PAGE, after=after)


async def get_notes(ids: Iterable[int]) -> dict[int, Row]:
    """Those of the notes that there are, by id."""
    ids = list(ids)
    rows = await fetch(_BY_IDS, ids=orjson.dumps(ids).decode() if DIALECT == "sqlite" else ids)
    return {row["id"]: row for row in rows}


async def insert_notes(new: Sequence[Mapping[str, Any]]) -> Sequence[Row]:
    """Stores notes, each with all values but the id: all or none.

    Gives them with their ids, which rise in the order given.
    """
    if DIALECT == "sqlite":
        rows = await fetch(_INSERT, notes=orjson.dumps(new).decode())
    else:
        rows = await fetch(_INSERT, **{name: [note[name] for note in new] for name in GIVEN})
    # RETURNING promises no order.
    return sorted(rows, key=lambda row: row["id"])
