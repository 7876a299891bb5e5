"""How the service is seen from outside: health, log lines, request ids, metrics and headers."""

import json
import re
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import NamedTuple
from urllib.parse import urlsplit

import httpx2
import pytest

from service.revisions import HEAD
from tests.support import databases, sockets
from tests.support.databases import fill, locked
from tests.support.metrics import counts, metric
from tests.support.raw import connect, send
from tests.support.servers import free_port, nowhere, process, running, serving, uvicorn
from tests.support.sockets import head, read_all
from tests.support.waiting import poll

NOTE = {"text": "a", "completed": True}
FIELDS = ["method", "path", "status", "duration_ms", "bytes", "request_id", "fwd"]
TRACE_FIELDS = ["trace_id", "span_id"]
QUIET = ("--no-access-log", "--log-level", "warning", "--no-server-header")
WELL_FORMED = re.compile("[A-Za-z0-9+/=-]{20,200}")

# A field of logfmt: a value is plain or in quotes, where backslashes escape.
PAIR = re.compile(r'([a-z_]+)=("(?:[^"\\\x00-\x1f]|\\.)*"|[^\s"=\\]*)(?: |$)')


def parse_logfmt(line: str) -> dict[str, str]:
    """The fields of a line. AssertionError if it is no logfmt or has a field twice."""
    pairs = []
    place = 0
    while place < len(line):
        match = PAIR.match(line, place)
        assert match, line
        name, value = match.groups()
        pairs.append((name, json.loads(value) if value.startswith('"') else value))
        place = match.end()
    assert [name for name, _ in pairs] in (FIELDS, FIELDS + TRACE_FIELDS), line
    return dict(pairs)


class Seen(NamedTuple):
    """A service, and the files with its stdout and stderr."""

    url: str
    stdout: Path
    stderr: Path

    def lines(self) -> list[dict[str, str]]:
        """The lines of stdout. AssertionError for one that is no log line."""
        return [parse_logfmt(line) for line in self.stdout.read_text().splitlines()]

    def wait_for_lines(self, count: int) -> list[dict[str, str]]:
        """The log lines once there are so many and no more."""
        poll(lambda: self.stdout.read_text().count("\n") >= count)
        lines = self.lines()
        assert len(lines) == count, lines
        return lines


@contextmanager
def seen(
    database_url: str, folder: Path, app: str = "service.app:app", **variables: str
) -> Iterator[Seen]:
    port = free_port()
    stdout, stderr = folder / "stdout", folder / "stderr"
    command = uvicorn(port, *QUIET, app=app)
    variables["DATABASE_URL"] = database_url
    with process(command, port, stdout, variables, errors=stderr):
        yield Seen(f"http://127.0.0.1:{port}", stdout, stderr)


def test_health_without_a_database(tmp_path: Path) -> None:
    """Without its database the service is live but not ready, and says why."""
    with seen(nowhere(), tmp_path) as service:
        for _ in range(3):
            live = httpx2.get(f"{service.url}/health/live")
            assert (live.status_code, live.json()) == (200, {"status": "live"})
        assert service.stderr.read_text() == ""
        ready = httpx2.get(f"{service.url}/health/ready", timeout=30)
        assert ready.status_code == 503
        assert ready.json()["detail"].startswith("The database is unavailable")
        assert int(ready.headers["retry-after"]) > 0


def test_liveness_touches_nothing(served_database_url: str, tmp_path: Path) -> None:
    """The check of liveness opens no connection to the database."""
    with seen(served_database_url, tmp_path) as service:
        for _ in range(5):
            assert httpx2.get(f"{service.url}/health/live").status_code == 200
        assert databases.connected(served_database_url) == 0
        assert httpx2.get(f"{service.url}/health/ready").status_code == 200
        assert databases.connected(served_database_url) == 1


