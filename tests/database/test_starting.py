"""The service with a SQLite file that can't be used at the start."""

import itertools
import sqlite3
import sys
from contextlib import closing
from pathlib import Path

from tests.support.databases import NewDatabase, run
from tests.support.servers import free_port, serving, uvicorn

# Leaves so many files that may still be opened to what opens the database.
LIMITED = """
import os, resource
from contextlib import asynccontextmanager

inner = {module}.connected

@asynccontextmanager
async def connected():
    highest = max(map(int, os.listdir("/proc/self/fd")))
    while (lowest := os.open(os.devnull, os.O_RDONLY)) <= highest:
        pass
    os.close(lowest)
    resource.setrlimit(resource.RLIMIT_NOFILE, (lowest + {spare},) * 2)
    async with inner():
        yield

{module}.connected = connected
"""
SERVE = """
import uvicorn, service.app
uvicorn.run("service.app:app", port={port}, http="service.protocol:Protocol")
"""


def errors(stderr: str) -> list[str]:
    """uvicorn's lines, except for those about its steps."""
    return [line for line in stderr.splitlines() if not line.startswith("INFO:")]


def test_a_service_that_can_not_open_its_file(new_database: NewDatabase) -> None:
    """The service ends with one line if any of its connections can't be opened."""
    url = new_database("sqlite")
    for spare in itertools.count():
        limited = "import service.app\n" + LIMITED.format(module="service.app", spare=spare)
        code = limited + SERVE.format(port=free_port())
        result = run(sys.executable, "-c", code, DATABASE_URL=url)
        if "Application startup complete." in result.stderr:
            break
        assert result.returncode == 3
        assert errors(result.stderr) == [
            "ERROR:    The database can't be used: unable to open database file",
            "ERROR:    Application startup failed. Exiting.",
        ]
    # Two connections, with a write-ahead log each.
    assert spare >= 4


def test_a_file_that_is_no_database(tmp_path: Path) -> None:
    """A file that is no database ends the service with one line, and is left as it is."""
    file = tmp_path / "notes.db"
    content = b"no database" * 100
    file.write_bytes(content)
    result = run(*uvicorn(free_port()), DATABASE_URL=f"sqlite:///{file}")
    assert result.returncode == 3
    assert errors(result.stderr) == [
        "ERROR:    The database can't be used: file is not a database",
        "ERROR:    Application startup failed. Exiting.",
    ]
    assert file.read_bytes() == content


def test_a_file_that_is_locked(new_database: NewDatabase, tmp_path: Path) -> None:
    """The service starts while another program locks the file, and serves afterwards."""
    url = new_database("sqlite")
    timeout = {"DATABASE_STATEMENT_TIMEOUT": "0.1"}
    with closing(sqlite3.connect(url.removeprefix("sqlite:///"), isolation_level=None)) as other:
        other.execute("PRAGMA locking_mode = EXCLUSIVE")
        other.execute("DELETE FROM notes")
        with serving(url, tmp_path / "log", **timeout) as client:
            assert client.get("/notes/").status_code == 503
            other.close()
            assert client.get("/notes/").json() == []
