"""Users of an identity provider: their bearer tokens are JWTs (RFC 7519), which it signs."""

import hashlib
import re
import time
from typing import Any

import jwt
from starlette.exceptions import HTTPException

from service import metrics, settings
from service.database.coalescing import coalesce
from service.settings.public_key import ALGORITHMS
from service.tables import Row
from service.users import queries
from service.users.keys import RETRY, Keys, ProviderUnavailable
from service.users.memory import Memory

LEEWAY = 30
MAX_LENGTH = 16_384
_is_jwt = re.compile(r"[\w-]+\.[\w-]+\.[\w-]+", re.ASCII).fullmatch
# PyJWT's own, and what its checks raise for values of odd types.
ERRORS = (jwt.PyJWTError, ValueError, TypeError, OverflowError)


class Identities:
    """The users of the provider's tokens.

    A token whose signature was verified is remembered until it expires or the keys change, and
    its user for `seconds`; of each at most `capacity`.
    """

    def __init__(self, keys: Keys, seconds: float, capacity: int) -> None:
        self._keys = keys
        self._version = keys.version
        self._capacity = capacity
        # By the token's digest: the subject, and the time of expiry.
        self._verified: dict[bytes, tuple[str, float]] = {}
        self._users = Memory(seconds, capacity, get_active, metrics.batch("get_identified"))
        self._admit = coalesce(_admit_all, max_batch=1_000, key=lambda subject: subject)

    def __len__(self) -> int:
        return len(self._verified)

    def known(self, token: str) -> Row | None:
        """The user of a token when it was last verified and looked up, however long ago."""
        subject, _ = self._verified.get(_digest(token), (None, 0.0))
        return None if subject is None else self._users.known(subject)

    async def find(self, token: str, again: bool = False) -> Row | None:
        """The active user of a token: `id`, `username` and `read_only`. None if it is invalid.

        With `again` the database is asked in any case. Raises HTTPException 503 while the
        provider's keys are unknown, and 403 if the user is unknown and JWT_CREATE_USERS is off.
        """
        digest = _digest(token)
        subject, until = self._verified.get(digest, (None, 0.0))
        if subject is not None:
            # Clients may send known tokens alone, and the provider may take their key back.
            self._keys.refresh()
        if until <= time.monotonic() or self._version != self._keys.version:
            subject = await self._verify(token, digest)
        if subject is None:
            self._verified.pop(digest, None)
            return None
        user = await (self._users.ask if again else self._users.find)(subject)
        if user is None and await self._admit(subject):
            # A new user is remembered like the others.
            user = await self._users.find(subject)
        return user

    async def _verify(self, token: str, digest: bytes) -> str | None:
        """The subject of a valid token."""
        if len(token) > MAX_LENGTH or not _is_jwt(token):
            return None
        try:
            header = jwt.get_unverified_header(token)
            claims = jwt.decode(token, options={"verify_signature": False})
        except ERRORS:
            return None
        # Nobody makes the service ask for keys with what can't be valid anyway.
        if header.get("alg") not in ALGORITHMS or claims.get("iss") != settings.JWT_ISSUER:
            return None
        try:
            key = await self._keys.find(header.get("kid"), header["alg"])
        except ProviderUnavailable:
            detail = "The identity provider is unavailable"
            raise HTTPException(503, detail, {"Retry-After": str(RETRY)}) from None
        if key is None:
            return None
        try:
            claims = jwt.decode(
                token,
                key.public,
                # Those of the key, not the token's.
                algorithms=key.algorithms,
                issuer=settings.JWT_ISSUER,
                leeway=LEEWAY,
                options={"require": ["exp", "iss", "sub"], "verify_aud": False},
            )
            expires = int(claims["exp"])
        except ERRORS:
            return None
        subject: str = claims["sub"]
        if not (is_for_this_service(claims) and queries.is_subject(subject)):
            return None
        self._remember(digest, subject, time.monotonic() + expires - time.time())
        return subject

    def _remember(self, digest: bytes, subject: str, until: float) -> None:
        if self._version != self._keys.version or len(self._verified) >= self._capacity:
            self._verified.clear()
            self._version = self._keys.version
        self._verified[digest] = (subject, until)


def _digest(token: str) -> bytes:
    return hashlib.sha256(token.encode()).digest()


def is_for_this_service(claims: dict[str, Any]) -> bool:
    """Whether the audience is one of JWT_AUDIENCE.

    Access tokens of Amazon Cognito have no `aud`. What they are for is their `client_id`.
    """
    audience = claims.get("aud", claims.get("client_id"))
    named = audience if isinstance(audience, list) else [audience]
    return any(name in settings.JWT_AUDIENCE for name in named)


async def get_active(subjects: set[str]) -> dict[str, Row]:
    found = await queries.get_identified(settings.JWT_ISSUER, subjects)
    return {subject: user for subject, user in found.items() if user["is_active"]}


async def _admit_all(subjects: list[str]) -> list[Row | None]:
    """The user of a subject, made if need be; None if deactivated. All arguments are the same."""
    issuer, subject = settings.JWT_ISSUER, subjects[0]
    if settings.JWT_CREATE_USERS:
        user = await queries.find_or_add(issuer, subject)
    else:
        user = (await queries.get_identified(issuer, [subject])).get(subject)
    if user is None:
        # The token is valid, so another one of the same person wouldn't help: no 401.
        raise HTTPException(403, "There is no user for this token")
    return [user if user["is_active"] else None] * len(subjects)
