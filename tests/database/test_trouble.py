"""The answers and the log while the database is in trouble."""

import asyncio
import re
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from service.database.connections import use
from service.database.statements import Run, transact
from service.notes.resource import usual
from tests.support import databases
from tests.support.databases import SERVED
from tests.support.notes import known
from tests.support.processes import new_process
from tests.support.servers import nowhere, serving
from tests.support.waiting import poll


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

    def troubles() -> int:
        return (tmp_path / "log").read_text().count("database unavailable")

    with serving(nowhere(kind), tmp_path / "log") as client:
        began, asked = time.monotonic(), 0
        while asked < 100 or time.monotonic() - began < 2:
            assert client.get("/notes/1").status_code == 503
            asked += 1
        seconds = time.monotonic() - began
        assert troubles() <= seconds + 1
        # A thread writes the lines.
        poll(lambda: troubles() >= 2)


def test_a_missing_column_is_503(database_url: str, tmp_path: Path) -> None:
    """What needs a column that is not there is a 503, until it is there."""
    rename = "ALTER TABLE notes RENAME COLUMN {} TO {}"
    note = {"text": "a", "completed": True}
    with serving(database_url, tmp_path / "log") as client:
        databases.execute(database_url, rename.format("folded", "other"))
        assert client.post("/notes/", json=note).status_code == 503
        assert client.get("/notes/?q=a").status_code == 503
        databases.execute(database_url, rename.format("other", "folded"))
        assert known(client.post("/notes/", json=note).json()) == {"id": 1, **note}
        assert known(client.get("/notes/?q=a").json()) == [{"id": 1, **note}]


def test_ids_of_another_program(database_url: str, tmp_path: Path) -> None:
    """Creates go on behind the ids that another program has stored, in each way to create."""
    note = {"text": "a", "completed": True}
    with serving(database_url, tmp_path / "log") as client:

        def create(path: str, body: Any, first: int, **headers: str) -> Any:
            rows = ", ".join(f"({first + n}, 'other', TRUE)" for n in range(2))
            databases.execute(
                database_url, f"INSERT INTO notes (id, text, completed) VALUES {rows}"
            )
            return client.post(path, json=body, headers=headers).raise_for_status().json()

        assert create("/notes/", note, 1)["id"] == 3
        assert [one["id"] for one in create("/notes/batch", [note] * 2, 4)] == [6, 7]
        kept = create("/notes/", note, 8, **{"idempotency-key": "k"})
        assert kept["id"] == 10
        again = client.post("/notes/", json=note, headers={"idempotency-key": "k"})
        assert again.json() == kept
        kept = create("/notes/batch", [note] * 2, 11, **{"idempotency-key": "l"})
        assert [one["id"] for one in kept] == [13, 14]


def test_a_sequence_that_is_far_behind(new_database: databases.NewDatabase, tmp_path: Path) -> None:
    """On PostgreSQL creates are a 503, until somebody does what the log says."""
    url = new_database("postgresql")
    others = "INSERT INTO notes (id, text, completed) SELECT n, 'a', TRUE"
    databases.execute(url, f"{others} FROM generate_series(1, 1000) AS n")
    note = {"text": "a", "completed": True}
    with serving(url, tmp_path / "log") as client:
        for path, body in (("/notes/", note), ("/notes/batch", [note] * 2)):
            for headers in ({}, {"idempotency-key": "k"}):
                answer = client.post(path, json=body, headers=headers)
                assert (answer.status_code, answer.headers["retry-after"]) == (503, "1")
        found = re.search(r'database unavailable: .*: (SELECT .*)"', (tmp_path / "log").read_text())
        assert found is not None
        databases.execute(url, found[1])
        assert client.post("/notes/", json=note).json()["id"] == 1001


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
        assert known(writing.result().json()) == {"id": 1, **note}


async def busy_timeouts(log: Path) -> list[int]:
    """In milliseconds: at first, and after SQLite's write-ahead log was emptied."""

    async def read(raw: Any) -> int:
        ((milliseconds,),) = await raw.execute_fetchall("PRAGMA busy_timeout")
        return int(milliseconds)

    async def write(raw: Any) -> None:
        await raw.execute("INSERT INTO notes (text, completed) VALUES ('a', true)")

    found = [await use("write", read)]
    await use("write", write)
    await asyncio.to_thread(poll, lambda: log.stat().st_size == 0)
    return [*found, await use("write", read)]


def test_how_long_a_locked_file_is_waited_for(
    new_database: databases.NewDatabase, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A write waits for another program as long as a statement may take."""
    url = new_database("sqlite")
    monkeypatch.setenv("DATABASE_URL", url)
    monkeypatch.setenv("DATABASE_STATEMENT_TIMEOUT", "9")
    with new_process() as run:
        log = Path(f"{url.removeprefix('sqlite:///')}-wal")
        assert run(busy_timeouts, log) == [9000, 9000]


async def write_after_a_cancelled_transaction() -> None:
    begun = asyncio.Event()
    insert = usual.items.queries.insert

    async def work(run: Run) -> None:
        await insert([{"text": "cancelled", "completed": True}], run)
        begun.set()
        await asyncio.Event().wait()

    task = asyncio.create_task(transact(work))
    await begun.wait()
    task.cancel()
    await asyncio.wait([task])
    await insert([{"text": "after", "completed": True}])


def test_a_cancelled_transaction(database_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing of it is stored, and what is acknowledged after it is."""
    monkeypatch.setenv("DATABASE_URL", database_url)
    with new_process() as run:
        run(write_after_a_cancelled_transaction)
    assert databases.fetch(database_url, "SELECT text FROM notes") == [("after",)]


def test_a_deadlock(new_database: databases.NewDatabase, tmp_path: Path) -> None:
    """A write that PostgreSQL gives up because of another transaction is a 503."""
    url = new_database("postgresql")
    note = {"text": "a", "completed": True}
    headers = {"idempotency-key": "deadlock"}
    with (
        serving(url, tmp_path / "log") as client,
        ThreadPoolExecutor(1) as threads,
        databases.session(url) as run,
    ):
        # The service looks for deadlocks after a second, and this transaction never.
        run("SET deadlock_timeout = '1h'")
        run("BEGIN")
        run("LOCK TABLE notes IN SHARE MODE")
        writing = threads.submit(client.post, "/notes/", json=note, headers=headers)
        poll(lambda: databases.waiting(url) == 1)
        run("INSERT INTO idempotency_keys VALUES ('deadlock', '', NULL, 0)")
        assert writing.result().status_code == 503
        run("ROLLBACK")
        stored = client.post("/notes/", json=note, headers=headers).json()
        assert known(stored) == {"id": 1, **note}
