"""Large answers, and clients that take them slowly or not at all."""

import asyncio
import json
import secrets
import socket
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing
from functools import cache
from pathlib import Path
from typing import Any

import httpx2
import pytest
from starlette.requests import Request
from starlette.types import Message

from service.notes.resource import usual
from service.openapi.docs import MAX_TAKERS
from service.web import budget, slots
from tests.support.databases import KINDS, NewDatabase, fill
from tests.support.sockets import head, json_request, read_slowly
from tests.support.waiting import poll
from tests.support.watched import Service, watching

# Nothing makes it much smaller.
TEXT = "x" + secrets.token_hex(499_999)


@pytest.fixture(scope="module")
def filled(new_database: NewDatabase) -> Callable[[str], str]:
    """Gives a database of a kind with 18 notes of a megabyte, one more than fit into a page.

    The tests of the module share it and only read.
    """

    @cache
    def get(kind: str) -> str:
        database_url = new_database(kind)
        fill(database_url, 18, TEXT)
        return database_url

    return get


@pytest.fixture(scope="module")
def service(
    filled: Callable[[str], str], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Service]:
    """Two requests at a time on notes of a megabyte, and little patience."""
    variables = {"MAX_REQUESTS": "2", "REQUEST_TIMEOUT": "3"}
    log = tmp_path_factory.mktemp("large") / "log"
    with watching(filled("sqlite"), log, **variables) as service:
        yield service
    assert "ASGI callable" not in log.read_text()


def status(service: Service) -> int:
    """The status for a client that reads its answer."""
    return httpx2.get(f"{service.url}/notes/1", timeout=30).status_code


def ask(service: Service, request: bytes) -> socket.socket:
    """Sends a request and waits until its answer has begun."""
    client = service.connect(receive_buffer=4096)
    client.sendall(request)
    assert client.recv(1) == b"H"
    return client


@pytest.mark.parametrize(("kind", "loop"), [("postgresql", "uvloop"), ("sqlite", "asyncio")])
def test_answers_that_nobody_reads_take_little_memory(
    filled: Callable[[str], str], tmp_path: Path, kind: str, loop: str
) -> None:
    """Sixty clients that don't read take the memory of two, and none after their deadline."""
    variables = {"MAX_REQUESTS": "2", "REQUEST_TIMEOUT": "2"}
    with (
        watching(filled(kind), tmp_path / "log", f"--loop={loop}", **variables) as service,
        ExitStack() as stack,
    ):
        before = service.memory()
        for _ in range(60):
            stack.enter_context(ask(service, head("GET", "/notes/?limit=17")))
            assert service.memory() - before < 180_000_000
        poll(lambda: status(service) == 200)
        assert service.memory() - before < 70_000_000


@pytest.mark.parametrize(
    ("kind", "path", "fields"),
    [
        ("sqlite", "/notes/?limit={}", []),
        ("postgresql", "/notes/?limit={}", []),
        ("mysql", "/notes/?limit={}", []),
        ("postgresql", "/notes/?q=x&limit={}", []),
        ("sqlite", "/notes/?limit={}", ["Accept-Encoding: gzip"]),
    ],
    ids=["sqlite", "postgresql", "mysql", "search", "gzip"],
)
def test_unread_answers_have_a_budget(
    filled: Callable[[str], str], tmp_path: Path, kind: str, path: str, fields: list[str]
) -> None:
    """Sixty clients that read nothing, each something else, take little memory from all others."""
    # A busy machine may take long for a page of 17 MB, for which others wait in its lane.
    variables = {
        "REQUEST_TIMEOUT": "12",
        "DATABASE_CONNECT_TIMEOUT": "2",
        "DATABASE_POOL_TIMEOUT": "6",
        "DATABASE_STATEMENT_TIMEOUT": "3",
    }
    with (
        watching(filled(kind), tmp_path / "log", **variables) as service,
        ExitStack() as stack,
    ):
        with httpx2.Client(base_url=service.url, timeout=30) as client:
            before = service.memory()
            service.peak()
            clients = [stack.enter_context(service.connect(receive_buffer=4096)) for _ in range(60)]
            for number, unread in enumerate(clients):
                unread.sendall(head("GET", path.format(17 + number), *fields))
            for _ in range(20):
                assert client.get("/notes/?after=18").status_code == 200
            # Each has begun to get its answer, or a 503.
            for unread in clients:
                assert unread.recv(1) == b"H"
        grown = service.peak() - before
        # Without a budget it is over 900 MB.
        assert grown < 250_000_000


