"""Clients that send too much, too slowly or nothing, and clients that never read."""

import http.client
import json
import re
import resource
import select
import socket
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from pathlib import Path

import httpx2
import pytest

from tests.support import databases
from tests.support.databases import fill, locked
from tests.support.servers import nowhere, running, serving
from tests.support.sockets import (
    connect,
    head,
    is_closed,
    json_request,
    read_all,
    read_answer,
    read_slowly,
    unread,
)
from tests.support.waiting import poll
from tests.support.watched import Service, watching

NOTE = {"text": "a", "completed": True}
MAX_BODY = 100_000
# What the kernels' buffers on both sides may hold of a body that nobody reads.
BUFFERED = 32_000_000
CHUNK = b"10000\r\n" + b" " * 0x10000 + b"\r\n"


@pytest.fixture(scope="module")
def service(
    new_database: databases.NewDatabase, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Service]:
    with watching(
        new_database("postgresql"),
        tmp_path_factory.mktemp("hostile") / "log",
        "--timeout-keep-alive=3",
        REQUEST_TIMEOUT="1.5",
        MAX_BODY_BYTES=str(MAX_BODY),
        DATABASE_POOL_MAX="1",
    ) as service:
        yield service


def send_for_ever(
    client: socket.socket, chunk: bytes, most: int, seconds: float = 20
) -> tuple[int, bytes]:
    """Sends at most so many bytes while the server is there. Gives their number and the answer."""
    client.setblocking(False)
    sent, received = 0, b""
    deadline = time.monotonic() + seconds
    with suppress(ConnectionError):
        while sent < most and time.monotonic() < deadline:
            readable, writable, _ = select.select([client], [client], [], 1)
            if readable:
                data = client.recv(65536)
                received += data
                if not data:
                    break
            if writable:
                sent += client.send(chunk)
    return sent, received


@pytest.mark.parametrize(
    ("method", "path"),
    [("POST", "/notes/"), ("POST", "/notes/batch"), ("PUT", "/notes/1"), ("PATCH", "/notes/1")],
)
@pytest.mark.parametrize("expect", [(), ("Expect: 100-continue",)])
def test_an_announced_body_is_refused_unread(
    service: Service, method: str, path: str, expect: tuple[str, ...]
) -> None:
    """A client that announces 10 GB gets a 413 in JSON, and is not asked to send them."""
    with service.connect() as client:
        client.sendall(head(method, path, "Content-Length: 10737418240", *expect))
        answer, body = read_answer(client)
        assert (answer.status, json.loads(body)) == (413, {"detail": "Content Too Large"})
        assert answer.getheader("content-type") == "application/json"
        assert answer.getheader("x-content-type-options") == "nosniff"
        assert is_closed(client)


@pytest.mark.parametrize("length", ["0" * 50 + "100001", "9" * 18, "1" + "0" * 18])
def test_any_number_is_too_large(service: Service, length: str) -> None:
    """A length is compared as a number, in any spelling."""
    with service.connect() as client:
        client.sendall(head("POST", "/notes/", f"Content-Length: {length}"))
        assert read_answer(client)[0].status == 413


def test_the_largest_body_is_read(service: Service) -> None:
    """A body of MAX_BODY_BYTES is taken, announced or streamed. One byte more is refused."""
    body = json.dumps(NOTE).encode().ljust(MAX_BODY)
    json_type = {"content-type": "application/json"}
    for length, status in ((MAX_BODY, 200), (MAX_BODY + 1, 413)):
        content = body.ljust(length)
        announced = httpx2.post(f"{service.url}/notes/", content=content, headers=json_type)
        pieces = (content[n : n + 8000] for n in range(0, length, 8000))
        streamed = httpx2.post(f"{service.url}/notes/", content=pieces, headers=json_type)
        assert (announced.status_code, streamed.status_code) == (status, status)


def test_a_large_body_that_is_sent_gets_its_413(service: Service) -> None:
    """A client that sends all of a large body, as most do, still reads the 413."""
    answer = httpx2.post(f"{service.url}/notes/", content=b" " * 5_000_000)
    assert (answer.status_code, answer.json()) == (413, {"detail": "Content Too Large"})


