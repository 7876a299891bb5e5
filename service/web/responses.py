"""Responses: JSON that is encoded already, answers to writes, links to further pages."""

import asyncio
import re
from collections.abc import AsyncGenerator, Iterable, Mapping, Sequence
from contextlib import aclosing
from urllib.parse import quote, unquote_plus

import orjson
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

# Newline-delimited JSON.
NDJSON = "application/x-ndjson"


class Prepared(Response):
    """A response made of a body that others may share, and of all of its headers, with `Vary`."""

    def __init__(self, body: bytes, headers: list[tuple[bytes, bytes]]) -> None:
        self.status_code = 200
        self.background = None
        self.body = body
        self.raw_headers = headers


class JSONBytes(Response):
    """A response whose body is JSON already, without the steps that Response takes for any body."""

    def __init__(
        self,
        body: bytes,
        headers: Iterable[tuple[bytes, bytes]] = (),
        media_type: str = "application/json",
    ) -> None:
        self.status_code = 200
        self.background = None
        self.body = body
        self.raw_headers = [
            (b"content-length", b"%d" % len(body)),
            (b"content-type", media_type.encode()),
            *headers,
        ]


class Stream(Response):
    """A response in parts, which ends when its client leaves.

    Starlette's own would cancel whoever makes the parts, and so leave a cycle of an exception, its
    traceback and a part that may be large.
    """

    def __init__(
        self,
        parts: AsyncGenerator[bytes | memoryview, None],
        headers: list[tuple[bytes, bytes]],
    ) -> None:
        self.status_code = 200
        self.background = None
        self.body = b""
        self.parts = parts
        self.raw_headers = headers

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        start = {"type": "http.response.start", "status": 200, "headers": self.raw_headers}
        await send(start)
        leaving = asyncio.ensure_future(_leaves(receive))
        try:
            async with aclosing(self.parts) as parts:
                if scope["method"] != "HEAD":
                    async for part in parts:
                        await send({"type": "http.response.body", "body": part, "more_body": True})
                        if leaving.done():
                            return
            await send({"type": "http.response.body", "body": b""})
        finally:
            leaving.cancel()


async def _leaves(receive: Receive) -> None:
    """Returns when the client has left."""
    while (await receive())["type"] != "http.disconnect":
        pass


def encode_ndjson(values: Sequence[object]) -> bytes:
    """Newline-delimited JSON."""
    return b"".join(orjson.dumps(value, option=orjson.OPT_APPEND_NEWLINE) for value in values)


def written(
    minimal: bool,
    body: bytes,
    headers: Mapping[str, str] | None = None,
    media_type: str = "application/json",
) -> Response:
    """The answer to a write: the body, or none where the client prefers a minimal one."""
    extra = {} if headers is None else dict(headers)
    if minimal:
        extra["Preference-Applied"] = "return=minimal"
        return Response(status_code=204, headers=extra)
    raw = [(name.encode(), value.encode("latin-1")) for name, value in extra.items()]
    return JSONBytes(body, headers=raw, media_type=media_type)


def counted(total: int) -> list[tuple[bytes, bytes]]:
    """The headers that tell a client its `count=exact`."""
    return [(b"x-total-count", b"%d" % total), (b"preference-applied", b"count=exact")]


def next_link(request: Request, after: int) -> tuple[bytes, bytes]:
    """The Link header (RFC 8288) to the page that follows."""
    # The other parameters stay as they were sent, which parsing them might not give.
    items = request.url.query.split("&")
    kept = [item for item in items if unquote_plus(item.partition("=")[0]) != "after"]
    # But for what would end the URL between its angle brackets.
    kept = [re.sub(r'[<>"\\^`{|}\s]', lambda found: quote(found[0]), item) for item in kept]
    url = request.url.replace(query="&".join([*filter(None, kept), f"after={after}"]))
    return b"link", f'<{url}>; rel="next"'.encode("latin-1")
