"""Creates that share an INSERT: how many of a size, and what one of them may do to others."""

import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from pathlib import Path

import httpx2
import pytest

from tests.conftest import Server
from tests.support import databases
from tests.support.databases import SERVED, NewDatabase, kind_of, locked
from tests.support.metrics import metric
from tests.support.servers import serving
from tests.support.waiting import at_once, poll

UNIQUE = "CREATE UNIQUE INDEX notes_unique ON notes ({})"
# MySQL has no index on a whole long text.
COLUMN = {"sqlite": "text", "postgresql": "text", "mysql": "text(100)"}


def post_all(
    client: httpx2.Client, texts: list[str], lock: AbstractContextManager[None]
) -> list[httpx2.Response]:
    """Posts all texts at the same time, while nothing can be stored; then it can."""

    def post(text: str) -> httpx2.Response:
        return client.post("/notes/", json={"text": text, "completed": False})

    free = threading.Event()

    def hold() -> None:
        with lock:
            locked_now.set()
            free.wait(30)

    locked_now = threading.Event()
    with ThreadPoolExecutor(1) as threads:
        holding = threads.submit(hold)
        assert locked_now.wait(30)
        threading.Timer(0.5, free.set).start()
        answers = at_once([lambda text=text: post(text) for text in texts])  # type: ignore[misc]
        holding.result()
    return answers


def test_a_broken_constraint_is_its_own_clients_alone(database_url: str, tmp_path: Path) -> None:
    """Of thirty creates at once, one that repeats a text is a 409, and the others are stored."""
    databases.execute(database_url, UNIQUE.format(COLUMN[kind_of(database_url)]))
    texts = ["twice", *map(str, range(28)), "twice"]
    with serving(database_url, tmp_path / "log") as client:
        answers = post_all(client, texts, locked(database_url))
        assert Counter(answer.status_code for answer in answers) == {200: 29, 409: 1}
        (refused,) = [answer for answer in answers if answer.status_code == 409]
        assert refused.json() == {"detail": "The values break a constraint of the database"}
        assert sorted(note["text"] for note in client.get("/notes/").json()) == sorted(set(texts))
        # A lone one, and every other way to write it.
        note = {"text": "twice", "completed": True}
        for method, path, body in [
            ("POST", "/notes/", note),
            ("POST", "/notes/batch", [note]),
            ("PUT", f"/notes/{client.get('/notes/?q=27').json()[0]['id']}", note),
        ]:
            assert client.request(method, path, json=body).status_code == 409
        keyed = client.post("/notes/", json=note, headers={"idempotency-key": "a"})
        assert keyed.status_code == 409


@pytest.mark.parametrize(
    ("size", "creates", "least"), [(2_001, 9, 3), (50_000, 9, 3), (50_001, 5, 5)]
)
def test_large_notes_share_less(
    server: Server, service: httpx2.Client, size: int, creates: int, least: int
) -> None:
    """The first note of each size goes alone; then four that are not small share a query."""

    def queries() -> float:
        return metric(service, "coalesced_batch_size_count", query="insert_notes")

    before = queries()
    texts = ["x" * size] * creates
    answers = post_all(service, texts, locked(server.database_url))
    assert {answer.status_code for answer in answers} == {200}
    assert queries() - before >= least


# Locks against writes alone.
LOCK = {"postgresql": "LOCK TABLE notes IN SHARE MODE", "mysql": "LOCK TABLES notes READ"}


@pytest.mark.parametrize("kind", SERVED)
@pytest.mark.parametrize("keyed", [False, True])
def test_large_writes_leave_connections_to_others(
    kind: str, keyed: bool, new_database: NewDatabase, tmp_path: Path
) -> None:
    """While large writes use all the connections that they may have, reads go on."""
    database_url = new_database(kind)
    large = {"text": "x" * 60_000, "completed": True}
    with (
        serving(database_url, tmp_path / "log", DATABASE_POOL_TIMEOUT="1") as client,
        databases.session(database_url) as run,
        ThreadPoolExecutor(8) as threads,
    ):
        databases.fill(database_url, 8)
        run("BEGIN")
        run(LOCK[kind])

        def write(number: int) -> httpx2.Response:
            if keyed:
                return client.post("/notes/", json=large, headers={"idempotency-key": str(number)})
            return client.put(f"/notes/{number}", json=large)

        writes = [threads.submit(write, number) for number in range(1, 9)]
        poll(lambda: metric(client, "database_connections_in_use") >= 2)
        time.sleep(0.5)
        assert client.get("/notes/1").json()["text"] == "note"
        assert metric(client, "database_connections_in_use") == 2
        run("ROLLBACK")
        if kind == "mysql":
            run("UNLOCK TABLES")
        assert [one.result().status_code for one in writes] == [200] * 8
