"""Ends listening without a reset: all connections that the kernel has taken are served.

To close a listening socket resets the connections in its queue. uvicorn does that first of all, so
that a stop under load would reset some clients each time. Here the kernel is told to begin no more
connections, the queue is emptied, and only then the socket is closed.
"""

import asyncio
import ctypes
import select
import socket
import struct
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from uvicorn.config import Config
from uvicorn.server import Server

if sys.platform == "linux":
    import fcntl

# Seconds for handshakes that have begun, and for emptying the queue at the most.
HANDSHAKE_SECONDS = 0.01
MAX_DRAIN_SECONDS = 1.0

# Linux's socket options that Python doesn't name, and a filter (classic BPF) for the TCP header:
# a packet with the flag SYN, which opens a connection, is dropped, any other passes.
SO_ATTACH_FILTER = 26
SO_DETACH_FILTER = 27
NO_SYN = ctypes.create_string_buffer(
    b"".join(
        struct.pack("HBBI", *instruction)
        for instruction in (
            (0x30, 0, 0, 13),  # load the byte of flags
            (0x45, 0, 1, 2),  # skip one instruction unless SYN is set
            (0x06, 0, 0, 0),  # take nothing of the packet
            (0x06, 0, 0, 0xFFFFFFFF),  # take all of it
        )
    )
)

_serve = Server.main_loop


def install() -> None:
    """Makes uvicorn's servers stop this way; they have no hook for it."""
    Server.main_loop = main_loop  # type: ignore[assignment, method-assign]


async def main_loop(server: Server) -> None:
    """Serves until the server is asked to stop, and then stops listening.

    Of several processes on one socket the last one ends it, also for the process that supervises
    them and has it open; the others leave the queue to it.
    """
    with _sockets(server) as listeners:
        _share(listeners)
        await _serve(server)
        # For requests from here on; of those under way uvicorn ends the connections itself.
        state = server.server_state
        state.default_headers = [*state.default_headers, (b"connection", b"close")]
        last = [one for one in listeners if _is_last(one, server.config)]
        await _accept_queued(last)
        for one in last:
            with suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)
            _filter(one, SO_DETACH_FILTER)
    for each in server.servers:
        each.close()
    # uvicorn tells all connections to end, and knows one only some turns after it was accepted.
    for _ in range(3):
        await asyncio.sleep(0)


@contextmanager
def _sockets(server: Server) -> Iterator[list[socket.socket]]:
    """The listening sockets, which stay the event loop's to close."""
    found = [socket.socket(fileno=one.fileno()) for each in server.servers for one in each.sockets]
    try:
        yield found
    finally:
        for one in found:
            one.detach()


def _share(listeners: list[socket.socket]) -> None:
    """Lets other processes see, by locks, that this one takes connections from the sockets."""
    if sys.platform == "linux":
        for one in listeners:
            with suppress(OSError):
                fcntl.lockf(one, fcntl.LOCK_SH | fcntl.LOCK_NB)


def _is_last(listener: socket.socket, config: Config) -> bool:
    """Whether nobody goes on to take connections from the socket when this process stops."""
    if config.fd is not None:
        return False  # another program has made it, and goes on with it
    if config.workers == 1:
        return True
    if sys.platform == "linux":
        with suppress(OSError):
            # Let go first: of two that stop together, each would wait for the other.
            fcntl.lockf(listener, fcntl.LOCK_UN)
            fcntl.lockf(listener, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
    return False


async def _accept_queued(listeners: list[socket.socket]) -> None:
    """Returns when the event loop has accepted all connections in the queues."""
    for one in listeners:
        _filter(one, SO_ATTACH_FILTER)
    await asyncio.sleep(HANDSHAKE_SECONDS)
    loop = asyncio.get_running_loop()
    deadline = loop.time() + MAX_DRAIN_SECONDS
    while select.select(listeners, [], [], 0)[0] and loop.time() < deadline:  # noqa: ASYNC110
        await asyncio.sleep(0)


def _filter(listener: socket.socket, option: int) -> None:
    """Attaches or detaches the filter, where there is one."""
    if sys.platform == "linux":
        program = struct.pack("HL", len(NO_SYN) // 8, ctypes.addressof(NO_SYN))
        with suppress(OSError):
            listener.setsockopt(socket.SOL_SOCKET, option, program)