def test_an_endless_stream_gets_413(service: Service) -> None:
    """A client that streams for ever gets a 413 and is cut off after bounded bytes."""
    before = service.memory()
    with service.connect() as client:
        client.sendall(head("POST", "/notes/", "Transfer-Encoding: chunked"))
        sent, received = send_for_ever(client, CHUNK, 4 * BUFFERED)
    assert received.startswith(b"HTTP/1.1 413 ")
    assert received.endswith(b'{"detail":"Content Too Large"}')
    assert sent < BUFFERED
    assert service.memory() - before < 10_000_000


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [("GET", "/notes/", 200), ("POST", "/nowhere", 404), ("DELETE", "/notes/", 405)],
)
def test_an_endless_body_that_nobody_wants_is_cut_off(
    service: Service, method: str, path: str, status: int
) -> None:
    """A body that trickles in behind its answer keeps the connection for a bounded time."""
    with service.connect() as client:
        client.sendall(head(method, path, "Transfer-Encoding: chunked"))
        assert read_answer(client)[0].status == status
        client.settimeout(0.3)
        for _ in range(200):
            try:
                client.sendall(b"1\r\n \r\n")
                assert client.recv(1) == b""
            except TimeoutError:
                continue
            except ConnectionError:
                pass
            return
        raise AssertionError("the connection is still open")


def test_bodies_that_trickle_in_are_given_up(service: Service) -> None:
    """A body that comes a byte at a time gets a 408, and holds no connection to the database."""
    with ExitStack() as stack:
        clients = [stack.enter_context(service.connect()) for _ in range(20)]
        for client in clients:
            fields = ("Content-Type: application/json", "Content-Length: 100")
            client.sendall(head("POST", "/notes/", *fields))
        waiting = list(clients)
        served = 0
        for _ in range(100):
            for client in waiting:
                client.sendall(b" ")
            # On a busy machine one of them may take longer than it may here.
            served += httpx2.post(f"{service.url}/notes/", json=NOTE).status_code == 200
            readable, _, _ = select.select(waiting, [], [], 0.2)
            waiting = [client for client in waiting if client not in readable]
            if not waiting:
                break
        assert served > 1
        for client in clients:
            answer, body = read_answer(client)
            assert answer.status == 408
            assert json.loads(body) == {"detail": "The body did not arrive in time"}
            assert answer.getheader("connection") == "close"
            assert is_closed(client)


@pytest.mark.parametrize("first", [False, True], ids=["new", "kept alive"])
@pytest.mark.parametrize(
    "sent",
    [b"", b"G", b"GET /notes/ HT", b"GET /notes/ HTTP/1.1\r\nHost: lo", b"\r\n"],
    ids=["nothing", "a letter", "half a line", "half a head", "an empty line"],
)
def test_a_client_that_never_finishes_its_request_is_closed(
    service: Service, first: bool, sent: bytes
) -> None:
    """A connection on which no whole request head arrives is closed, used before or not."""
    with service.connect() as client:
        if first:
            client.sendall(head("GET", "/health/live"))
            assert read_answer(client)[0].status == 200
        client.sendall(sent)
        assert is_closed(client)


def test_a_head_that_trickles_in_is_given_up(service: Service) -> None:
    """The wait for a head is not longer if its lines come one by one."""
    with service.connect() as client:
        client.sendall(b"GET /notes/ HTTP/1.1\r\n")
        client.settimeout(0.2)
        for number in range(150):
            try:
                client.sendall(b"X-%d: a\r\n" % number)
                assert client.recv(1) == b""
            except TimeoutError:
                continue
            except ConnectionError:
                pass
            return
        raise AssertionError("the connection is still open")


@pytest.mark.parametrize("start", [b"GET /", b"GET / HTTP/1.1\r\nX-Long: "])
@pytest.mark.parametrize("piece", [b"a" * 65536, b"a: b\r\n" * 10_000])
def test_an_endless_head_takes_little_memory(
    new_database: databases.NewDatabase, tmp_path: Path, start: bytes, piece: bytes
) -> None:
    """A client whose request head never ends is cut off."""
    if start == b"GET /" and piece[1:2] == b":":
        piece = b"?a" * 40_000
    with watching(new_database("sqlite"), tmp_path / "log") as service:
        before = service.memory()
        with service.connect() as client:
            client.sendall(start)
            sent, _ = send_for_ever(client, piece, 2 * BUFFERED)
        assert sent < BUFFERED
        assert service.memory() - before < 20_000_000


