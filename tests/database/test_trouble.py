"""What clients see when the database is in trouble."""

import sqlite3
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path

import httpx2

from tests.support import databases
from tests.support.servers import free_port, running


def test_a_database_that_is_away_is_503(tmp_path: Path) -> None:
    """The service starts without its database and answers 503 with `Retry-After`."""
    url = f"postgresql://nobody@127.0.0.1:{free_port()}/notes"
    with running(url, tmp_path / "log") as service:
        for answer in (
            httpx2.get(f"{service}/notes/"),
            httpx2.post(f"{service}/notes/", json={"text": "a", "completed": True}),
        ):
            assert answer.status_code == 503
            assert answer.json() == {"detail": "Service Unavailable"}
            assert int(answer.headers["retry-after"]) > 0


def test_trouble_is_a_line_a_second(tmp_path: Path) -> None:
    """However many requests a database that is away fails, the log tells of it once a second."""
    url = f"postgresql://nobody@127.0.0.1:{free_port()}/notes"
    with (
        running(url, tmp_path / "log") as service,
        httpx2.Client(base_url=service, timeout=30) as client,
    ):
        began, asked = time.monotonic(), 0
        while asked < 100 or time.monotonic() - began < 2:
            assert client.get("/notes/1").status_code == 503
            asked += 1
        seconds = time.monotonic() - began
        assert 2 <= (tmp_path / "log").read_text().count("database unavailable") <= seconds + 1


def test_a_locked_file_is_waited_for(new_database: databases.NewDatabase, tmp_path: Path) -> None:
    """A note waits while another process writes to the SQLite file, and then goes in."""
    url = new_database("sqlite")
    with (
        closing(sqlite3.connect(url.removeprefix("sqlite:///"), isolation_level=None)) as other,
        running(url, tmp_path / "log") as service,
        ThreadPoolExecutor() as threads,
    ):
        other.execute("BEGIN IMMEDIATE")
        note = {"text": "a", "completed": True}
        writing = threads.submit(httpx2.post, f"{service}/notes/", json=note, timeout=30)
        assert httpx2.get(f"{service}/notes/").json() == []
        assert not writing.done()
        other.execute("COMMIT")
        assert writing.result().json() == {"id": 1, **note}
