"""When tokens were last used, to the hour: written in the background, many at a time."""

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterable, Mapping
from contextlib import suppress

from service.database.errors import DatabaseUnavailable

HOUR = 3600
# Uses within so many seconds are written together.
PAUSE = 1


class Uses:
    """Writes the hour in which tokens were used, each token at most once an hour.

    `write` takes digests, and the begin of the hour in seconds since the epoch. What can't be
    written is dropped. At most `capacity` tokens are remembered.
    """

    def __init__(
        self, write: Callable[[Iterable[str], int], Awaitable[None]], capacity: int
    ) -> None:
        self._write = write
        self._capacity = capacity
        self._hour = 0
        # The digests of this hour, and those that are not written yet.
        self._seen: set[str] = set()
        self._waiting: set[str] = set()
        self._task: asyncio.Task[None] | None = None

    def __len__(self) -> int:
        return len(self._seen)

    def add(self, last_uses: Mapping[str, int | None]) -> None:
        """Remembers that tokens are used now. The values are the stored times of the last uses."""
        hour = int(time.time()) // HOUR * HOUR
        if hour != self._hour or len(self._seen) + len(last_uses) > self._capacity:
            self._seen.clear()
        self._hour = hour
        stale = {digest for digest, last in last_uses.items() if (last or 0) < hour}
        self._waiting |= stale - self._seen
        self._seen |= stale
        if self._waiting and (self._task is None or self._task.done()):
            self._task = asyncio.create_task(self._write_all())

    async def _write_all(self) -> None:
        while self._waiting:
            await asyncio.sleep(PAUSE)
            digests, self._waiting = self._waiting, set()
            with suppress(DatabaseUnavailable):
                await self._write(digests, self._hour)
