"""The SQLite file: moved, replaced, damaged, read-only, or on a full disk, while it is in use."""

import asyncio
import os
import re
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, ExitStack, contextmanager
from pathlib import Path
from typing import NamedTuple
from unittest.mock import Mock

import httpx2
import pytest

from service.database import sqlite_connections
from service.database.sqlite_connections import Connections
from tests.support import databases
from tests.support.daemons import needs
from tests.support.databases import NewDatabase
from tests.support.metrics import metric
from tests.support.servers import free_port, process, serving, uvicorn
from tests.support.waiting import poll

NOTE = {"text": "a", "completed": True}


class Service(NamedTuple):
    client: httpx2.Client
    url: str
    log: Path

    @property
    def file(self) -> Path:
        return Path(self.url.removeprefix("sqlite:///"))

    def troubles(self) -> int:
        """How many lines of the log are about the database."""
        return self.log.read_text().count("database unavailable: ")


@contextmanager
def served(url: str, folder: Path) -> Iterator[Service]:
    log = folder / "log"
    with serving(url, log) as client:
        yield Service(client, url, log)


@pytest.fixture(scope="module")
def service(
    new_database: NewDatabase, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Service]:
    """A service whose file is lost and comes back."""
    with served(new_database("sqlite"), tmp_path_factory.mktemp("service")) as service:
        yield service


def ask(client: httpx2.Client) -> list[httpx2.Response]:
    """The answers to a request of each kind that needs the file."""
    return [
        client.get("/notes/"),
        client.get("/notes/?q=a"),
        client.post("/notes/", json=NOTE),
        client.post("/notes/", json=NOTE, headers={"idempotency-key": os.urandom(8).hex()}),
        client.patch("/notes/1", json=NOTE),
        client.delete("/notes/1"),
        client.get("/health/ready"),
    ]


def check_refused(service: Service, state: str) -> None:
    """Every request gets a 503 with the reason, and the log has a line a second about it."""
    began, lines = time.monotonic(), service.troubles()
    answers = ask(service.client)
    assert [answer.status_code for answer in answers] == [503] * len(answers)
    assert re.fullmatch(f"The database {state}: \\w+", answers[-1].json()["detail"])
    assert service.troubles() - lines <= time.monotonic() - began + 1
    # A thread writes the lines.
    poll(lambda: service.troubles() > 0)
    assert service.client.get("/health/live").status_code == 200


Lose = Callable[[Path], AbstractContextManager[None]]
LOST = "file was moved, replaced or deleted"


@contextmanager
def moved(file: Path) -> Iterator[None]:
    aside = file.with_name("aside")
    file.rename(aside)
    try:
        yield
    finally:
        aside.rename(file)


@contextmanager
def replaced(file: Path) -> Iterator[None]:
    backup, aside = file.with_name("backup"), file.with_name("aside")
    shutil.copy(file, backup)
    aside.hardlink_to(file)
    backup.replace(file)
    try:
        yield
    finally:
        aside.replace(file)


@pytest.mark.parametrize("lost", [moved, replaced])
def test_a_lost_file_is_not_served(service: Service, lost: Lose) -> None:
    """Nothing is read or acknowledged without the file; it is served again when it is back."""
    service.client.post("/notes/", json=NOTE).raise_for_status()
    # What is in the log alone would be missing in a copy.
    databases.execute(service.url, "PRAGMA wal_checkpoint(TRUNCATE)")
    before = databases.fetch(service.url, "SELECT * FROM notes")
    with lost(service.file):
        check_refused(service, LOST)
    assert service.client.get("/health/ready").status_code == 200
    assert databases.fetch(service.url, "SELECT * FROM notes") == before
    stored = service.client.post("/notes/", json=NOTE).json()["id"]
    assert databases.fetch(service.url, f"SELECT count(*) FROM notes WHERE id = {stored}") == [(1,)]


@pytest.mark.parametrize("is_linked", [False, True])
def test_a_lost_log_takes_no_writes(
    new_database: NewDatabase, tmp_path: Path, is_linked: bool
) -> None:
    """Nothing is acknowledged that is in a write-ahead log that nobody can find."""
    file = Path(new_database("sqlite").removeprefix("sqlite:///"))
    named = tmp_path / "link.db" if is_linked else file
    if is_linked:
        named.symlink_to(file)
    with served(f"sqlite:///{named}", tmp_path) as service:
        service.client.post("/notes/", json=NOTE).raise_for_status()
        with moved(file.with_name("notes.db-wal")):
            assert service.client.post("/notes/", json=NOTE).status_code == 503
            assert service.client.get("/health/ready").status_code == 503
        assert service.client.post("/notes/", json=NOTE).status_code == 200
        assert service.client.get("/health/ready").status_code == 200


def test_a_file_that_is_replaced_before_the_commit(service: Service) -> None:
    """A write that began before the file was replaced is not acknowledged after that."""
    with ThreadPoolExecutor() as threads, ExitStack() as stack:
        with databases.locked(service.url):
            writing = threads.submit(service.client.post, "/notes/", json=NOTE)
            poll(lambda: metric(service.client, "database_connections_in_use") == 1)
            stack.enter_context(replaced(service.file))
        assert writing.result().status_code == 503


