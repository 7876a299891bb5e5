"""Begins and ends the recording of changes: `python -m service live on` and `live off`."""

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any
from uuid import uuid4

from sqlalchemy import text

from service.database.dialect import dialect
from service.database.errors import DatabaseUnavailable
from service.database.operations import Operation
from service.database.statements import Run, transact
from service.live.sql import sql
from service.live.store import MAX_SWEPT, NotRecorded, delete_changes, look
from service.live.watched import Watched
from service.tables import Row

RETRY_SECONDS = 0.5

_SCHEMA = dialect.prepare(text(sql.SCHEMA))
_SOME = dialect.prepare(
    text(f"SELECT seq FROM changes WHERE resource = :resource LIMIT {MAX_SWEPT}")  # noqa: S608
)
_END = dialect.prepare(text("DELETE FROM live WHERE resource = :resource"))
_BEGIN = dialect.prepare(
    text(
        "INSERT INTO live (resource, life, columns, place, swept)"  # noqa: S608 - a constant
        f" VALUES (:resource, :life, :columns, {sql.PLACE}, :swept)"
    )
)


async def _define(run: Run, *statements: str) -> None:
    """Runs statements that define something."""
    for statement in statements:
        await run(_definition(statement))


def _definition(statement: str) -> Operation:
    async def execute(raw: Any, values: Mapping[str, Any]) -> Sequence[Row]:
        await raw.execute(statement)
        return []

    return Operation("write", execute, lambda: statement)


async def _change(work: Callable[[Run], Awaitable[None]]) -> None:
    """Runs `work` in a transaction, again and again while others use the table."""
    while True:
        try:
            await transact(work)
            return
        except DatabaseUnavailable as error:
            if not isinstance(error.__cause__, sql.LOCKED):
                raise
        await asyncio.sleep(RETRY_SECONDS)


async def turn_on(watched: Watched) -> bool:
    """Records the changes of a table from now on. Returns False if they are recorded already.

    Changes that were recorded otherwise, or in another place, are deleted. Raises
    DatabaseUnavailable.
    """
    try:
        await look(watched, None)
        return False
    except NotRecorded:
        await turn_off(watched.table)
    is_empty = dialect.prepare(
        text(f'SELECT NOT EXISTS (SELECT 1 FROM "{watched.table}") AS is_empty')  # noqa: S608
    )

    async def begin(run: Run) -> None:
        await _define(run, *sql.BEGIN)
        (schema,) = await run(_SCHEMA)
        await _define(run, *sql.turn_on(watched, schema["name"]))
        (found,) = await run(is_empty)
        # With -1, all changes of the table are kept.
        swept = -1 if found["is_empty"] else 0
        await run(
            _BEGIN,
            resource=watched.table,
            life=uuid4().hex,
            columns=watched.columns,
            swept=swept,
        )

    await _change(begin)
    return True


async def turn_off(table: str) -> None:
    """Records no changes any more, and deletes those that were. Raises DatabaseUnavailable."""

    async def end(run: Run) -> None:
        await _define(run, *sql.BEGIN, *sql.turn_off(table))
        await run(_END, resource=table)

    async def forget(run: Run) -> bool:
        seqs = [row["seq"] for row in await run(_SOME, resource=table)]
        await run(delete_changes, seqs=seqs)
        return bool(seqs)

    await _change(end)
    while await transact(forget):
        pass
