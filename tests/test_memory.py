"""Memory, where clients send what is refused, or the database can't be reached."""

import asyncio
import json
import sqlite3
import weakref
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path

from starlette.types import Message, Receive, Scope, Send

from service.edge import Edge
from service.validation import InvalidInput
from tests.databases import NewDatabase
from tests.raw import connect, send
from tests.servers import free_port
from tests.test_hostile_clients import Service, serving

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
        before = service.process.memory_info().rss
        statuses |= send_all(then)
        return statuses, service.process.memory_info().rss - before


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
    with serving(database_url, tmp_path / "log") as service:
        statuses, grown = flood(service, requests * CLIENTS, requests * 32)
    assert statuses == {422}
    assert grown < 40_000_000


def test_long_paths_cost_no_memory(new_database: NewDatabase, tmp_path: Path) -> None:
    """Paths are forgotten with their lines in the log."""
    filler = "a" * 60_000
    requests: list[Request] = [("GET", f'/{filler}"{number}', None, {}) for number in range(300)]
    with serving(new_database("sqlite"), tmp_path / "log") as service:
        statuses, grown = flood(service, requests[:CLIENTS], requests)
    assert statuses == {404}
    assert grown < 20_000_000


def test_idle_connections_keep_no_head(new_database: NewDatabase, tmp_path: Path) -> None:
    """A connection that waits for its next request has forgotten the last one."""
    path = "/" + "a" * 60_000
    with serving(new_database("sqlite"), tmp_path / "log") as service, ExitStack() as stack:
        before = 0
        for number in range(300):
            if number == 10:
                before = service.process.memory_info().rss
            connection = stack.enter_context(connect(service.url))
            assert send(connection, "GET", path).status == 404
        assert service.process.memory_info().rss - before < 20_000_000


def test_an_error_is_gone_before_its_answer_is_taken() -> None:
    """While a client takes its time to read a 422, what it sent is held no longer."""
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
    asyncio.run(Edge(app, lambda app: app)(scope, receive, send))
    assert seen == [(422, [None]), (None, [None])]


@contextmanager
def out_of_reach(database_url: str) -> Iterator[str]:
    """Gives the URL of a database of the same kind on which nobody can write meanwhile."""
    if not database_url.startswith("sqlite"):
        yield f"postgresql://127.0.0.1:{free_port()}/nobody"
        return
    with closing(sqlite3.connect(database_url.removeprefix("sqlite:///"))) as file:
        file.execute("BEGIN IMMEDIATE")
        yield database_url


def test_a_database_out_of_reach_costs_no_memory(database_url: str, tmp_path: Path) -> None:
    """Notes that can't be stored are forgotten with their 503."""
    requests: list[Request] = [
        ("POST", "/notes/", NOTE, JSON),
        ("POST", "/notes/", NOTE, JSON | {"idempotency-key": "1"}),
        ("POST", "/notes/batch", b"[" + NOTE + b"]", JSON),
        ("PUT", "/notes/1", NOTE, JSON),
        ("PATCH", "/notes/1", NOTE, JSON),
    ]
    with (
        out_of_reach(database_url) as url,
        serving(url, tmp_path / "log", DATABASE_STATEMENT_TIMEOUT="0.01") as service,
    ):
        statuses, grown = flood(service, requests * CLIENTS, requests * 60)
    assert statuses == {503}
    assert grown < 40_000_000
