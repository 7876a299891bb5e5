"""Requests as RFC 9112 has them: hosts, codings of transfer, HTTP/1.0, and the end of a client."""

import http.client
import json
import socket
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx2
import psutil
import pytest

from tests.support import databases
from tests.support.databases import fill
from tests.support.servers import end, free_port, running, uvicorn
from tests.support.sockets import connect, head, is_closed, json_request, read_all, read_answer
from tests.support.waiting import poll
from tests.support.watched import Service, watching

NOTE = json.dumps({"text": "a", "completed": True}).encode()
LARGE = b" " * 5_400_000


@pytest.fixture(scope="module")
def service(
    new_database: databases.NewDatabase, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Service]:
    database_url = new_database("sqlite")
    fill(database_url, 2000)
    log = tmp_path_factory.mktemp("requests") / "log"
    with watching(database_url, log, REQUEST_TIMEOUT="3") as service:
        yield service


def lines(*lines: str) -> bytes:
    return "\r\n".join((*lines, "", "")).encode("latin-1")


@pytest.mark.parametrize(
    "fields",
    [
        (),
        ("Host: a", "Host: a"),
        ("Host: a", "X: a", "hOST: b"),
        ("Host: a b",),
        ("Host: a/",),
        ("Host: a@b",),
        ("Host: a:b",),
        ("Host: [::1",),
        ("Host: [a]",),
        ("Host: [:::]",),
        ("Host: a%zz",),
        ("Host: " + "a" * 301,),
        ("Host: \xff",),
        ("Host: a, b; c",),
    ],
)
@pytest.mark.parametrize("path", ["/notes/1", "/health/live", "/nowhere"])
def test_a_request_names_one_host(service: Service, fields: tuple[str, ...], path: str) -> None:
    """HTTP/1.1 without Host, and any request with two or with what is no host, is a 400 in JSON."""
    with service.connect() as client:
        client.sendall(lines(f"GET {path} HTTP/1.1", *fields))
        answer, body = read_answer(client)
        assert (answer.status, json.loads(body)) == (400, {"detail": "Invalid host header"})
        assert answer.getheader("x-request-id")
        assert is_closed(client)
    with service.connect() as client:
        client.sendall(lines("GET /notes/1 HTTP/1.0", *fields))
        assert read_answer(client)[0].status == (400 if fields else 200)


@pytest.mark.parametrize("coding", ["gzip, chunked", "gzip,chunked", "identity, chunked"])
def test_other_codings_of_transfer_are_refused(service: Service, coding: str) -> None:
    """A body in a coding other than chunked is a 501, and not taken for JSON."""
    fields = ("Content-Type: application/json", f"Transfer-Encoding: {coding}")
    with service.connect() as client:
        client.sendall(
            head("POST", "/notes/", *fields) + b"%x\r\n%b\r\n0\r\n\r\n" % (len(NOTE), NOTE)
        )
        answer, body = read_answer(client)
        assert (answer.status, json.loads(body)) == (501, {"detail": "Not Implemented"})
        assert is_closed(client)


@pytest.mark.parametrize(
    "sent",
    [
        head("GET", "/notes/"),
        json_request("POST", "/notes/", NOTE),
        head("GET", "/notes/1") * 3,
        head("GET", "/notes/1") + json_request("POST", "/notes/", NOTE) + head("GET", "/notes/"),
    ],
)
def test_a_client_that_half_closes_gets_its_answers(service: Service, sent: bytes) -> None:
    """A client that says with its requests that no more will come reads all answers."""
    with service.connect() as client:
        client.sendall(sent)
        client.shutdown(socket.SHUT_WR)
        received = read_all(client)
    assert received.count(b"HTTP/1.1 200 ") == sent.count(b" HTTP/1.1\r\n")
    assert received.rstrip(b"\r\n0").endswith((b"}", b"]"))


def test_a_client_that_half_closes_within_a_request_is_closed(service: Service) -> None:
    """Half a head or half a body that will never be whole ends the connection at once."""
    for sent in (b"", b"GET /", json_request("POST", "/notes/", NOTE)[:-1]):
        with service.connect() as client:
            client.sendall(sent)
            client.shutdown(socket.SHUT_WR)
            assert is_closed(client)


def test_http_1_0_has_no_chunks(service: Service) -> None:
    """An old client gets a body that ends with the connection, and is never asked to go on."""
    whole = httpx2.get(f"{service.url}/notes/").content
    with service.connect() as client:
        client.sendall(lines("GET /notes/ HTTP/1.0"))
        start, _, body = read_all(client).partition(b"\r\n\r\n")
    assert b"transfer-encoding" not in start.lower()
    assert b"connection: close" in start.lower()
    assert body == whole
    fields = ("Content-Type: application/json", f"Content-Length: {len(NOTE)}")
    with service.connect() as client:
        client.sendall(lines("POST /notes/ HTTP/1.0", "Expect: 100-continue", *fields))
        client.sendall(NOTE)
        assert read_all(client).startswith(b"HTTP/1.1 200 ")


