"""Opens and closes the connections, and waits for a free one within bounded time."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from typing import Any

from service import metrics, settings
from service.database.dialect import dialect
from service.database.errors import NotConnected
from service.database.operations import Connections, Lane, Result

CLOSE_SECONDS = 5

# Lanes that use the connections of another one.
SHARED: dict[Lane, Lane] = {"large_write": "write", "missed": "large_read"}

_connections: Connections | None = None
_large_writes: asyncio.Semaphore


@asynccontextmanager
async def connected() -> AsyncIterator[None]:
    """Opens the database, and closes it within CLOSE_SECONDS.

    Raises sqlite3.DatabaseError if the SQLite file is unusable. A locked file or an unavailable
    server raises nothing here: each statement waits for it.
    """
    global _connections, _large_writes
    _connections = connections = dialect.connections()
    _large_writes = asyncio.Semaphore(max(1, settings.DATABASE_POOL_MAX // 2))
    try:
        await connections.open()
        yield
    finally:
        _connections = None
        # The platform sends SIGKILL soon after SIGTERM.
        with suppress(TimeoutError):
            async with asyncio.timeout(CLOSE_SECONDS):
                await connections.close()


async def use(lane: Lane, work: Callable[[Any], Awaitable[Result]]) -> Result:
    """Runs `work` on a connection of the driver, and returns its result.

    Raises NotConnected, and TimeoutError after DATABASE_POOL_TIMEOUT. encode/databases would wait
    forever if all connections are in use. A large write first waits for others as long as its
    request may, because many that come at once all take long.
    """
    connections = _connections
    if connections is None:
        raise NotConnected
    if lane == "large_write":
        async with _large_writes:
            return await _use(connections, lane, work)
    return await _use(connections, lane, work)


async def _use(
    connections: Connections, lane: Lane, work: Callable[[Any], Awaitable[Result]]
) -> Result:
    slots = connections.slots[lane]
    if any(map(asyncio.Semaphore.locked, slots)):
        with metrics.waiting.track_inprogress():
            async with asyncio.timeout(settings.DATABASE_POOL_TIMEOUT):
                await _acquire(slots)
    else:
        await _acquire(slots)
    metrics.in_use.inc()
    try:
        return await connections.use(SHARED.get(lane, lane), work)
    finally:
        metrics.in_use.dec()
        _release(slots)


async def _acquire(slots: Sequence[asyncio.Semaphore]) -> None:
    """Acquires all slots in order. If one fails, it releases the others."""
    for place, slot in enumerate(slots):
        try:
            await slot.acquire()
        except BaseException:
            _release(slots[:place])
            raise


def _release(slots: Sequence[asyncio.Semaphore]) -> None:
    for slot in slots:
        slot.release()
