"""Access with ACCESS=token or private: a request needs the token of an active user (RFC 6750).

The token is one that the operator made, or a JWT of the identity provider.
"""

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import TYPE_CHECKING

from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Receive, Scope, Send

from service.database.errors import DatabaseUnavailable
from service.settings import ACCESS, ACCESS_CACHE_SECONDS, JWT_ISSUER, LIVE
from service.tables import Row
from service.users import queries
from service.users.memory import CAPACITY, TokenMemory
from service.web.rate_limits import limits
from service.web.requests import bearer_token

if TYPE_CHECKING:
    from service.users.identities import Identities

logger = logging.getLogger("service")

# The methods that a read-only token may use.
SAFE = ("GET", "HEAD", "OPTIONS")

# A user who may not follow any more is noticed after this time. All followers ask together.
CHECK_SECONDS = max(0.5, ACCESS_CACHE_SECONDS / 2)

memory = TokenMemory(ACCESS_CACHE_SECONDS, CAPACITY)

# The users of JWT_ISSUER.
identities: "Identities | None" = None
if JWT_ISSUER:
    # Only those who have an identity provider pay for these imports.
    from service.users.identities import Identities
    from service.users.keys import make_keys

    identities = Identities(make_keys(), ACCESS_CACHE_SECONDS, CAPACITY)


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
        digest = queries.digest(token) if token else None
        known = None
        if limits:
            known = known_user(token, digest)
            limits.count(scope, known)
        if not token:
            raise refused(401, "Not authenticated", "Bearer")
        if digest is not None:
            user = await memory.find(digest)
        else:
            user = None if identities is None else await identities.find(token)
        if user is None:
            raise refused(401, "Not authenticated", 'Bearer error="invalid_token"')
        if limits and known is None:
            limits.recognize(scope, user)
        scope["user"] = user
        if LIVE:
            scope["service.check"] = is_active, CHECK_SECONDS
        if user["read_only"] and scope["method"] not in SAFE:
            raise refused(403, "The token is read-only", 'Bearer error="insufficient_scope"')
        await self.app(scope, receive, send)


async def is_active(scope: Scope) -> bool:
    """Whether a request's token is still that of its user. It asks the database again."""
    token = bearer_token(scope) or ""
    digest = queries.digest(token)
    if digest is not None:
        user = await memory.ask(digest)
    else:
        user = None if identities is None else await identities.find(token, again=True)
    return user is not None and user["id"] == scope["user"]["id"]


def known_user(token: str | None, digest: str | None) -> Row | None:
    """The user whom the token had when it was last looked up, however long ago."""
    if digest is not None:
        return memory.known(digest)
    return identities.known(token) if token and identities else None


def refused(status: int, detail: str, challenge: str) -> HTTPException:
    """The answer to a request that may not be served, with its challenge (RFC 6750, section 3)."""
    return HTTPException(status, detail, {"WWW-Authenticate": challenge})


@asynccontextmanager
async def hinting() -> AsyncIterator[None]:
    """Logs how to add a user, if a request needs one and there is none, nor a provider of users."""
    hint = asyncio.create_task(_hint())
    try:
        yield
    finally:
        hint.cancel()


async def _hint() -> None:
    if ACCESS != "open" and not JWT_ISSUER:
        with suppress(DatabaseUnavailable):
            if not await queries.has_users():
                logger.warning(
                    "ACCESS is %s and there is no user; to add one: "
                    "python -m service users add NAME",
                    ACCESS,
                )
