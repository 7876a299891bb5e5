"""Access with ACCESS=token."""

import base64
import re
import subprocess
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from http.client import HTTPConnection
from pathlib import Path
from typing import NamedTuple

import httpx2
import pytest
from openapi_spec_validator import OpenAPIV31SpecValidator, validate
from starlette.routing import Route

from service.app import app
from service.web.routing import Methods
from tests.support import databases, sockets
from tests.support.metrics import metric
from tests.support.operating import add_user, operate
from tests.support.raw import Answer, connect, send
from tests.support.servers import nowhere, running, serving
from tests.support.sockets import head, unread
from tests.support.waiting import poll

# The routes that everybody may use; each other one is closed.
OPEN = {
    "/",
    "/openapi.json",
    "/docs",
    "/docs/start.js",
    "/docs/assets/1",
    "/health/live",
    "/health/ready",
    "/metrics",
}
CACHE_SECONDS = 1.0
NOTE = b'{"text":"a","completed":true}'


class House(NamedTuple):
    """A service that asks for tokens, and the token of a user."""

    url: str
    database_url: str
    log: Path
    token: str


@pytest.fixture(scope="module")
def house(shared_database_url: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[House]:
    log = tmp_path_factory.mktemp("access") / "log"
    token = add_user(shared_database_url, "bob")
    variables = {"ACCESS": "token", "ACCESS_CACHE_SECONDS": str(CACHE_SECONDS)}
    # Commands take seconds on a busy machine, while a connection is idle.
    options = ("--no-access-log", "--timeout-keep-alive", "95")
    with running(shared_database_url, log, *options, **variables) as url:
        yield House(url, shared_database_url, log, token)


@pytest.fixture
def connection(house: House) -> Iterator[HTTPConnection]:
    with connect(house.url) as connection:
        yield connection


def bearer(token: str) -> dict[str, str]:
    return {"authorization": f"Bearer {token}"}


INVALID = 'Bearer error="invalid_token"'


def is_refused(answer: Answer, method: str = "GET", challenge: str = "Bearer") -> bool:
    """Whether the answer is the 401, which is the same for every reason."""
    body = b"" if method == "HEAD" else b'{"detail":"Not authenticated"}'
    headers = {"content-type": "application/json", "www-authenticate": challenge}
    return answer == Answer(401, body, headers)


def paths() -> list[str]:
    """A path of every route, as the route table has them."""
    return [re.sub(r"\{.*?\}", "1", route.path) for route in app.routes if isinstance(route, Route)]


@pytest.mark.parametrize("path", paths())
def test_every_route_is_closed_or_meant_to_be_open(
    house: House, connection: HTTPConnection, path: str
) -> None:
    """Every route asks for a token, for every method, except for those in OPEN."""
    for method in ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "PURGE"):
        body = NOTE if method in ("POST", "PUT", "PATCH") else None
        answer = send(connection, method, path, body, {"content-type": "application/json"})
        if path in OPEN:
            assert answer.status in (200, 204, 307, 404, 405)
        else:
            assert is_refused(answer, method), (method, answer)


def test_the_route_table_has_nothing_else() -> None:
    """The tests above ask every kind of route, and all resources."""
    assert {type(route) for route in app.routes} == {Route}
    closed = {path for path in paths() if path not in OPEN}
    assert closed == {"/notes/", "/notes/batch", "/notes/1", "/users/1"}
    for route in app.routes:
        if isinstance(route, Route):
            assert isinstance(route.endpoint, Methods)


def test_a_user_comes_in(house: House, connection: HTTPConnection) -> None:
    """The token of an active user opens every resource, with any spelling of the scheme."""
    for scheme in ("Bearer ", "bearer ", "BEARER   "):
        headers = {"authorization": scheme + house.token, "content-type": "application/json"}
        created = send(connection, "POST", "/notes/", NOTE, headers)
        assert created.status == 200
        note_id = created.json()["id"]
        assert send(connection, "GET", "/notes/", None, headers).json()[-1]["id"] == note_id
        assert send(connection, "PATCH", f"/notes/{note_id}", NOTE, headers).status == 200
        assert send(connection, "DELETE", f"/notes/{note_id}", None, headers).status == 204
        assert send(connection, "GET", "/users/bob", None, headers).json()["username"] == "bob"


def flipped(token: str) -> str:
    return token[:-1] + ("A" if token[-1] != "A" else "B")


