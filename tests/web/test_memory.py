"""Memory, if clients send refused requests, or the database can't be reached."""

import asyncio
import json
import weakref
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing
from pathlib import Path

import httpx2
import pytest
from starlette.types import Message, Receive, Scope, Send

from service.schemas.validation import InvalidInput
from service.web.middleware import ServiceMiddleware
from tests.support import sockets
from tests.support.databases import NewDatabase, fill, kind_of, locked
from tests.support.raw import connect, send
from tests.support.servers import nowhere, running
from tests.support.sockets import head, json_request, read_all, read_answer
from tests.support.watched import Service, watching

CLIENTS = 4
JSON = {"content-type": "application/json"}
TEXT = "a" * 1_000_000
NOTE = json.dumps({"text": TEXT, "completed": True}).encode()
NO_NOTE = json.dumps({"text": TEXT, "completed": "perhaps"}).encode()
Request = tuple[str, str, bytes | None, dict[str, str]]


def flood(service: Service, first: list[Request], then: list[Request]) -> tuple[set[int], int]:
    """Sends requests, shared out among some connections.

    Gives the statuses, and by how many bytes the service's memory grew since the first ones.
    """
    with ExitStack() as stack, ThreadPoolExecutor(CLIENTS) as threads:
        connections = [stack.enter_context(connect(service.url)) for _ in range(CLIENTS)]

        def send_all(requests: list[Request]) -> set[int]:
            def run(number: int) -> set[int]:
                mine = requests[number::CLIENTS]
                return {send(connections[number], *request).status for request in mine}

            return set().union(*threads.map(run, range(CLIENTS)))

        statuses = send_all(first)
        before = service.memory()
        statuses |= send_all(then)
        return statuses, service.memory() - before


def test_what_is_refused_costs_no_memory(database_url: str, tmp_path: Path) -> None:
    """Bodies that are no note are forgotten with their 422."""
    batch = b"[" + NO_NOTE + b"]"
    keyed = JSON | {"idempotency-key": "1"}
    requests: list[Request] = [
        ("POST", "/notes/", NO_NOTE, JSON),
        ("POST", "/notes/", NO_NOTE, keyed),
        ("POST", "/notes/", NOTE, JSON | {"idempotency-key": "\t"}),
        ("POST", "/notes/batch", batch, JSON),
        ("POST", "/notes/batch", NO_NOTE, {"content-type": "application/x-ndjson"}),
        ("PUT", "/notes/1", NO_NOTE, JSON),
        ("PATCH", "/notes/1", NO_NOTE, JSON),
    ]
    with watching(database_url, tmp_path / "log") as service:
        statuses, grown = flood(service, requests * CLIENTS, requests * 8)
    assert statuses == {422}
    assert grown < 20_000_000


def test_small_bodies_of_many_values_cost_little_memory(
    new_database: NewDatabase, tmp_path: Path
) -> None:
    """What is wrong with each of many values counts as large answers do, and is told in turns."""
    body = b"[%b]" % b",".join([b"{}"] * 1000)
    request = json_request("POST", "/notes/batch", body)
    with (
        watching(new_database("sqlite"), tmp_path / "log", MAX_ANSWER_BYTES="8000000") as service,
        ExitStack() as stack,
    ):
        clients = [stack.enter_context(closing(service.connect())) for _ in range(60)]
        clients[0].sendall(request)
        statuses = {read_answer(clients[0])[0].status}
        before = service.memory()
        service.peak()
        for client in clients:
            client.sendall(request)
        statuses |= {read_answer(client)[0].status for client in clients}
        grown = service.peak() - before
    assert statuses <= {422, 503}
    assert grown < 30_000_000


def test_long_paths_cost_no_memory(new_database: NewDatabase, tmp_path: Path) -> None:
    """Paths are forgotten with their lines in the log."""
    filler = "a" * 60_000
    requests: list[Request] = [("GET", f'/{filler}"{number}', None, {}) for number in range(300)]
    with watching(new_database("sqlite"), tmp_path / "log") as service:
        statuses, grown = flood(service, requests[:CLIENTS], requests)
    assert statuses == {404}
    assert grown < 20_000_000


def test_idle_connections_keep_no_head(new_database: NewDatabase, tmp_path: Path) -> None:
    """A connection that waits for its next request has forgotten the last one."""
    path = "/" + "a" * 60_000
    with watching(new_database("sqlite"), tmp_path / "log") as service, ExitStack() as stack:
        before = 0
        for number in range(300):
            if number == 10:
                before = service.memory()
            connection = stack.enter_context(connect(service.url))
            assert send(connection, "GET", path).status == 404
        assert service.memory() - before < 20_000_000


