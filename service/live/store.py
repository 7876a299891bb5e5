"""The queries on recorded changes."""

import time
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, NamedTuple

import orjson
from sqlalchemy import text

from service.database.dialect import dialect
from service.database.errors import DatabaseUnavailable
from service.database.operations import Operation, Result
from service.database.statements import Run, fetch, transact
from service.live.positions import ALL, Position, Snapshot, read_snapshot
from service.live.sql import sql
from service.live.watched import Watched
from service.tables import Row, changes

# What is read at once: changes, and characters of JSON. One change may have more. Each read wakes
# all followers, so it takes what a busy service writes between two polls.
MAX_ROWS = 1000
MAX_SIZE = 250_000

# The life in the place of the beginning of all changes.
BEGINNING = ""
BEGIN = Position(Snapshot(0), None, 0, 0)

LIFETIME_SECONDS = 24 * 60 * 60
MAX_SWEPT = 1000


class NotRecorded(Exception):
    """The changes of a resource are not recorded, or not as this service needs them."""


class Change(NamedTuple):
    """A change of a row: columns as they were, None for a new row, and as they are, or None."""

    seq: int
    at: int
    row_id: int
    old: dict[str, Any] | None
    new: dict[str, Any] | None


class Found(NamedTuple):
    """The changes after a position, up to the position `end`.

    `is_lost` tells that some before may be missing, as they were swept or of another life.
    """

    end: Position
    changes: list[Change]
    # Characters of JSON.
    size: int
    is_lost: bool


def _prepare(statement: str, **types: Any) -> Operation:
    return dialect.prepare(text(statement).columns(**types))


# A restored database may not have the last change that was told, or another one of its number.
_TOLD_AT = "coalesce((SELECT at FROM changes WHERE seq = :told), 0)"

_LOOK = _prepare(
    f"""
    SELECT life, columns, swept, place = {sql.PLACE} AS is_in_place, {sql.TRIGGERS} AS has_triggers,
        {sql.IS_STANDBY} AS is_standby, {sql.SNAPSHOT} AS snapshot,
        coalesce(newest.seq, 0) AS seq, coalesce(newest.at, 0) AS at, {_TOLD_AT} AS told_at
    FROM live LEFT JOIN (
        SELECT seq, at FROM changes WHERE resource = :resource ORDER BY xid DESC, seq DESC LIMIT 1
    ) AS newest ON true
    WHERE live.resource = :resource
    """  # noqa: S608 - constants
)
# What the first row of changes tells; there is one in any case. To send it with each costs time.
_FIRST = ", ".join(
    f"CASE WHEN coalesce(before, 0) = 0 THEN {value} END AS {name}"
    for value, name in (
        ("life", "life"),
        ("swept", "swept"),
        ("columns", "columns"),
        (f"place = {sql.PLACE}", "is_in_place"),
        (sql.TRIGGERS, "has_triggers"),
        (sql.IS_STANDBY, "is_standby"),
        (sql.SNAPSHOT, "snapshot"),
        (_TOLD_AT, "told_at"),
    )
)
# A sum is a decimal on PostgreSQL, which takes long to read.
_READ = _prepare(
    f"""
    SELECT {_FIRST}, found.* FROM live LEFT JOIN (
        SELECT *, CAST(sum(size) OVER (ORDER BY seq) AS bigint) - size AS before FROM (
            SELECT seq, at, row_id, old, new, size FROM changes
            WHERE resource = :resource AND seq >= coalesce(:first, {sql.FIRST}) AND {sql.UNSEEN}
            ORDER BY seq LIMIT {MAX_ROWS}
        ) AS one
    ) AS found ON before < {MAX_SIZE}
    WHERE live.resource = :resource ORDER BY seq
    """  # noqa: S608 - constants
)
# Many who catch up at once would hold up all other reads.
_READ_MISSED = _READ._replace(lane="missed")
_CONFIRM = _prepare(sql.CONFIRM) if sql.CONFIRM else None


async def _seen(run: Run, operation: Operation, watched: Watched, **values: Any) -> list[Row]:
    rows = list(await run(operation, resource=watched.table, **values))
    if not rows:
        raise NotRecorded
    state = rows[0]
    if state["is_standby"]:
        raise DatabaseUnavailable("a standby doesn't know the order of changes")
    if not (state["has_triggers"] and state["is_in_place"] and state["columns"] == watched.columns):
        raise NotRecorded
    return rows


async def _confirmed(ask: Callable[[Run], Awaitable[Result]]) -> Result:
    """The result of `ask`, which confirms it on a server: it needs one that takes writes."""
    if _CONFIRM:
        return await transact(ask)
    return await ask(fetch)