ATTEMPTS: dict[str, Callable[[str], str | None]] = {
    "nothing": lambda token: None,
    "empty": lambda token: "",
    "scheme alone": lambda token: "Bearer",
    "scheme and space": lambda token: "Bearer ",
    "token alone": lambda token: token,
    "no space": lambda token: f"Bearer{token}",
    "tab": lambda token: f"Bearer\t{token}",
    "basic": lambda token: "Basic " + base64.b64encode(f"bob:{token}".encode()).decode(),
    "basic as bearer": lambda token: "Bearer " + base64.b64encode(token.encode()).decode(),
    "digest": lambda token: f'Digest username="bob", response="{token}"',
    "token scheme": lambda token: f"Token {token}",
    "colon": lambda token: f"Bearer: {token}",
    "quoted": lambda token: f'Bearer "{token}"',
    "with a comma": lambda token: f"Bearer {token},",
    "two tokens": lambda token: f"Bearer {token} {token}",
    "two schemes": lambda token: f"Basic abc, Bearer {token}",
    "cut": lambda token: f"Bearer {token[:-1]}",
    "cut in front": lambda token: f"Bearer {token[1:]}",
    "extended": lambda token: f"Bearer {token}A",
    "without prefix": lambda token: f"Bearer {token.removeprefix('notes_')}",
    "other case": lambda token: f"Bearer {token.swapcase()}",
    "one letter": lambda token: f"Bearer {flipped(token)}",
    "prefix alone": lambda token: "Bearer notes_",
    "made up": lambda token: "Bearer notes_" + "A" * 43,
    "pattern": lambda token: "Bearer notes_" + "%" * 43,
    "quotes": lambda token: "Bearer notes_' OR 1=1 --",
    "huge": lambda token: "Bearer notes_" + "A" * 60_000,
    "latin": lambda token: "Bearer notes_" + "é" * 43,
    "null": lambda token: "Bearer null",
    "username": lambda token: "Bearer bob",
}


@pytest.mark.parametrize("attempt", ATTEMPTS)
def test_nobody_else_comes_in(house: House, connection: HTTPConnection, attempt: str) -> None:
    """Without the exact token every read and write gets the same 401.

    It says that the token is invalid if there is one (RFC 6750, section 3.1).
    """
    value = ATTEMPTS[attempt](house.token)
    challenge = INVALID if re.match(r"bearer +[^ ]", value or "", re.I) else "Bearer"
    headers = {} if value is None else {"authorization": value}
    for method, path, body in (("GET", "/notes/", None), ("POST", "/notes/", NOTE)):
        answer = send(
            connection, method, path, body, {"content-type": "application/json", **headers}
        )
        assert is_refused(answer, method, challenge), answer


def test_two_headers_are_refused(house: House) -> None:
    """Of two Authorization headers neither counts."""
    with connect(house.url) as connection:
        connection.putrequest("GET", "/notes/")
        connection.putheader("authorization", f"Bearer {house.token}")
        connection.putheader("authorization", "Bearer notes_" + "A" * 43)
        connection.endheaders()
        assert connection.getresponse().status == 401


@pytest.mark.parametrize(
    ("path", "headers"),
    [
        ("/notes/", {"host": "localhost"}),
        ("/notes/", {"host": "127.0.0.1", "x-forwarded-for": "127.0.0.1"}),
        ("/notes/", {"x-forwarded-user": "bob", "remote-user": "bob", "x-user": "bob"}),
        ("/notes/", {"x-original-url": "/docs", "x-rewrite-url": "/health/live"}),
        ("/notes/", {"x-forwarded-prefix": "/docs", "x-forwarded-host": "localhost"}),
        ("/notes/", {"x-http-method-override": "OPTIONS"}),
        ("/notes/", {"origin": "http://localhost", "access-control-request-method": "GET"}),
        ("/notes/", {"cookie": "token={token}", "x-authorization": "Bearer {token}"}),
        ("/notes/", {"proxy-authorization": "Bearer {token}"}),
        ("/notes/?access_token={token}&token={token}", {}),
        ("/notes/?authorization=Bearer%20{token}", {}),
        ("/docs/../notes/", {}),
        ("/health/live/../../notes/", {}),
        ("/health/live%2f..%2f..%2fnotes/", {}),
        ("//notes/", {}),
        ("/%6eotes/", {}),
        ("/notes/%31", {}),
        ("/NOTES/", {}),
        ("/notes", {}),
        ("/notes/1/", {}),
        ("/./notes/", {}),
        ("/docs/assets/../../notes/", {}),
        ("http://localhost/notes/", {}),
        ("/notes/;/docs", {}),
    ],
)
def test_no_trick_comes_in(
    house: House, connection: HTTPConnection, path: str, headers: dict[str, str]
) -> None:
    """No other header, parameter or way to write the path gets at a note."""
    allowed = {"content-type": "application/json", **bearer(house.token)}
    send(connection, "POST", "/notes/", b'{"text":"the secret","completed":true}', allowed)
    named = {name: value.format(token=house.token) for name, value in headers.items()}
    connection.putrequest("GET", path.format(token=house.token), skip_host="host" in headers)
    for name, value in named.items():
        connection.putheader(name, value)
    connection.endheaders()
    response = connection.getresponse()
    assert b"the secret" not in response.read()
    assert response.status in (307, 400, 401, 404)


