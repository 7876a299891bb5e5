"""Services and the database are killed while clients write and follow."""

import itertools
import random
import signal
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

import asyncpg
import httpx2
import pytest

from tests.support.clusters import Server, running_server
from tests.support.databases import UNREACHABLE, fetch, session
from tests.support.following import following, live, replay
from tests.support.notes import known
from tests.support.servers import started
from tests.support.template import Process
from tests.support.waiting import poll

WRITERS = 4
TABLE = "SELECT id, text, completed FROM notes"


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    """A server that writes its log to the disk when a commit wants it, and not by itself."""
    with running_server() as server:
        server.execute("ALTER SYSTEM SET wal_writer_delay = '10s'", "SELECT pg_reload_conf()")
        yield server


@pytest.fixture
def url(server: Server) -> str:
    """A database whose changes are recorded."""
    url = server.new_database()
    live(server.of_superuser(url))
    return url


def restart(server: Server) -> None:
    """Crashes the database, and starts it again."""
    server.crash()
    server.cluster.start()


def table(url: str) -> dict[int, Any]:
    return {
        row[0]: dict(zip(("id", "text", "completed"), row, strict=True))
        for row in fetch(url, TABLE)
    }


def test_what_was_told_survives_a_crash(server: Server, url: str, tmp_path: Path) -> None:
    """Also where the writer didn't wait for the disk, and the database crashes at once."""
    with started(url, tmp_path / "log", LIVE="1") as (service, _):
        with following(f"{service}/notes") as follower, session(url) as run:
            follower.take(1)
            run("SET synchronous_commit = off")
            run("INSERT INTO notes (text, completed) VALUES ('told', false)")
            (told,) = follower.take(1)
            restart(server)
        assert table(url) == {told.data["id"]: known(told.data)}


def test_numbers_are_given_again_after_a_crash(server: Server, url: str, tmp_path: Path) -> None:
    """The place of a follower is right also if it names transactions that the crash forgot."""
    with started(url, tmp_path / "log", LIVE="1") as (service, _):
        with session(url) as run:
            for _ in range(9):
                run("BEGIN")
                run("SELECT pg_current_xact_id()")
                run("ROLLBACK")
            with following(f"{service}/notes") as follower:
                (start,) = follower.take(1)
            restart(server)
        with session(url) as run, following(f"{service}/notes", after=start.id) as follower:
            run("INSERT INTO notes (text, completed) VALUES ('new', false)")
            (told,) = follower.take(1)
        assert (told.kind, told.data.get("text")) == ("created", "new")


class Town:
    """Two services, of which one may be away, and clients who try again."""

    def __init__(self, database_url: str, folder: Path, stack: ExitStack) -> None:
        self._url = database_url
        self._folder = folder
        self._stack = stack
        self.services: list[tuple[str, Process]] = []
        self.is_over = threading.Event()
        self.written = 0
        for _ in range(2):
            self.start()

    def start(self) -> None:
        log = self._folder / f"{len(self.services)}.log"
        self.services.append(self._stack.enter_context(started(self._url, log, LIVE="1")))

    def kill(self) -> None:
        """Kills the older service. Another one takes its place."""
        self.services[-2][1].send_signal(signal.SIGKILL)
        self.services[-2][1].wait()
        self.start()

    def notes(self, number: int) -> str:
        """The URL of the notes at one of the services."""
        return f"{self.services[-1 - number % 2][0]}/notes"

    def write_some(self) -> None:
        """Returns after some more writes."""
        before = self.written
        poll(lambda: self.written > before + 30)

    def write(self, writer: int) -> None:
        chance = random.Random(writer)
        with httpx2.Client(timeout=60) as client:
            for number in itertools.count():
                if self.is_over.is_set():
                    return
                note = {"text": f"{writer} {number}", "completed": chance.random() < 0.5}
                note_id = chance.randint(1, 20)
                url = self.notes(chance.randrange(2))
                with suppress(httpx2.HTTPError):
                    match chance.randrange(5):
                        case 0 | 1:
                            answer = client.post(f"{url}/", json=note)
                        case 2 | 3:
                            answer = client.patch(f"{url}/{note_id}", json=note)
                        case _:
                            answer = client.delete(f"{url}/{note_id}")
                    assert answer.status_code in (200, 204, 404, 503)
                    self.written += answer.status_code != 503

    def write_directly(self) -> None:
        """Writes without waiting for the disk, in transactions of some time."""
        chance = random.Random(0)
        while not self.is_over.is_set():
            with suppress(*UNREACHABLE), session(self._url) as run:
                run("SET synchronous_commit = off")
                while not self.is_over.is_set():
                    run("BEGIN")
                    run("SELECT pg_current_xact_id()")
                    with suppress(asyncpg.DeadlockDetectedError):
                        for _ in range(3):
                            note_id = chance.randint(1, 20)
                            run(f"UPDATE notes SET text = text || '.' WHERE id = {note_id}")
                            self.is_over.wait(0.01)
                    run(chance.choice(["COMMIT", "COMMIT", "ROLLBACK"]))


def test_kills_take_nothing_back(server: Server, url: str, tmp_path: Path) -> None:
    """Followers who come back with their id have the table, whatever was killed meanwhile."""
    with ExitStack() as stack, ThreadPoolExecutor() as threads:
        town = Town(url, tmp_path, stack)
        following = [threads.submit(replay, town.notes, "last")]
        following += [threads.submit(replay, town.notes, "last", completed="false")]
        writing = [threads.submit(town.write, number) for number in range(WRITERS)]
        writing.append(threads.submit(town.write_directly))
        try:
            for harm in (town.kill, lambda: restart(server), town.kill):
                town.write_some()
                harm()
            town.write_some()
        finally:
            town.is_over.set()
        for writer in writing:
            writer.result()
        last = {"text": "last", "completed": False}
        httpx2.post(f"{town.notes(0)}/", json=last, timeout=60).raise_for_status()
        found = [
            {key: known(note) for key, note in follower.result().items()} for follower in following
        ]
    expected = table(url)
    assert found[0] == expected
    assert found[1] == {key: note for key, note in expected.items() if not note["completed"]}