def test_readiness_follows_the_migrations(database_url: str, tmp_path: Path) -> None:
    """The service is ready while the database has the version that it needs, and no older one."""
    with seen(database_url, tmp_path) as service:

        def ready() -> tuple[int, str]:
            answer = httpx2.get(f"{service.url}/health/ready", timeout=30)
            assert ("retry-after" in answer.headers) == (answer.status_code == 503)
            return answer.status_code, answer.text

        assert ready() == (200, '{"status":"ready"}')
        for revision, detail in (
            ("0001", f"The database is migrated to 0001, but the service needs {HEAD}"),
            ("base", f"The database is migrated to nothing, but the service needs {HEAD}"),
        ):
            assert databases.alembic(database_url, "downgrade", revision).returncode == 0
            assert ready() == (503, json.dumps({"detail": detail}, separators=(",", ":")))
        databases.migrate(database_url)
        assert ready() == (200, '{"status":"ready"}')


def test_an_empty_database_is_not_ready(empty_database: str, tmp_path: Path) -> None:
    """The service says that an empty database is not migrated."""
    with seen(empty_database, tmp_path) as service:
        answer = httpx2.get(f"{service.url}/health/ready")
        assert answer.status_code == 503
        assert answer.json()["detail"].startswith("The database is not migrated")
        assert httpx2.get(f"{service.url}/health/live").status_code == 200


@pytest.fixture
def logged(new_database: databases.NewDatabase, tmp_path: Path) -> Iterator[Seen]:
    with seen(new_database("sqlite"), tmp_path) as service:
        yield service


def test_a_request_is_a_line(logged: Seen) -> None:
    """Each request has one line about itself and its answer."""
    created = httpx2.post(f"{logged.url}/notes/", json=NOTE)
    httpx2.get(f"{logged.url}/notes/1?q=%0Asecret")
    httpx2.get(f"{logged.url}/notes/2")
    httpx2.delete(f"{logged.url}/notes/1")
    lines = logged.wait_for_lines(4)
    assert [(one["method"], one["path"], one["status"]) for one in lines] == [
        ("POST", "/notes/", "200"),
        ("GET", "/notes/1", "200"),
        ("GET", "/notes/2", "404"),
        ("DELETE", "/notes/1", "204"),
    ]
    for line in lines:
        assert 0 <= float(line["duration_ms"]) < 30_000
        assert line["fwd"] == "127.0.0.1"
        assert WELL_FORMED.fullmatch(line["request_id"])
    assert lines[0]["request_id"] == created.headers["x-request-id"]
    assert [int(line["bytes"]) for line in lines] == [len(created.content)] * 2 + [22, 0]
    assert logged.stderr.read_text() == ""


def test_a_large_answer_has_its_size(logged: Seen) -> None:
    """A line has the bytes of an answer that is sent in parts, and of one that is a stream."""
    note = {"text": "a" * 100, "completed": True}
    plain = {"accept-encoding": "identity"}
    with httpx2.Client(base_url=logged.url, headers=plain, timeout=30) as client:
        answers = [client.post("/notes/batch", json=[note] * 1000) for _ in range(2)]
        answers.append(client.get("/notes/"))
    assert ["content-length" in answer.headers for answer in answers] == [True, True, False]
    sizes = [len(answer.content) for answer in answers]
    assert min(sizes) > 100_000
    assert [int(line["bytes"]) for line in logged.wait_for_lines(3)] == sizes


@pytest.mark.parametrize("handling", ["/notes/", "/nowhere/"])
def test_odd_paths_are_one_line_each(logged: Seen, handling: str) -> None:
    """Any path is one value of one line, and nothing more."""
    paths = [
        'a"b',
        '"',
        "a%22%20status=999",
        "a%20b",
        "a=b",
        "a\\",
        'a\\"status=999',
        "a\\nmethod=GET",
        "%0Amethod=GET%20path=",
        "%0d%0a",
        "%00%1b[31m",
        "%C3%A9",
        "%FF",
        "'`$(id)",
        "a" * 900,
    ]
    with connect(logged.url) as connection:
        for path in paths:
            assert send(connection, "GET", handling + path).status == 404, path
    lines = logged.wait_for_lines(len(paths))
    assert [line["path"] for line in lines] == [handling + path for path in paths]
    assert {line["status"] for line in lines} == {"404"}


