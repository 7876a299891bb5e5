"""Conditional requests (RFC 9110): entity tags, If-Match and If-None-Match."""

import hashlib
import re
from collections.abc import Awaitable, Callable
from typing import TypeVar

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from service.web.responses import JSONBytes

Item = TypeVar("Item")
Result = TypeVar("Result")

_CONDITIONS = {b"if-match", b"if-none-match"}
_TAG = re.compile(r'(W/)?("[\x21\x23-\x7e\x80-\xff]*")')
_TAGS = re.compile(rf"[ \t,]*(?:{_TAG.pattern}[ \t]*(?:,[ \t,]*|$))*")


def etag(body: bytes) -> str:
    """A strong entity tag: a hash of the bytes."""
    return f'"{hashlib.blake2b(body, digest_size=12).hexdigest()}"'


def is_conditional(request: Request) -> bool:
    for name, _ in request.scope["headers"]:  # noqa: SIM110 - half the time of any()
        if name in _CONDITIONS:
            return True
    return False


def check(request: Request, tag: str) -> None:
    """Evaluates the conditions for an existing item with this tag (RFC 9110, section 13.2.2).

    Raises HTTPException 412, or 304 for a GET or HEAD if the client has the same item.
    """
    if "if-match" in request.headers and not _names(request, "if-match", tag, weak=False):
        raise HTTPException(412)
    if "if-none-match" in request.headers and _names(request, "if-none-match", tag, weak=True):
        if request.method in ("GET", "HEAD"):
            raise HTTPException(304, headers={"ETag": tag})
        raise HTTPException(412)


def _names(request: Request, header: str, tag: str, weak: bool) -> bool:
    """Whether the header is `*` or lists the tag. An invalid header lists nothing."""
    value = ", ".join(request.headers.getlist(header)).strip()
    if value == "*":
        return True
    if not _TAGS.fullmatch(value):
        return False
    return any(strong == tag and (weak or not mark) for mark, strong in _TAG.findall(value))


async def write(
    request: Request,
    find: Callable[[], Awaitable[Item | None]],
    tag: Callable[[Item], str],
    act: Callable[[Item | None], Awaitable[Result | None]],
) -> Result:
    """Writes an item under the request's conditions; raises HTTPException 404 or 412.

    `find` reads the item, `tag` makes its entity tag, and `act` writes it. With conditions, `act`
    gets the item that meets them. It returns nothing if the item changed meanwhile; then this
    reads the item again. So of two clients with the same condition one wins, without a lock.
    """
    if not is_conditional(request):
        done = await act(None)
        if not done:
            raise HTTPException(404)
        return done
    while True:
        item = await find()
        if item is None:
            raise HTTPException(404)
        check(request, tag(item))
        if done := await act(item):
            return done


def answer(request: Request, body: bytes) -> Response:
    """The answer to a GET under the request's conditions, with an entity tag."""
    tag = etag(body)
    if is_conditional(request):
        check(request, tag)
    return JSONBytes(body, headers=[(b"etag", tag.encode())])