def test_a_trailer_is_no_header(house: House) -> None:
    """A trailer is not taken for a header (RFC 9110, section 6.5.1)."""
    request = head("POST", "/notes/", "Transfer-Encoding: chunked", "Connection: close")
    trailer = f"Authorization: Bearer {house.token}\r\n\r\n"
    with sockets.connect(house.url) as client:
        client.sendall(request + b"0\r\n" + trailer.encode())
        assert client.recv(1000).startswith(b"HTTP/1.1 401 ")


def test_a_refused_body_is_not_read(house: House, connection: HTTPConnection) -> None:
    """A request without a token is refused before its body, and its connection stays usable."""
    answer = send(connection, "POST", "/notes/", b"no JSON" * 1000)
    assert is_refused(answer)
    assert send(connection, "GET", "/notes/", None, bearer(house.token)).status == 200


@pytest.mark.parametrize("command", ["deactivate", "rotate", "remove"])
def test_a_token_is_taken_back(house: House, command: str) -> None:
    """A revoked token ends within ACCESS_CACHE_SECONDS, and looks like any other."""
    token = add_user(house.database_url, f"{command}d")
    with connect(house.url) as connection:
        assert send(connection, "GET", "/notes/", None, bearer(token)).status == 200
        result = operate(house.database_url, "users", command, f"{command}d")
        assert result.returncode == 0, result.stderr
        done = time.monotonic()
        asked = done
        while (answer := send(connection, "GET", "/notes/", None, bearer(token))).status == 200:
            assert asked - done < CACHE_SECONDS, "it still worked"
            asked = time.monotonic()
        assert is_refused(answer, challenge=INVALID)
        if command == "rotate":
            new = result.stdout.strip()
            assert send(connection, "GET", "/notes/", None, bearer(new)).status == 200
        elif command == "deactivate":
            operate(house.database_url, "users", "activate", f"{command}d")
            assert send(connection, "GET", "/notes/", None, bearer(token)).status == 200
        else:
            new = add_user(house.database_url, f"{command}d")
            assert send(connection, "GET", "/notes/", None, bearer(new)).status == 200
            answer = send(connection, "GET", "/notes/", None, bearer(token))
            assert is_refused(answer, challenge=INVALID)


def test_without_memory_a_token_ends_at_once(
    new_database: databases.NewDatabase, tmp_path: Path
) -> None:
    """With ACCESS_CACHE_SECONDS=0 each request asks the database."""
    database_url = new_database("sqlite")
    token = add_user(database_url, "bob")
    variables = {"ACCESS": "token", "ACCESS_CACHE_SECONDS": "0"}
    with serving(database_url, tmp_path / "log", **variables) as client:
        assert client.get("/notes/", headers=bearer(token)).status_code == 200
        operate(database_url, "users", "deactivate", "bob")
        assert client.get("/notes/", headers=bearer(token)).status_code == 401


def test_checks_share_queries(new_database: databases.NewDatabase, tmp_path: Path) -> None:
    """Requests that come during a check share the next query, each for its own token."""
    database_url = new_database("postgresql")
    tokens = [add_user(database_url, f"user-{number}") for number in range(2)]
    tokens.append("notes_" + "A" * 43)
    variables = {"ACCESS": "token", "ACCESS_CACHE_SECONDS": "0"}
    with running(database_url, tmp_path / "log", **variables) as url, ExitStack() as stack:
        connections = [stack.enter_context(connect(url)) for _ in range(30)]
        with databases.locked(database_url, "users"):
            for number, connection in enumerate(connections):
                connection.request("GET", "/notes/", headers=bearer(tokens[number % 3]))
            poll(lambda: not unread(connections[0].port))
        statuses = [connection.getresponse().status for connection in connections]
        assert statuses == [200, 200, 401] * 10
        with httpx2.Client(base_url=url) as client:
            batches, callers = (
                metric(client, f"coalesced_batch_size_{name}", query="get_active")
                for name in ("count", "sum")
            )
        # One for the first request, which the lock kept waiting, and one for all others.
        assert (batches, callers) == (2, 30)


