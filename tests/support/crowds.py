"""Many clients that follow at the same time."""

import selectors
import socket
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from typing import Any

from tests.support.sockets import connect, head


@contextmanager
def crowd(url: str, number: int, *fields: str, buffer: int = 0) -> Iterator[list[socket.socket]]:
    """Clients that follow the notes of a service, and have read only the first event."""
    with ExitStack() as stack:
        clients = []
        for _ in range(number):
            client = stack.enter_context(closing(connect(url, buffer)))
            client.sendall(head("GET", "/notes/changes", *fields))
            clients.append(client)
        read(clients, b"event: start", 1)
        yield clients


def read(clients: Sequence[socket.socket], mark: bytes, times: int) -> None:
    """Reads until each client has got a mark some times. TimeoutError if one waits too long."""
    with selectors.DefaultSelector() as waiting:
        got = dict.fromkeys(clients, (0, b""))
        for client in clients:
            waiting.register(client, selectors.EVENT_READ)
        while waiting.get_map():
            ready = waiting.select(60)
            if not ready:
                raise TimeoutError
            for key, _ in ready:
                one: Any = key.fileobj
                count, tail = got[one]
                data = one.recv(1 << 18)
                assert data, "the stream has ended"
                *found, rest = (tail + data).split(mark)
                # A mark may come in two pieces.
                got[one] = count + len(found), rest[1 - len(mark) :]
                if got[one][0] >= times:
                    waiting.unregister(one)