def test_what_is_no_http_leaves_no_false_line(logged: Seen) -> None:
    """Requests that can't be read get a 400, and nothing of them reaches the log."""
    for path in (b"/a b status=1", b"/\xc3\xa9", b"/a\tb", b"/a\x00", b"/a\nmethod=GET path=/b"):
        with sockets.connect(logged.url) as client:
            client.sendall(b"GET " + path + b" HTTP/1.1\r\nHost: a\r\n\r\n")
            assert read_all(client).startswith(b"HTTP/1.1 400 "), path
    httpx2.get(f"{logged.url}/health/live")
    (line,) = logged.wait_for_lines(1)
    assert line["path"] == "/health/live"
    assert "status=1" not in logged.stderr.read_text()


@pytest.mark.parametrize(
    "client", ['1.2.3.4 status=999 request_id="', "a=b", '"', "\\", "::1", "\xe9", "a\tb"]
)
def test_a_forwarded_address_is_one_value(logged: Seen, client: str) -> None:
    """A proxy's name for its client is one value of the line, with any characters."""
    with connect(logged.url) as connection:
        send(connection, "GET", "/health/live", headers={"x-forwarded-for": client})
    (line,) = logged.wait_for_lines(1)
    assert line["fwd"] == client


def test_the_log_can_be_turned_off(new_database: databases.NewDatabase, tmp_path: Path) -> None:
    """With ACCESS_LOG=0 requests leave no line."""
    with seen(new_database("sqlite"), tmp_path, ACCESS_LOG="0") as service:
        for _ in range(3):
            assert httpx2.get(f"{service.url}/notes/").status_code == 200
    assert service.stdout.read_text() == ""
    assert service.stderr.read_text() == ""


def test_the_last_lines_are_written_at_the_end(
    new_database: databases.NewDatabase, tmp_path: Path
) -> None:
    """A service that stops right after a request has written its line."""
    with seen(new_database("sqlite"), tmp_path) as service:
        httpx2.get(f"{service.url}/notes/")
    assert [line["path"] for line in service.lines()] == ["/notes/"]


@pytest.mark.parametrize("by", ["client", "database"])
def test_a_stream_that_breaks_off_has_its_line(
    new_database: databases.NewDatabase, tmp_path: Path, by: str
) -> None:
    """A listing that its client or the database breaks off is in the log."""
    database_url = new_database("postgresql")
    name = urlsplit(database_url).path[1:]
    fill(database_url, 100_000)
    with seen(database_url, tmp_path) as service:
        with sockets.connect(service.url, receive_buffer=4096) as client:
            client.sendall(head("GET", "/notes/"))
            client.recv(100)
            if by == "database":
                databases.execute(
                    database_url.replace(f"/{name}", "/postgres"),
                    f"ALTER DATABASE {name} ALLOW_CONNECTIONS false",
                    "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
                    f" WHERE datname = '{name}'",
                )
                while client.recv(1_000_000):
                    pass
        (line,) = service.wait_for_lines(1)
        assert (line["method"], line["path"]) == ("GET", "/notes/")
        assert 0 < int(line["bytes"]) < 4_000_000
        log = service.stderr.read_text()
        assert "Exception in ASGI application" not in log
        broken = f"request_id={line['request_id']} answer broke off: DatabaseUnavailable"
        assert log.count(broken) == log.count("broke off") == (by == "database")


