"""Content codings (RFC 9110, section 8.4): answers in gzip for clients that take it.

All that take JSON over HTTP know gzip. zstd is faster and brotli no better at this speed; either
would be one more library.
"""

import asyncio
import zlib
from collections.abc import AsyncGenerator
from contextlib import aclosing
from functools import lru_cache

from starlette.requests import Request
from starlette.responses import Response

from service import metrics
from service.database.coalescing import coalesce
from service.web import budget, conditions, preferences
from service.web.headers import has_any
from service.web.responses import Stream

# Smaller bodies fit into one packet anyway.
MIN_BYTES = 1024
# Others take the event loop for longer than to hand them to a thread.
AT_ONCE_BYTES = 8192
# Larger bodies are not kept.
MAX_KEPT_BYTES = 2_000_000
# A few percent larger than with zlib's default, in half the time.
LEVEL = 5

# The headers with which a client negotiates.
NEGOTIATED = {b"accept-encoding", *conditions.CONDITIONS}


def is_large(response: Response) -> bool:
    """Whether it is worth compressing the answer."""
    if len(response.body) > MIN_BYTES:
        return response.media_type != "image/png"
    return type(response) is Stream


async def negotiate(request: Request, response: Response) -> Response:
    """The answer in the coding that its request prefers, or a 304 if the client has it already.

    Raises HTTPException 406 and 412 for a GET or HEAD.
    """
    if response.status_code != 200:
        return response
    is_stream = isinstance(response, Stream)
    large = is_large(response)
    in_gzip = preferences.wants_gzip(request, large) and (is_stream or response.body != b"")
    if large or in_gzip:
        describe(response, in_gzip)
    if has_any(request.scope, conditions.CONDITIONS):
        response = conditions.unless_known(request, response)
        if response.status_code == 304:
            return response
    if not in_gzip:
        return response
    if request.method == "HEAD":
        # Nothing is compressed for a length alone (RFC 9110, section 9.3.2).
        del response.headers["content-length"]
        return response
    if isinstance(response, Stream):
        response.parts = _compress_parts(response.parts)
    else:
        response.body = await _compress(bytes(response.body))
        if "service.holds" in request.scope:
            # The answer holds this instead of what it was made of.
            budget.release(request.scope)
            budget.keep(request.scope, budget.Hold(len(response.body)))
        response.headers["content-length"] = str(len(response.body))
    return response


def describe(response: Response, in_gzip: bool = False) -> None:
    """Says in the headers that the coding was chosen, and which one; each has its own tag."""
    headers = response.raw_headers
    if in_gzip:
        headers.append((b"content-encoding", b"gzip"))
        for place, (name, value) in enumerate(headers):
            if name == b"etag":
                headers[place] = (name, conditions.gzip_tag(value))
    for place, (name, value) in enumerate(headers):
        if name == b"vary":
            if b"Accept-Encoding" not in value:
                headers[place] = (name, value + b", Accept-Encoding")
            return
    headers.append((b"vary", b"Accept-Encoding"))


# The files of the docs page and pages that are polled stay the same for long.
@lru_cache(8)
def _gzip(body: bytes) -> bytes:
    return zlib.compress(body, LEVEL, zlib.MAX_WBITS | 16)


async def _compress_once(bodies: list[bytes]) -> list[bytes]:
    body = bodies[0]
    compress = _gzip if len(body) <= MAX_KEPT_BYTES else _gzip.__wrapped__
    if len(body) > AT_ONCE_BYTES:
        compressed = await asyncio.get_running_loop().run_in_executor(None, compress, body)
    else:
        compressed = compress(body)
    return [compressed] * len(bodies)


# Callers who share a page have it from one query, so it is the same object.
_compress = coalesce(
    _compress_once, max_batch=10_000, key=id, observe=metrics.batch("compress"), patience=None
)


async def _compress_parts(
    parts: AsyncGenerator[bytes | memoryview, None],
) -> AsyncGenerator[bytes | memoryview, None]:
    """Compresses parts, so that a client can decode each one at once. One part is in memory."""
    compressor = zlib.compressobj(LEVEL, wbits=zlib.MAX_WBITS | 16)

    def compress(part: bytes | memoryview) -> bytes:
        return compressor.compress(part) + compressor.flush(zlib.Z_SYNC_FLUSH)

    loop = asyncio.get_running_loop()
    async with aclosing(parts):
        async for part in parts:
            if len(part) > MIN_BYTES:
                yield await loop.run_in_executor(None, compress, part)
            elif compressed := compressor.compress(part):
                yield compressed
    yield compressor.flush()
