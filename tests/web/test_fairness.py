"""No client's work holds up another's."""

import asyncio
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path

import orjson
import pytest

from service.database.operations import Lane, slots_of_server
from service.schemas import slices
from tests.support import databases
from tests.support.databases import SERVED, kind_of, locked
from tests.support.metrics import metric
from tests.support.notes import known
from tests.support.proxies import Link, Proxy
from tests.support.servers import serving
from tests.support.turning import turns_while_refused
from tests.support.waiting import poll

JSON = {"content-type": "application/json"}
NOTE = {"text": "a", "completed": False}


def store_worst(database_url: str, count: int = 1) -> str:
    """Stores notes of 1 MB, and gives a search of 200 characters that takes longest in them."""
    # Case-folded, each character becomes three, of which the first begins a match.
    text = "\u0390" * 500_000
    values = f"('{text}', true, '{text.casefold()}')"
    store = f"INSERT INTO notes (text, completed, folded) VALUES {values}"
    databases.execute(database_url, *[store] * count)
    return "\u0390" * 199 + "b"


DOUBLE = "INSERT INTO notes (text, completed, folded) SELECT text, completed, folded FROM notes"


# Count the searches that the server is busy with.
SEARCHES = {
    "postgresql": """
    SELECT count(*) FROM pg_stat_activity WHERE datname = current_database()
    AND state = 'active' AND query LIKE '%coalesce%' AND pid <> pg_backend_pid()
    """,
    "mysql": """
    SELECT count(*) FROM information_schema.processlist WHERE db = database()
    AND command = 'Query' AND id <> connection_id()
    """,
}


def test_the_longest_search_can_be_ended(database_url: str, tmp_path: Path) -> None:
    """The longest search in the largest notes is given up in time, also by the database."""
    kind = kind_of(database_url)
    with serving(database_url, tmp_path / "log", DATABASE_STATEMENT_TIMEOUT="1") as client:
        q = store_worst(database_url)
        assert client.get("/notes/", params={"q": "b" + q}).status_code == 422
        assert client.get("/notes/", params={"q": "a" * 30_000}).status_code == 422
        # The faster the machine, the more notes it takes.
        for _ in range(8):
            answer = client.get("/notes/", params={"q": q})
            if answer.status_code == 503:
                break
            assert answer.json() == []
            databases.execute(database_url, DOUBLE)
        assert answer.status_code == 503
        if kind in SEARCHES:
            poll(lambda: databases.execute(database_url, SEARCHES[kind]) == 0)


def test_searches_leave_connections_to_others(database_url: str, tmp_path: Path) -> None:
    """While searches use all the connections that they may have, other requests go on."""
    limits = {
        "DATABASE_POOL_MAX": "2",
        "DATABASE_POOL_TIMEOUT": "3",
        "DATABASE_STATEMENT_TIMEOUT": "6",
    }
    q = store_worst(database_url, 5)
    with (
        serving(database_url, tmp_path / "log", **limits) as client,
        ThreadPoolExecutor(20) as threads,
    ):
        over = threading.Event()

        def search(number: int) -> None:
            parameters = {"q": f"{q[len(str(number)) :]}{number}"}
            while not over.is_set():
                assert client.get("/notes/", params=parameters).status_code in (200, 503)

        searches = [threads.submit(search, number) for number in range(20)]
        try:
            for _ in range(3):
                poll(lambda: metric(client, "database_connections_waited_for") > 0)
                note = client.post("/notes/", json=NOTE)
                path = f"/notes/{note.json()['id']}"
                answers = [
                    note,
                    client.get(path),
                    client.get("/notes/?limit=1"),
                    client.get("/notes/?completed=false&order=desc"),
                    client.patch(path, json={"completed": True}),
                    client.post("/notes/", json=NOTE, headers={"idempotency-key": path}),
                    client.get("/health/ready"),
                ]
                assert [answer.status_code for answer in answers] == [200] * len(answers)
        finally:
            over.set()
        for one in searches:
            one.result()
        found = client.get("/notes/?q=a&limit=1").json()
        assert known(found) == [{"id": 6, **NOTE, "completed": True}]


@pytest.mark.parametrize("connections", [2, 3, 4, 9])
def test_slow_work_leaves_a_connection_to_others(connections: int) -> None:
    """As many searches and large writes as a server may have at once leave one connection."""
    slots = slots_of_server(connections)
    slow: tuple[Lane, ...] = ("search", "large_write")

    async def take_all() -> None:
        for lane in slow:
            while not any(slot.locked() for slot in slots[lane]):
                for slot in slots[lane]:
                    await slot.acquire()

    asyncio.run(take_all())
    assert not any(slot.locked() for slot in slots["write"])