def test_files_that_nobody_reads_take_little_memory(
    new_database: NewDatabase, tmp_path: Path
) -> None:
    """Strangers may ask for a large file, but few have a part of it in memory at a time."""
    path = "/docs/assets/swagger-ui-bundle.js"
    with (
        watching(new_database("sqlite"), tmp_path / "log", ACCESS="token") as service,
        ExitStack() as stack,
        httpx2.Client(base_url=service.url, timeout=30) as client,
    ):
        whole = client.get(path).content
        before = service.memory()
        service.peak()
        clients = [
            stack.enter_context(closing(service.connect(receive_buffer=4096))) for _ in range(400)
        ]
        for unread in clients:
            unread.sendall(head("GET", path))
        for unread in clients[:MAX_TAKERS]:
            assert unread.recv(1) == b"H"
        assert client.get("/health/ready").status_code == 200
        # Without a bound it is about 100 MB.
        assert service.peak() - before < 60_000_000
        for unread in clients:
            unread.close()
        assert client.get(path).content == whole


@pytest.mark.parametrize("kind", ["sqlite", "postgresql"])
def test_large_writes_take_little_memory(
    new_database: NewDatabase, tmp_path: Path, kind: str
) -> None:
    """Sixty texts that Python stores with four bytes for each character are not held at once."""
    wide = {"text": "x" * 999_990 + "\U0001f600", "completed": True}
    body = json.dumps(wide, ensure_ascii=False).encode()

    with watching(new_database(kind), tmp_path / "log") as service:
        url, headers = f"{service.url}/notes/", {"content-type": "application/json"}

        def create(_: int) -> int:
            return httpx2.post(url, content=body, headers=headers, timeout=90).status_code

        assert create(0) == 200
        before = service.memory()
        service.peak()
        with ThreadPoolExecutor(60) as threads:
            statuses = set(threads.map(create, range(60)))
        grown = service.peak() - before
    assert statuses <= {200, 503}
    # It was 480 MB.
    assert grown < 300_000_000


def test_an_answer_to_a_large_write_holds_its_own_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a batch took while it was stored leaves the budget before its answer is sent."""
    new = [{"text": "x" * 50_000, "completed": True}] * 2

    async def insert(rows: list[dict[str, object]], run: object) -> list[dict[str, object]]:
        return [{"id": 1, **row} for row in rows]

    async def receive() -> Message:
        return {"type": "http.request", "body": json.dumps(new).encode(), "more_body": False}

    headers = [(b"content-type", b"application/json")]
    scope: dict[str, Any] = {"type": "http", "method": "POST", "headers": headers}

    async def sizes() -> tuple[int, list[int]]:
        task = scope["service.task"] = asyncio.current_task()
        assert task is not None
        answer = await usual.items.create_many(Request(scope, receive))
        slots.end(task)
        return len(answer.body), [held.size for held in scope["service.holds"]]

    monkeypatch.setattr(usual.items.queries, "insert", insert)
    size, held = asyncio.run(sizes())
    assert held == [size]


def test_who_waits_for_room_holds_up_no_smaller_answer(
    new_database: NewDatabase, tmp_path: Path
) -> None:
    """A large page that waits behind slow clients, or has given up, delays no answer that fits."""
    note = {"text": "x" * 100_000, "completed": False}
    variables = {
        "REQUEST_TIMEOUT": "12",
        "DATABASE_CONNECT_TIMEOUT": "2",
        "DATABASE_POOL_TIMEOUT": "4",
        "DATABASE_STATEMENT_TIMEOUT": "4",
    }
    database_url = new_database("sqlite")
    fill(database_url, 17, TEXT)
    with (
        watching(database_url, tmp_path / "log", **variables) as service,
        ExitStack() as stack,
    ):
        slow = [
            stack.enter_context(ask(service, head("GET", f"/notes/?limit={n}"))) for n in (16, 17)
        ]
        waiting = stack.enter_context(service.connect())
        waiting.settimeout(0.5)
        waiting.sendall(head("GET", "/notes/?limit=15"))
        with pytest.raises(TimeoutError):
            waiting.recv(1)
        answer = httpx2.post(f"{service.url}/notes/", json=note, timeout=30)
        assert answer.status_code == 200
        # It came while the page still waited.
        with pytest.raises(TimeoutError):
            waiting.recv(1)
        assert len(slow) == 2


def test_who_gives_up_lets_the_next_one_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    """An answer that fits, behind one that doesn't, goes on as soon as that one has given up."""
    monkeypatch.setattr(budget, "MAX_ANSWER_BYTES", 16_000_000)

    async def ask() -> int:
        held = budget.Hold(10_000_000)
        first, second = (asyncio.create_task(budget.hold(size)) for size in (8_000_000, 2_000_000))
        await asyncio.sleep(0)
        first.cancel()
        await asyncio.wait([first])
        for _ in range(10):
            await asyncio.sleep(0)
        assert second.done()
        return held.size + second.result().size

    assert asyncio.run(ask()) == 12_000_000


