"""Responses: encoded JSON, streams, answers to writes, and links to next pages."""

import asyncio
import re
from collections.abc import AsyncGenerator, Iterable, Sequence
from contextlib import aclosing
from functools import lru_cache
from urllib.parse import quote, unquote_plus

import orjson
from starlette.datastructures import URL
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

NDJSON = "application/x-ndjson"


class Prepared(Response):
    """A response made of a body that others may share, and of all of its headers, with `Vary`."""

    def __init__(self, body: bytes, headers: list[tuple[bytes, bytes]]) -> None:
        self.status_code = 200
        self.background = None
        self.body = body
        self.raw_headers = headers


class JSONBytes(Response):
    """A response with encoded JSON. It skips the steps of Response that JSON doesn't need."""

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
    """A response in parts. It ends when the client disconnects.

    Starlette's StreamingResponse would cancel the generator. This leaves a reference cycle of an
    exception, its traceback and a part, which may be large.
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
        disconnect = asyncio.ensure_future(_wait_for_disconnect(receive))
        try:
            async with aclosing(self.parts) as parts:
                if scope["method"] != "HEAD":
                    async for part in parts:
                        await send({"type": "http.response.body", "body": part, "more_body": True})
                        if disconnect.done():
                            return
            await send({"type": "http.response.body", "body": b""})
        finally:
            disconnect.cancel()


async def _wait_for_disconnect(receive: Receive) -> None:
    """Waits until the client has disconnected."""
    while (await receive())["type"] != "http.disconnect":
        pass


def encode_ndjson(values: Sequence[object]) -> bytes:
    """Newline-delimited JSON."""
    return b"".join(orjson.dumps(value, option=orjson.OPT_APPEND_NEWLINE) for value in values)


def written(
    minimal: bool,
    body: bytes,
    headers: Iterable[tuple[bytes, bytes]] = (),
    media_type: str = "application/json",
) -> Response:
    """The answer to a write: 200 with the body, or 204 if the client prefers `minimal`."""
    if not minimal:
        return JSONBytes(body, headers, media_type)
    response = Response(status_code=204)
    response.raw_headers = [*headers, (b"preference-applied", b"return=minimal")]
    return response


def counted(total: int) -> list[tuple[bytes, bytes]]:
    """The headers that tell a client its `count=exact`."""
    return [(b"x-total-count", b"%d" % total), (b"preference-applied", b"count=exact")]


# What can't stand between angle brackets.
_ESCAPES = {
    ord(char): quote(char) for char in map(chr, range(256)) if re.match(r'[<>"\\^`{|}\s]', char)
}


# Longer URLs would fill the cache's memory.
MAX_KEPT_BYTES = 500


def next_link(scope: Scope, query: bytes, name: str, value: int | str) -> tuple[bytes, bytes]:
    """The Link header (RFC 8288) to the next page, where the parameter has the value.

    `query` is that of the request; it may lack the parameter.
    """
    host = next((value for name, value in scope["headers"] if name == b"host"), None)
    server, path = scope.get("server"), scope["path"]
    is_short = len(query) + len(path) + len(host or b"") < MAX_KEPT_BYTES
    start = _link_start if is_short else _link_start.__wrapped__
    before = start(scope.get("scheme", "http"), server and tuple(server), path, host, query, name)
    return b"link", f'{before}{str(value).translate(_ESCAPES)}>; rel="next"'.encode("latin-1")


# To make a URL takes as long as the rest of a listing that is shared, and few URLs are frequent.
@lru_cache(1000)
def _link_start(
    scheme: str,
    server: tuple[str, int | None] | None,
    path: str,
    host: bytes | None,
    query: bytes,
    name: str,
) -> str:
    """A link to this URL, up to the value of the parameter, which is the last one."""
    scope: Scope = {"scheme": scheme, "server": server, "path": path, "query_string": query}
    scope["headers"] = [] if host is None else [(b"host", host)]
    # Other parameters stay exactly as they were sent; parsing might change them.
    url, _, sent = str(URL(scope=scope)).partition("?")
    items = sent.split("&")
    kept = [item for item in items if unquote_plus(item.partition("=")[0]) != name]
    return f"<{url}?" + "&".join([*filter(None, kept), f"{name}="]).translate(_ESCAPES)