def test_late_requests_are_seen(new_database: databases.NewDatabase, tmp_path: Path) -> None:
    """A deadline ends a request before its answer or within it: both are logged and counted."""
    database_url = new_database("postgresql")
    # Several times what a kernel takes.
    fill(database_url, 10_000, "a" * 2000)
    app = "tests.support.portable:app"
    with (
        seen(database_url, tmp_path, app=app, REQUEST_TIMEOUT="3") as service,
        sockets.connect(service.url, receive_buffer=4096) as listing,
        connect(service.url) as client,
    ):
        listing.sendall(head("GET", "/notes/"))
        client.putrequest("POST", "/notes/")
        client.putheader("content-length", "9")
        client.endheaders()
        assert client.getresponse().status == 408
        lines = service.wait_for_lines(2)
        assert {(one["method"], one["path"], one["status"]) for one in lines} == {
            ("POST", "/notes/", "408"),
            ("GET", "/notes/", "200"),
        }
        assert all(float(one["duration_ms"]) >= 3000 for one in lines)
        # It is the client that didn't read.
        assert "broke off" not in service.stderr.read_text()
        with httpx2.Client(base_url=service.url) as other:
            assert counts(other) == {
                ("/notes/", "POST", "408"): 1,
                ("/notes/", "GET", "200"): 1,
            }


def test_an_error_is_logged_once(new_database: databases.NewDatabase, tmp_path: Path) -> None:
    """An error of the service is a 500 in JSON, with one traceback and the request's id."""
    database_url = new_database("postgresql")
    databases.execute(database_url, "ALTER TABLE notes ADD COLUMN other integer NOT NULL")
    with seen(database_url, tmp_path) as service:
        answer = httpx2.post(f"{service.url}/notes/", json=NOTE)
        assert answer.status_code == 500
        assert answer.json() == {"detail": "Internal Server Error"}
        assert answer.headers["x-content-type-options"] == "nosniff"
        request_id = answer.headers["x-request-id"]
        (line,) = service.wait_for_lines(1)
        assert (line["status"], line["request_id"]) == ("500", request_id)
        log = service.stderr.read_text()
        assert log.count("Traceback (most recent call last)") == 1
        assert log.count("NotNullViolationError: ") == 1
        assert log.count(request_id) == 1
        assert "Exception in ASGI application" not in log


