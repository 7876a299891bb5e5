"""The service where the system has no TCP_USER_TIMEOUT: no kernel ends a connection for it."""

import socket

from service.app import app

del socket.TCP_USER_TIMEOUT

__all__ = ["app"]
