"""uvicorn's HTTP protocol on httptools, with one system call for a response instead of two.

uvicorn writes an answer's head and its body apart, and uvloop sends each at once; at some
thousand requests a second that is a tenth of all the time. Used as
`uvicorn --http service.protocol:Protocol`.
"""

import asyncio
from typing import Any

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

# More than this is not held back: writing it shows uvicorn that the client reads too slowly.
MOST = 65_536


class Corked:
    """A transport that sends together what is written in one turn of the event loop."""

    def __init__(self, transport: asyncio.Transport) -> None:
        self.transport = transport
        self.call_soon = asyncio.get_running_loop().call_soon
        self.held: list[bytes] = []
        self.size = 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self.transport, name)

    def write(self, data: bytes) -> None:
        if not self.held:
            self.call_soon(self.flush)
        self.held.append(data)
        self.size += len(data)
        if self.size > MOST:
            self.flush()

    def flush(self) -> None:
        if self.held:
            self.transport.write(b"".join(self.held))
            self.held.clear()
            self.size = 0

    def close(self) -> None:
        self.flush()
        self.transport.close()


class Protocol(HttpToolsProtocol):
    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(Corked(transport))  # type: ignore[arg-type]
