"""The notes on Granian, as an RSGI application: Granian's own interface, and its fastest."""

import asyncio

from granian.rsgi import HTTPProtocol, Scope  # type: ignore[attr-defined]

from benchmarks import lean

HEADERS = [("content-type", "application/json")]


class App:
    """The application; Granian calls its three methods."""

    def __rsgi_init__(self, loop: asyncio.AbstractEventLoop) -> None:
        loop.run_until_complete(lean.connect())

    def __rsgi_del__(self, loop: asyncio.AbstractEventLoop) -> None:
        loop.run_until_complete(lean.pool.close())

    async def __rsgi__(self, scope: Scope, protocol: HTTPProtocol) -> None:
        sent = await protocol() if scope.method == "POST" else b""
        status, body = await lean.respond(scope.method, scope.path, scope.query_string, sent)
        protocol.response_bytes(status, HEADERS, body)


app = App()