@pytest.mark.parametrize(("parameter", "status"), [("q", 422), ("limit=1&other", 200)])
def test_long_queries_cost_no_memory(
    new_database: NewDatabase, tmp_path: Path, parameter: str, status: int
) -> None:
    """Long queries of listings are forgotten with their answers, and so are links with them."""
    database_url = new_database("sqlite")
    fill(database_url, 2)
    filler = "a" * 60_000
    requests: list[Request] = [
        ("GET", f"/notes/?{parameter}={filler}{number}", None, {}) for number in range(300)
    ]
    with watching(database_url, tmp_path / "log") as service:
        statuses, grown = flood(service, requests[:CLIENTS], requests)
    assert statuses == {status}
    assert grown < 20_000_000


@pytest.fixture(scope="module", params=["open", "token"])
def measured(
    request: pytest.FixtureRequest,
    new_database: NewDatabase,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[str]:
    """The URL of a service that tells at /blocks how much memory it has in use."""
    with running(
        new_database("sqlite"),
        tmp_path_factory.mktemp("measured") / "log",
        app="tests.support.measured:app",
        ACCESS=request.param,
        # Lines wait a while to be written.
        ACCESS_LOG="0",
    ) as url:
        yield url


def pipeline(url: str, requests: list[bytes]) -> None:
    """Sends requests one after another on a connection, and reads all answers."""
    for start in range(0, len(requests), 200):
        some = requests[start : start + 200]
        with sockets.connect(url) as client:
            client.sendall(b"".join([*some, head("GET", "/health/live", "Connection: close")]))
            received = read_all(client)
        assert received.count(b"HTTP/1.1 ") == len(some) + 1


@pytest.mark.parametrize(
    ("path", "field", "first"),
    [
        # A cache has room for a thousand queries.
        ("/notes/?q={}", "Accept: application/json", 1100),
        ("/notes/?after={}", "Accept: application/x-ndjson", 100),
        ("/notes/{}", 'If-None-Match: "{}"', 100),
        ("/nowhere/{}", "X-Request-ID: {:030}", 100),
        ("/notes/1", "Authorization: Bearer notes_{:043}", 100),
        ("/users/{}", "Authorization: Bearer notes_{:043}", 100),
    ],
)
def test_what_clients_make_up_is_not_kept(measured: str, path: str, field: str, first: int) -> None:
    """Memory stands still while clients send ever new queries, paths and headers."""

    def grown(start: int, count: int) -> int:
        """How many blocks of memory so many new requests leave behind."""
        before = int(httpx2.get(f"{measured}/blocks").text)
        numbers = range(start, start + count)
        pipeline(measured, [head("GET", path.format(n), field.format(n)) for n in numbers])
        return int(httpx2.get(f"{measured}/blocks").text) - before

    # Caches may fill up.
    grown(1, first)
    assert grown(10_000, 1000) < 500


def test_an_error_is_gone_before_its_answer_is_taken() -> None:
    """While a client reads a 422, the service has freed the request's body."""
    errors: list[weakref.ref[InvalidInput]] = []
    seen = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        error = InvalidInput({"input": "a"})
        errors.append(weakref.ref(error))
        try:
            raise error
        finally:
            del error

    async def receive() -> Message:
        raise AssertionError("nobody reads a body")

    async def send(message: Message) -> None:
        seen.append((message.get("status"), [error() for error in errors]))

    scope: Scope = {
        "type": "http",
        "method": "GET",
        "raw_path": b"/",
        "headers": [],
        "client": None,
    }
    asyncio.run(ServiceMiddleware(app, lambda app: app)(scope, receive, send))
    assert seen == [(422, [None]), (None, [None])]


def test_a_database_out_of_reach_costs_no_memory(database_url: str, tmp_path: Path) -> None:
    """Notes that can't be stored are forgotten with their 503."""
    requests: list[Request] = [
        ("POST", "/notes/", NOTE, JSON),
        ("POST", "/notes/", NOTE, JSON | {"idempotency-key": "1"}),
        ("POST", "/notes/batch", b"[" + NOTE + b"]", JSON),
        ("PUT", "/notes/1", NOTE, JSON),
        ("PATCH", "/notes/1", NOTE, JSON),
    ]
    kind = kind_of(database_url)
    url = database_url if kind == "sqlite" else nowhere(kind)
    with (
        locked(database_url),
        watching(url, tmp_path / "log", DATABASE_STATEMENT_TIMEOUT="0.01") as service,
    ):
        statuses, grown = flood(service, requests * CLIENTS, requests * 24)
    assert statuses == {503}
    assert grown < 40_000_000
