"""Migrations of a server's table in use keep all notes and block no client."""

import random
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

import asyncmy
import httpx2
import pytest

from tests.support import databases
from tests.support.databases import SERVED, fill, holding
from tests.support.migrating import (
    MIGRATES,
    NEWEST,
    migrate_on,
    migrate_to,
    migrates,
    migrating,
    waits,
)
from tests.support.notes import known
from tests.support.servers import running, serving
from tests.support.waiting import poll

COUNT = 5_000
CLIENTS = 4
BEFORE = "0004"


@pytest.fixture(params=SERVED)
def database(request: pytest.FixtureRequest, new_empty_database: databases.NewDatabase) -> str:
    """A database of the version before ids had 64 bits, with notes."""
    url = new_empty_database(request.param)
    migrate_to(url, BEFORE)
    fill(url, COUNT)
    databases.execute(url, f"DELETE FROM notes WHERE id IN ({COUNT // 2}, {COUNT})")
    return url


def notes(url: str) -> dict[int, tuple[str, bool]]:
    rows = databases.fetch(url, "SELECT id, text, completed FROM notes")
    return {note_id: (text, bool(completed)) for note_id, text, completed in rows}


def id_type(url: str) -> str:
    """`integer` or `bigint`."""
    schema = "database()" if databases.kind_of(url) == "mysql" else "'public'"
    found = databases.execute(
        url,
        "SELECT data_type FROM information_schema.columns"
        f" WHERE table_schema = {schema} AND table_name = 'notes' AND column_name = 'id'",
    )
    return "integer" if found == "int" else str(found)


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
            assert (answer.status_code, known(answer.json())) == (200, {"id": id_, **note})
            self.notes[id_] = value  # type: ignore[assignment]
        elif what == "delete":
            assert http.delete(f"/notes/{id_}").status_code == 204
            del self.notes[id_]
            self.deleted.add(id_)
        else:
            answer = http.get(f"/notes/{id_}")
            text, completed = self.notes[id_]
            wanted = {"id": id_, "text": text, "completed": completed}
            assert (answer.status_code, known(answer.json())) == (200, wanted)


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
        for command, kind in ((f"upgrade {NEWEST}", "bigint"), (f"downgrade {BEFORE}", "integer")):
            with migrating(database, *command.split()) as migration:
                migration.printed()
            assert id_type(database) == kind


def end_migration(url: str) -> None:
    """Ends the connection of the run that has its turn, if there is one."""
    kind = databases.kind_of(url)
    with databases.session(url) as run:
        if kind == "postgresql":
            run(f"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE {MIGRATES[kind]}")
        elif number := run("SELECT is_used_lock(concat('7236274165-', md5(database())))"):
            with suppress(asyncmy.errors.OperationalError):  # it has ended meanwhile
                run(f"KILL {number}")


def test_a_migration_that_was_killed_goes_on(database: str, tmp_path: Path) -> None:
    """A killed migration is completed by a later run."""
    choice = random.Random(1)
    with in_use(database, tmp_path / "log"):
        for turn in range(4):
            with migrating(database, "upgrade", NEWEST) as migration:
                poll(lambda: migrates(database) or migration.process.poll() is not None)
                time.sleep(choice.uniform(0, 0.6))
                if turn % 2:
                    # As when the server has an end of its own.
                    end_migration(database)
        with migrating(database, "upgrade", NEWEST) as migration:
            migration.printed()
    assert id_type(database) == "bigint"
    leftovers = (
        "SELECT count(*) FROM information_schema.triggers WHERE event_object_table = 'notes'"
    )
    assert databases.execute(database, leftovers) == 0
    migrate_on(database)
    result = databases.alembic(database, "check")
    assert result.returncode == 0, result.stdout + result.stderr


def test_nobody_waits_behind_a_migration_that_waits(database: str, tmp_path: Path) -> None:
    """While the migration waits for a long read, other clients don't wait."""
    with (
        serving(database, tmp_path / "log") as http,
        holding(database, "SELECT count(*) FROM notes"),
        migrating(database) as migration,
    ):
        poll(lambda: waits(database))
        for _ in range(3):
            poll(lambda: waits(database))
            for _ in range(20):
                assert http.get("/notes/1").status_code == 200
                assert http.patch("/notes/2", json={"text": "changed"}).status_code == 200
        assert migration.process.poll() is None
        migration.process.kill()