def by_http_client(url: str) -> int:
    connection = http.client.HTTPConnection(url.removeprefix("http://"), timeout=30)
    connection.request("POST", "/notes/", LARGE)
    return connection.getresponse().status


def by_node(url: str) -> int:
    script = (
        f"fetch('{url}/notes/', {{method: 'POST', body: 'a'.repeat({len(LARGE)})}})"
        ".then(answer => console.log(answer.status))"
    )
    done = subprocess.run(["node", "-e", script], capture_output=True, text=True, timeout=60)
    return int(done.stdout or 0)


def by_socket(url: str) -> int:
    """Sends everything before it reads, in chunks."""
    with connect(url) as client:
        client.sendall(head("POST", "/notes/", "Transfer-Encoding: chunked"))
        for _ in range(54):
            client.sendall(b"%x\r\n%b\r\n" % (100_000, b" " * 100_000))
        return read_answer(client)[0].status


@pytest.mark.parametrize("send", [by_http_client, by_node, by_socket])
def test_a_large_body_gets_a_413_that_is_seen(service: Service, send: Callable[[str], int]) -> None:
    """A client that sends all of a body over MAX_BODY_BYTES before it reads sees the 413."""
    assert [send(service.url) for _ in range(5)] == [413] * 5


def test_reading_on_is_bounded(service: Service) -> None:
    """The service reads on for a refused body in bounded bytes and time, and then closes."""
    sockets = len(psutil.Process(service.process.pid).net_connections("tcp"))
    with service.connect() as silent, service.connect() as endless:
        for client in (silent, endless):
            client.sendall(head("POST", "/notes/", "Content-Length: 9999999999"))
            assert read_answer(client)[0].status == 413
        with pytest.raises(ConnectionError):
            endless.sendall(b" " * 100_000_000)
        poll(lambda: len(service.process.net_connections("tcp")) == sockets)


def test_reset_connections_leave_nothing(
    new_database: databases.NewDatabase, tmp_path: Path
) -> None:
    """Clients that end idle connections by a reset leave no memory in use."""
    app = "tests.support.measured:app"
    options = "--timeout-keep-alive=600"
    with running(new_database("sqlite"), tmp_path / "log", options, app=app) as url:

        def blocks() -> int:
            return int(httpx2.get(f"{url}/blocks").text)

        def reset(count: int) -> None:
            for _ in range(count):
                with connect(url) as client:
                    client.sendall(head("GET", "/health/live"))
                    assert read_answer(client)[0].status == 200
                    client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")

        reset(20)
        before = blocks()
        reset(200)
        assert blocks() - before < 200 * 5


def test_the_document_tells_the_root_path(
    new_database: databases.NewDatabase, tmp_path: Path
) -> None:
    """Behind a proxy with a path, the document's server and the next page have that path."""
    database_url = new_database("sqlite")
    fill(database_url, 2)
    with running(database_url, tmp_path / "log", "--root-path=/api", ALLOWED_HOSTS="a") as url:
        given = {"host": "a"}
        document = httpx2.get(f"{url}/openapi.json", headers=given).json()
        assert [server["url"] for server in document["servers"]] == ["/api"]
        page = httpx2.get(f"{url}/notes/?limit=1", headers=given)
        assert page.headers["link"] == '<http://a/api/notes/?limit=1&after=1>; rel="next"'
        assert httpx2.get(f"{url}/health/live").status_code == 200
        assert httpx2.get(f"{url}/notes/").status_code == 400


def test_a_unix_socket_needs_no_host(new_database: databases.NewDatabase, tmp_path: Path) -> None:
    """Without a host, links and redirects of a Unix socket are relative."""
    database_url = new_database("sqlite")
    fill(database_url, 2)
    path = str(tmp_path / "socket")
    command = uvicorn(free_port(), "--uds", path)
    log = tmp_path / "log"
    with log.open("wb") as output:
        server = subprocess.Popen(
            command,
            cwd=databases.ROOT,
            env=databases.environment(DATABASE_URL=database_url),
            stdout=output,
            stderr=subprocess.STDOUT,
        )

    def listens() -> bool:
        # The file is there before that.
        with socket.socket(socket.AF_UNIX) as client:
            return client.connect_ex(path) == 0

    try:
        poll(listens, log.read_text)

        def ask(target: str) -> bytes:
            with socket.socket(socket.AF_UNIX) as client:
                client.settimeout(20)
                client.connect(path)
                client.sendall(lines(f"GET {target} HTTP/1.0"))
                return read_all(client)

        assert b'\r\nlink: </notes/?limit=1&after=1>; rel="next"\r\n' in ask("/notes/?limit=1")
        assert b"\r\nlocation: /docs\r\n" in ask("/")
        assert b"\r\nlocation: /notes/\r\n" in ask("/notes")
    finally:
        end(server)