def echo() -> bytes:
    """A request whose error repeats its input."""
    body = json.dumps({"text": [TEXT], "completed": True})
    return json_request("POST", "/notes/", body.encode())


@pytest.mark.parametrize(
    "request_bytes",
    [
        head("GET", "/notes/?limit=1"),
        head("GET", "/notes/"),
        head("GET", "/notes/1"),
        head("GET", "/notes/1", "Connection: close"),
        echo(),
    ],
    ids=["page", "listing", "note", "last", "error"],
)
def test_an_answer_that_nobody_reads_is_under_way(service: Service, request_bytes: bytes) -> None:
    """An unread answer counts among MAX_REQUESTS until its deadline."""
    with ExitStack() as stack:
        for _ in range(20):
            stack.enter_context(ask(service, request_bytes))
            if status(service) == 503:
                break
        else:
            raise AssertionError("there is room for any number")
        poll(lambda: status(service) == 200)


def test_room_is_given_back_when_a_client_goes(service: Service) -> None:
    """A client that closes its connection in the middle of an answer leaves its room at once."""
    poll(lambda: status(service) == 200 and service.connections() == 0)
    for _ in range(5):
        with ask(service, head("GET", "/notes/?limit=17")):
            pass
    poll(lambda: status(service) == 200 and service.connections() == 0)


def test_head_of_a_large_answer_is_no_large_answer(
    filled: Callable[[str], str], tmp_path: Path
) -> None:
    """`HEAD` needs no room, so it waits for nobody who doesn't read."""
    variables = {"MAX_ANSWER_BYTES": "1000000", "REQUEST_TIMEOUT": "100"}
    with (
        watching(filled("sqlite"), tmp_path / "log", **variables) as service,
        ask(service, head("GET", "/notes/1")),
    ):
        plain = {"accept-encoding": "identity"}
        answer = httpx2.head(f"{service.url}/notes/1", headers=plain, timeout=60)
        assert answer.status_code == 200
        assert int(answer.headers["content-length"]) > 1_000_000


def test_a_large_answer_that_is_read_slowly_is_whole(service: Service) -> None:
    """A page may take longer than REQUEST_TIMEOUT while its client reads on."""
    poll(lambda: status(service) == 200)
    began = time.monotonic()
    with service.connect(receive_buffer=100_000) as client:
        client.sendall(head("GET", "/notes/?limit=17"))
        body = read_slowly(client, 600_000, pause=0.15)
        assert time.monotonic() - began > 4
        assert [note["text"] for note in json.loads(body)] == [TEXT] * 17
        client.sendall(head("GET", "/health/live"))
        assert client.recv(1000).startswith(b"HTTP/1.1 200 ")


@pytest.mark.parametrize(
    ("kind", "accept"),
    [
        *((kind, "application/json") for kind in KINDS),
        ("postgresql", "application/x-ndjson"),
    ],
)
def test_long_listings_that_nobody_takes_take_little_memory(
    filled: Callable[[str], str], tmp_path: Path, kind: str, accept: str
) -> None:
    """Clients that leave a long listing, or don't read it, hold no pages of their own."""
    request = head("GET", "/notes/", f"Accept: {accept}")
    # Those for whose pages no room is left have an answer after this.
    with (
        watching(filled(kind), tmp_path / "log", REQUEST_TIMEOUT="6") as service,
        ExitStack() as stack,
    ):
        before = service.memory()
        for _ in range(20):
            with service.connect() as client:
                client.sendall(request)
                assert client.recv(1000).startswith(b"HTTP/1.1 200")
        poll(lambda: service.connections() == 0)
        assert service.memory() - before < 120_000_000
        clients = [stack.enter_context(service.connect(receive_buffer=4096)) for _ in range(60)]
        for client in clients:
            client.sendall(request)
        for client in clients:
            assert client.recv(1) == b"H"
        assert service.memory() - before < 180_000_000


@pytest.mark.parametrize(("budget", "clients"), [(1_000_000, 1), (20_000_000, 3)])
def test_a_listing_of_large_pages_does_not_wait_for_itself(
    filled: Callable[[str], str], tmp_path: Path, budget: int, clients: int
) -> None:
    """Listings whose pages may be larger than the budget are whole, one alone or a few at once."""
    with watching(
        filled("sqlite"), tmp_path / "log", MAX_ANSWER_BYTES=str(budget), REQUEST_TIMEOUT="100"
    ) as service:

        def read(_: int) -> list[str]:
            answer = httpx2.get(f"{service.url}/notes/", timeout=300)
            return [note["text"] for note in answer.json()]

        with ThreadPoolExecutor(clients) as threads:
            for texts in threads.map(read, range(clients)):
                assert texts == [TEXT] * 18
