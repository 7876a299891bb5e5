"""The queries on users, without HTTP."""

import hashlib
import re
import secrets
import time
from collections.abc import Iterable, Sequence

from sqlalchemy import BigInteger, Boolean, String, bindparam, select

from service.database.dialect import dialect
from service.database.statements import fetch
from service.tables import Row, users
from service.users.schemas import MAX_USERNAME

# All columns except the digest of the token.
COLUMNS = [users.c.id, users.c.username, users.c.is_active, users.c.created_at]

PREFIX = "notes_"
# A token contains 32 bytes in URL-safe Base64.
_is_token = re.compile(rf"{PREFIX}[A-Za-z0-9_-]{{43}}").fullmatch
_is_username = re.compile(rf"[A-Za-z0-9._-]{{1,{MAX_USERNAME}}}").fullmatch

_NAMED = users.c.username == bindparam("name", type_=String)

_BY_NAME = dialect.prepare(select(*COLUMNS).where(_NAMED))
_ALL = dialect.prepare(select(*COLUMNS).order_by(users.c.username))
_ANY = dialect.prepare(select(users.c.id).limit(1))
_DIGEST = bindparam("digest", type_=String)
_INSERT = dialect.insert_or_replace(
    users,
    {
        "username": bindparam("name", type_=String),
        "is_active": True,
        "created_at": bindparam("now", type_=BigInteger),
        "token_sha256": _DIGEST,
    },
    users.c.username,
    COLUMNS,
)
_SET_ACTIVE = dialect.update(
    users, {"is_active": bindparam("active", type_=Boolean)}, _NAMED, COLUMNS
)
_SET_TOKEN = dialect.update(users, {"token_sha256": _DIGEST}, _NAMED, COLUMNS)
_DELETE = dialect.delete(users, _NAMED)
_ACTIVE = dialect.prepare(
    select(users.c.id, users.c.username, users.c.token_sha256).where(
        users.c.is_active, dialect.is_one_of(users.c.token_sha256, "digests")
    )
)


def normalize(username: str) -> str | None:
    """The username in lower case, as it is stored; None if it is invalid."""
    return username.lower() if _is_username(username) else None


def new_token() -> str:
    return PREFIX + secrets.token_urlsafe(32)


def digest(token: str) -> str | None:
    """The stored digest of a token; None if the token is invalid."""
    return hashlib.sha256(token.encode()).hexdigest() if _is_token(token) else None


async def get_user(username: str) -> Row | None:
    """The user with this name, in upper or lower case, if there is one."""
    rows = await fetch(_BY_NAME, name=normalize(username))
    return rows[0] if rows else None


async def list_users() -> Sequence[Row]:
    """All users, in the order of their names."""
    return await fetch(_ALL)


async def has_users() -> bool:
    """Whether there is any user."""
    return bool(await fetch(_ANY))


async def add_user(username: str, token: str) -> Row | None:
    """Stores an active user. None if the name exists; ValueError if it is invalid."""
    name = normalize(username)
    if name is None:
        raise ValueError(f"{username!r} is no username")
    rows = await fetch(_INSERT, name=name, now=int(time.time()), digest=digest(token))
    return rows[0] if rows else None


async def set_active(username: str, active: bool) -> Row | None:
    """Activates or deactivates a user; None if there is no such user."""
    rows = await fetch(_SET_ACTIVE, name=normalize(username), active=active)
    return rows[0] if rows else None


async def set_token(username: str, token: str) -> Row | None:
    """Replaces a user's token; None if there is no such user."""
    rows = await fetch(_SET_TOKEN, name=normalize(username), digest=digest(token))
    return rows[0] if rows else None


async def remove_user(username: str) -> bool:
    """Deletes a user; False if there was no such user."""
    return bool(await fetch(_DELETE, name=normalize(username)))


async def get_active(digests: Iterable[str]) -> dict[str, Row]:
    """The active users by their token's digest, with `id` and `username`."""
    rows = await fetch(_ACTIVE, digests=list(digests))
    return {row["token_sha256"]: row for row in rows}
