"""Follows a resource as it changes: Server-Sent Events (HTML Standard, section 9.2)."""

import asyncio
import math
import secrets
import time
from collections import defaultdict
from collections.abc import Awaitable, Callable, Mapping, Sequence
from datetime import date
from typing import Any, NamedTuple

import orjson
from marshmallow import Schema
from sqlalchemy import BigInteger, Boolean, Column, Date, Integer, String
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from service.database.errors import DatabaseUnavailable
from service.live import store
from service.live.feed import Feed, Window
from service.live.positions import Position, read_id, write_id, write_start
from service.live.store import Change, NotRecorded
from service.live.watched import Watched
from service.resources.definition import Definition
from service.resources.fitting import RESERVED
from service.schemas.compiled import compile_dump
from service.schemas.fields import Input, Text
from service.schemas.validation import InvalidInput, describe, load
from service.settings import REQUEST_TIMEOUT
from service.tables import OWNER
from service.web import budget, slots
from service.web.errors import RETRY
from service.web.headers import first as first_header
from service.web.requests import read_query

# Routers close connections on which nothing is sent.
HEARTBEAT_SECONDS = min(15.0, REQUEST_TIMEOUT / 2)
# After these seconds a failed look or read is tried again.
RETRY_SECONDS = 1
# Clients come back after so many milliseconds, each after another time.
RETRY_MS = (1000, 5000)

HEADERS = [
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-store"),
    # nginx would collect what it gets.
    (b"x-accel-buffering", b"no"),
]

# What the next changes may take of one who has missed them: those read at once, and a large one.
MISSED_BYTES = store.MAX_SIZE + budget.HUGE_BYTES

# Followers of a resource whose filters have many values may all want something else.
MAX_TOLD = 16

# For each type of column: what makes its value from one of JSON; None if it is the same.
_READ: dict[type[Any], Callable[[Any], Any] | None] = {
    Boolean: bool,
    Date: date.fromisoformat,
    BigInteger: None,
    Integer: None,
    String: None,
}


class Wanted(NamedTuple):
    """Which rows a follower gets to know of: the value of each filter or None, and the owner."""

    values: tuple[Any, ...]
    owner: int | None


class Changes:
    """The changes of a definition's rows. `follow` is Starlette's handler."""

    def __init__(self, definition: Definition, owner_of: Callable[[Request], int | None]) -> None:
        table = definition.table
        self._definition = definition
        self._filters = list(definition.filters.values())
        self._owner_of = owner_of
        self._owner = None if definition.owner is None else str(definition.owner.name)
        old = [str(one.column.name) for one in self._filters]
        # The operator may change ACCESS.
        if OWNER in table.c:
            old.append(OWNER)
        new = dict.fromkeys([*map(str, definition.shape.dump_fields), *old])
        self._read = {name: read for name in new if (read := _reader(table.c[name]))}
        texts = [name for name in new if isinstance(table.c[name].type, String | Date)]
        self.watched = Watched(
            definition.plural, tuple(dict.fromkeys(old)), tuple(new), tuple(texts)
        )
        self.feed = Feed(self.watched)
        self._dump = compile_dump(definition.shape)
        self.query = following_query(definition)

    async def follow(self, request: Request) -> Response:
        sent = read_query(request.scope["query_string"])
        if others := (RESERVED - {"after"}) & sent.keys():
            raise InvalidInput(
                *(
                    describe("extra_forbidden", ("query", name), sent[name])
                    for name in sorted(others)
                )
            )
        query = load(self.query.load, sent, "query")
        header = first_header(request.scope, b"last-event-id")
        place = ("header", "last-event-id") if header else ("query", "after")
        text = header or query["after"]
        told = None
        if text == "0":
            told = store.BEGINNING, store.BEGIN
        elif text:
            try:
                told = read_id(text)
            except ValueError:
                raise InvalidInput(describe("event_id", place, text)) from None
        values = tuple(query[name] for name in self._definition.filters)
        wanted = Wanted(values, self._owner_of(request) if self._owner else None)
        return Following(self, wanted, told)

    def render(self, life: str, window: Window, wanted: Wanted) -> bytes:
        """The events of a window, for those who want the same."""
        if wanted not in window.told:
            if self._filters and len(window.told) >= MAX_TOLD:
                window.told.clear()
            window.told[wanted] = self._render(life, window, wanted)
        return window.told[wanted]

    def _render(self, life: str, window: Window, wanted: Wanted) -> bytes:
        start = write_start(life, window.start.seen, window.end.until or window.end.seen).encode()
        last = window.changes[-1].seq if window.changes and window.end.until is None else None
        matches = self._matcher(wanted)
        events = []
        for seq, at, row_id, old, new in self._changes_of(window, wanted.owner):
            was, is_now = matches(old), matches(new)
            if not (was or is_now):
                continue
            kind = b"changed" if was and is_now else b"created" if is_now else b"deleted"
            item = self._dump([new])[0] if is_now and new else {"id": row_id}
            if seq == last:
                name = write_id(life, window.end).encode()
            else:
                name = b"%b%x-%x" % (start, seq, at)
            events.append(event(kind, name, orjson.dumps(item)))
        return b"".join(events)

    def _changes_of(self, window: Window, owner: int | None) -> Sequence[Change]:
        """The changes of rows that are or were an owner's; all without owners."""
        if window.index is None:
            # A value that can't be read is an error for each follower, so all are read first.
            rows = [row for change in window.changes for row in _rows(change)]
            for row, values in [(row, self._values(row)) for row in rows]:
                row.update(values)
            index = defaultdict(list)
            for change in window.changes:
                owners = {row[self._owner] for row in _rows(change)} if self._owner else (None,)
                for one in owners:
                    index[one].append(change)
            window.index = index
        found: Sequence[Change] = window.index.get(owner, ())
        return found

    def _values(self, row: dict[str, Any]) -> dict[str, Any]:
        """The values of columns that JSON has in another form."""
        return {
            name: read(row[name]) for name, read in self._read.items() if row.get(name) is not None
        }

    def _matcher(self, wanted: Wanted) -> Callable[[Mapping[str, Any] | None], bool]:
        """Tells whether a row is wanted, if there is one."""
        owner = self._owner
        conditions = [
            (str(one.column.name), one.compare, value)
            for one, value in zip(self._filters, wanted.values, strict=True)
            if value is not None
        ]

        def matches(row: Mapping[str, Any] | None) -> bool:
            if row is None or (owner and row[owner] != wanted.owner):
                return False
            for name, compare, value in conditions:
                found = row[name]
                if found is None or not compare(found, value):
                    return False
            return True

        return matches


