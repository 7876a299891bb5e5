"""The queries on users, without HTTP."""

import hashlib
import re
import secrets
import time
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from sqlalchemy import (
    BigInteger,
    Boolean,
    Column,
    ColumnElement,
    String,
    Update,
    bindparam,
    func,
    literal_column,
    select,
    union_all,
)

from service.database.dialect import dialect
from service.database.statements import fetch
from service.tables import Row, tokens, users
from service.users.schemas import MAX_USERNAME

# The token that a user gets at first.
DEFAULT = "default"
# Begins what a user without that token has in its place.
WITHOUT = "-"

# All columns of a user that others may see.
COLUMNS = [users.c.id, users.c.username, users.c.is_active, users.c.created_at]

PREFIX = "notes_"
# A token contains 32 bytes in URL-safe Base64.
_is_token = re.compile(rf"{PREFIX}[A-Za-z0-9_-]{{43}}").fullmatch
_is_username = re.compile(rf"[A-Za-z0-9._-]{{1,{MAX_USERNAME}}}").fullmatch

# OpenID Connect Core, section 2: at most 255 characters of ASCII.
is_subject = re.compile(r"[!-~](?:[ -~]{0,253}[!-~])?").fullmatch

_NAMED = users.c.username == bindparam("name", type_=String)

_BY_NAME = dialect.prepare(select(*COLUMNS).where(_NAMED))
_ALL = dialect.prepare(select(*COLUMNS, users.c.subject).order_by(users.c.username))
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
_HAS_TOKEN = func.substr(users.c.token_sha256, 1, 1) != WITHOUT
_OTHER_TOKEN = {"token_sha256": _DIGEST, "token_used_at": None}
_SET_TOKEN = dialect.update(users, _OTHER_TOKEN, _NAMED, COLUMNS)
_TAKE_TOKEN = dialect.update(users, _OTHER_TOKEN, _NAMED, COLUMNS, _HAS_TOKEN)
_DELETE = dialect.delete(users, _NAMED)

_TOKEN_NAME = bindparam("token_name", type_=String)
_INSERT_TOKEN = dialect.prepare(
    tokens.insert().values(
        user_id=bindparam("user_id", type_=BigInteger),
        name=_TOKEN_NAME,
        token_sha256=_DIGEST,
        created_at=bindparam("now", type_=BigInteger),
        expires_at=bindparam("expires_at", type_=BigInteger),
        read_only=bindparam("read_only", type_=Boolean),
    )
)
_OF_NAMED = tokens.c.user_id == select(users.c.id).where(_NAMED).scalar_subquery()
_DELETE_TOKEN = dialect.delete(tokens, _OF_NAMED, tokens.c.name == _TOKEN_NAME)
_DEFAULT_TOKEN: list[ColumnElement[Any]] = [
    literal_column("NULL", BigInteger).label("expires_at"),
    literal_column("false", Boolean).label("read_only"),
    users.c.token_used_at.label("last_used_at"),
]
_OTHER_TOKENS: list[ColumnElement[Any]] = [
    tokens.c.expires_at,
    tokens.c.read_only,
    tokens.c.last_used_at,
]
_HAS_DEFAULT = dialect.prepare(select(*_DEFAULT_TOKEN).where(_NAMED, _HAS_TOKEN))
_TOKENS = dialect.prepare(
    select(tokens.c.name, *_OTHER_TOKENS).where(_OF_NAMED).order_by(tokens.c.name)
)
_ACTIVE = dialect.prepare(
    union_all(
        select(users.c.id, users.c.username, users.c.token_sha256, *_DEFAULT_TOKEN).where(
            users.c.is_active, dialect.is_one_of(users.c.token_sha256, "digests")
        ),
        select(users.c.id, users.c.username, tokens.c.token_sha256, *_OTHER_TOKENS)
        .join(tokens, tokens.c.user_id == users.c.id)
        .where(users.c.is_active, dialect.is_one_of(tokens.c.token_sha256, "digests")),
    )
)
_ISSUER, _SUBJECT = bindparam("issuer", type_=String), bindparam("subject", type_=String)
_IDENTIFIED = dialect.prepare(
    select(users.c.id, users.c.username, users.c.is_active, users.c.subject, *_DEFAULT_TOKEN).where(
        users.c.issuer == _ISSUER, dialect.is_one_of(users.c.subject, "subjects")
    )
)
_INSERT_IDENTIFIED = dialect.prepare(
    users.insert().values(
        username=bindparam("name", type_=String),
        is_active=True,
        created_at=bindparam("now", type_=BigInteger),
        token_sha256=_DIGEST,
        issuer=_ISSUER,
        subject=_SUBJECT,
    )
)


def _set_used(used: Column[int], digest: Column[str]) -> Update:
    hour = bindparam("hour", type_=BigInteger)
    change = digest.table.update().values({used: hour})
    return change.where(dialect.is_one_of(digest, "digests"), func.coalesce(used, 0) < hour)


