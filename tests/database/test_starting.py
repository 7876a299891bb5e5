"""The service with a SQLite file that can't be used at the start."""

import sqlite3
import sys
from contextlib import closing
from pathlib import Path

from tests.support.databases import NewDatabase, run
from tests.support.servers import free_port, serving, uvicorn

# Runs code again and again, in a fork each time. What opens the database may open no file more at
# first, then one, and so on, until the code ends in another way.
LIMITED = """
import os, resource, sys
from contextlib import asynccontextmanager

{imports}
inner = {module}.connected
spare = 0

@asynccontextmanager
async def connected():
    highest = max(map(int, os.listdir("/proc/self/fd")))
    while (lowest := os.open(os.devnull, os.O_RDONLY)) <= highest:
        pass
    os.close(lowest)
    resource.setrlimit(resource.RLIMIT_NOFILE, (lowest + spare,) * 2)
    async with inner():
        # It has opened all that it needs.
        os._exit(0)
    yield

{module}.connected = connected
while True:
    child = os.fork()
    if not child:
        {code}
        sys.exit()
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    if status != {refused}:
        sys.exit(spare)
    print("refused", file=sys.stderr, flush=True)
    spare += 1
"""
SERVE = 'uvicorn.run("service.app:app", port={port}, http="service.protocol:Protocol")'


def run_limited(database_url: str, **parts: object) -> tuple[int, list[str]]:
    """Runs LIMITED. Returns the number of spare files that sufficed, and the output before."""
    result = run(sys.executable, "-c", LIMITED.format(**parts), DATABASE_URL=database_url)
    *refused, _ = result.stderr.split("refused\n")
    assert result.returncode == len(refused), result.stderr
    return result.returncode, refused


def errors(stderr: str) -> list[str]:
    """uvicorn's lines, except for those about its steps."""
    return [line for line in stderr.splitlines() if not line.startswith("INFO:")]


def test_a_service_that_can_not_open_its_file(new_database: NewDatabase) -> None:
    """The service ends with one line if any of its connections can't be opened."""
    sufficed, refused = run_limited(
        new_database("sqlite"),
        imports="import service.app, uvicorn",
        module="service.app",
        code=SERVE.format(port=free_port()),
        refused=3,
    )
    for output in refused:
        assert errors(output) == [
            "ERROR:    The database can't be used: unable to open database file",
            "ERROR:    Application startup failed. Exiting.",
        ]
    # Two connections, with a write-ahead log each.
    assert sufficed >= 4


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
