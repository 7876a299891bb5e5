"""Who may come in where ACCESS is token: whoever has the token of an active user (RFC 6750)."""

import asyncio
import logging
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
from service.web.requests import bearer_token

logger = logging.getLogger("service")

# As many tokens are remembered.
MOST = 10_000

# The active user of each digest of a token, and until when that is taken for true without asking
# again. Lookups are by digests alone, whose bytes nobody can choose, so the time that they take
# tells nothing.
_known: dict[str, tuple[Row, float]] = {}
_UNKNOWN = (None, 0.0)


class Guard:
    """Lets only users through to an app, as `user` of the scope; HTTPException 401 for others."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        user = await find_user(scope)
        if user is None:
            raise HTTPException(401, "Not authenticated", {"WWW-Authenticate": "Bearer"})
        scope["user"] = user
        await self.app(scope, receive, send)


async def find_user(scope: Scope) -> Row | None:
    """The active user, with `id` and `username`, whose token the request has."""
    token = bearer_token(scope)
    digest = None if token is None else queries.digest(token)
    if digest is None:
        return None
    user, until = _known.get(digest, _UNKNOWN)
    return user if until > time.monotonic() else await _find_active(digest)


async def _check(digests: list[str]) -> list[Row | None]:
    # What is remembered may be as old as the question, not as the answer.
    until = time.monotonic() + ACCESS_CACHE_SECONDS
    active = await queries.get_active(set(digests))
    if len(_known) + len(active) > MOST:
        _known.clear()
    _known.update({digest: (user, until) for digest, user in active.items()})
    return [active.get(digest) for digest in digests]


_find_active = coalesce(_check, most=1_000, observe=metrics.batch("get_active"))


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
            if not await queries.has_users():
                logger.warning(
                    "ACCESS is token and there is no user; to add one: "
                    "python -m service users add NAME"
                )
