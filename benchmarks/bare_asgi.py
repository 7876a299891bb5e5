"""The notes without a framework: an ASGI function, asyncpg and one query a request."""

from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from benchmarks import lean

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]


async def read_body(receive: Receive) -> bytes:
    chunks = []
    more = True
    while more:
        message = await receive()
        chunks.append(message.get("body", b""))
        more = message.get("more_body", False)
    return b"".join(chunks)


async def lifespan(receive: Receive, send: Send) -> None:
    """Keeps the pool open between the startup and the shutdown."""
    await receive()
    await lean.connect()
    await send({"type": "lifespan.startup.complete"})
    await receive()
    await lean.pool.close()
    await send({"type": "lifespan.shutdown.complete"})


async def app(scope: Message, receive: Receive, send: Send) -> None:
    """Answer one request, or run the lifespan."""
    if scope["type"] == "lifespan":
        await lifespan(receive, send)
        return
    method = scope["method"]
    sent = await read_body(receive) if method == "POST" else b""
    query = scope["query_string"].decode()
    status, body = await lean.respond(method, scope["path"], query, sent)
    headers = [
        (b"content-type", b"application/json"),
        (b"content-length", str(len(body)).encode()),
    ]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
