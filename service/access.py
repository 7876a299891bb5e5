"""Who may come in where ACCESS is token: whoever has the token of an active user (RFC 6750)."""

import asyncio
import logging
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from hmac import compare_digest

from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Receive, Scope, Send

from service import metrics, users
from service.coalescing import coalesce
from service.settings import ACCESS, ACCESS_CACHE_SECONDS
from service.trouble import DatabaseUnavailable

logger = logging.getLogger("service")

# As many tokens are remembered.
MOST = 10_000

# Until when each digest of a token is taken for an active user's without asking again. Lookups are
# by digests alone, whose bytes nobody can choose, so the time that they take tells nothing.
_known: dict[str, float] = {}


class Guard:
    """Lets only users through to an app; HTTPException 401 for everybody else."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if not await is_user(scope):
            raise HTTPException(401, "Not authenticated", {"WWW-Authenticate": "Bearer"})
        await self.app(scope, receive, send)


async def is_user(scope: Scope) -> bool:
    """Whether the request has the token of an active user, in one Authorization header."""
    values = [value for name, value in scope["headers"] if name == b"authorization"]
    if len(values) != 1:
        return False
    scheme, _, token = values[0].decode("latin-1").partition(" ")
    if scheme.lower() != "bearer":
        return False
    digest = users.digest(token.strip(" "))
    if digest is None:
        return False
    return _known.get(digest, 0) > time.monotonic() or await _is_active(digest)


async def _check(digests: list[str]) -> list[bool]:
    # What is remembered may be as old as the question, not as the answer.
    until = time.monotonic() + ACCESS_CACHE_SECONDS
    active = await users.get_active(set(digests))
    if len(_known) + len(active) > MOST:
        _known.clear()
    _known.update(dict.fromkeys(active, until))
    return [
        digest in active and compare_digest(active[digest]["token_sha256"], digest)
        for digest in digests
    ]


_is_active = coalesce(_check, most=1_000, observe=metrics.batch("get_active"))


@asynccontextmanager
async def hinting() -> AsyncIterator[None]:
    """Logs meanwhile how to add a user, where one is needed and there is none."""
    hint = asyncio.create_task(_hint())
    try:
        yield
    finally:
        hint.cancel()


async def _hint() -> None:
    if ACCESS == "token":
        with suppress(DatabaseUnavailable):
            if not await users.has_users():
                logger.warning(
                    "ACCESS is token and there is no user; to add one: "
                    "python -m service users add NAME"
                )
