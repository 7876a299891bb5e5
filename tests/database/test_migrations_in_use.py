"""Migrations of a PostgreSQL table in use keep all notes and block no client."""

import asyncio
import random
import subprocess
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import asyncpg
import httpx2
import pytest

from tests.support import databases
from tests.support.databases import holding
from tests.support.migrating import MIGRATES, WAITS, backends, migrating
from tests.support.servers import running, serving
from tests.support.waiting import poll

COUNT = 5_000
CLIENTS = 4
BEFORE = "0004"


@pytest.fixture
def database(new_empty_database: databases.NewDatabase) -> str:
    """A database of the version before ids had 64 bits, with notes."""
    url = new_empty_database("postgresql")
    assert databases.alembic(url, "upgrade", BEFORE).returncode == 0
    databases.execute(
        url,
        "INSERT INTO notes (text, completed)"
        f" SELECT 'note ' || n, n % 3 = 0 FROM generate_series(1, {COUNT}) n",
        f"DELETE FROM notes WHERE id IN ({COUNT // 2}, {COUNT})",
    )
    return url


def assert_done(process: subprocess.Popen[str]) -> str:
    """The output of a migration, which has to succeed."""
    printed, _ = process.communicate(timeout=60)
    assert process.returncode == 0, printed
    return printed


def notes(url: str) -> dict[int, tuple[str, bool]]:
    async def read() -> dict[int, tuple[str, bool]]:
        connection = await asyncpg.connect(url)
        try:
            rows = await connection.fetch("SELECT id, text, completed FROM notes")
            return {row["id"]: (row["text"], row["completed"]) for row in rows}
        finally:
            await connection.close()

    return asyncio.run(read())


def id_type(url: str) -> str:
    return str(
        databases.execute(
            url,
            "SELECT format_type(atttypid, NULL) FROM pg_attribute"
            " WHERE attrelid = 'notes'::regclass AND attname = 'id'",
        )
    )


class Client:
    """Creates, changes, deletes and reads notes one by one, and keeps account of them."""

    def __init__(self, url: str, number: int, stored: dict[int, tuple[str, bool]]) -> None:
        self.url = url
        self.choice = random.Random(number)
        # Each client has notes of its own.
        self.notes = {id_: stored[id_] for id_ in stored if id_ % CLIENTS == number}
        self.stop = threading.Event()
        self.deleted: set[int] = set()
        self.requests = 0

    def run(self) -> None:
        with httpx2.Client(base_url=self.url, timeout=60) as http:
            while not self.stop.is_set():
                self.act(http)
                self.requests += 1

    def act(self, http: httpx2.Client) -> None:
        note = {"text": f"note {self.choice.random()}", "completed": self.choice.random() < 0.5}
        value = (note["text"], note["completed"])
        what = self.choice.choice(("create", "change", "delete", "read"))
        if what == "create":
            answer = http.post("/notes/", json=note)
            assert answer.status_code == 200, answer.text
            self.notes[answer.json()["id"]] = value  # type: ignore[assignment]
            return
        id_ = self.choice.choice(list(self.notes))
        if what == "change":
            answer = http.put(f"/notes/{id_}", json=note)
            assert (answer.status_code, answer.json()) == (200, {"id": id_, **note})
            self.notes[id_] = value  # type: ignore[assignment]
        elif what == "delete":
            assert http.delete(f"/notes/{id_}").status_code == 204
            del self.notes[id_]
            self.deleted.add(id_)
        else:
            answer = http.get(f"/notes/{id_}")
            text, completed = self.notes[id_]
            wanted = {"id": id_, "text": text, "completed": completed}
            assert (answer.status_code, answer.json()) == (200, wanted)


@contextmanager
def in_use(url: str, log: Path) -> Iterator[None]:
    """Serves clients beside the block. AssertionError unless all answers and notes are right."""
    stored = notes(url)
    with running(url, log) as service, ThreadPoolExecutor(CLIENTS) as pool:
        clients = [Client(service, number, stored) for number in range(CLIENTS)]
        runs = [pool.submit(client.run) for client in clients]
        try:
            poll(lambda: all(client.requests > 5 for client in clients) or any_done(runs))
            yield
        finally:
            for client in clients:
                client.stop.set()
        for run in runs:
            run.result()
        wanted = {id_: note for client in clients for id_, note in client.notes.items()}
        assert notes(url) == wanted
        deleted = set.union(*(client.deleted for client in clients))
        assert not deleted & set(wanted)


def any_done(runs: list[Any]) -> bool:
    return any(run.done() for run in runs)


