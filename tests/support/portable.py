"""The service on a system without TCP_USER_TIMEOUT: the kernel ends no connection."""

import socket

from service.app import app

del socket.TCP_USER_TIMEOUT

__all__ = ["app"]