@pytest.mark.parametrize("kind", SERVED)
def test_a_search_that_gave_up_leaves_its_turn(
    kind: str, new_database: databases.NewDatabase, tmp_path: Path
) -> None:
    """Searches that waited too long for a connection to a server don't keep later ones away."""
    database_url = new_database(kind)
    limits = {"DATABASE_POOL_MAX": "2", "DATABASE_POOL_TIMEOUT": "0.5"}
    with (
        serving(database_url, tmp_path / "log", **limits) as client,
        ThreadPoolExecutor(2) as threads,
    ):
        paths = [f"/notes/{client.post('/notes/', json=NOTE).json()['id']}" for _ in range(2)]
        with locked(database_url):
            for path in paths:
                threads.submit(client.delete, path)
            poll(lambda: metric(client, "database_connections_in_use") == 2)
            for _ in range(2):
                assert client.get("/notes/?q=a").status_code == 503
        # One of the deletions may come later than the first search that gets a connection.
        poll(lambda: client.get("/notes/?q=a").json() == [])


@pytest.mark.parametrize("kind", SERVED)
def test_large_pages_leave_connections_to_others(
    kind: str, new_database: databases.NewDatabase, tmp_path: Path
) -> None:
    """While the large pages that may be read at once are slow, small reads go on."""
    database_url = new_database(kind)
    databases.fill(database_url, 3)
    databases.fill(database_url, 10, "x" * 60_000)

    def is_slow(link: Link, answer: bytes) -> bool:
        if b"x" * 1000 in answer:
            link.hangs = True
        return False

    with (
        closing(Proxy(database_url)) as proxy,
        serving(proxy.url, tmp_path / "log", DATABASE_POOL_TIMEOUT="1") as client,
        ThreadPoolExecutor(6) as threads,
    ):
        proxy.ends = is_slow
        for limit in range(7, 13):
            threads.submit(client.get, f"/notes/?limit={limit}")
        poll(lambda: sum(link.hangs for link in proxy.links) == 1)
        for path in ("/notes/1", "/notes/?limit=1", "/notes/?limit=1&after=1"):
            assert client.get(path).status_code == 200
        assert sum(link.hangs for link in proxy.links) == 1
        proxy.ends = lambda link, answer: False
        for link in proxy.links:
            link.cut()


def test_slices_are_short() -> None:
    """Work of a tenth of a second lets others go on after each few milliseconds."""

    async def turns_of_the_loop() -> int:
        working = asyncio.create_task(slices.in_slices(time.sleep, [0.002] * 50))
        turns = 0
        while not working.done():
            await asyncio.sleep(0)
            turns += 1
        return turns

    assert asyncio.run(turns_of_the_loop()) >= 10


def test_work_takes_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    """Between two turns of the event loop runs little of such work, however much there is."""
    for lock in ("_short", "_long"):
        monkeypatch.setattr(slices, lock, asyncio.Lock())
    calls = 0

    def call(seconds: float) -> None:
        nonlocal calls
        calls += 1
        time.sleep(seconds)

    async def most_calls() -> int:
        nonlocal calls
        most = 0
        async with asyncio.TaskGroup() as group:
            working = [group.create_task(slices.in_slices(call, [0.001] * 20)) for _ in range(20)]
            while not all(task.done() for task in working):
                calls = 0
                await asyncio.sleep(0)
                most = max(most, calls)
        return most

    # A slice of long work, and as much of short work.
    assert asyncio.run(most_calls()) <= 10


LINES = {"content-type": "application/x-ndjson"}
# A bad batch, and how many slices there are in it.
BATCHES = {
    "bad notes": (JSON, b"[%b]" % b",".join([b"{}"] * 1000), 1000 + 2000),
    "one bad note": (JSON, orjson.dumps([NOTE] * 999 + [{}]), 1000),
    "conversions": (JSON, orjson.dumps([NOTE | {"completed": "no"}] * 999 + [{}]), 1000),
    "bad lines": (LINES, b"{}\n" * 1000, 1000 + 1000 + 2000),
    "one bad line": (LINES, b"{}\n" * 999 + b"{", 1000),
    "blank lines": (LINES, b"\n" * 1_000_000, 15),
}


@pytest.mark.parametrize(("headers", "content", "wanted"), BATCHES.values(), ids=BATCHES)
def test_others_go_on_while_a_batch_is_refused(
    monkeypatch: pytest.MonkeyPatch, headers: dict[str, str], content: bytes, wanted: int
) -> None:
    """A batch is read, checked and refused in slices."""
    # Every note is a slice then, however fast the machine is.
    monkeypatch.setattr(slices, "SLICE_SECONDS", 0)
    monkeypatch.setattr(slices, "SHORT_SECONDS", 0)
    assert turns_while_refused("/notes/batch", content, headers) >= wanted - 1
