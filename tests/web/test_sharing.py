"""Requests that come together share queries, and get the same answers as alone."""

import json
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from http.client import HTTPConnection
from typing import Any

import httpx2
import psutil
import pytest

from service.resources.queries import BOUNDS
from tests.support.databases import fill, kind_of
from tests.support.metrics import metric
from tests.support.notes import known
from tests.support.raw import connect
from tests.support.watched import Service, watching

JSON = {"content-type": "application/json"}
LINES = {"accept": "application/x-ndjson"}
# How many times each of some requests is sent at once.
TIMES = 3
Request = tuple[str, str, dict[str, str], bytes | None]
Answer = tuple[int, str | None, str | None, bytes]


@pytest.fixture(scope="module")
def service(
    shared_database_url: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Service]:
    """The service on a database of each kind in turn, with a dozen notes."""
    log = tmp_path_factory.mktemp("sharing") / "log"
    with watching(shared_database_url, log, "--timeout-keep-alive=600") as service:
        texts = ("apple", "bread", "apple bread", "cake")
        notes = [
            {"text": text, "completed": done} for text in texts for done in (False, True, True)
        ]
        (answer,) = ask(service, [("POST", "/notes/batch", JSON, json.dumps(notes).encode())])
        assert answer[0] == 200
        yield service


@contextmanager
def paused(process: psutil.Process) -> Iterator[None]:
    """Stops a process meanwhile. Requests to it wait in the kernel."""
    process.suspend()
    try:
        yield
    finally:
        process.resume()


def receive(connection: HTTPConnection) -> Answer:
    answer = connection.getresponse()
    headers = answer.headers
    return answer.status, headers["content-type"], headers["link"], answer.read()


def ask(service: Service, requests: list[Request]) -> list[Answer]:
    """The answers to requests that the service finds all at once."""
    with ExitStack() as stack:
        connections = [stack.enter_context(connect(service.url)) for _ in requests]
        for connection in connections:
            connection.request("GET", "/health/live")
            assert receive(connection)[0] == 200
        with paused(service.process):
            for connection, (method, path, headers, body) in zip(
                connections, requests, strict=True
            ):
                connection.request(method, path, body, headers)
        return [receive(connection) for connection in connections]


def batches(service: Service, query: str) -> tuple[int, int]:
    """How many callers a query has served so far, and how often it was sent."""
    # The answer must not be compressed: compressions are counted too.
    plain = {"accept-encoding": "identity"}
    with httpx2.Client(base_url=service.url, headers=plain) as client:
        callers, sent = (
            int(metric(client, f"coalesced_batch_size_{name}", query=query))
            for name in ("sum", "count")
        )
    return callers, sent


LISTINGS: dict[str, list[tuple[str, dict[str, str]]]] = {
    "format": [("", {}), ("", LINES)],
    "format of pages": [("limit=2", {}), ("limit=2", LINES)],
    "q": [("q=apple", {}), ("q=bread", {}), ("", {})],
    "after": [("after=3", {}), ("after=4", {}), ("", {})],
    "order": [("order=desc", {}), ("order=asc", {})],
    "limit": [("limit=2", {}), ("limit=3", {}), ("", {})],
    "completed": [("completed=true", {}), ("completed=false", {}), ("", {})],
}


@pytest.mark.parametrize("listings", LISTINGS.values(), ids=LISTINGS)
def test_listings_that_differ_share_no_answer(
    service: Service, listings: list[tuple[str, dict[str, str]]]
) -> None:
    """Different listings that are asked for at once share no answer."""
    requests: list[Request] = [
        ("GET", f"/notes/?{query}", headers, None) for query, headers in listings
    ]
    alone = [answer for request in requests for answer in ask(service, [request])]
    assert len(set(alone)) == len(requests)
    before = batches(service, "list_notes")
    assert ask(service, requests * TIMES) == alone * TIMES
    callers, sent = batches(service, "list_notes")
    assert callers - before[0] == len(requests) * TIMES
    assert sent - before[1] < len(requests) * TIMES


def test_reads_share_a_query(service: Service) -> None:
    """Clients that read notes at once share few queries, and each gets its own note or 404."""
    ids = [*range(1, 13), 99] * TIMES
    before = batches(service, "get_notes")
    answers = ask(service, [("GET", f"/notes/{note_id}", {}, None) for note_id in ids])
    found = [json.loads(body)["id"] if status == 200 else status for status, *_, body in answers]
    assert found == ([*range(1, 13), 404]) * TIMES
    callers, sent = batches(service, "get_notes")
    assert callers - before[0] == len(ids)
    assert sent - before[1] <= len(ids) // 2