@pytest.mark.parametrize("end", [b"", b"\r\n"], ids=["open", "whole"])
def test_a_head_of_many_small_fields_is_refused(service: Service, end: bytes) -> None:
    """A head has 200 fields at most, as each field takes memory."""
    with service.connect() as client:
        client.sendall(head("GET", "/health/live", *["a:"] * 199))
        assert read_answer(client)[0].status == 200
        client.sendall(head("GET", "/health/live", *["a:"] * 201).removesuffix(b"\r\n") + end)
        answer = read_all(client)
        assert answer.startswith(b"HTTP/1.1 400 ") if end else answer == b""


@pytest.mark.parametrize("start", [b"0\r\n", b"0\r\nX-Long: ", b"1\r\na\r\n0\r\n"])
@pytest.mark.parametrize("piece", [b"a" * 65536, b"a: b\r\n" * 10_000])
def test_endless_trailers_take_little_memory(
    new_database: databases.NewDatabase, tmp_path: Path, start: bytes, piece: bytes
) -> None:
    """A client with endless trailers is cut off, as with an endless head."""
    with watching(new_database("sqlite"), tmp_path / "log") as service:
        before = service.memory()
        with service.connect() as client:
            client.sendall(head("POST", "/notes/", "Transfer-Encoding: chunked") + start)
            sent, _ = send_for_ever(client, piece, 2 * BUFFERED)
        assert sent < BUFFERED
        assert service.memory() - before < 20_000_000


def test_trailers_of_a_body_are_left_out(service: Service) -> None:
    """A trailer behind a body is ignored."""
    body = b"%x\r\n%b\r\n0\r\nX-Sum: 1\r\n\r\n" % (len(json.dumps(NOTE)), json.dumps(NOTE).encode())
    fields = ("Content-Type: application/json", "Transfer-Encoding: chunked")
    with service.connect() as client:
        for _ in range(2):
            client.sendall(head("POST", "/notes/", *fields))
            for byte in body:
                client.sendall(bytes([byte]))
            assert client.recv(10_000).startswith(b"HTTP/1.1 200 ")


def test_endless_pipelining_takes_little_memory(
    new_database: databases.NewDatabase, tmp_path: Path
) -> None:
    """A client that sends requests faster than they are answered is slowed down."""
    with watching(new_database("sqlite"), tmp_path / "log", ACCESS_LOG="0") as service:
        before = service.memory()
        with service.connect() as client:
            send_for_ever(client, head("GET", "/health/live") * 1000, BUFFERED, seconds=2)
            grown = service.memory() - before
        assert grown < 100_000_000


def test_requests_behind_one_that_waits_are_not_read(
    new_database: databases.NewDatabase, tmp_path: Path
) -> None:
    """While a request waits for the database, the server reads no more of its connection."""
    note = json_request("POST", "/notes/", json.dumps(NOTE).encode())
    behind = head("GET", "/health/live") * 10_000
    with (
        watching(new_database("sqlite"), tmp_path / "log") as service,
        locked(service.database_url),
        service.connect() as client,
    ):
        client.sendall(note)
        # uvicorn itself stops for what comes at once with the request.
        poll(lambda: not unread(client.getpeername()[1]))
        client.settimeout(2)
        sent = 0
        with suppress(TimeoutError):
            while sent < 3 * BUFFERED:
                sent += client.send(behind)
    assert sent < BUFFERED


def test_pipelined_requests_are_answered_in_order(service: Service) -> None:
    """Requests that are sent without waiting for answers are all answered."""
    note = json_request("POST", "/notes/", json.dumps(NOTE).encode())
    with service.connect() as client:
        requests = [head("GET", "/nowhere"), note, head("GET", "/health/live")]
        client.sendall(b"".join(requests * 500))
        received = b""
        while received.count(b"HTTP/1.1 ") < 1500 or not received.endswith(b'"live"}'):
            data = client.recv(1_000_000)
            assert data
            received += data
    statuses = re.findall(rb"HTTP/1.1 (\d+)", received)
    assert statuses[::3] == [b"404"] * 500
    # On a busy machine one of the writes may take longer than it may here.
    assert set(statuses[1::3]) <= {b"200", b"503"}
    assert statuses[2::3] == [b"200"] * 500


