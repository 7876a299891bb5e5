"""Access with ACCESS=token or private: a request needs the token of an active user (RFC 6750)."""

import asyncio
import logging
import math
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Receive, Scope, Send

from service import metrics
from service.database.coalescing import coalesce
from service.database.errors import DatabaseUnavailable
from service.settings import ACCESS, ACCESS_CACHE_SECONDS
from service.tables import Row
from service.users import queries
from service.users.uses import Uses
from service.web.rate_limits import limits
from service.web.requests import bearer_token

logger = logging.getLogger("service")

CAPACITY = 10_000
# The methods that a read-only token may use.
SAFE = ("GET", "HEAD", "OPTIONS")


class TokenMemory:
    """A cache of active users by their token's digest: at most `capacity`, each for `seconds`.

    A lookup compares only digests. Clients can't choose a digest, so timing reveals nothing.
    """

    def __init__(self, seconds: float, capacity: int) -> None:
        self._seconds = seconds
        self._capacity = capacity
        # By digest: the user, and the time of expiry of this entry.
        self._users: dict[str, tuple[Row, float]] = {}
        self._uses = Uses(queries.set_used, capacity)
        self._ask = coalesce(self._ask_all, max_batch=1_000, observe=metrics.batch("get_active"))

    def __len__(self) -> int:
        return len(self._users)

    def known(self, digest: str | None) -> Row | None:
        """The user whose token had this digest when it was last looked up, however long ago."""
        return self._users[digest][0] if digest in self._users else None

    async def find(self, digest: str) -> Row | None:
        """The active user whose token has this digest: `id`, `username` and `read_only`."""
        user, until = self._users.get(digest, (None, 0.0))
        return user if until > time.monotonic() else await self._ask(digest)

    async def _ask_all(self, digests: list[str]) -> list[Row | None]:
        # The lifetime starts before the query, so a token that is revoked meanwhile gains no time.
        until = time.monotonic() + self._seconds
        found = await queries.get_active(set(digests))
        now, clock = time.time(), time.monotonic()
        active = {
            digest: (user, min(until, clock + (user["expires_at"] or math.inf) - now))
            for digest, user in found.items()
            if user["expires_at"] is None or user["expires_at"] > now
        }
        if len(self._users) + len(active) > self._capacity:
            self._users.clear()
        self._users.update(active)
        for digest in digests:
            if digest not in active:
                self._users.pop(digest, None)
        self._uses.add({digest: user["last_used_at"] for digest, (user, _) in active.items()})
        return [active[digest][0] if digest in active else None for digest in digests]


memory = TokenMemory(ACCESS_CACHE_SECONDS, CAPACITY)


class Guard:
    """Puts the user into the scope as `user`.

    Raises HTTPException 401 without a valid token, 403 for a write with a read-only one, and 429
    beyond RATE_LIMIT. To look up a token counts for the client's address, unless it turns out to be
    a user's.
    """

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        token = bearer_token(scope)
        digest = None if token is None else queries.digest(token)
        known = None
        if limits:
            known = memory.known(digest)
            limits.count(scope, known)
        user = None if digest is None else await memory.find(digest)
        if user is None:
            raise HTTPException(401, "Not authenticated", {"WWW-Authenticate": "Bearer"})
        if limits and known is None:
            limits.recognize(scope, user)
        scope["user"] = user
        if user["read_only"] and scope["method"] not in SAFE:
            challenge = {"WWW-Authenticate": 'Bearer error="insufficient_scope"'}
            raise HTTPException(403, "The token is read-only", challenge)
        await self.app(scope, receive, send)


@asynccontextmanager
async def hinting() -> AsyncIterator[None]:
    """Logs how to add a user, if a request needs one and there is none."""
    hint = asyncio.create_task(_hint())
    try:
        yield
    finally:
        hint.cancel()


async def _hint() -> None:
    if ACCESS != "open":
        with suppress(DatabaseUnavailable):
            if not await queries.has_users():
                logger.warning(
                    "ACCESS is %s and there is no user; to add one: "
                    "python -m service users add NAME",
                    ACCESS,
                )