def _is_lost(row: Row, life: str, position: Position) -> bool:
    """Whether changes after a position may be missing, or those before it are others."""
    now = read_snapshot(row["snapshot"])
    return (
        row["life"] != life
        or row["told_at"] != position.at
        or position.seen.end > now.end
        or position.seen.misses(row["swept"], now)
    )


def _parameters(position: Position, until: Snapshot) -> dict[str, Any]:
    return {
        "first": None if position.until is None else position.seq + 1,
        "told": position.seq,
        "end": position.seen.end,
        "open": list(position.seen.open),
        "until_end": until.end,
        "until_open": list(until.open),
    }


def _found(rows: list[Row], position: Position, until: Snapshot, is_lost: bool) -> Found:
    found = [
        Change(row["seq"], row["at"], row["row_id"], _values(row["old"]), _values(row["new"]))
        for row in rows
        if row["seq"] is not None
    ]
    seq, at = (found[-1].seq, found[-1].at) if found else (position.seq, position.at)
    size = int(rows[-1]["before"] + rows[-1]["size"]) if found else 0
    if len(found) == MAX_ROWS or size >= MAX_SIZE:
        return Found(Position(position.seen, until, seq, at), found, size, is_lost)
    return Found(Position(until, None, seq, at), found, size, is_lost)


def _values(encoded: str | None) -> dict[str, Any] | None:
    return None if encoded is None else orjson.loads(encoded)


async def look(watched: Watched, told: tuple[str, Position] | None) -> tuple[str, Position, bool]:
    """The life of the changes, the position of now, and whether all after a told one are kept.

    Without a told position, nothing takes back what is seen now. Raises NotRecorded and
    DatabaseUnavailable.
    """

    async def ask(run: Run) -> Row:
        seq = 0 if told is None else told[1].seq
        (row,) = await _seen(run, _LOOK, watched, told=seq)
        if _CONFIRM and told is None:
            await run(_CONFIRM)
        return row

    row = await (_confirmed(ask) if told is None else ask(fetch))
    now = Position(read_snapshot(row["snapshot"]), None, row["seq"], row["at"])
    if told is None:
        return row["life"], now, True
    life, position = told
    is_kept = not _is_lost(row, life or row["life"], position)
    return row["life"], now, is_kept


async def read(watched: Watched, life: str, position: Position, until: Snapshot) -> Found:
    """The next changes after a position that a snapshot sees, a part of them if they are many.

    Raises NotRecorded and DatabaseUnavailable.
    """
    until = position.until or until
    rows = await _seen(fetch, _READ_MISSED, watched, **_parameters(position, until))
    return _found(rows, position, until, _is_lost(rows[0], life, position))


async def read_new(watched: Watched, life: str, position: Position) -> Found:
    """The changes after a position, as a whole or in parts, that nothing takes back any more.

    Raises NotRecorded and DatabaseUnavailable.
    """

    async def ask(run: Run) -> list[Row]:
        rows = await _seen(run, _READ, watched, **_parameters(position, position.until or ALL))
        if _CONFIRM and rows[0]["seq"] is not None:
            await run(_CONFIRM)
        return rows

    rows = await _confirmed(ask)
    is_lost = _is_lost(rows[0], life, position)
    if rows[0]["seq"] is None and position.until is None:
        return Found(position, [], 0, is_lost)
    return _found(rows, position, position.until or read_snapshot(rows[0]["snapshot"]), is_lost)


_OLDEST = _prepare(
    f"SELECT seq, {sql.ORDER} AS number, at, resource FROM changes"  # noqa: S608 - constants
    f" ORDER BY seq LIMIT {MAX_SWEPT}"
)
_SWEPT = _prepare("UPDATE live SET swept = :swept WHERE swept < :swept")._replace(lane="write")
delete_changes = dialect.delete(changes, dialect.is_one_of(changes.c.seq, "seqs"))


async def sweep() -> bool:
    """Deletes old changes, some of them. Returns whether there may be more.

    Raises DatabaseUnavailable.
    """
    until = (time.time() - LIFETIME_SECONDS) * 1_000_000
    if not _superseded(await fetch(_OLDEST), until):
        return False

    async def delete(run: Run) -> int:
        old = _superseded(await run(_OLDEST), until)
        if old:
            await run(_SWEPT, swept=max(row["number"] for row in old))
            await run(delete_changes, seqs=[row["seq"] for row in old])
        return len(old)

    return await transact(delete) > MAX_SWEPT // 2


def _superseded(rows: Sequence[Row], until: float) -> list[Row]:
    """The changes after which another one of their resource came long ago.

    A follower is at the last one until then, and its id names it.
    """
    followed: set[str] = set()
    found = []
    for row in reversed(rows):
        if row["resource"] in followed:
            found.append(row)
        elif row["at"] < until:
            followed.add(row["resource"])
    return found
