"""The answers and the log while the database is in trouble."""

import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.support import databases
from tests.support.databases import SERVED
from tests.support.servers import nowhere, serving


@pytest.mark.parametrize("kind", SERVED)
def test_a_database_that_is_away_is_503(kind: str, tmp_path: Path) -> None:
    """The service starts without its database and answers 503 with `Retry-After`."""
    with serving(nowhere(kind), tmp_path / "log") as client:
        for answer in (
            client.get("/notes/"),
            client.post("/notes/", json={"text": "a", "completed": True}),
        ):
            assert answer.status_code == 503
            assert answer.json() == {"detail": "Service Unavailable"}
            assert int(answer.headers["retry-after"]) > 0


@pytest.mark.parametrize("kind", SERVED)
def test_trouble_is_a_line_a_second(kind: str, tmp_path: Path) -> None:
    """While the database is away, the log has one line about it a second."""
    with serving(nowhere(kind), tmp_path / "log") as client:
        began, asked = time.monotonic(), 0
        while asked < 100 or time.monotonic() - began < 2:
            assert client.get("/notes/1").status_code == 503
            asked += 1
        seconds = time.monotonic() - began
        assert 2 <= (tmp_path / "log").read_text().count("database unavailable") <= seconds + 1


def test_a_missing_column_is_503(database_url: str, tmp_path: Path) -> None:
    """What needs a column that is not there is a 503, until it is there."""
    rename = "ALTER TABLE notes RENAME COLUMN {} TO {}"
    note = {"text": "a", "completed": True}
    with serving(database_url, tmp_path / "log") as client:
        databases.execute(database_url, rename.format("folded", "other"))
        assert client.post("/notes/", json=note).status_code == 503
        assert client.get("/notes/?q=a").status_code == 503
        databases.execute(database_url, rename.format("other", "folded"))
        assert client.post("/notes/", json=note).json() == {"id": 1, **note}
        assert client.get("/notes/?q=a").json() == [{"id": 1, **note}]


def test_a_locked_file_is_waited_for(new_database: databases.NewDatabase, tmp_path: Path) -> None:
    """A new note waits while another process writes to the SQLite file, and is stored then."""
    url = new_database("sqlite")
    with (
        serving(url, tmp_path / "log") as client,
        ThreadPoolExecutor() as threads,
    ):
        note = {"text": "a", "completed": True}
        with databases.locked(url):
            writing = threads.submit(client.post, "/notes/", json=note)
            assert client.get("/notes/").json() == []
            assert not writing.done()
        assert writing.result().json() == {"id": 1, **note}
