"""A network between the service and a server, which fails when it is told to."""

import ctypes
import socket
import struct
import threading
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from urllib.parse import parse_qs, urlsplit

RESET = struct.pack("ii", 1, 0)
# A socket option of Linux that Python doesn't define, and a filter (classic BPF) that drops all.
SO_ATTACH_FILTER = 26
NOTHING = ctypes.create_string_buffer(struct.pack("HBBI", 0x06, 0, 0, 0))


class Link:
    """A connection of the service to the server. It `is_open` until the service ends it."""

    def __init__(self, service: socket.socket, server: socket.socket, hangs: bool) -> None:
        self.service = service
        self.server = server
        self.is_open = True
        self.hangs = hangs
        # Whether data of the service was held back.
        self.held = False
        self.is_forgotten = False
        self.loses_answer = False

    def cut(self) -> None:
        with suppress(OSError):
            self.service.shutdown(socket.SHUT_RDWR)

    def vanish(self) -> None:
        program = struct.pack("HL", 1, ctypes.addressof(NOTHING))
        with suppress(OSError):  # it has ended
            self.service.setsockopt(socket.SOL_SOCKET, SO_ATTACH_FILTER, program)

    def reset(self) -> None:
        with suppress(OSError):
            self.service.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
            self.service.shutdown(socket.SHUT_RD)


class Proxy:
    """A port that leads to a database server, and can be switched to another one.

    Open connections stay, as with a name whose address changes.
    """

    def __init__(self, target: str) -> None:
        # The URL of the database, which may change.
        self.target = target
        self.accepted = 0
        # How often the service has sent something.
        self.asked = 0
        self.links: list[Link] = []
        self._hangs = False
        self._losses = 0
        self._marker = b""
        # Called with each answer. Returns True if it has ended the connection.
        self.ends: Callable[[Link, bytes], bool] = lambda link, answer: False
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._threads = [threading.Thread(target=self._serve)]
        self._threads[0].start()

    @property
    def url(self) -> str:
        """The URL of the database through the proxy, without encryption."""
        parts = urlsplit(self.target)
        user, at, _ = parts.netloc.rpartition("@")
        netloc = f"{user}{at}127.0.0.1:{self._listener.getsockname()[1]}"
        return parts._replace(netloc=netloc, query="sslmode=disable").geturl()

    def lose_answers(self, count: int, marker: bytes = b"") -> None:
        """Loses the next answers to messages with the marker, each with its connection."""
        self._losses, self._marker = count, marker

    def forget(self) -> None:
        """Ends the connections silently. The next bytes on them meet a reset.

        A firewall that has dropped them does so, or a machine after a power cut.
        """
        for link in self.links:
            link.is_forgotten = True

    def vanish(self) -> None:
        """Even the kernel gives no more answer on the open connections, as without a network."""
        for link in self.links:
            link.hangs = True
            link.vanish()

    def hang(self) -> None:
        """Lets nothing pass on the open connections any more."""
        for link in self.links:
            link.hangs = True

    @contextmanager
    def hanging(self) -> Iterator[None]:
        """Lets nothing pass until the block ends, and on these connections never again."""
        self._hangs = True
        self.hang()
        try:
            yield
        finally:
            self._hangs = False

    def close(self) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        for link in self.links:
            link.cut()
        for thread in self._threads:
            thread.join(20)

    def _serve(self) -> None:
        with suppress(OSError):
            while True:
                service, _ = self._listener.accept()
                self.accepted += 1
                try:
                    server = _connect(self.target)
                except OSError:
                    service.close()
                    continue
                link = Link(service, server, self._hangs)
                self.links.append(link)
                for copy in (self._ask, self._answer):
                    self._threads.append(threading.Thread(target=copy, args=(link,)))
                    self._threads[-1].start()

    def _ask(self, link: Link) -> None:
        with suppress(OSError), closing(link.service):
            while data := link.service.recv(65536):
                self.asked += 1
                if link.is_forgotten:
                    link.reset()
                elif link.hangs:
                    link.held = True
                else:
                    if self._losses and self._marker in data:
                        self._losses -= 1
                        link.loses_answer = True
                    link.server.sendall(data)
        link.is_open = False
        with suppress(OSError):
            link.server.shutdown(socket.SHUT_RDWR)

    def _answer(self, link: Link) -> None:
        with suppress(OSError), closing(link.server):
            while data := link.server.recv(65536):
                if link.loses_answer:
                    break
                if self.ends(link, data):
                    break
                if not (link.is_forgotten or link.hangs):
                    link.service.sendall(data)
        if not (link.is_forgotten or link.hangs):
            link.cut()


def _connect(database_url: str) -> socket.socket:
    parts = urlsplit(database_url)
    port = parts.port or 5432
    if folders := parse_qs(parts.query).get("host"):
        server = socket.socket(socket.AF_UNIX)
        server.connect(f"{folders[0]}/.s.PGSQL.{port}")
        return server
    return socket.create_connection((parts.hostname, port))
