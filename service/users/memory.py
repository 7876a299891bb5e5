"""A cache of active users, which asks the database once for many callers."""

import math
import time
from collections.abc import Awaitable, Callable, Mapping

from service import metrics
from service.database.coalescing import coalesce
from service.tables import Row
from service.users import queries
from service.users.uses import Uses

CAPACITY = 10_000


class Memory:
    """A cache of active users by a key: at most `capacity`, each for `seconds`.

    `ask` gives the active users of keys. If a user's `expires_at` is past, it doesn't count.
    """

    def __init__(
        self,
        seconds: float,
        capacity: int,
        ask: Callable[[set[str]], Awaitable[Mapping[str, Row]]],
        observe: Callable[[int], object],
    ) -> None:
        self._seconds = seconds
        self._capacity = capacity
        self._active = ask
        # By key: the user, and the time of expiry of this entry.
        self._users: dict[str, tuple[Row, float]] = {}
        # Like `find`, and asks the database in any case.
        self.ask = coalesce(self._ask_all, max_batch=1_000, observe=observe)

    def __len__(self) -> int:
        return len(self._users)

    def known(self, key: str) -> Row | None:
        """The user of this key when it was last looked up, however long ago."""
        return self._users[key][0] if key in self._users else None

    async def find(self, key: str) -> Row | None:
        """The active user of this key: `id`, `username` and `read_only`."""
        user, until = self._users.get(key, (None, 0.0))
        return user if until > time.monotonic() else await self.ask(key)

    async def _ask_all(self, keys: list[str]) -> list[Row | None]:
        # The lifetime starts before the query, so a user who is refused meanwhile gains no time.
        until = time.monotonic() + self._seconds
        found = await self._active(set(keys))
        now, clock = time.time(), time.monotonic()
        active = {
            key: (user, min(until, clock + (user["expires_at"] or math.inf) - now))
            for key, user in found.items()
            if user["expires_at"] is None or user["expires_at"] > now
        }
        if len(self._users) + len(active) > self._capacity:
            self._users.clear()
        self._users.update(active)
        for key in keys:
            if key not in active:
                self._users.pop(key, None)
        self._use({key: user for key, (user, _) in active.items()})
        return [active[key][0] if key in active else None for key in keys]

    def _use(self, active: Mapping[str, Row]) -> None:
        """Is told of the users that were asked for."""


class TokenMemory(Memory):
    """The active users by their token's digest.

    A lookup compares only digests. Clients can't choose a digest, so timing reveals nothing.
    """

    def __init__(self, seconds: float, capacity: int) -> None:
        super().__init__(seconds, capacity, queries.get_active, metrics.batch("get_active"))
        self._uses = Uses(queries.set_used, capacity)

    def _use(self, active: Mapping[str, Row]) -> None:
        self._uses.add({digest: user["last_used_at"] for digest, user in active.items()})
