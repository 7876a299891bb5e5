"""Opens connections to PostgreSQL."""

import socket
from contextlib import suppress
from typing import Any, TypeAlias
from typing import cast as as_type

import asyncpg

Connection: TypeAlias = "asyncpg.Connection[Any]"


async def connect(dsn: None = None, **options: Any) -> Connection:
    """Connects like `asyncpg.connect`."""
    connection: Connection = await asyncpg.connect(**options)
    _notice_loss(connection, options["timeout"])
    return connection


def _notice_loss(connection: Connection, seconds: float) -> None:
    """Makes the kernel end a connection whose peer has been silent for so long.

    A machine that lost its power or its network sends nothing, not even an end. The peer's kernel
    answers also while its PostgreSQL is busy.
    """
    sock = as_type("Any", connection)._transport.get_extra_info("socket")
    pause = max(1, round(seconds / 3))
    with suppress(OSError):  # a Unix socket
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        if hasattr(socket, "TCP_USER_TIMEOUT"):  # Linux
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, pause)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, pause)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, round(seconds * 1000))