@pytest.fixture
def unfolded(new_empty_database: databases.NewDatabase) -> str:
    """A database of the version before searches, with notes that have to be folded."""
    url = new_empty_database("postgresql")
    migrate_to(url, "0002")
    databases.execute(
        url,
        "INSERT INTO notes (text, completed)"
        " SELECT 'Straße ' || n, false FROM generate_series(1, 2000) n",
    )
    return url


def test_folding_keeps_changes_and_nobody_waiting(unfolded: str, tmp_path: Path) -> None:
    """Notes can be changed while they are folded for searches, and stay changed."""
    with (
        serving(unfolded, tmp_path / "log") as http,
        ExitStack() as held,
    ):
        held.enter_context(holding(unfolded, "SELECT FROM notes WHERE id = 1500 FOR UPDATE"))
        with migrating(unfolded, "upgrade", "0003") as migration:
            poll(lambda: waits(unfolded))
            # The first one is folded already, the other one is read and waits for its turn.
            for id_ in (1, 1501):
                answer = http.patch(f"/notes/{id_}", json={"text": "Geänderte Straße"})
                assert answer.status_code == 200
            held.close()
            migration.printed()
        found = http.get("/notes/", params={"q": "GEÄNDERTE STRASSE"}).json()
        assert [note["id"] for note in found] == [1, 1501]
        found = http.get("/notes/", params={"q": "STRASSE 1500"}).json()
        assert [note["id"] for note in found] == [1500]
        assert http.get("/notes/", params={"q": "STRASSE 1501"}).json() == []


@pytest.mark.parametrize("kind", SERVED)
def test_others_write_null_while_it_is_replaced(
    kind: str, new_empty_database: databases.NewDatabase
) -> None:
    """NULL that others write during the migration, before it forbids them, is replaced too."""
    url = new_empty_database(kind)
    assert databases.alembic(url, "upgrade", BEFORE).returncode == 0
    null = {
        "postgresql": "ALTER TABLE notes ALTER {0} DROP NOT NULL",
        "mysql": "ALTER TABLE notes MODIFY {0} {1}",
    }[kind]
    databases.execute(url, null.format("text", "longtext"), null.format("completed", "boolean"))
    with ExitStack() as held:
        held.enter_context(holding(url, "SELECT count(*) FROM notes"))
        with migrating(url, "upgrade", "0005") as migration:
            poll(lambda: waits(url))
            databases.execute(
                url,
                "INSERT INTO notes (text, completed) VALUES (NULL, NULL)",
                # An id that another program has chosen.
                "INSERT INTO notes (id, text, completed) VALUES (-1, NULL, NULL)",
            )
            held.close()
            printed = migration.printed()
    assert 'text was NULL in 2 of the notes, and is "" now' in printed
    assert notes(url) == {-1: ("", False), 1: ("", False)}


def test_of_two_runs_one_waits(database: str) -> None:
    """A run that begins during another one waits for its end, and then does nothing."""
    with ExitStack() as held, migrating(database, "upgrade", NEWEST) as first:
        held.enter_context(holding(database, "SELECT count(*) FROM notes"))
        poll(lambda: migrates(database))
        with migrating(database, "upgrade", NEWEST) as second:
            # Besides the one that holds the lock.
            poll(lambda: databases.connected(database) == 3)
            held.close()
            assert "Running upgrade" in first.printed()
            assert "Running upgrade" not in second.printed()


def test_ids_that_are_too_large_are_not_made_smaller(database: str) -> None:
    """A downgrade is refused in one line if a note has an id of more than 32 bits."""
    assert databases.alembic(database, "upgrade", NEWEST).returncode == 0
    databases.execute(
        database, "INSERT INTO notes (id, text, completed) VALUES (2147483648, 'a', true)"
    )
    result = databases.alembic(database, "downgrade", BEFORE)
    assert result.returncode != 0
    last = result.stderr.splitlines()[-1]
    if databases.kind_of(database) == "postgresql":
        assert last == "There are notes with ids over 2147483647, which integer can't hold."
    else:
        assert "Out of range value for column 'id'" in last
    assert id_type(database) == "bigint"