@pytest.fixture(scope="module")
def service(
    new_database: databases.NewDatabase, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[httpx2.Client]:
    """A service with a note, as a platform runs it."""
    with (
        seen(new_database("sqlite"), tmp_path_factory.mktemp("seen"), MAX_BODY_BYTES="100") as it,
        httpx2.Client(base_url=it.url, timeout=30) as client,
    ):
        client.post("/notes/", json=NOTE)
        yield client


def answers(client: httpx2.Client, **headers: str) -> dict[int, httpx2.Response]:
    """An answer of each kind, by status."""
    tag = client.get("/notes/1").headers["etag"]
    found = [
        client.get("/notes/1", headers=headers),
        client.get("/notes/1", headers=headers | {"if-none-match": tag}),
        client.get("/", headers=headers),
        client.get("/nowhere", headers=headers),
        client.options("/notes/", headers=headers),
        client.request("PROPFIND", "/notes/", headers=headers),
        client.patch("/notes/1", json=NOTE, headers=headers | {"if-match": '"a"'}),
        client.post("/notes/", content=b" " * 101, headers=headers),
        client.post("/notes/", json={}, headers=headers),
        client.post(
            "/notes/", content=b"\xff", headers=headers | {"content-type": "application/json"}
        ),
    ]
    by_status = {answer.status_code: answer for answer in found}
    assert set(by_status) == {200, 204, 304, 307, 400, 404, 405, 412, 413, 422}
    return by_status


@pytest.mark.parametrize(
    "request_id", ["a" * 20, "a" * 200, "0a1b2c3d-4e5f-6071-8293-a4b5c6d7e8f9", "aB09+/==" * 4]
)
def test_a_routers_id_is_kept(service: httpx2.Client, request_id: str) -> None:
    """A well-formed X-Request-ID comes back with every answer."""
    for status, answer in answers(service, **{"X-Request-ID": request_id}).items():
        assert answer.headers.get_list("x-request-id") == [request_id], status


@pytest.mark.parametrize(
    "request_id",
    ["", "a" * 19, "a" * 201, "a" * 20 + " status=1", '"' * 30, "a" * 20 + "\xe9", "a" * 20 + "_"],
)
def test_an_odd_id_is_replaced(service: httpx2.Client, request_id: str) -> None:
    """Any other X-Request-ID is replaced by one of the service's own, a new one each time."""
    given = [(b"x-request-id", request_id.encode("latin-1"))]
    made = [service.get("/notes/", headers=given) for _ in range(2)]
    ids = [answer.headers["x-request-id"] for answer in made]
    assert all(WELL_FORMED.fullmatch(one) for one in ids)
    assert len({*ids, request_id}) == 3


def test_no_answer_is_sniffed(service: httpx2.Client) -> None:
    """Every answer forbids guessing its type, and none names the server."""
    others = {
        path: service.get(path)
        for path in (
            "/docs",
            "/docs/start.js",
            "/docs/assets/swagger-ui.css",
            "/docs/assets/nothing",
            "/openapi.json",
            "/health/live",
            "/health/ready",
            "/metrics",
            "/notes",
        )
    }
    for name, answer in [*answers(service).items(), *others.items()]:
        assert answer.headers.get_list("x-content-type-options") == ["nosniff"], name
        assert "server" not in answer.headers, name
        assert WELL_FORMED.fullmatch(answer.headers["x-request-id"]), name


def test_what_is_no_http_is_not_sniffed_either(service: httpx2.Client) -> None:
    """The answer to garbage names no server, and is plain text."""
    with sockets.connect(str(service.base_url)) as client:
        client.sendall(b"nonsense\r\n\r\n")
        head, _, _ = read_all(client).lower().partition(b"\r\n\r\n")
    assert head.startswith(b"http/1.1 400 ")
    assert b"\r\nserver:" not in head
    assert b"\r\ncontent-type: text/plain" in head


def test_the_page_has_a_policy(service: httpx2.Client) -> None:
    """The documentation page may load from this origin only, and run no script of its own."""
    policy = {
        name: sources
        for name, *sources in map(
            str.split, service.get("/docs").headers["content-security-policy"].split(";")
        )
    }
    assert policy["default-src"] == ["'self'"]
    for sources in policy.values():
        assert set(sources) <= {"'self'", "'none'", "data:", "'unsafe-inline'"}
    for name in ("script-src", "connect-src", "object-src"):
        assert set(policy.get(name, policy["default-src"])) <= {"'self'", "'none'"}
    assert [name for name in policy if "data:" in policy[name]] == ["img-src"]
    assert [name for name in policy if "'unsafe-inline'" in policy[name]] == ["style-src"]


# Processes meet in files, whatever the database.
@pytest.mark.parametrize(
    ("database_url", "workers"),
    [*((kind, 1) for kind in databases.KINDS), ("sqlite", 2)],
    indirect=["database_url"],
)
def test_metrics_count_every_request(database_url: str, tmp_path: Path, workers: int) -> None:
    """Requests are counted by route, method and status, in all processes together."""
    log = tmp_path / "log"
    variables = {"WEB_CONCURRENCY": str(workers), "TMPDIR": str(tmp_path)}
    with serving(database_url, log, **variables) as client:
        # Each request may come to another process.
        client.headers["connection"] = "close"
        poll(lambda: log.read_text().count("Application startup complete") == workers)
        for _ in range(15):
            client.post("/notes/", json=NOTE)
            client.get("/notes/1")
        for number in (1000, 1001):
            client.get(f"/notes/{number}")
            client.get(f"/nowhere/{number}")
        client.post("/notes/", json={})
        client.get("/docs/assets/swagger-ui.css")
        for method in ("PROPFIND", "MKCOL", "LOCK"):
            client.request(method, "/notes/")
        expected = {
            ("/notes/", "POST", "200"): 15,
            ("/notes/{note_id}", "GET", "200"): 15,
            ("/notes/{note_id}", "GET", "404"): 2,
            ("", "GET", "404"): 2,
            ("/notes/", "POST", "422"): 1,
            ("/docs/assets/{name}", "GET", "200"): 1,
            ("/notes/", "other", "405"): 3,
        }
        # A request is counted after its answer, which another process may already tell of.
        poll(lambda: counts(client) == expected, log.read_text)
        for _ in range(4):
            assert counts(client) == expected
        for name in ("sum", "count"):
            assert metric(client, f"coalesced_batch_size_{name}", query="insert_notes") == 15
        for name in ("database_connections_in_use", "database_connections_waited_for"):
            assert metric(client, name) == 0


def test_gauges_show_the_connections(new_database: databases.NewDatabase, tmp_path: Path) -> None:
    """Connections at work and statements that wait for one are seen, and go back to none."""
    database_url = new_database("postgresql")
    names = ("database_connections_in_use", "database_connections_waited_for")
    with serving(database_url, tmp_path / "log", DATABASE_POOL_MAX="1") as client:

        def gauges() -> list[float]:
            return [metric(client, name) for name in names]

        with locked(database_url), ExitStack() as stack:
            for path in ("/notes/", "/notes/1", "/notes/?limit=1"):
                left = stack.enter_context(sockets.connect(str(client.base_url)))
                left.sendall(head("GET", path))
            poll(lambda: gauges() == [1, 2])
        poll(lambda: gauges() == [0, 0])
        assert client.get("/notes/").status_code == 200


def test_metrics_can_be_turned_off(new_database: databases.NewDatabase, tmp_path: Path) -> None:
    """With METRICS=0 there is no /metrics."""
    with serving(new_database("sqlite"), tmp_path / "log", METRICS="0") as client:
        assert client.get("/metrics").status_code == 404
        assert client.get("/notes/").status_code == 200


def test_metrics_are_for_those_with_the_token(
    new_database: databases.NewDatabase, tmp_path: Path
) -> None:
    """With METRICS_TOKEN a request without the token gets a 401."""
    with running(new_database("sqlite"), tmp_path / "log", METRICS_TOKEN="secret") as url:
        others = (
            "",
            "secret",
            "Bearer",
            "Bearer secre",
            "Bearer secret2",
            "Basic secret",
            "Bearer \xe9",
            "Bearersecret",
            "Bearer\tsecret",
            'Bearer "secret"',
            "Bearer Secret",
            "Bearer secret secret",
        )
        given = [{}, *({"authorization": other} for other in others)]
        with connect(url) as connection:
            for headers in given:
                answer = send(connection, "GET", "/metrics", headers=headers)
                assert answer.status == 401, headers
                assert answer.headers["www-authenticate"] == "Bearer"
                assert "detail" in answer.json()
        # Any case, any number of spaces (RFC 9110, section 11.4).
        for scheme in ("Bearer ", "bearer ", "BEARER   "):
            shown = httpx2.get(f"{url}/metrics", headers={"authorization": f"{scheme}secret"})
            assert shown.status_code == 200, scheme
            assert "http_request_duration_seconds" in shown.text
        # Of two headers nobody can tell which one counts.
        twice = [("authorization", f"Bearer {token}") for token in ("secret", "other")]
        for several in (twice, twice[::-1], twice[:1] * 2):
            assert httpx2.get(f"{url}/metrics", headers=several).status_code == 401


def test_server_timing_is_there_when_asked_for(
    new_database: databases.NewDatabase, tmp_path: Path, service: httpx2.Client
) -> None:
    """Only with SERVER_TIMING=1 does an answer say how long it took."""
    assert all("server-timing" not in answer.headers for answer in answers(service).values())
    with serving(new_database("sqlite"), tmp_path / "log", SERVER_TIMING="1") as client:
        for path in ("/notes/", "/nowhere"):
            timing = client.get(path).headers["server-timing"]
            assert re.fullmatch(r"app;dur=\d+\.\d", timing)