# Lets a query of the users go on to its end only when nobody holds the lock; what it gives is as
# old as its beginning.
SLOW_USERS = (
    "CREATE FUNCTION wait() RETURNS boolean LANGUAGE plpgsql VOLATILE AS"
    " 'BEGIN PERFORM pg_advisory_xact_lock_shared(1); RETURN true; END'",
    "ALTER TABLE users RENAME TO stored_users",
    "CREATE VIEW users AS SELECT * FROM stored_users WHERE wait()",
)


def test_a_slow_check_is_not_remembered_for_longer(
    new_database: databases.NewDatabase, tmp_path: Path
) -> None:
    """A token ends within ACCESS_CACHE_SECONDS also if it is revoked during a long check."""
    database_url = new_database("postgresql")
    token = add_user(database_url, "bob")
    databases.execute(database_url, *SLOW_USERS)
    variables = {
        "ACCESS": "token",
        "ACCESS_CACHE_SECONDS": str(CACHE_SECONDS),
        # A check that is repeated would find the user deactivated.
        "DATABASE_STATEMENT_TIMEOUT": "100",
        "REQUEST_TIMEOUT": "200",
    }
    with (
        serving(database_url, tmp_path / "log", **variables) as client,
        ThreadPoolExecutor(1) as threads,
    ):
        client.headers |= bearer(token)
        with databases.holding(database_url, "SELECT pg_advisory_lock(1)"):
            answer = threads.submit(client.get, "/notes/")
            # The service may still look whether there are users at all.
            waits = (
                "SELECT count(*) FROM pg_stat_activity"
                " WHERE wait_event = 'advisory' AND query LIKE '%token_sha256%'"
            )
            poll(lambda: bool(databases.execute(database_url, waits)))
            databases.execute(database_url, "UPDATE stored_users SET is_active = false")
            ended = time.monotonic() + CACHE_SECONDS
            poll(lambda: time.monotonic() > ended)
        # It was checked while the user was active.
        assert answer.result().status_code == 200
        assert client.get("/notes/").status_code == 401


def test_nothing_secret_is_logged(house: House) -> None:
    """Neither a token nor a digest is in the log, nor in any answer about a user."""
    request_id = "the-last-of-these-requests"
    last = {**bearer(house.token), "x-request-id": request_id}
    with connect(house.url) as connection:
        send(connection, "GET", "/notes/", None, bearer(house.token))
        user = send(connection, "GET", "/users/bob", None, last)
    digest_of = subprocess.run(
        ["sha256sum"], input=house.token.encode(), capture_output=True, check=True
    )
    digest = digest_of.stdout.split()[0].decode()
    poll(lambda: request_id in house.log.read_text())
    for text in (house.log.read_text(), user.body.decode()):
        assert "bob" in text
        assert house.token not in text
        assert digest not in text


def logged_users(log: Path, count: int) -> list[tuple[str, str, str]]:
    """Method, status and user of each request, once the log has so many."""
    pattern = re.compile(r"^method=(\S+) .* status=(\S+) .* fwd=\S* user=(\S*)$", re.M)
    poll(lambda: log.read_text().count("method=") >= count)
    return pattern.findall(log.read_text())


def test_the_log_names_users(new_database: databases.NewDatabase, tmp_path: Path) -> None:
    """A line of the log names the user of a token, with any answer, and nobody otherwise."""
    database_url = new_database("sqlite")
    bob, alice = (add_user(database_url, name) for name in ("Bob", "alice_1.x-y"))
    log = tmp_path / "log"
    options = ("--no-access-log", "--log-level", "warning")
    with running(database_url, log, *options, ACCESS="token") as url, connect(url) as connection:
        form = {"content-type": "application/json"}
        for method, path, body, headers in (
            ("GET", "/notes/", None, bearer(bob)),
            ("POST", "/notes/", NOTE, form | bearer(alice)),
            ("POST", "/notes/", b"{}", form | bearer(bob)),
            ("GET", "/notes/2", None, bearer(bob)),
            ("PUT", "/notes/", None, bearer(bob)),
            ("DELETE", "/notes/1", None, {}),
            ("GET", "/notes/1", None, bearer(flipped(bob))),
            ("GET", "/health/live", None, bearer(bob)),
            ("GET", "/nowhere", None, bearer(bob)),
        ):
            send(connection, method, path, body, headers)
        assert logged_users(log, 9) == [
            ("GET", "200", "bob"),
            ("POST", "200", "alice_1.x-y"),
            ("POST", "422", "bob"),
            ("GET", "404", "bob"),
            ("PUT", "405", "bob"),
            ("DELETE", "401", ""),
            ("GET", "401", ""),
            ("GET", "200", ""),
            ("GET", "404", ""),
        ]


