"""Safe retries: the Idempotency-Key HTTP header field (an IETF draft of the HTTPAPI group)."""

import hashlib
import re
import time
from collections.abc import Awaitable, Callable

from sqlalchemy import BigInteger, bindparam, select
from starlette.requests import Request

from service.database.dialect import dialect
from service.database.operations import LARGE
from service.database.statements import Run, transact
from service.schemas.validation import InvalidInput, describe
from service.tables import idempotency_keys as keys
from service.web.requests import media_type

LIFETIME_SECONDS = 24 * 60 * 60
# A request with a key adds one key, and deletes at most this many expired ones.
MAX_DELETED = 10

# A string in quotes, as in the draft, or without quotes, as most clients send it.
_KEY = re.compile(r'"([ !#-\[\]-~]{1,255})"|([!#-~]{1,255})')

_now = bindparam("now", type_=BigInteger)
_expired = keys.c.created_at <= bindparam("expired", type_=BigInteger)

# Takes a new or expired key. Waits for the end of a concurrent request with the same key.
_TAKE = dialect.insert_or_replace(
    keys,
    {
        "key": bindparam("key"),
        "fingerprint": bindparam("fingerprint"),
        "response": None,
        "created_at": _now,
    },
    keys.c.key,
    [keys.c.key],
    replaceable=_expired,
)
_FIND = dialect.prepare(
    select(keys.c.fingerprint, keys.c.response).where(keys.c.key == bindparam("key"))
)
_KEEP = dialect.prepare(
    keys.update().where(keys.c.key == bindparam("the_key")).values(response=bindparam("answer"))
)
# Concurrent deletions skip each other's rows. SQLite has only one writer at a time.
_EXPIRED = dialect.prepare(
    select(keys.c.key)
    .where(_expired)
    .order_by(keys.c.created_at)
    .limit(MAX_DELETED)
    .with_for_update(skip_locked=True)
)
_DELETE = dialect.delete(keys, dialect.is_one_of(keys.c.key, "expired_keys"))


def _fingerprint(*parts: bytes) -> str:
    """A digest that identifies a request: the parts and their lengths."""
    digest = hashlib.sha256()
    for part in parts:
        digest.update(b"%d:" % len(part) + part)
    return digest.hexdigest()


async def store_once(
    request: Request, body: bytes, store: Callable[[Run], Awaitable[bytes]]
) -> bytes:
    """The answer to the first request with this key. `store` makes it, within a transaction.

    Each user has separate keys; without a user, all requests share them. Raises InvalidInput for
    an invalid key, or one that another request used, and DatabaseUnavailable.
    """
    loc = ("header", "idempotency-key")
    value = ", ".join(request.headers.getlist("idempotency-key"))
    found = _KEY.fullmatch(value)
    if found is None:
        mismatch = {"type": "string_pattern_mismatch", "pattern": '^"[ -~]{1,255}"$'}
        raise InvalidInput(describe(mismatch, loc, value))
    key = found[1] or found[2]
    if "user" in request.scope:
        # A client's key contains no quote, and a user's id is never reused.
        key = f'{request.scope["user"]["id"]}"{key}'
    content_type = media_type(request.headers.get("content-type", ""))
    fingerprint = _fingerprint(request.url.path.encode(), content_type.encode(), body)
    now = int(time.time())
    expired = now - LIFETIME_SECONDS

    async def act(run: Run) -> bytes:
        if not await run(_TAKE, key=key, fingerprint=fingerprint, now=now, expired=expired):
            (first,) = await run(_FIND, key=key)
            if first["fingerprint"] != fingerprint:
                raise InvalidInput(describe("idempotency_key_reused", loc, value))
            return str(first["response"]).encode()
        response = await store(run)
        await run(_KEEP, the_key=key, answer=response.decode())
        if found := await run(_EXPIRED, expired=expired):
            await run(_DELETE, expired_keys=[row["key"] for row in found])
        return response

    return await transact(act, "large_write" if len(body) > LARGE else "write")
