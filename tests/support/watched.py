"""Services whose memory and connections tests look at."""

import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple
from urllib.parse import urlsplit

import psutil

from tests.support import sockets
from tests.support.servers import started


class Service(NamedTuple):
    """A service, its process and its database."""

    url: str
    process: psutil.Process
    database_url: str

    def connect(self, receive_buffer: int = 0) -> socket.socket:
        return sockets.connect(self.url, receive_buffer)

    def connections(self) -> int:
        """How many clients it is connected to."""
        port = urlsplit(self.url).port
        return sum(
            one.laddr.port == port and one.status == psutil.CONN_ESTABLISHED
            for one in self.process.net_connections("tcp")
        )

    def peak(self) -> int:
        """How many bytes its process took at most, since this was asked last."""
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        Path(f"/proc/{self.process.pid}/clear_refs").write_text("5")
        return int(status.partition("VmHWM:")[2].split()[0]) * 1024

    def memory(self) -> int:
        """How many bytes its process takes."""
        return int(self.process.memory_info().rss)


@contextmanager
def watching(database_url: str, log: Path, *options: str, **variables: str) -> Iterator[Service]:
    with started(database_url, log, *options, **variables) as (url, process):
        yield Service(url, psutil.Process(process.pid), database_url)
