"""No request notices that tables are altered."""

import itertools
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx2
import pytest

from tests.support.clusters import connections
from tests.support.databases import NewDatabase, execute, kind_of
from tests.support.servers import serving
from tests.support.waiting import poll

TEXT = "CHARACTER SET utf8mb4 COLLATE utf8mb4_nopad_bin NOT NULL"
# Each changes what prepared statements give, or what they mean.
CHANGES = {
    "postgresql": (
        "ALTER TABLE notes ALTER text TYPE varchar(1000)",
        "ALTER TABLE notes ALTER text TYPE text",
        "ALTER TABLE notes ADD other integer DEFAULT 7",
        "ALTER TABLE notes ALTER text TYPE varchar",
        "ALTER TABLE notes DROP other",
        "ALTER TABLE idempotency_keys ALTER response TYPE text, ALTER fingerprint TYPE text",
        "ALTER TABLE idempotency_keys ALTER response TYPE varchar, ALTER fingerprint TYPE varchar",
    ),
    "mysql": (
        f"ALTER TABLE notes MODIFY text mediumtext {TEXT}",
        "ALTER TABLE notes ADD other integer DEFAULT 7",
        f"ALTER TABLE notes MODIFY text longtext {TEXT}",
        "ALTER TABLE notes DROP other",
        "ALTER TABLE notes FORCE, ALGORITHM=INPLACE",
        f"ALTER TABLE idempotency_keys MODIFY fingerprint varchar(300) {TEXT}",
        f"ALTER TABLE idempotency_keys MODIFY fingerprint varchar(255) {TEXT}",
    ),
}

_numbers = itertools.count()


def create(client: httpx2.Client) -> httpx2.Response:
    return client.post("/notes/", json={"text": f"one {next(_numbers)}", "completed": True})


def create_once(client: httpx2.Client) -> httpx2.Response:
    """Two requests with one key, which have one answer."""
    number = next(_numbers)
    note = {"text": f"keyed {number}", "completed": False}
    headers = {"idempotency-key": f"key-{number}"}
    stored = client.post("/notes/", json=note, headers=headers)
    if stored.status_code != 200:
        return stored
    again = client.post("/notes/", json=note, headers=headers)
    assert again.status_code != 200 or again.json() == stored.json()
    return again


def create_batch(client: httpx2.Client) -> httpx2.Response:
    number = next(_numbers)
    texts = [f"batch {number} {letter}" for letter in "ab"]
    batch = [{"text": text, "completed": True} for text in texts]
    return client.post("/notes/batch", json=batch)


def search(client: httpx2.Client) -> httpx2.Response:
    return client.get("/notes/", params={"q": "first", "limit": next(_numbers) % 9 + 1})


def list_some(client: httpx2.Client) -> httpx2.Response:
    return client.get("/notes/", params={"limit": next(_numbers) % 9 + 1})


def read(client: httpx2.Client) -> httpx2.Response:
    return client.get("/notes/1")


def change(client: httpx2.Client) -> httpx2.Response:
    return client.patch("/notes/1", json={"completed": next(_numbers) % 2 == 0})


def change_if_unchanged(client: httpx2.Client) -> httpx2.Response:
    return client.put(
        "/notes/2", json={"text": "first 2", "completed": True}, headers={"if-match": "*"}
    )


REQUESTS = (
    create,
    create_once,
    create_batch,
    search,
    list_some,
    read,
    change,
    change_if_unchanged,
)


@pytest.fixture(
    params=[("postgresql", "100"), ("postgresql", "0"), ("mysql", "100")],
    ids=["prepared", "unprepared", "mysql"],
)
def altered(
    request: pytest.FixtureRequest, new_database: NewDatabase, tmp_path: Path
) -> Iterator[tuple[httpx2.Client, str]]:
    """A service with two notes on a server, with and without prepared statements."""
    kind, cache = request.param
    url = new_database(kind)
    with serving(url, tmp_path / "log", DATABASE_STATEMENT_CACHE=cache) as client:
        for number in (1, 2):
            note = {"text": f"first {number}", "completed": True}
            assert client.post("/notes/", json=note).json()["id"] == number
        yield client, url


def test_altering_tables_between_requests(altered: tuple[httpx2.Client, str]) -> None:
    """The first request of each kind after each change of a table is answered as before."""
    client, url = altered
    for request in REQUESTS:
        assert request(client).status_code == 200
        for sql in CHANGES[kind_of(url)]:
            execute(url, sql)
            answer = request(client)
            assert answer.status_code == 200, f"{sql}: {answer.text}"


def test_altering_tables_under_load(altered: tuple[httpx2.Client, str]) -> None:
    """Clients get only good answers while a table is altered again and again."""
    client, url = altered
    over = threading.Event()
    statuses: dict[Callable[..., httpx2.Response], list[int]] = {kind: [] for kind in REQUESTS}

    def ask(kind: Callable[[httpx2.Client], httpx2.Response]) -> None:
        while not over.is_set():
            statuses[kind].append(kind(client).status_code)

    with connections(url) as (run,), ThreadPoolExecutor(len(REQUESTS)) as threads:
        asking = [threads.submit(ask, kind) for kind in REQUESTS]
        try:
            for sql in CHANGES[kind_of(url)] * 5:
                before = {kind: len(found) for kind, found in statuses.items()}
                run(sql)
                poll(lambda before=before: all(len(statuses[k]) > before[k] for k in REQUESTS))  # type: ignore[misc]
        finally:
            over.set()
        for task in asking:
            task.result()
    assert {status for found in statuses.values() for status in found} == {200}
    counts = "SELECT count(*) - count(DISTINCT text) FROM notes"
    assert execute(url, counts) == 0
    stored = len(statuses[create]) + len(statuses[create_once]) + 2 * len(statuses[create_batch])
    assert execute(url, "SELECT count(*) FROM notes") == stored + 2
