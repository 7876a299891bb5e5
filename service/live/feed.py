"""Follows a table's changes: one reader a process, for all followers, while there are any.

Each follower goes from window to window at its own pace. One that has fallen behind the last
windows reads from the database, up to where the others are.
"""

import asyncio
import logging
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from service import metrics, shutdown
from service.database.coalescing import coalesce
from service.database.errors import DatabaseUnavailable
from service.live import store
from service.live.positions import Position
from service.live.store import Change, NotRecorded
from service.live.watched import Watched

POLL_SECONDS = 0.2

# The number of windows that are kept, and the most characters of their changes.
MAX_WINDOWS = 100
MAX_KEPT = 2_000_000

# Followers that get a window in one turn of the event loop.
MAX_WOKEN = 10

logger = logging.getLogger("service")


@dataclass
class Window:
    """The changes between two positions, and characters of their JSON."""

    start: Position
    end: Position
    changes: Sequence[Change]
    size: int
    # What has been made of them: an index, and events by who gets to know of them.
    index: Any = None
    told: dict[Any, bytes] = field(default_factory=dict)


class Feed:
    """The changes of a table, read from the time when the first follower comes."""

    def __init__(self, watched: Watched) -> None:
        self.watched = watched
        # The life of the changes. Ids of another one say nothing.
        self.life = ""
        # A follower of another era has missed something.
        self.era = 0
        self.has_ended = False
        # What nothing takes back any more, in whole windows; and the same with a part of the next.
        self.now: Position | None = None
        self._head: Position | None = None
        self._windows: dict[Position, Window] = {}
        self._kept = 0
        # Each is set when there is something new.
        self._followers: set[asyncio.Event] = set()
        self._polling: asyncio.Task[None] | None = None
        self._poll = coalesce(
            self._poll_once,
            max_batch=10_000,
            observe=metrics.batch(f"follow_{watched.table}"),
            patience=None,
        )
        shutdown.at_stop.append(self.end)

    async def join(self, follower: asyncio.Event) -> Position:
        """Begins to wake a follower. Returns the position of now.

        Raises NotRecorded and DatabaseUnavailable. `leave` has to follow in any case.
        """
        self._followers.add(follower)
        metrics.followers.inc()
        return await self._poll(None)

    def leave(self, follower: asyncio.Event) -> None:
        self._followers.discard(follower)
        metrics.followers.dec()
        if not self._followers:
            self._forget()

    def end(self) -> None:
        """Ends all streams, as the process stops."""
        self.has_ended = True
        self._wake()

    def has_missed(self, position: Position) -> bool:
        """Whether the next changes after a position have to be read from the database."""
        return not (position in self._windows or position in (self.now, self._head))

    async def next(self, position: Position) -> Window | None:
        """The next changes after a position, if there are any yet.

        Raises NotRecorded if they are not recorded or not kept any more, and DatabaseUnavailable.
        """
        if self.now is None:
            raise NotRecorded
        if not self.has_missed(position):
            return self._windows.get(position)
        until = self.now
        found = await store.read(self.watched, self.life, position, until.seen)
        if found.is_lost:
            raise NotRecorded
        end = until if found.end.until is None and position.until is None else found.end
        return Window(position, end, found.changes, found.size)

    async def _poll_once(self, callers: list[None]) -> list[Position]:
        position = self._head
        if position is None:
            position = await self._begin()
        else:
            position = await self._read_on(position)
        if not self._followers:
            # The last one has left meanwhile.
            self._forget()
        elif self._polling is None:
            self._polling = asyncio.create_task(self._poll_on())
        return [position] * len(callers)

    async def _begin(self) -> Position:
        self.life, position, _ = await store.look(self.watched, None)
        self.now = self._head = position
        self.era += 1
        return position

    async def _read_on(self, position: Position) -> Position:
        while True:
            found = await store.read_new(self.watched, self.life, position)
            if found.is_lost:
                self._forget_windows()
                position = await self._begin()
                self._wake()
                return position
            if found.changes or found.end != position:
                self._keep(Window(position, found.end, found.changes, found.size))
            self._head = position = found.end
            if position.until is None:
                self.now = position
            if found.changes:
                await self._wake_in_turns()
            if position.until is None:
                return position

    def _keep(self, window: Window) -> None:
        self._windows[window.start] = window
        self._kept += window.size
        while len(self._windows) > MAX_WINDOWS or (
            self._kept > MAX_KEPT and len(self._windows) > 1
        ):
            oldest = next(iter(self._windows))
            self._kept -= self._windows.pop(oldest).size

    async def _poll_on(self) -> None:
        is_down = False
        while True:
            await asyncio.sleep(POLL_SECONDS)
            try:
                await self._poll(None)
                is_down = False
            except NotRecorded:
                self._forget()
                self._wake()
                return
            except DatabaseUnavailable as error:
                if not is_down:
                    logger.warning("followers wait: %s", error.reason())
                is_down = True
            except Exception:
                logger.exception("changes of %s can't be read", self.watched.table)
                self._forget()
                self._wake()
                return

    async def _wake_in_turns(self) -> None:
        """Other requests have their turns in between."""
        for number, follower in enumerate(list(self._followers), start=1):
            follower.set()
            if number % MAX_WOKEN == 0:
                await asyncio.sleep(0)

    def _wake(self) -> None:
        for follower in self._followers:
            follower.set()

    def _forget_windows(self) -> None:
        self._windows.clear()
        self._kept = 0

    def _forget(self) -> None:
        """Reads no more."""
        self._forget_windows()
        self.now = self._head = None
        if self._polling is not None:
            self._polling.cancel()
            self._polling = None
