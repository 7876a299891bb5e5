"""Safe retries: the Idempotency-Key HTTP header field (an IETF draft of the HTTPAPI group)."""

import hashlib
import re
import time
from collections.abc import Awaitable, Callable

from sqlalchemy import BigInteger, bindparam, select
from starlette.requests import Request

from service.database.dialect import dialect
from service.database.statements import Run, transact
from service.schemas.validation import InvalidInput, describe
from service.tables import idempotency_keys as keys
from service.web.requests import media_type

LIFETIME_SECONDS = 24 * 60 * 60
# How many old keys a request with a key sweeps: more than the one that it adds.
SWEPT = 10

# The draft's string in quotes, or the bare key that most clients send.
_KEY = re.compile(r'"([ !#-\[\]-~]{1,255})"|([!#-~]{1,255})')

_now = bindparam("now", type_=BigInteger)
_expired = keys.c.created_at <= bindparam("expired", type_=BigInteger)

# Takes the key, if it is new or expired. A request with the same key that is under way makes this
# wait for its end.
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
_old = select(keys.c.key).where(_expired).order_by(keys.c.created_at).limit(SWEPT)
# Two requests that sweep at once don't wait for each other; SQLite has one writer at a time.
_SWEEP = dialect.prepare(
    keys.delete().where(keys.c.key.in_(_old.with_for_update(skip_locked=True)))
)


def _fingerprint(*parts: bytes) -> str:
    """Tells requests apart: a digest of the parts and where each ends."""
    digest = hashlib.sha256()
    for part in parts:
        digest.update(b"%d:" % len(part) + part)
    return digest.hexdigest()


class _KeyReused(Exception):
    """The key came with another request before."""


async def store_once(
    request: Request, body: bytes, store: Callable[[Run], Awaitable[bytes]]
) -> bytes:
    """The answer that `store` makes, within a transaction, at most once for the request's key.

    Raises InvalidInput for a key that can't be one or came with another request, and
    DatabaseUnavailable.
    """
    loc = ("header", "idempotency-key")
    value = ", ".join(request.headers.getlist("idempotency-key"))
    key = _KEY.fullmatch(value)
    if key is None:
        mismatch = {"type": "string_pattern_mismatch", "pattern": '^"[ -~]{1,255}"$'}
        raise InvalidInput(describe(mismatch, loc, value))
    content_type = media_type(request.headers.get("content-type", ""))
    user = request.scope.get("user")
    user_id = None if user is None else user["id"]
    parts = (request.url.path.encode(), content_type.encode(), body)
    try:
        return await _once(key[1] or key[2], user_id, _fingerprint(*parts), store)
    except _KeyReused:
        raise InvalidInput(describe("idempotency_key_reused", loc, value)) from None


async def _once(
    key: str, user_id: int | None, request: str, store: Callable[[Run], Awaitable[bytes]]
) -> bytes:
    """The answer to the first request with the key, which `store` makes, within a transaction.

    A key is its user's own; without a user (None) all share their keys. `request` is the request's
    fingerprint. Raises _KeyReused, and DatabaseUnavailable.
    """
    if user_id is not None:
        # No client's key has a quote in it, and no other user is ever given the id.
        key = f'{user_id}"{key}'
    now = int(time.time())
    expired = now - LIFETIME_SECONDS

    async def act(run: Run) -> bytes:
        if not await run(_TAKE, key=key, fingerprint=request, now=now, expired=expired):
            (first,) = await run(_FIND, key=key)
            if first["fingerprint"] != request:
                raise _KeyReused
            return str(first["response"]).encode()
        response = await store(run)
        await run(_KEEP, the_key=key, answer=response.decode())
        await run(_SWEEP, expired=expired)
        return response

    return await transact(act)