_SET_USED = [
    dialect.prepare(_set_used(users.c.token_used_at, users.c.token_sha256)),
    dialect.prepare(_set_used(tokens.c.last_used_at, tokens.c.token_sha256)),
]


def normalize(username: str) -> str | None:
    """A name of a user or a token in lower case, as it is stored; None if it is invalid."""
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
    """All users, in the order of their names. Those of an identity provider have a `subject`."""
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
    """Replaces a user's token `default`; None if there is no such user."""
    rows = await fetch(_SET_TOKEN, name=normalize(username), digest=digest(token))
    return rows[0] if rows else None


async def remove_user(username: str) -> bool:
    """Deletes a user with all tokens; False if there was no such user."""
    return bool(await fetch(_DELETE, name=normalize(username)))


async def add_token(
    username: str, name: str, token: str, expires_at: int | None, read_only: bool
) -> bool | None:
    """Stores a token of a user; False if the user has one of this name, None without such a user.

    The time is in seconds since the epoch. ValueError if the name is invalid, or `default`, which
    set_token replaces.
    """
    token_name = normalize(name)
    if token_name in (None, DEFAULT):
        raise ValueError(f"{name!r} is no name for a token")
    user = await get_user(username)
    if user is None:
        return None
    try:
        await fetch(
            _INSERT_TOKEN,
            user_id=user["id"],
            token_name=token_name,
            digest=digest(token),
            now=int(time.time()),
            expires_at=expires_at,
            read_only=read_only,
        )
    except dialect.CONFLICT:
        return False
    return True


async def list_tokens(username: str) -> list[tuple[str, Row]] | None:
    """A user's tokens by name, `default` first: `expires_at`, `read_only` and `last_used_at`.

    None if there is no such user.
    """
    name = normalize(username)
    if await get_user(username) is None:
        return None
    default = await fetch(_HAS_DEFAULT, name=name)
    others = await fetch(_TOKENS, name=name)
    return [(DEFAULT, row) for row in default] + [(row["name"], row) for row in others]


async def revoke_token(username: str, name: str) -> bool:
    """Deletes a token of a user; False if there was no such token."""
    user, token_name = normalize(username), normalize(name)
    if token_name == DEFAULT:
        return bool(await fetch(_TAKE_TOKEN, name=user, digest=_no_digest()))
    return bool(await fetch(_DELETE_TOKEN, name=user, token_name=token_name))


def _no_digest() -> str:
    """A value in the place of a digest, which no token has."""
    return WITHOUT + secrets.token_hex(31)


async def get_active(digests: Iterable[str]) -> dict[str, Row]:
    """The tokens of active users by their digest, with the user's `id` and `username`.

    Each has `expires_at`, which may be past, `read_only` and `last_used_at`.
    """
    rows = await fetch(_ACTIVE, digests=list(digests))
    return {row["token_sha256"]: row for row in rows}


async def set_used(digests: Iterable[str], hour: int) -> None:
    """Stores that the tokens with these digests were used in an hour, which is given by its begin.

    The time is in seconds since the epoch.
    """
    for operation in _SET_USED:
        await fetch(operation, digests=list(digests), hour=hour)


async def get_identified(issuer: str, subjects: Iterable[str]) -> dict[str, Row]:
    """The users of a provider by their subject: `id`, `username` and `is_active`.

    As rows of `get_active` they have `expires_at` and `read_only`, which restrict nothing.
    """
    rows = await fetch(_IDENTIFIED, issuer=issuer, subjects=list(subjects))
    return {row["subject"]: row for row in rows}


async def add_identified(username: str, issuer: str, subject: str) -> bool:
    """Stores an active user of a provider, without a token. False if one exists."""
    values = {"name": normalize(username), "issuer": issuer, "subject": subject}
    try:
        await fetch(_INSERT_IDENTIFIED, **values, now=int(time.time()), digest=_no_digest())
    except dialect.CONFLICT:
        return False
    return True


async def find_or_add(issuer: str, subject: str) -> Row | None:
    """The user of a provider, who is added if need be. None if the names for it are taken.

    Others may add the same user meanwhile: the database has one for each subject.
    """
    for name in names_for(issuer, subject):
        found = await get_identified(issuer, [subject])
        if found or await add_identified(name, issuer, subject):
            break
    return (found or await get_identified(issuer, [subject])).get(subject)


def names_for(issuer: str, subject: str) -> Iterator[str]:
    """Usernames for a user of a provider: the subject if it is one, or a name with its digest."""
    if name := normalize(subject):
        yield name
    digest = hashlib.sha256(f"{issuer} {subject}".encode()).hexdigest()
    readable = re.sub("[^a-z0-9._-]+", "-", subject.lower())
    for length in (8, 32):
        yield f"{readable[: MAX_USERNAME - length - 1]}-{digest[:length]}"