def test_a_log_that_is_always_read(service: Service) -> None:
    """While reads overlap, the write-ahead log is emptied, between writes and after them."""
    log = service.file.with_name("notes.db-wal")
    over = threading.Event()

    def read(address: str) -> None:
        while not over.is_set():
            service.client.get(address).raise_for_status()

    def is_shorter() -> bool:
        before = log.stat().st_size
        notes = [{"text": "a" * 20_000, "completed": True}] * 40
        service.client.post("/notes/batch", json=notes).raise_for_status()
        return log.stat().st_size < before

    addresses = ("/notes/?limit=100", "/notes/?limit=99", "/notes/?q=one", "/notes/?q=other")
    with ThreadPoolExecutor() as threads:
        reading = [threads.submit(read, address) for address in addresses]
        try:
            assert any(is_shorter() for _ in range(100))
            poll(lambda: log.stat().st_size == 0)
        finally:
            over.set()
        for each in reading:
            each.result()


def test_who_reads_the_log_is_left_alone_for_a_while(monkeypatch: pytest.MonkeyPatch) -> None:
    """While another process reads, writes seldom wait for a try to empty the log."""
    results = [True, False, True]
    pauses: list[float] = []

    class Log(Connections):
        def __init__(self) -> None:
            pass

        def _is_log_due(self) -> bool:
            return True

        async def _empty_log(self) -> bool:
            return results.pop(0)

    async def sleep(seconds: float) -> None:
        pauses.append(seconds)
        if not results:
            raise asyncio.CancelledError

    monkeypatch.setattr(sqlite_connections, "asyncio", Mock(sleep=sleep))
    with pytest.raises(asyncio.CancelledError):
        asyncio.run(Log()._keep_log_short())
    usual = sqlite_connections.LOG_CHECK_SECONDS
    assert pauses == [usual, usual, sqlite_connections.QUIET_SECONDS, usual]


def garble(file: Path) -> None:
    file.write_bytes(os.urandom(file.stat().st_size))


def cut(file: Path) -> None:
    os.truncate(file, file.stat().st_size // 2)


def empty(file: Path) -> None:
    os.truncate(file, 0)


@pytest.mark.parametrize("damage", [garble, cut, empty])
def test_a_damaged_file(
    new_database: NewDatabase, tmp_path: Path, damage: Callable[[Path], None]
) -> None:
    """A file that is damaged while it is in use is a 503 with a line."""
    with served(new_database("sqlite"), tmp_path) as service:
        ask(service.client)
        damage(service.file)
        check_refused(service, "file is damaged")


def test_a_read_only_file(new_database: NewDatabase, tmp_path: Path) -> None:
    """A read-only file is read and not ready. When it may be written, it is ready again."""
    url = new_database("sqlite")
    file = Path(url.removeprefix("sqlite:///"))
    command, port, log = uvicorn(port := free_port()), port, tmp_path / "log"
    if os.geteuid() == 0:
        # This user may write to any file.
        needs("setpriv")
        command = ["setpriv", "--bounding-set=-dac_override", *command]
    file.chmod(0o444)
    with (
        process(command, port, log, {"DATABASE_URL": url}),
        httpx2.Client(base_url=f"http://127.0.0.1:{port}", timeout=30) as client,
    ):
        for _ in range(2):
            ready = client.get("/health/ready")
            assert ready.status_code == 503
            assert ready.json()["detail"].startswith("The database takes no writes: ")
            assert client.post("/notes/", json=NOTE).status_code == 503
            assert client.get("/notes/").json() == []
        file.chmod(0o644)
        assert client.get("/health/ready").status_code == 200
        assert client.post("/notes/", json=NOTE).status_code == 200


def test_a_full_disk(new_database: NewDatabase, tmp_path: Path) -> None:
    """A full disk is not ready. As soon as there is room, it is ready again."""
    needs("unshare")
    template = new_database("sqlite").removeprefix("sqlite:///")
    disk, port = tmp_path / "disk", free_port()
    disk.mkdir()
    mount = f'mount -t tmpfs -o size=4m tmpfs {disk} && cp {template} {disk} && exec "$@"'
    command = ["unshare", "--user", "--map-root-user", "--mount", "sh", "-c", mount, "sh"]
    with (
        process(
            [*command, *uvicorn(port)],
            port,
            tmp_path / "log",
            {"DATABASE_URL": f"sqlite:///{disk}/notes.db"},
        ) as server,
        httpx2.Client(base_url=f"http://127.0.0.1:{port}", timeout=30) as client,
    ):
        assert client.get("/health/ready").status_code == 200
        filling = Path(f"/proc/{server.pid}/root{disk}/filling")
        with filling.open("wb") as file:
            disk_state = os.statvfs(filling)
            os.posix_fallocate(file.fileno(), 0, disk_state.f_bavail * disk_state.f_frsize)
        for _ in range(2):
            ready = client.get("/health/ready")
            assert ready.status_code == 503
            assert ready.json()["detail"].startswith("The database has no space left: ")
            assert client.post("/notes/", json=NOTE | {"text": "a" * 9999}).status_code == 503
            assert client.get("/notes/").json() == []
        filling.unlink()
        assert client.get("/health/ready").status_code == 200
        assert client.post("/notes/", json=NOTE).status_code == 200
    assert "Traceback" not in (tmp_path / "log").read_text()
