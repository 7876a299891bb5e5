"""Notices that the machine of a database server is gone."""

import socket
from contextlib import suppress
from typing import Any

from service import settings


def notice_loss(transport: Any) -> None:
    """Makes the kernel end a connection whose peer acknowledges nothing.

    A machine that lost its power or its network sends nothing, not even an end. The kernel waits
    for DATABASE_STATEMENT_TIMEOUT, as a statement does.
    """
    sock = transport.get_extra_info("socket")
    seconds = settings.DATABASE_STATEMENT_TIMEOUT
    pause = max(1, round(seconds / 3))
    # A Unix socket raises OSError; one that is closed already OSError, or ValueError with uvloop.
    with suppress(OSError, ValueError):
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        if hasattr(socket, "TCP_USER_TIMEOUT"):  # Linux
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, pause)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, pause)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, round(seconds * 1000))
