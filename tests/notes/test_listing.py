"""Listings of any length: whole, in flat memory, with no connection held for a slow client."""

import http.client
import json
import socket
import time
from pathlib import Path
from urllib.parse import urlsplit

import httpx2
import pytest

from service.resources.definition import MAX_PAGE
from service.resources.queries import BOUNDS
from tests.conftest import Server
from tests.support import databases, sockets
from tests.support.databases import fill
from tests.support.metrics import metric
from tests.support.notes import known
from tests.support.raw import connect, send
from tests.support.servers import running, started
from tests.support.sockets import head


def request_listing(url: str, query: str = "", accept: str = "*/*") -> socket.socket:
    """Asks for the listing on a socket with a small buffer, and reads nothing of it."""
    client = sockets.connect(url, receive_buffer=4096)
    client.sendall(head("GET", f"/notes/?{query}", f"Accept: {accept}"))
    return client


@pytest.mark.parametrize(
    "count",
    [
        0,
        1,
        BOUNDS.short - 1,
        BOUNDS.short,
        BOUNDS.short + 1,
        MAX_PAGE - 1,
        MAX_PAGE,
        MAX_PAGE + 1,
        2 * MAX_PAGE,
        5000,
    ],
)
def test_a_listing_is_whole(server: Server, service: httpx2.Client, count: int) -> None:
    """Every note is listed once, in order, with a length where one page holds them all."""
    fill(server.database_url, count)
    answer = service.get("/notes/")
    assert known(answer.json()) == [
        {"id": number, "text": "note", "completed": number % 2 == 1}
        for number in range(1, count + 1)
    ]
    assert ("content-length" in answer.headers) == (count <= MAX_PAGE)
    plain = {"accept-encoding": "identity"}
    head, get = (service.request(method, "/notes/", headers=plain) for method in ("HEAD", "GET"))
    assert head.headers.get("content-length") == get.headers.get("content-length")


def test_large_notes_come_in_small_pages(database_url: str, tmp_path: Path) -> None:
    """A listing of many megabytes takes the service little memory."""
    fill(database_url, 150, "x" * (BOUNDS.max_bytes // 2))
    with started(database_url, tmp_path / "log") as (url, server):
        length = 0
        with httpx2.stream("GET", f"{url}/notes/", timeout=60) as answer:
            for chunk in answer.iter_bytes():
                length += len(chunk)
        status = Path(f"/proc/{server.pid}/status")
        if status.exists():
            peak = next(line for line in status.read_text().splitlines() if "VmHWM" in line)
            assert int(peak.split()[1]) < 250_000
    assert length > 150 * BOUNDS.max_bytes // 2


def test_a_slow_client_holds_no_connection(database_url: str, tmp_path: Path) -> None:
    """While a client doesn't read its listing, a pool of one connection serves the others."""
    fill(database_url, 50_000, "x" * 100)
    with (
        running(database_url, tmp_path / "log", DATABASE_POOL_MAX="1") as url,
        request_listing(url) as slow,
    ):
        slow.recv(100)
        note = httpx2.post(f"{url}/notes/", json={"text": "a", "completed": True}).json()
        assert httpx2.get(f"{url}/notes/{note['id']}").json() == note


def read_rows(database_url: str) -> int:
    """How many rows PostgreSQL has read from the table, once that number stands still."""
    name = urlsplit(database_url).path[1:]
    before = -1
    for _ in range(30):
        count = int(
            databases.execute(
                database_url.replace(f"/{name}", "/postgres"),
                f"SELECT tup_fetched + tup_returned FROM pg_stat_database WHERE datname = '{name}'",
            )
        )
        if count == before:
            return count
        before = count
        time.sleep(1.5)
    raise AssertionError("the table is read for ever")


def test_a_client_that_goes_away_stops_the_work(
    new_database: databases.NewDatabase, tmp_path: Path
) -> None:
    """When a client closes its connection, the rest of its listing is not read."""
    database_url = new_database("postgresql")
    fill(database_url, 200_000)
    with running(database_url, tmp_path / "log") as url:
        before = read_rows(database_url)
        with request_listing(url) as client:
            client.recv(100)
        assert read_rows(database_url) - before < 100_000


def test_half_a_list_is_never_a_whole_one(
    new_database: databases.NewDatabase, tmp_path: Path
) -> None:
    """When the database fails in mid-stream, the connection is broken off."""
    database_url = new_database("postgresql")
    name = urlsplit(database_url).path[1:]
    fill(database_url, 200_000)
    with running(database_url, tmp_path / "log") as url, request_listing(url) as client:
        answer = http.client.HTTPResponse(client)
        answer.begin()
        assert (answer.status, answer.getheader("content-length")) == (200, None)
        first = answer.read(1000)
        databases.execute(
            database_url.replace(f"/{name}", "/postgres"),
            f"ALTER DATABASE {name} ALLOW_CONNECTIONS false",
            f"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = '{name}'",
        )
        with pytest.raises(http.client.IncompleteRead) as broken:
            answer.read()
        with pytest.raises(json.JSONDecodeError):
            json.loads(first + broken.value.partial)
        assert httpx2.get(f"{url}/notes/").status_code == 503


@pytest.mark.parametrize("order", ["asc", "desc"])
@pytest.mark.parametrize("accept", ["application/json", "application/x-ndjson"])
def test_a_listing_whose_tail_is_deleted_is_whole(
    server: Server, service: httpx2.Client, order: str, accept: str
) -> None:
    """A listing whose last notes go while it is sent ends with the others, and is well-formed."""
    count = 3 * MAX_PAGE
    fill(server.database_url, count, "x" * (BOUNDS.max_bytes * 3 // 4 // MAX_PAGE))
    # The client takes so little of the first page that the next one is not read before.
    with request_listing(str(service.base_url), f"order={order}", accept) as client:
        answer = http.client.HTTPResponse(client)
        answer.begin()
        assert "content-length" not in answer.headers
        if order == "asc":
            tail, left = f"id > {MAX_PAGE}", range(1, MAX_PAGE + 1)
        else:
            tail, left = f"id <= {count - MAX_PAGE}", range(count, count - MAX_PAGE, -1)
        databases.execute(server.database_url, f"DELETE FROM notes WHERE {tail}")
        body = answer.read()
    if accept == "application/json":
        notes = json.loads(body)
    else:
        notes = [json.loads(line) for line in body.splitlines()]
    assert [note["id"] for note in notes] == list(left)


@pytest.mark.parametrize("accept", ["application/json", "application/x-ndjson"])
def test_head_costs_one_page(server: Server, service: httpx2.Client, accept: str) -> None:
    """`HEAD` of a long listing reads one page of it, where `GET` reads them all."""
    fill(server.database_url, 4 * MAX_PAGE + 1)
    with connect(str(service.base_url)) as connection:

        def pages(method: str) -> float:
            """How many pages a request costs, once it is over: one connection has one at a time."""
            counts = []
            for request in (None, method):
                if request:
                    answer = send(connection, request, "/notes/", None, {"accept": accept})
                    assert answer.status == 200
                counts.append(metric(service, "coalesced_batch_size_count", query="list_notes"))
            return counts[1] - counts[0]

        assert (pages("HEAD"), pages("GET")) == (1, 5)