def test_notes_of_a_table_in_use_get_larger_ids(database: str, tmp_path: Path) -> None:
    """While the table is migrated, up and down, clients get right answers."""
    with in_use(database, tmp_path / "log"):
        for command, kind in (("upgrade head", "bigint"), (f"downgrade {BEFORE}", "integer")):
            with migrating(database, *command.split()) as process:
                assert_done(process)
            assert id_type(database) == kind


def test_a_migration_that_was_killed_goes_on(database: str, tmp_path: Path) -> None:
    """A killed migration is completed by a later run."""
    choice = random.Random(1)
    with in_use(database, tmp_path / "log"):
        for turn in range(4):
            with migrating(database) as process:
                poll(lambda: bool(backends(database, MIGRATES)) or process.poll() is not None)
                time.sleep(choice.uniform(0, 0.6))
                if turn % 2:
                    # As when the server has an end of its own.
                    databases.execute(
                        database,
                        f"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE {MIGRATES}",
                    )
        with migrating(database) as process:
            assert_done(process)
    assert id_type(database) == "bigint"
    leftovers = "SELECT count(*) FROM pg_trigger WHERE tgrelid = 'notes'::regclass"
    assert databases.execute(database, leftovers) == 0
    result = databases.alembic(database, "check")
    assert result.returncode == 0, result.stdout + result.stderr


def test_nobody_waits_behind_a_migration_that_waits(database: str, tmp_path: Path) -> None:
    """While the migration waits for a long read, other clients don't wait."""
    with (
        serving(database, tmp_path / "log") as http,
        holding(database, "LOCK TABLE notes IN ACCESS SHARE MODE"),
        migrating(database) as process,
    ):
        poll(lambda: bool(backends(database, WAITS)))
        for _ in range(3):
            poll(lambda: bool(backends(database, WAITS)))
            for _ in range(20):
                assert http.get("/notes/1").status_code == 200
                assert http.patch("/notes/2", json={"text": "changed"}).status_code == 200
        assert process.poll() is None
        process.kill()


@pytest.fixture
def unfolded(new_empty_database: databases.NewDatabase) -> str:
    """A database of the version before searches, with notes that have to be folded."""
    url = new_empty_database("postgresql")
    assert databases.alembic(url, "upgrade", "0002").returncode == 0
    databases.execute(
        url,
        "INSERT INTO notes (text, completed)"
        " SELECT 'Straße ' || n, false FROM generate_series(1, 2000) n",
    )
    return url


def test_folding_keeps_changes_and_nobody_waiting(unfolded: str, tmp_path: Path) -> None:
    """Notes can be changed while they are folded for searches, and stay changed."""
    with (
        serving(unfolded, tmp_path / "log", DATABASE_STATEMENT_TIMEOUT="2") as http,
        ExitStack() as held,
    ):
        held.enter_context(holding(unfolded, "SELECT FROM notes WHERE id = 1500 FOR UPDATE"))
        with migrating(unfolded, "upgrade", "0003") as process:
            poll(lambda: bool(backends(unfolded, WAITS)))
            # The first one is folded already, the other one is read and waits for its turn.
            for id_ in (1, 1501):
                answer = http.patch(f"/notes/{id_}", json={"text": "Geänderte Straße"})
                assert answer.status_code == 200
            held.close()
            assert_done(process)
        found = http.get("/notes/", params={"q": "GEÄNDERTE STRASSE"}).json()
        assert [note["id"] for note in found] == [1, 1501]
        found = http.get("/notes/", params={"q": "STRASSE 1500"}).json()
        assert [note["id"] for note in found] == [1500]
        assert http.get("/notes/", params={"q": "STRASSE 1501"}).json() == []


def test_of_two_runs_one_waits(database: str) -> None:
    """A run that begins during another one waits for its end, and then does nothing."""
    with ExitStack() as held, migrating(database) as first:
        held.enter_context(holding(database, "LOCK TABLE notes IN ACCESS SHARE MODE"))
        poll(lambda: bool(backends(database, MIGRATES)))
        with migrating(database) as second:
            poll(lambda: bool(backends(database, f"NOT {MIGRATES} AND query NOT LIKE 'LOCK%'")))
            held.close()
            assert "Running upgrade" in assert_done(first)
            assert "Running upgrade" not in assert_done(second)


def test_ids_that_are_too_large_are_not_made_smaller(database: str) -> None:
    """A downgrade is refused in one line if a note has an id of more than 32 bits."""
    databases.migrate(database)
    databases.execute(database, "INSERT INTO notes VALUES ('a', true, NULL, 2147483648)")
    result = databases.alembic(database, "downgrade", BEFORE)
    assert result.returncode != 0
    last = result.stderr.splitlines()[-1]
    assert last == "There are notes with ids over 2147483647, which integer can't hold."
    assert id_type(database) == "bigint"
