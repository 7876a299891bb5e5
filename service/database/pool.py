"""The connections to a server: opened when they are needed, and kept for the next statements."""

import asyncio
import math
import time
from asyncio import CancelledError
from collections.abc import Awaitable, Callable
from typing import Any, Protocol

from service import settings
from service.database.operations import Lane, Result, slots_of_server

IDLE_SECONDS = 60
EXPIRE_SECONDS = 1


class Session(Protocol):
    """A connection to a server."""

    def is_usable(self) -> bool:
        """Whether it can be used again, as far as is known here."""

    def abort(self) -> None:
        """Closes it without waiting for the server, which may hang."""

    async def end(self) -> None:
        """Closes it within bounded time. Raises nothing."""

    async def kill(self) -> None:
        """Closes it, and ends its statement on the server, if possible."""


class Pool:
    """Sessions of `open_session`. Errors of the kinds `lost` mean that the server is gone.

    `forget` is called when other sessions may be lost, too.
    """

    def __init__(
        self,
        open_session: Callable[[], Awaitable[Session]],
        lost: tuple[type[Exception], ...],
        forget: Callable[[], None] = lambda: None,
    ) -> None:
        self._open_session = open_session
        self._lost = lost
        self._forget = forget
        self.slots = slots_of_server(settings.DATABASE_POOL_MAX)
        # The last one is used first. `_unused` at the front were not used since the last look.
        self._idle: list[Session] = []
        self._unused = 0
        self._used: set[Session] = set()
        # A session is not reused if the generation changed while it was in use.
        self._generation = 0
        self._expired_at = -math.inf
        self._is_closing = False

    async def open(self) -> None:
        self._closing_old = asyncio.create_task(self._close_old())

    async def close(self) -> None:
        """Waits for the sessions in use. If cancelled, it aborts them."""
        self._closing_old.cancel()
        self._is_closing = True
        try:
            for session in self._idle:
                await session.end()
            (all_slots,) = self.slots["write"]
            for _ in range(settings.DATABASE_POOL_MAX):
                await all_slots.acquire()
        finally:
            for session in (*self._idle, *self._used):
                session.abort()

    async def use(self, lane: Lane, work: Callable[[Any], Awaitable[Result]]) -> Result:
        generation = self._generation
        session = await self._take()
        self._used.add(session)
        try:
            return await work(session)
        except (TimeoutError, CancelledError) as error:
            # A slow search says nothing about the server.
            if isinstance(error, TimeoutError) and lane != "search":
                self._expire()
            await session.kill()
            raise
        except self._lost:
            self._expire()
            raise
        finally:
            self._used.discard(session)
            if not session.is_usable() or generation != self._generation:
                session.abort()
            elif self._is_closing:
                await session.end()
            else:
                self._idle.append(session)

    async def _take(self) -> Session:
        while self._idle:
            session = self._idle.pop()
            self._unused = min(self._unused, len(self._idle))
            if session.is_usable():
                return session
            session.abort()
            self._forget()
        return await self._open_session()

    async def _close_old(self) -> None:
        """Closes sessions that nobody used for a while, before the server or a router does."""
        while True:
            await asyncio.sleep(IDLE_SECONDS)
            old, self._idle = self._idle[: self._unused], self._idle[self._unused :]
            self._unused = len(self._idle)
            for session in old:
                await session.end()

    def _expire(self) -> None:
        """Closes all sessions: idle ones now, the others after their current use.

        They may lead to a server that is gone or hangs, or to the former primary, now read-only and
        stale. Reads there never fail. This happens at most once in EXPIRE_SECONDS: if the server
        stays read-only, reads still need sessions.
        """
        now = time.monotonic()
        if now - self._expired_at < EXPIRE_SECONDS:
            return
        self._expired_at = now
        self._generation += 1
        self._unused = 0
        self._forget()
        while self._idle:
            self._idle.pop().abort()
