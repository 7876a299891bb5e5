"""Stops listening without a reset: every connection that the kernel accepted is served.

Routers learn late that a process stops, and send it connections until then. So it may go on for
some seconds, in which it is not ready.

Closing a listening socket resets the connections in its queue. uvicorn closes it first, so a stop
under load resets some clients. This module makes the kernel drop new connections, accepts those in
the queue, and then closes the socket.
"""

import asyncio
import ctypes
import logging
import select
import socket
import struct
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

from uvicorn.config import STARTUP_FAILURE, Config
from uvicorn.server import Server

if sys.platform == "linux":
    import fcntl

# Seconds to wait for handshakes in progress, and the most seconds to empty the queue.
HANDSHAKE_SECONDS = 0.01
MAX_DRAIN_SECONDS = 1.0

# Seconds between two looks at the time and at signals, as in uvicorn.
TICK_SECONDS = 0.1

# Linux socket options that Python doesn't define, and a filter (classic BPF) on the TCP header. It
# drops packets with the flag SYN, which open a connection.
SO_ATTACH_FILTER = 26
SO_DETACH_FILTER = 27
NO_SYN = ctypes.create_string_buffer(
    b"".join(
        struct.pack("HBBI", *instruction)
        for instruction in (
            (0x30, 0, 0, 13),  # load the flags
            (0x45, 0, 1, 2),  # skip one instruction unless SYN is set
            (0x06, 0, 0, 0),  # drop the packet
            (0x06, 0, 0, 0xFFFFFFFF),  # accept the packet
        )
    )
)

logger = logging.getLogger("uvicorn.error")

# Set when the process begins to stop. Then these functions are called.
stopping = threading.Event()
at_stop: list[Callable[[], None]] = []

_serve = Server.main_loop


def install(drain_seconds: float) -> None:
    """Replaces the main loop of uvicorn's servers, which have no hook for their end."""

    async def main_loop(server: Server) -> None:
        await _main_loop(server, drain_seconds)

    Server.main_loop = main_loop  # type: ignore[assignment, method-assign]


async def _main_loop(server: Server, drain_seconds: float) -> None:
    """Serves until the server has to stop and for some seconds more, and then stops listening.

    If several processes share a socket, the last one empties the queue and shuts the socket down.
    """
    if None in [one for each in server.servers for one in each.sockets]:
        # uvloop has closed the socket, and said nothing.
        logger.error("Another program has begun to listen on the port.")
        await server.lifespan.shutdown()
        sys.exit(STARTUP_FAILURE)
    with _sockets(server) as listeners:
        _lock_shared(listeners)
        await _serve(server)
        stopping.set()
        for end in at_stop:
            end()
        await _drain(server, drain_seconds)
        last = [one for one in listeners if _is_last(one, server.config)]
        if last:
            # Another process that waited here, too, would fail to accept after the shutdown below.
            await _accept_queued(last)
        for one in last:
            with suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)
            _set_filter(one, SO_DETACH_FILTER)
    for each in server.servers:
        each.close()
    # uvicorn then closes all connections that it knows. It knows one only some iterations after
    # the event loop accepted it.
    for _ in range(3):
        await asyncio.sleep(0)


async def _drain(server: Server, seconds: float) -> None:
    """Serves for some seconds more, or until a second SIGINT. Answers close their connections."""
    state = server.server_state
    loop = asyncio.get_running_loop()
    end = loop.time() + seconds
    while True:
        # It renews the header with the date.
        await server.on_tick(0)
        state.default_headers = [*state.default_headers, (b"connection", b"close")]
        rest = end - loop.time()
        if rest <= 0 or server.force_exit:
            return
        await asyncio.sleep(min(rest, TICK_SECONDS))


@contextmanager
def _sockets(server: Server) -> Iterator[list[socket.socket]]:
    """The listening sockets. The event loop still owns them and closes them."""
    found = [socket.socket(fileno=one.fileno()) for each in server.servers for one in each.sockets]
    try:
        yield found
    finally:
        for one in found:
            one.detach()


def _lock_shared(listeners: list[socket.socket]) -> None:
    """Locks the sockets, to show other processes that this one accepts connections."""
    if sys.platform == "linux":
        for one in listeners:
            with suppress(OSError):
                fcntl.lockf(one, fcntl.LOCK_SH | fcntl.LOCK_NB)


def _is_last(listener: socket.socket, config: Config) -> bool:
    """Whether no other process accepts connections from the socket."""
    if config.fd is not None:
        return False  # another program owns the socket and continues to use it
    if config.workers == 1:
        return True
    if sys.platform == "linux":
        with suppress(OSError):
            # Unlock first: if two processes stop together, neither could get the exclusive lock.
            fcntl.lockf(listener, fcntl.LOCK_UN)
            fcntl.lockf(listener, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
    return False


async def _accept_queued(listeners: list[socket.socket]) -> None:
    """Waits until the event loop has accepted all queued connections."""
    for one in listeners:
        _set_filter(one, SO_ATTACH_FILTER)
    await asyncio.sleep(HANDSHAKE_SECONDS)
    loop = asyncio.get_running_loop()
    deadline = loop.time() + MAX_DRAIN_SECONDS
    while select.select(listeners, [], [], 0)[0] and loop.time() < deadline:  # noqa: ASYNC110
        await asyncio.sleep(0)


def _set_filter(listener: socket.socket, option: int) -> None:
    """Attaches or detaches the filter, if the system supports it."""
    if sys.platform == "linux":
        program = struct.pack("HL", len(NO_SYN) // 8, ctypes.addressof(NO_SYN))
        with suppress(OSError):
            listener.setsockopt(socket.SOL_SOCKET, option, program)