def test_creates_share_a_query(service: Service) -> None:
    """Clients that create notes at once share few queries, and each gets its own note."""

    def note(number: int) -> dict[str, Any]:
        return {"text": f"new {number}", "completed": number % 2 == 0}

    count = 30
    before = batches(service, "insert_notes")
    bodies = [json.dumps(note(number)).encode() for number in range(count)]
    answers = ask(service, [("POST", "/notes/", JSON, body) for body in bodies])
    assert {status for status, *_ in answers} == {200}
    notes = [json.loads(body) for *_, body in answers]
    assert len({new.pop("id") for new in notes}) == count
    assert known(notes) == [note(number) for number in range(count)]
    callers, sent = batches(service, "insert_notes")
    assert callers - before[0] == count
    assert sent - before[1] <= count // 2


def test_short_pages_share_a_query(service: Service) -> None:
    """Clients that read different pages at once share few queries, and each gets its own page."""
    requests: list[Request] = [
        ("GET", f"/notes/?{kind}limit={limit}&after={after}", headers, None)
        for kind in ("", "order=desc&", "completed=true&")
        for limit, after in [(1, 0), (2, 0), (2, 5), (100, 3), (100, 11), (1, 2**31)]
        for headers in ({}, LINES)
    ]
    alone = [answer for request in requests for answer in ask(service, [request])]
    before = batches(service, "list_notes")
    assert ask(service, requests * TIMES) == alone * TIMES
    sent = batches(service, "list_notes")[1] - before[1]
    # SQLite reads each page by itself.
    if kind_of(service.database_url) != "sqlite":
        assert sent < len(requests)


def test_any_number_of_callers_share_a_page(service: Service) -> None:
    """Clients that read the same short page at once share it, however many they are."""
    request: Request = ("GET", "/notes/?limit=3", {}, None)
    alone = ask(service, [request])
    before = batches(service, "list_notes")
    assert ask(service, [request] * 200) == alone * 200
    callers, sent = batches(service, "list_notes")
    assert callers - before[0] == 200
    assert sent - before[1] <= 3


def test_pages_beside_a_large_note_share_a_query(service: Service) -> None:
    """A large note is on no other page than its own, and the others still share a query."""
    texts = ["small", "small", "large" * 1000, "small", "small"] * 2
    notes = [{"text": text, "completed": number % 5 == 2} for number, text in enumerate(texts)]
    ((*_, stored),) = ask(service, [("POST", "/notes/batch", JSON, json.dumps(notes).encode())])
    first = json.loads(stored)[0]["id"]
    for limit in (1, 20):
        requests: list[Request] = [
            ("GET", f"/notes/?{kind}limit={limit}&after={after}", {}, None)
            for kind in ("", "order=desc&", "completed=true&", "completed=false&")
            for after in range(first - 2, first + 12)
        ]
        alone = [answer for request in requests for answer in ask(service, [request])]
        before = batches(service, "list_notes")
        assert ask(service, requests) == alone
        sent = batches(service, "list_notes")[1] - before[1]
        # A page with a large note is read by itself, and SQLite reads each page so.
        if limit == 1 and kind_of(service.database_url) != "sqlite":
            assert sent < len(requests) / 2


def test_long_pages_share_no_query(service: Service) -> None:
    """Pages of long texts that are asked for at once are bounded as they are alone."""
    ((*_, newest),) = ask(service, [("GET", "/notes/?order=desc&limit=1", {}, None)])
    last = json.loads(newest)[0]["id"]
    fill(service.database_url, 40, "x" * 150_000)
    # They are within MAX_ANSWER_BYTES, as the client reads one answer after the other.
    requests: list[Request] = [
        ("GET", f"/notes/?limit=100&after={after}", {}, None) for after in range(last, last + 6)
    ]
    alone = [answer for request in requests for answer in ask(service, [request])]
    assert {len(json.loads(body)) for *_, body in alone} == {BOUNDS.short}
    before = service.memory()
    assert ask(service, requests) == alone
    bodies = sum(len(body) for *_, body in alone)
    assert service.memory() - before < bodies * 2