def _rows(change: Change) -> list[dict[str, Any]]:
    return [row for row in (change.old, change.new) if row is not None]


def _reader(column: Column[Any]) -> Callable[[Any], Any] | None:
    """What makes a value of the column from one of JSON; None if it is the same."""
    for kind, read in _READ.items():
        if isinstance(column.type, kind):
            return read
    raise ValueError(f"{column}: changes of its type can't be told")


def following_query(definition: Definition) -> Schema:
    """The query of those who follow: the filters, and the id of an event."""
    read: dict[str, Any] = {name: definition.filter_field(name) for name in definition.filters}
    return Input.from_dict({**read, "after": Text(load_default="")})()


def event(kind: bytes, name: bytes, data: bytes) -> bytes:
    return b"event: %b\nid: %b\ndata: %b\n\n" % (kind, name, data)


class Following(Response):
    """An answer that lasts as long as the client, the service and the user's token."""

    def __init__(self, changes: Changes, wanted: Wanted, told: tuple[str, Position] | None) -> None:
        self.status_code = 200
        self.background = None
        self.body = b""
        self.raw_headers = list(HEADERS)
        self._changes = changes
        self._feed = changes.feed
        self._wanted = wanted
        self._told = told
        # Those of the position: with the feed's next ones it would be another place.
        self._era, self._life = 0, ""
        self._timer: asyncio.TimerHandle | None = None
        self._timer_ends = 0.0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        slots.follow(scope["service.task"])
        wake = asyncio.Event()
        try:
            first, position = await self._begin(wake)
        except NotRecorded:
            self._feed.leave(wake)
            detail = f"Changes of {self._changes.watched.table} are not recorded"
            raise HTTPException(503, detail, RETRY) from None
        except BaseException:
            self._feed.leave(wake)
            raise
        disconnect = asyncio.ensure_future(_wait_for_disconnect(receive))
        disconnect.add_done_callback(lambda _: wake.set())
        try:
            scope["service.answered"] = time.perf_counter()
            await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
            if scope["method"] != "HEAD":
                await send({"type": "http.response.body", "body": first, "more_body": True})
                await self._go_on(scope, send, wake, position, disconnect)
            await send({"type": "http.response.body", "body": b""})
        finally:
            disconnect.cancel()
            if self._timer is not None:
                self._timer.cancel()
            self._feed.leave(wake)

    async def _begin(self, wake: asyncio.Event) -> tuple[bytes, Position]:
        """The first part, and from where events follow."""
        now = await self._feed.join(wake)
        self._era, self._life = self._feed.era, self._feed.life
        retry = b"retry: %d\n\n" % (RETRY_MS[0] + secrets.randbelow(RETRY_MS[1] - RETRY_MS[0]))
        if self._told is None:
            return retry + self._tell(b"start", now), now
        life, _, is_kept = await store.look(self._changes.watched, self._told)
        if life != self._life or not is_kept:
            return retry + self._tell(b"reset", now), now
        return retry, self._told[1]

    def _tell(self, kind: bytes, position: Position) -> bytes:
        """An event that says from where others follow."""
        name = write_id(self._life, position)
        return event(kind, name.encode(), orjson.dumps({"after": name}))

    async def _go_on(
        self,
        scope: Scope,
        send: Send,
        wake: asyncio.Event,
        position: Position,
        disconnect: asyncio.Future[None],
    ) -> None:
        feed = self._feed
        check: Callable[[Scope], Awaitable[bool]] | None
        check, check_seconds = scope.get("service.check", (None, math.inf))
        now = time.monotonic()
        beat_at, check_at = now + HEARTBEAT_SECONDS, _next_check(now, check_seconds)
        told = position
        while not (disconnect.done() or feed.has_ended):
            wake.clear()
            slots.renew(scope["service.task"])
            part = b""
            may_tell = True
            now = time.monotonic()
            if now >= beat_at:
                # Also where nothing is told, a client's place goes on.
                beat = b": \n\n"
                if position is not told:
                    beat = b"id: %b\n\n" % write_id(self._life, position).encode()
                told = position
                beat_at = now + HEARTBEAT_SECONDS
                await send({"type": "http.response.body", "body": beat, "more_body": True})
            if check is not None and now >= check_at:
                try:
                    if not await check(scope):
                        return
                    check_at = _next_check(time.monotonic(), check_seconds)
                except DatabaseUnavailable:
                    may_tell = False
                except HTTPException as error:
                    # The provider's keys may be unknown for a while.
                    if error.status_code != 503:
                        return
                    may_tell = False
            if may_tell and feed.era != self._era:
                if feed.now is None:
                    return
                self._era, self._life, position = feed.era, feed.life, feed.now
                part = self._tell(b"reset", position)
            elif may_tell:
                before = position
                try:
                    position, part = await self._next(scope, position, disconnect, beat_at)
                except NotRecorded:
                    return
                except DatabaseUnavailable:
                    may_tell = False
                if position is not before and not part:
                    continue
            now = time.monotonic()
            if part:
                told = position
                beat_at = now + HEARTBEAT_SECONDS
                await send({"type": "http.response.body", "body": part, "more_body": True})
                budget.release(scope)
                continue
            due = min(beat_at, check_at if may_tell else now + RETRY_SECONDS)
            self._set_timer(wake, now, due)
            await wake.wait()

    async def _next(
        self, scope: Scope, position: Position, disconnect: asyncio.Future[None], until: float
    ) -> tuple[Position, bytes]:
        """The next position and its events. A slow client has no more of a window than these.

        Those who have missed changes take turns, as each has windows of its own: their large events
        hold bytes of the budget. Whose turn doesn't come until a time is told of nothing yet.
        """
        held = None
        if self._feed.has_missed(position):
            turn = asyncio.ensure_future(budget.hold(MISSED_BYTES))
            try:
                seconds = max(0.0, until - time.monotonic())
                first = asyncio.FIRST_COMPLETED
                await asyncio.wait((turn, disconnect), timeout=seconds, return_when=first)
                if disconnect.done() or not turn.done():
                    return position, b""
                held = turn.result()
            finally:
                turn.cancel()
            slots.renew(scope["service.task"])
        window = await self._feed.next(position)
        if window is None:
            return position, b""
        part = self._changes.render(self._life, window, self._wanted)
        if held is not None and len(part) > budget.LARGE_BYTES:
            held.settle(len(part) + budget.PART_BYTES)
            budget.keep(scope, held)
        return window.end, part

    def _set_timer(self, wake: asyncio.Event, now: float, due: float) -> None:
        """Wakes at a time, or before. A timer for each wait would cost more."""
        if self._timer is not None:
            if self._timer_ends <= due:
                return
            self._timer.cancel()

        def ring() -> None:
            self._timer = None
            wake.set()

        self._timer_ends = due
        self._timer = asyncio.get_running_loop().call_later(max(0.0, due - now), ring)


def _next_check(now: float, seconds: float) -> float:
    """The next time at which all followers look whether their users are active."""
    return (now // seconds + 1) * seconds


async def _wait_for_disconnect(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