def test_a_client_that_never_reads_is_dropped(
    new_database: databases.NewDatabase, tmp_path: Path
) -> None:
    """A listing that nobody reads holds its connection for a bounded time only."""
    database_url = new_database("postgresql")
    fill(database_url, 300_000)
    variables = {"REQUEST_TIMEOUT": "1.5", "DATABASE_POOL_MAX": "1"}
    with (
        watching(database_url, tmp_path / "log", **variables) as service,
        service.connect(receive_buffer=4096) as slow,
    ):
        before = service.memory()
        slow.sendall(head("GET", "/notes/"))
        assert slow.recv(1) == b"H"
        assert service.connections() == 1
        note = httpx2.post(f"{service.url}/notes/", json=NOTE).json()
        assert httpx2.get(f"{service.url}/notes/{note['id']}").json() == note
        poll(lambda: service.connections() == 0)
        assert service.memory() - before < 50_000_000


def test_a_client_that_reads_slowly_gets_everything(
    new_database: databases.NewDatabase, tmp_path: Path
) -> None:
    """A listing takes as long as its client keeps reading, longer than REQUEST_TIMEOUT too."""
    database_url = new_database("postgresql")
    # Three times what a kernel takes of it, in pages that are no large bodies.
    fill(database_url, 250_000, "a longer note")
    with (
        watching(database_url, tmp_path / "log", REQUEST_TIMEOUT="1") as service,
        service.connect(receive_buffer=100_000) as client,
    ):
        began = time.monotonic()
        client.sendall(head("GET", "/notes/"))
        body = read_slowly(client, 1_000_000, pause=0.2)
        assert time.monotonic() - began > 2
        assert len(body) > 12_000_000
        assert len(json.loads(body)) == 250_000