def test_the_log_names_users_whose_requests_end_early(
    new_database: databases.NewDatabase, tmp_path: Path
) -> None:
    """A user is named also if the deadline ends the request. Refused surplus has no user."""
    database_url = new_database("sqlite")
    token = add_user(database_url, "bob")
    log = tmp_path / "log"
    variables = {
        "ACCESS": "token",
        "MAX_REQUESTS": "1",
        "REQUEST_TIMEOUT": "5",
        "DATABASE_CONNECT_TIMEOUT": "1",
        "DATABASE_POOL_TIMEOUT": "0.5",
        "DATABASE_STATEMENT_TIMEOUT": "3",
    }
    options = ("--no-access-log", "--log-level", "warning")
    with (
        running(database_url, log, *options, **variables) as url,
        connect(url) as late,
        connect(url) as busy,
        connect(url) as surplus,
    ):
        assert send(late, "GET", "/notes/", None, bearer(token)).status == 200
        late.putrequest("POST", "/notes/")
        for name, value in {**bearer(token), "content-length": "9"}.items():
            late.putheader(name, value)
        late.endheaders()
        with databases.locked(database_url):
            body = b'{"text": "", "completed": true}'
            headers = {**bearer(token), "content-type": "application/json"}
            busy.request("POST", "/notes/", body, headers)
            poll(lambda: send(surplus, "GET", "/notes/", None, bearer(token)).status == 503)
            assert busy.getresponse().status == 503
        assert late.getresponse().status == 408
        poll(lambda: ("POST", "408", "bob") in logged_users(log, 3))
        lines = logged_users(log, 3)
        assert ("POST", "503", "bob") in lines
        assert ("GET", "503", "") in lines


def test_a_database_that_is_away_opens_nothing(tmp_path: Path) -> None:
    """While no token can be checked, the answer is 503. Open routes stay open."""
    with serving(nowhere(), tmp_path / "log", ACCESS="token") as client:
        answer = client.get("/notes/", headers=bearer("notes_" + "A" * 43))
        assert answer.status_code == 503
        assert client.get("/notes/").status_code == 401
        assert client.get("/health/live").status_code == 200


@pytest.mark.parametrize("access", ["token", "private"])
def test_a_start_without_users_says_how_to_add_one(
    new_database: databases.NewDatabase, tmp_path: Path, access: str
) -> None:
    """The log says how to add a user as long as there is none, if requests need one."""
    database_url = new_database("sqlite")
    log = tmp_path / "log"
    hint = "python -m service users add NAME"
    with running(database_url, log, ACCESS=access):
        poll(lambda: hint in log.read_text())
    add_user(database_url, "bob")
    with serving(database_url, log, ACCESS=access) as client:
        # Its query comes after the one that looks for users, on the same connection.
        client.get("/health/ready").raise_for_status()
    assert hint not in log.read_text()


def test_the_document_has_the_scheme(house: House) -> None:
    """The OpenAPI document is valid, and asks for a token."""
    document = httpx2.get(f"{house.url}/openapi.json").json()
    validate(document, cls=OpenAPIV31SpecValidator)
    scheme = document["components"]["securitySchemes"]["token"]
    assert (scheme["type"], scheme["scheme"]) == ("http", "bearer")
    assert "401" in scheme["description"]
    for path, item in document["paths"].items():
        for method, operation in item.items():
            assert operation["security"] == [{"token": []}]
            # Those of the example have the example's answers alone, for generated clients.
            if path != "/notes/":
                refusals = ("401",) if method == "get" else ("401", "403")
                for status in refusals:
                    answer = operation["responses"][status]
                    assert set(answer["headers"]) == {"WWW-Authenticate"}
                assert ("403" in operation["responses"]) == (method != "get")


def test_an_open_service_asks_for_nothing(service: httpx2.Client) -> None:
    """By default no token is needed, and the document has none."""
    assert service.get("/notes/").status_code == 200
    document = service.get("/openapi.json").json()
    assert document["security"] == []
    assert "securitySchemes" not in document["components"]
