"""The metrics of a server with several processes, some of which are killed."""

import os
import re
import signal
import socket
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from functools import partial
from pathlib import Path

import httpx2

from tests.support.clusters import is_gone
from tests.support.servers import free_port, process, uvicorn
from tests.web.test_overload import POST, locked, wait_until
from tests.web.test_seeing import NOTE, counts, scrape


@contextmanager
def kept_from_writing(database_url: str) -> Iterator[None]:
    """Lets nobody else store a note."""
    if not database_url.startswith("sqlite"):
        with locked(database_url):
            yield
        return
    with closing(sqlite3.connect(database_url.removeprefix("sqlite:///"))) as file:
        file.execute("BEGIN IMMEDIATE")
        yield


def pids(folder: Path) -> set[str]:
    """The processes whose files are in a server's folder."""
    return set(re.findall(r"_(\d+)\.db", " ".join(os.listdir(folder))))


def test_killed_processes_leave_nothing_but_counts(database_url: str, tmp_path: Path) -> None:
    """After a process was killed the gauges are right, no file is left, and no count has fallen."""
    log = tmp_path / "log"
    variables = {
        "DATABASE_URL": database_url,
        "WEB_CONCURRENCY": "2",
        "TMPDIR": str(tmp_path),
        "DATABASE_STATEMENT_TIMEOUT": "60",
        "DATABASE_POOL_TIMEOUT": "60",
        "REQUEST_TIMEOUT": "200",
    }
    port = free_port()
    url = f"http://127.0.0.1:{port}"

    def in_use() -> float:
        (value,) = scrape(url)["database_connections_in_use"].values()
        return value

    def started() -> int:
        return log.read_text().count("Application startup complete")

    def created() -> float:
        return counts(url).get(("/notes/", "POST", "200"), 0)

    def replaced(number: int) -> bool:
        assert created() == 20
        return started() == 3 + number

    with process(uvicorn(port), port, log, variables):
        wait_until(lambda: started() == 2)
        (folder,) = tmp_path.glob("notes-metrics-*")
        for _ in range(20):
            assert httpx2.post(f"{url}/notes/", json=NOTE).status_code == 200
        with kept_from_writing(database_url), closing(socket.socket()) as client:
            client.connect(("127.0.0.1", port))
            client.sendall(POST)
            wait_until(lambda: in_use() == 1)
            for number, pid in enumerate(pids(folder)):
                os.kill(int(pid), signal.SIGKILL)
                wait_until(partial(is_gone, int(pid)))
                wait_until(partial(replaced, number))
            assert in_use() == 0
        assert len(os.listdir(folder)) == 4
        assert len(pids(folder)) == 2
    assert not folder.exists()