def test_idle_connections_cost_little(new_database: databases.NewDatabase, tmp_path: Path) -> None:
    """Five thousand clients that keep their connections open and idle leave room for others."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    count = 5000
    if soft < count + 500:
        resource.setrlimit(resource.RLIMIT_NOFILE, (min(count + 500, hard), hard))
    try:
        with (
            watching(
                new_database("postgresql"), tmp_path / "log", "--timeout-keep-alive=95"
            ) as service,
            ExitStack() as clients,
        ):
            before = service.memory()
            for _ in range(count):
                client = clients.enter_context(service.connect())
                client.sendall(head("GET", "/health/live"))
                assert client.recv(1000).startswith(b"HTTP/1.1 200 ")
            assert service.connections() == count
            assert service.memory() - before < 150_000_000
            assert httpx2.post(f"{service.url}/notes/", json=NOTE).status_code == 200
            client.sendall(head("GET", "/health/live"))
            assert client.recv(1000).startswith(b"HTTP/1.1 200 ")
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_a_request_that_gets_stuck_is_503(service: Service) -> None:
    """Reads, writes and transactions that wait for a lock end within REQUEST_TIMEOUT."""
    batch = {"json": [NOTE], "headers": {"idempotency-key": "a"}}
    requests: list[Callable[[], httpx2.Response]] = [
        lambda: httpx2.get(f"{service.url}/notes/", timeout=60),
        lambda: httpx2.get(f"{service.url}/notes/1", timeout=60),
        lambda: httpx2.post(f"{service.url}/notes/", json=NOTE, timeout=60),
        lambda: httpx2.delete(f"{service.url}/notes/1", timeout=60),
        lambda: httpx2.post(f"{service.url}/notes/batch", timeout=60, **batch),  # type: ignore[arg-type]
    ]
    with locked(service.database_url), ThreadPoolExecutor(len(requests)) as threads:
        for answer in threads.map(lambda request: request(), requests):
            assert answer.status_code == 503
            assert answer.json() == {"detail": "Service Unavailable"}
            assert int(answer.headers["retry-after"]) > 0
            assert answer.headers["x-content-type-options"] == "nosniff"
    poll(lambda: httpx2.get(f"{service.url}/notes/").status_code == 200)
    assert httpx2.post(f"{service.url}/notes/", json=NOTE).status_code == 200


@pytest.fixture(scope="module")
def guarded(
    new_database: databases.NewDatabase, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[str]:
    """The URL of a service that answers to some hosts and to the pages of two origins."""
    with running(
        new_database("sqlite"),
        tmp_path_factory.mktemp("guarded") / "log",
        ALLOWED_HOSTS="notes.example.com,*.example.org,Upper.Example.NET,::1",
        CORS_ORIGINS="https://app.example.com,http://localhost:3000",
        MAX_BODY_BYTES="100",
    ) as url:
        yield url


def ask(url: str, path: str, *fields: str, version: str = "1.1") -> http.client.HTTPResponse:
    with connect(url) as client:
        request = "\r\n".join((f"GET {path} HTTP/{version}", *fields, "", ""))
        client.sendall(request.encode("latin-1"))
        answer = http.client.HTTPResponse(client)
        answer.begin()
        if answer.status == 400:
            assert json.loads(answer.read()) == {"detail": "Invalid host header"}
            assert answer.getheader("content-type") == "application/json"
        assert answer.getheader("x-content-type-options") == "nosniff"
        assert answer.getheader("x-request-id")
        return answer


@pytest.mark.parametrize(
    ("host", "allowed"),
    [
        ("notes.example.com", True),
        ("notes.example.com:8080", True),
        ("NOTES.Example.COM", True),
        ("upper.example.net", True),
        ("a.example.org", True),
        ("a.b.example.org:80", True),
        ("notes.example.com.", True),
        ("notes.example.com.:80", True),
        ("a.example.org.", True),
        ("[0:0::1]", True),
        ("[::1]", True),
        ("[::1]:8000", True),
        ("example.org", False),
        ("badexample.org", False),
        ("a.example.org.evil.test", False),
        ("notes.example.com.evil.test", False),
        ("evil.test", False),
        ("127.0.0.1", False),
        ("[::2]", False),
        ("", False),
        ("[", False),
        ("[::1", False),
        ("notes.example.com:port", False),
        ("notes.example.com/", False),
        ("notes.example.com@evil.test", False),
        ("evil.test@notes.example.com", False),
        ("notes.example.com..", False),
        ("evil.test#@notes.example.com", False),
        ("evil.test\\@notes.example.com", False),
        ("notes.example.com evil.test", False),
        ("\xff", False),
    ],
)
def test_only_allowed_hosts_are_served(guarded: str, host: str, allowed: bool) -> None:
    """A host that is not allowed gets a 400 in JSON, with any port and in any case."""
    assert ask(guarded, "/notes/", f"Host: {host}").status == (200 if allowed else 400)


def test_a_star_allows_any_host(new_database: databases.NewDatabase, tmp_path: Path) -> None:
    """`*` among the hosts stands for every host."""
    with running(new_database("sqlite"), tmp_path / "log", ALLOWED_HOSTS="*") as url:
        assert ask(url, "/notes/", "Host: evil.test").status == 200


def test_a_missing_host_is_not_allowed(guarded: str) -> None:
    """A request without a host gets a 400 where hosts are named."""
    assert ask(guarded, "/notes/").status == 400
    assert ask(guarded, "/notes/", version="1.0").status == 400


def test_health_checks_answer_to_any_host(guarded: str) -> None:
    """A load balancer, which knows only an address, sees how the service is."""
    for path in ("/health/live", "/health/ready"):
        assert ask(guarded, path, "Host: 10.0.0.1").status == 200
    for path in ("/metrics", "/docs", "/", "/nowhere"):
        assert ask(guarded, path, "Host: 10.0.0.1").status == 400


@pytest.mark.parametrize("host", ["a_b", "a.", "a:", "[::1]:80", "%41~!$&'()*+,;=", ""])
@pytest.mark.parametrize("path", ["/", "/notes", "/notes/?limit=1"])
def test_odd_hosts_are_no_error(service: Service, host: str, path: str) -> None:
    """If any host is allowed, every one that RFC 3986 allows is no error."""
    answer = ask(service.url, path, f"Host: {host}")
    assert answer.status in (200, 307)


ORIGIN = {"host": "notes.example.com", "origin": "https://app.example.com"}


@pytest.mark.parametrize("origin", ["https://app.example.com", "http://localhost:3000"])
def test_pages_of_known_origins_may_call(guarded: str, origin: str) -> None:
    """Preflights and answers, errors too, name the origin that may read them."""
    given = ORIGIN | {"origin": origin}
    preflight = httpx2.options(
        f"{guarded}/notes/1",
        headers=given
        | {
            "access-control-request-method": "PATCH",
            "access-control-request-headers": "content-type,if-match,idempotency-key",
        },
    )
    assert preflight.status_code == 200
    assert preflight.headers["access-control-allow-origin"] == origin
    assert "PATCH" in preflight.headers["access-control-allow-methods"]
    assert "if-match" in preflight.headers["access-control-allow-headers"]
    for answer, status in (
        (httpx2.get(f"{guarded}/notes/", headers=given), 200),
        (httpx2.get(f"{guarded}/notes/99", headers=given), 404),
        (httpx2.post(f"{guarded}/notes/", json={}, headers=given), 422),
        (httpx2.post(f"{guarded}/notes/", content=b" " * 200, headers=given), 413),
        (httpx2.get(f"{guarded}/notes/", headers=given | {"host": "evil.test"}), 400),
    ):
        assert answer.status_code == status
        assert answer.headers["access-control-allow-origin"] == origin
        assert "Origin" in answer.headers["vary"]
        exposed = answer.headers["access-control-expose-headers"].lower()
        assert {"etag", "link", "location", "x-request-id"} <= set(exposed.split(", "))


def test_pages_may_read_headers(guarded: str, tmp_path: Path) -> None:
    """Pages of known origins may read every header that has a meaning to clients of the service."""
    minimal = ORIGIN | {"prefer": "return=minimal"}
    created = httpx2.post(f"{guarded}/notes/", json=NOTE, headers=minimal)
    httpx2.post(f"{guarded}/notes/", json=NOTE, headers=minimal)
    counted = ORIGIN | {"prefer": "count=exact"}
    page = httpx2.get(f"{guarded}/notes/?limit=1", headers=counted)
    with serving(nowhere(), tmp_path / "log", CORS_ORIGINS=ORIGIN["origin"]) as client:
        away = client.get("/notes/", headers=ORIGIN)
    for answer, status, names in (
        (created, 204, {"ETag", "Location", "Preference-Applied", "X-Request-ID"}),
        (page, 200, {"ETag", "Link", "Preference-Applied", "X-Request-ID", "X-Total-Count"}),
        (away, 503, {"Retry-After", "X-Request-ID"}),
    ):
        assert answer.status_code == status
        assert answer.headers["access-control-allow-origin"] == ORIGIN["origin"]
        assert names <= set(answer.headers["access-control-expose-headers"].split(", "))
        assert all(name in answer.headers for name in names)
    # Caches keep formats and origins apart.
    assert set(page.headers["vary"].split(", ")) == {
        "Accept",
        "Accept-Encoding",
        "Prefer",
        "Origin",
    }


@pytest.mark.parametrize(
    "origin",
    ["https://evil.test", "http://app.example.com", "https://app.example.com.evil", "null"],
)
def test_pages_of_other_origins_may_not(guarded: str, origin: str) -> None:
    """A page of another origin may not read answers, and its preflights are refused."""
    given = ORIGIN | {"origin": origin}
    answer = httpx2.get(f"{guarded}/notes/", headers=given)
    assert answer.status_code == 200
    preflight = httpx2.options(
        f"{guarded}/notes/", headers=given | {"access-control-request-method": "POST"}
    )
    assert preflight.status_code == 400
    for one in (answer, preflight):
        allowed = [name for name in one.headers if name.startswith("access-control-allow-")]
        assert allowed == []
        # A cache keeps it from the pages of known origins.
        assert "Origin" in one.headers["vary"].split(", ")


@pytest.mark.parametrize(
    ("origin", "asks", "detail"),
    [
        ("https://evil.test", {"method": "POST"}, "Disallowed CORS origin"),
        (ORIGIN["origin"], {"method": "PURGE"}, "Disallowed CORS method"),
        ("https://evil.test", {"method": "PURGE"}, "Disallowed CORS origin, method"),
    ],
)
def test_a_refused_preflight_is_json(
    guarded: str, origin: str, asks: dict[str, str], detail: str
) -> None:
    """The error of a preflight is JSON with `detail`, as every error is."""
    given = ORIGIN | {"origin": origin}
    given |= {f"access-control-request-{name}": value for name, value in asks.items()}
    answer = httpx2.options(f"{guarded}/notes/", headers=given)
    assert (answer.status_code, answer.json()) == (400, {"detail": detail})
    assert answer.headers["content-type"] == "application/json"


def test_no_origin_may_call_by_default(service: Service) -> None:
    """Without CORS_ORIGINS no answer has a header of CORS."""
    given = {"origin": "https://app.example.com"}
    for answer in (
        httpx2.get(f"{service.url}/notes/", headers=given),
        httpx2.options(
            f"{service.url}/notes/", headers=given | {"access-control-request-method": "POST"}
        ),
    ):
        assert not [name for name in answer.headers if name.startswith("access-control-")]
