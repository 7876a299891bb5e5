"""The connections, for the life of the service, and bounded waits for them."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from typing import Any

from service import metrics, settings
from service.database.dialect import dialect
from service.database.operations import Connections, Lane, Result

CLOSE_SECONDS = 5

_connections: Connections


@asynccontextmanager
async def connected() -> AsyncIterator[None]:
    """Opens the database for the life of the service, and closes it within bounded time.

    Raises sqlite3.DatabaseError for a SQLite file that can't be used. Each statement waits for a
    locked file, and for a server that is away.
    """
    global _connections
    _connections = connections = dialect.connections()
    try:
        await connections.open()
        yield
    finally:
        # What is left of the time between SIGTERM and SIGKILL.
        with suppress(TimeoutError):
            async with asyncio.timeout(CLOSE_SECONDS):
                await connections.close()


async def use(lane: Lane, work: Callable[[Any], Awaitable[Result]]) -> Result:
    """Gives what `work` gives on a connection as the driver has it.

    Raises TimeoutError after DATABASE_POOL_TIMEOUT: encode/databases itself waits without end for
    a connection of an exhausted pool.
    """
    connections = _connections
    slots = connections.slots[lane]
    if any(map(asyncio.Semaphore.locked, slots)):
        with metrics.waiting.track_inprogress():
            async with asyncio.timeout(settings.DATABASE_POOL_TIMEOUT):
                await _acquire(slots)
    else:
        await _acquire(slots)
    metrics.in_use.inc()
    try:
        return await connections.use(lane, work)
    finally:
        metrics.in_use.dec()
        _release(slots)


async def _acquire(slots: Sequence[asyncio.Semaphore]) -> None:
    """Takes all slots, one after the other, or none."""
    for place, slot in enumerate(slots):
        try:
            await slot.acquire()
        except BaseException:
            _release(slots[:place])
            raise


def _release(slots: Sequence[asyncio.Semaphore]) -> None:
    for slot in slots:
        slot.release()
