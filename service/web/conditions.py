"""Conditional requests (RFC 9110): entity tags, If-Match and If-None-Match."""

import asyncio
import hashlib
import re
from collections.abc import Awaitable, Callable
from typing import TypeVar
from weakref import WeakValueDictionary

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from service.web.headers import has_any
from service.web.responses import JSONBytes

Item = TypeVar("Item")
Result = TypeVar("Result")

CONDITIONS = {b"if-match", b"if-none-match"}
# What a 304 leaves out, as it has no content (RFC 9110, section 15.4.5).
_OF_CONTENT = {b"content-encoding", b"content-length", b"content-type"}
_TAG = re.compile(r'(?:W/)?("[\x21\x23-\x7e\x80-\xff]*")')
_TAGS = re.compile(rf"[ \t,]*(?:{_TAG.pattern}[ \t]*(?:,[ \t,]*|$))*")

# Those who write an item under conditions take turns. Each entry lasts as long as they do.
_turns: WeakValueDictionary[tuple[str, object], asyncio.Lock] = WeakValueDictionary()


def etag(body: bytes, *about: object) -> str:
    """A strong entity tag: a hash of the bytes, and of `about`.

    `about` tells bodies apart that are the same and stand for different things, such as pages.
    """
    # Processors have instructions for SHA-256.
    digest = hashlib.sha256(repr(about).encode() if about else body)
    if about:
        digest.update(body)
    return f'"{digest.hexdigest()[:24]}"'


def gzip_tag(tag: bytes) -> bytes:
    """The tag of what a tag names, in gzip: no strong tag stands for two encodings."""
    return tag[:-1] + b'-gzip"'


def unless_known(request: Request, response: Response) -> Response:
    """Returns the answer to a GET or HEAD, or 304 if the client has it (RFC 9110, section 13.2.2).

    Raises HTTPException 412. An answer without an entity tag meets no condition but `*`.
    """
    if request.method not in ("GET", "HEAD") or response.status_code != 200:
        return response
    tag = response.headers.get("etag")
    if "if-match" in request.headers and not _is_state_of(tag, _listed(request, "if-match")):
        raise HTTPException(412)
    if not {"*", tag}.intersection(_listed(request, "if-none-match")):
        return response
    known = Response(status_code=304)
    known.raw_headers = [field for field in response.raw_headers if field[0] not in _OF_CONTENT]
    return known


def _check(request: Request, tag: str) -> None:
    """Evaluates the conditions of a write on the item that there is; HTTPException 412."""
    if "if-match" in request.headers and not _is_state_of(tag, _listed(request, "if-match")):
        raise HTTPException(412)
    if _is_state_of(tag, _listed(request, "if-none-match")):
        raise HTTPException(412)


def _listed(request: Request, header: str) -> list[str]:
    """The tags in the header, or `*`. An invalid header lists nothing.

    A weak tag is read as a strong one. RFC 9110, section 13.1.1, forbids weak tags in If-Match,
    because an item may change while its weak tag stays the same. A tag of this service is a hash of
    the item. A proxy that compresses the answer makes the tag weak. The hash names the same state.
    """
    value = ", ".join(request.headers.getlist(header)).strip()
    if value == "*":
        return ["*"]
    return _TAG.findall(value) if _TAGS.fullmatch(value) else []


def _is_state_of(tag: str | None, listed: list[str]) -> bool:
    """Whether one of the tags, in either encoding, names the same state; `*` names each."""
    if tag is None:
        return "*" in listed
    plain = tag.replace("-gzip", "")
    return not {"*", plain, f'{plain[:-1]}-gzip"'}.isdisjoint(listed)


async def write(
    request: Request,
    find: Callable[[], Awaitable[Item | None]],
    tag: Callable[[Item], str],
    act: Callable[[Item | None], Awaitable[Result | None]],
) -> Result:
    """Writes an item under the request's conditions; raises HTTPException 404 or 412.

    `find` reads the item, `tag` makes its entity tag, and `act` writes it. With conditions, `act`
    gets the item that meets them. It returns nothing if the item changed meanwhile; then this
    reads the item again. So of two clients with the same condition one wins. In this process those
    with conditions take turns: else each write would make all others read again.
    """
    if _asks_nothing(request):
        done = await act(None)
        if not done:
            raise HTTPException(404)
        return done
    # A user holds up no other one, as the item may have an owner.
    user = request.scope["user"]["id"] if "user" in request.scope else None
    async with _turns.setdefault((request.scope["path"], user), asyncio.Lock()):
        while True:
            item = await find()
            if item is None:
                raise HTTPException(404)
            _check(request, tag(item))
            if done := await act(item):
                return done


def _asks_nothing(request: Request) -> bool:
    """Whether every item that exists meets the conditions of a write."""
    if not has_any(request.scope, CONDITIONS):
        return True
    return "if-none-match" not in request.headers and _listed(request, "if-match") == ["*"]


def tagged(body: bytes) -> Response:
    """An answer with an item and its entity tag."""
    return JSONBytes(body, headers=[(b"etag", etag(body).encode())])
