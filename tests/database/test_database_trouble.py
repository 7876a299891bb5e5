"""The server away, full, refusing, hanging, crashing: 503 meanwhile, all well afterwards."""

import itertools
import math
import random
import re
import signal
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, closing, contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import httpx2
import pytest

from tests.support import servers
from tests.support.clusters import Server, connections, running_mysql_server, running_server
from tests.support.daemons import PASSWORD, ROLE
from tests.support.databases import SERVED, execute, locked, name_of
from tests.support.metrics import metric
from tests.support.notes import MORE, known
from tests.support.proxies import Proxy
from tests.support.waiting import poll

POOL = 2
# Parameters of reads that don't share a query.
UNLIKE = ("", "&order=desc", "&completed=true", "&completed=false")
SMALL = {
    "DATABASE_POOL_MAX": str(POOL),
    "DATABASE_CONNECT_TIMEOUT": "1",
    "DATABASE_POOL_TIMEOUT": "1",
    "DATABASE_STATEMENT_TIMEOUT": "1",
    # It would hide that another one is not kept.
    "REQUEST_TIMEOUT": "400",
}
# Far more than those, and far less than this.
PATIENCE = 60
NOTE = {"text": "a", "completed": True}

_keys = (f"key-{number}" for number in itertools.count())


def read(client: httpx2.Client) -> httpx2.Response:
    return client.get("/notes/")


def write(client: httpx2.Client) -> httpx2.Response:
    return client.post("/notes/", json=NOTE)


def write_once(client: httpx2.Client) -> httpx2.Response:
    return client.post("/notes/", json=NOTE, headers={"idempotency-key": next(_keys)})


REQUESTS = (read, write, write_once)


@pytest.fixture(scope="module", params=SERVED)
def server(request: pytest.FixtureRequest) -> Iterator[Server]:
    with running_mysql_server() if request.param == "mysql" else running_server() as server:
        yield server


class Service(NamedTuple):
    """A service that goes through all kinds of trouble, and its database."""

    client: httpx2.Client
    url: str
    log: Path


@pytest.fixture(scope="module")
def service(server: Server, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    url = server.new_database()
    log = tmp_path_factory.mktemp("service") / "log"
    with serving(url, log) as client:
        yield Service(client, url, log)


@pytest.fixture
def lasting(service: Service) -> Iterator[Service]:
    """The service that other tests trouble too. A traceback in its log is a failure."""
    before = len(service.log.read_text())
    yield service
    assert "Traceback" not in service.log.read_text()[before:]


@contextmanager
def serving(database_url: str, log: Path, **variables: str) -> Iterator[httpx2.Client]:
    """A client of a service with small timeouts for the database."""
    with servers.serving(database_url, log, **SMALL | variables) as client:
        client.timeout = PATIENCE
        yield client


def check_unavailable(client: httpx2.Client, first: Callable[[httpx2.Client], Any]) -> None:
    """Every request that needs the database gets a 503. The process is still live."""
    with ThreadPoolExecutor() as threads:
        asked = threads.submit(first, client)
        assert client.get("/health/live").status_code == 200
        answers = [asked.result()]
        others = [threads.submit(request, client) for request in REQUESTS if request is not first]
        ready = client.get("/health/ready")
        assert client.get("/health/live").status_code == 200
        answers += [other.result() for other in others]
    for answer in answers:
        assert answer.status_code == 503
        assert answer.json() == {"detail": "Service Unavailable"}
        assert int(answer.headers["retry-after"]) > 0
    assert ready.status_code == 503
    # A session that was open before its database was dropped misses the tables.
    states = "is unavailable|denies a right that writes need|is not migrated"
    assert re.fullmatch(rf"The database ({states}): \w+", ready.json()["detail"])


def in_use(client: httpx2.Client) -> float:
    """The connections at work, or NaN where the smallest deadlines leave no time to answer."""
    with suppress(httpx2.NetworkError, httpx2.RemoteProtocolError):
        return metric(client, "database_connections_in_use")
    return math.nan


def check_whole(client: httpx2.Client, server: Server, database_url: str) -> None:
    """Nothing is in use, the pool is no larger than it may be, and all of it works at once."""
    poll(lambda: in_use(client) == 0)
    poll(lambda: server.backends(database_url) <= POOL, server.activity)
    with connections(server.cluster.url) as (watch,), ThreadPoolExecutor() as threads:
        for _ in range(5):  # a lock may be held for too long on a busy machine
            with locked(server.of_superuser(database_url)):
                listings = [
                    threads.submit(client.get, f"/notes/?limit=1{more}") for more in UNLIKE[:POOL]
                ]
                waiting = 0
                while waiting < POOL and not any(listing.done() for listing in listings):
                    waiting = watch(server.WAITING)
                    time.sleep(0.01)
            statuses = [listing.result().status_code for listing in listings]
            if statuses == [200] * POOL and waiting == POOL:
                break
        else:
            raise AssertionError(f"only {waiting} of the pool's connections work: {statuses}")
    poll(lambda: in_use(client) == 0)
    assert server.backends(database_url) <= POOL, server.activity()


@contextmanager
def away(server: Server, database: str) -> Iterator[None]:
    server.cluster.end(signal.SIGQUIT)
    yield
    server.cluster.start()


@contextmanager
def full(server: Server, database: str) -> Iterator[None]:
    server.disconnect_all()
    # PostgreSQL keeps three of them for superusers, MariaDB has one more for them.
    most = {"postgresql": 17, "mysql": 20}[server.kind]
    with connections(server.url("template"), 21) as opened:
        assert len(opened) == most
        yield
    poll(lambda: not server.backends())


@contextmanager
def dropped(server: Server, database: str) -> Iterator[None]:
    server.drop(database)
    try:
        yield
    finally:
        server.new_database(database)


def hanging(server: Server, database: str) -> AbstractContextManager[None]:
    return server.hanging()


def with_locks(server: Server, database: str) -> AbstractContextManager[None]:
    url = server.of_superuser(server.url(database))
    return locked(url, "notes", "alembic_version", "idempotency_keys")


@contextmanager
def without_rights(server: Server, database: str) -> Iterator[None]:
    """The role connects, and may neither read nor write any table."""
    rights = "SELECT, INSERT, UPDATE, DELETE ON"
    if server.kind == "postgresql":
        tables, role = "ALL TABLES IN SCHEMA public", ROLE
    else:
        tables, role = r"`test\_%`.*", f"{ROLE}@'127.0.0.1'"
    url = server.of_superuser(server.url(database))
    execute(url, f"REVOKE {rights} {tables} FROM {role}")
    # MariaDB's sessions keep the rights to their database.
    server.disconnect_all()
    yield
    execute(url, f"GRANT {rights} {tables} TO {role}")
    server.disconnect_all()


# Statements that make the server refuse new connections, and those that take them back.
REFUSALS = {
    "role without connections": {
        "postgresql": (
            f"ALTER ROLE {ROLE} CONNECTION LIMIT 0",
            f"ALTER ROLE {ROLE} CONNECTION LIMIT -1",
        ),
        "mysql": ("SET GLOBAL max_user_connections = -1", "SET GLOBAL max_user_connections = 99"),
    },
    "other password": {
        "postgresql": (
            f"ALTER ROLE {ROLE} PASSWORD 'wrong'",
            f"ALTER ROLE {ROLE} PASSWORD '{PASSWORD}'",
        ),
        "mysql": (
            f"ALTER USER {ROLE}@'127.0.0.1' IDENTIFIED BY 'wrong'",
            f"ALTER USER {ROLE}@'127.0.0.1' IDENTIFIED BY '{PASSWORD}'",
        ),
    },
    "role without login": {
        "postgresql": (f"ALTER ROLE {ROLE} NOLOGIN", f"ALTER ROLE {ROLE} LOGIN"),
        "mysql": (
            f"ALTER USER {ROLE}@'127.0.0.1' ACCOUNT LOCK",
            f"ALTER USER {ROLE}@'127.0.0.1' ACCOUNT UNLOCK",
        ),
    },
    "forbidden": {
        "postgresql": (
            "REVOKE CONNECT ON DATABASE {} FROM PUBLIC",
            "GRANT CONNECT ON DATABASE {} TO PUBLIC",
        ),
        "mysql": (
            rf"REVOKE ALL ON `test\_%`.* FROM {ROLE}@'127.0.0.1'",
            rf"GRANT ALL ON `test\_%`.* TO {ROLE}@'127.0.0.1'",
        ),
    },
    "closed": {
        "postgresql": (
            "ALTER DATABASE {} ALLOW_CONNECTIONS false",
            "ALTER DATABASE {} ALLOW_CONNECTIONS true",
        ),
        # MariaDB can't close a database. Here the role is gone.
        "mysql": (
            f"RENAME USER {ROLE}@'127.0.0.1' TO other@'127.0.0.1'",
            f"RENAME USER other@'127.0.0.1' TO {ROLE}@'127.0.0.1'",
        ),
    },
}


@contextmanager
def refusing(how: str, server: Server, database: str) -> Iterator[None]:
    begin, end = REFUSALS[how][server.kind]
    server.execute(begin.format(database))
    server.disconnect_all()
    yield
    server.execute(end.format(database))


Trouble = Callable[[Server, str], AbstractContextManager[None]]
TROUBLES: dict[str, Trouble] = {
    "away": away,
    "full": full,
    "dropped": dropped,
    "hanging": hanging,
    "with locks": with_locks,
    "without rights": without_rights,
    **{how: partial(refusing, how) for how in REFUSALS},
}


@pytest.mark.parametrize("trouble", TROUBLES)
def test_trouble_is_503_until_it_is_over(server: Server, lasting: Service, trouble: str) -> None:
    """In trouble requests get a 503 in time. The first request afterwards works."""
    client, url, _ = lasting
    check_whole(client, server, url)
    for request in REQUESTS:
        with TROUBLES[trouble](server, name_of(url)):
            check_unavailable(client, request)
        answer = request(client)
        assert answer.status_code == 200, answer.text
    check_whole(client, server, url)
    assert client.get("/health/ready").status_code == 200


@pytest.mark.parametrize("request_", [read, write_once])
def test_a_service_that_starts_before_its_database(
    server: Server, tmp_path: Path, request_: Callable[[httpx2.Client], httpx2.Response]
) -> None:
    """A service that starts first serves as soon as its database is there."""
    url = server.new_database()
    server.cluster.end()
    try:
        with serving(url, tmp_path / "log") as client:
            check_unavailable(client, request_)
            server.cluster.start()
            assert request_(client).status_code == 200
            check_whole(client, server, url)
    finally:
        server.cluster.start()


@pytest.mark.parametrize("end", ["polite", "immediate", "crash"])
def test_a_restart_between_requests(server: Server, lasting: Service, end: str) -> None:
    """A client that asks before and after a restart of the server doesn't notice it."""
    client, url, _ = lasting
    for request in REQUESTS:
        check_whole(client, server, url)
        if end == "crash":
            server.crash()
        else:
            server.cluster.end(signal.SIGQUIT if end == "immediate" else None)
        server.cluster.start()
        assert request(client).status_code == 200
    check_whole(client, server, url)


def test_a_restart_that_nobody_tells_of(server: Server, tmp_path: Path) -> None:
    """A restart that the service isn't told of fails no read, and each kind of write once."""
    url = server.new_database()
    with (
        closing(Proxy(url)) as proxy,
        serving(proxy.url, tmp_path / "log", DATABASE_POOL_MAX="1") as client,
    ):
        for request, statuses in ((read, [200]), (write, [503, 200]), (write_once, [503, 200])):
            assert request(client).status_code == 200
            before = execute(url, "SELECT count(*) FROM notes")
            proxy.forget()
            server.crash()
            server.cluster.start()
            assert [request(client).status_code for _ in statuses] == statuses
            after = execute(url, "SELECT count(*) FROM notes")
            assert after - before == (request is not read)


def test_a_crash_loses_no_acknowledged_note(server: Server, tmp_path: Path) -> None:
    """When the server crashes, a 200 is stored once, and a 503 at most once."""
    url = server.new_database()
    acknowledged: list[tuple[int, str]] = []
    refused: list[str] = []
    enough = threading.Event()

    def post(client: httpx2.Client, name: str) -> None:
        for number in itertools.count():
            if enough.is_set():
                return
            headers = {"idempotency-key": f"{name}-{number}"} if number % 2 else {}
            text = f"{name}-{number}"
            note = {"text": text, "completed": False}
            answer = client.post("/notes/", json=note, headers=headers)
            if answer.status_code == 503:
                refused.append(text)
            else:
                note_id = answer.json()["id"]
                assert known(answer.json()) == {"id": note_id, **note}
                acknowledged.append((note_id, text))

    with serving(url, tmp_path / "log") as client, ThreadPoolExecutor() as threads:
        posting = [threads.submit(post, client, name) for name in "abcdefgh"]
        try:
            for _ in range(2):
                before = len(acknowledged)
                poll(lambda before=before: len(acknowledged) > before + 200)  # type: ignore[misc]
                refusals = len(refused)
                server.crash()
                poll(lambda refusals=refusals: len(refused) > refusals)  # type: ignore[misc]
                server.cluster.start()
            before = len(acknowledged)
            poll(lambda: len(acknowledged) > before + 200)
        finally:
            enough.set()
        for task in posting:
            task.result()
        check_whole(client, server, url)
        stored = {note["id"]: note["text"] for note in client.get("/notes/").json()}
    assert Counter(acknowledged) <= Counter(stored.items())
    others = Counter(stored.values()) - Counter(text for _, text in acknowledged)
    assert others <= Counter(refused)


def bytes_of(chance: random.Random, number: int) -> bytes:
    """A request of some kind as it is on the wire."""
    kind = chance.choice(["GET /notes/", "GET /notes/1", "PUT /notes/1", "DELETE /notes/1"])
    body, headers = b"", ["Host: test"]
    if chance.random() < 0.5:
        kind = "POST /notes/"
        if chance.random() < 0.5:
            headers.append(f"Idempotency-Key: gone-{number}")
    if kind.startswith("P"):
        body = b'{"text":"gone","completed":true}'
        headers += ["Content-Type: application/json", f"Content-Length: {len(body)}"]
    return "\r\n".join([f"{kind} HTTP/1.1", *headers, "", ""]).encode() + body


def test_clients_that_leave(server: Server, lasting: Service) -> None:
    """A thousand clients that close their connection at any moment leave the pool whole."""
    client, url, _ = lasting
    chance = random.Random(1)
    address = client.base_url.host, client.base_url.port or 0
    for number in range(1000):
        request = bytes_of(chance, number)
        with socket.create_connection(address, timeout=PATIENCE) as connection:
            if number % 5 == 0:
                request = request[: chance.randrange(len(request))]
            connection.sendall(request)
            if chance.random() < 0.3:
                connection.setsockopt(
                    socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0"
                )  # with a reset
            if chance.random() < 0.3:
                time.sleep(chance.random() / 200)
    check_whole(client, server, url)
    for request_ in REQUESTS:
        assert request_(client).status_code == 200


def test_deadlines_at_any_moment(server: Server, tmp_path: Path) -> None:
    """A thousand requests that a lock or their deadline ends at any moment leave the pool whole."""
    url = server.new_database()
    variables = {
        "REQUEST_TIMEOUT": "0.3",
        "DATABASE_CONNECT_TIMEOUT": "0.06",
        "DATABASE_POOL_TIMEOUT": "0.01",
        # `check_slots` has to see all connections wait at once, also on a busy machine.
        "DATABASE_STATEMENT_TIMEOUT": "0.2",
    }
    with (
        serving(url, tmp_path / "log", **variables) as client,
        ThreadPoolExecutor(20) as threads,
    ):

        def ask(number: int) -> int:
            try:
                return REQUESTS[number % 3](client).status_code
            except (httpx2.NetworkError, httpx2.RemoteProtocolError):
                return 0  # its head has not arrived before the deadline

        with locked(server.of_superuser(url)):
            statuses = set(threads.map(ask, range(300)))
            # What has been given up doesn't stay at the server.
            poll(lambda: server.backends(url) <= POOL, server.activity)
        statuses.update(threads.map(ask, range(700)))
        assert 503 in statuses
        assert statuses <= {200, 503, 408, 0}
        # On a busy machine such short times are over for most requests.
        poll(lambda: ask(0) == 200)
        poll(lambda: in_use(client) == 0)
        poll(lambda: server.backends(url) <= POOL, server.activity)
        check_slots(client, server, url)


def check_slots(client: httpx2.Client, server: Server, database_url: str) -> None:
    """The whole pool works at once, though no statement has enough time."""
    with (
        connections(server.cluster.url) as (watch,),
        ThreadPoolExecutor() as threads,
        locked(server.of_superuser(database_url)),
    ):
        over = threading.Event()

        def ask(more: str) -> None:
            while not over.is_set():
                with suppress(httpx2.NetworkError, httpx2.RemoteProtocolError):
                    client.get(f"/notes/?limit=1{more}")

        asking = [threads.submit(ask, more) for more in UNLIKE]
        try:
            poll(lambda: watch(server.WAITING) == POOL)
        finally:
            over.set()
        for task in asking:
            task.result()


@pytest.mark.parametrize("request_", REQUESTS)
def test_a_database_that_hangs_within_a_statement(
    server: Server, lasting: Service, request_: Callable[[httpx2.Client], httpx2.Response]
) -> None:
    """A request is answered in time though its statement never ends."""
    client, url, _ = lasting
    before = execute(server.of_superuser(url), "SELECT count(*) FROM notes")
    with ThreadPoolExecutor() as threads:
        with locked(server.of_superuser(url)):
            asked = threads.submit(request_, client)
            poll(lambda: server.execute(server.WAITING) == 1)
            with server.hanging():
                answer = asked.result()
        assert answer.status_code == 503
        assert request_(client).status_code == 200
        check_whole(client, server, url)
    after = execute(server.of_superuser(url), "SELECT count(*) FROM notes")
    assert after - before == (request_ is not read)


def test_termination_while_the_database_hangs(server: Server, tmp_path: Path) -> None:
    """SIGTERM ends a service whose database hangs. Its requests are answered with 503."""
    url = server.new_database()
    with (
        ThreadPoolExecutor() as threads,
        servers.started(url, tmp_path / "log", **SMALL) as (address, service),
        httpx2.Client(base_url=address, timeout=PATIENCE) as client,
    ):
        check_whole(client, server, url)
        with server.hanging():
            asked = [threads.submit(request, client) for request in REQUESTS]
            poll(lambda: in_use(client) == POOL)
            service.send_signal(signal.SIGTERM)
            service.wait(PATIENCE)
            assert [task.result().status_code for task in asked] == [503] * len(REQUESTS)
    assert "Traceback" not in (tmp_path / "log").read_text()


# Statements on a database that take a right from the role, and that give it back.
WITHOUT_RIGHT = {
    "insert": {
        "postgresql": (f"REVOKE INSERT ON notes FROM {ROLE}", f"GRANT INSERT ON notes TO {ROLE}"),
        "mysql": (
            rf"REVOKE INSERT ON `test\_%`.* FROM {ROLE}@'127.0.0.1'",
            rf"GRANT INSERT ON `test\_%`.* TO {ROLE}@'127.0.0.1'",
        ),
    },
    "update": {
        "postgresql": (
            f"REVOKE UPDATE ON idempotency_keys FROM {ROLE}",
            f"GRANT UPDATE ON idempotency_keys TO {ROLE}",
        ),
        "mysql": (
            rf"REVOKE UPDATE ON `test\_%`.* FROM {ROLE}@'127.0.0.1'",
            rf"GRANT UPDATE ON `test\_%`.* TO {ROLE}@'127.0.0.1'",
        ),
    },
    "delete": {
        "postgresql": (f"REVOKE DELETE ON notes FROM {ROLE}", f"GRANT DELETE ON notes TO {ROLE}"),
        "mysql": (
            rf"REVOKE DELETE ON `test\_%`.* FROM {ROLE}@'127.0.0.1'",
            rf"GRANT DELETE ON `test\_%`.* TO {ROLE}@'127.0.0.1'",
        ),
    },
    # MariaDB has no rights on sequences of ids.
    "sequence or select": {
        "postgresql": (
            f"REVOKE ALL ON SEQUENCE notes_id_seq FROM {ROLE}",
            f"GRANT ALL ON SEQUENCE notes_id_seq TO {ROLE}",
        ),
        "mysql": (
            rf"REVOKE SELECT ON `test\_%`.* FROM {ROLE}@'127.0.0.1'",
            rf"GRANT SELECT ON `test\_%`.* TO {ROLE}@'127.0.0.1'",
        ),
    },
}


@pytest.mark.parametrize("right", WITHOUT_RIGHT)
def test_ready_is_that_writes_are_allowed(server: Server, lasting: Service, right: str) -> None:
    """A role that lacks a right for a write is not ready. With the right it is, by itself."""
    client, url, _ = lasting
    take, give = WITHOUT_RIGHT[right][server.kind]
    execute(server.of_superuser(url), take)
    # MariaDB looks at rights on a whole database only when a connection opens.
    server.disconnect_all()
    try:
        for _ in range(2):
            ready = client.get("/health/ready")
            assert ready.status_code == 503
            assert ready.json()["detail"].startswith("The database denies a right that writes ")
            refused = client.delete("/notes/1") if right == "delete" else write_once(client)
            assert refused.status_code == 503
    finally:
        execute(server.of_superuser(url), give)
    assert client.get("/health/ready").status_code == 200
    assert write_once(client).status_code == 200


# Rights on columns, as documented, and no other ones.
GIVEN = ", ".join(["text", "completed", "folded", *MORE])
ENOUGH = {
    "notes": (
        f"INSERT ({GIVEN}), UPDATE ({GIVEN})",
        f"SELECT (id, {GIVEN}), DELETE",
    ),
    "idempotency_keys": (
        "INSERT ({key}, fingerprint, response, created_at)",
        "UPDATE ({key}, fingerprint, response, created_at)",
        "SELECT ({key}, fingerprint, response, created_at), DELETE",
    ),
    "alembic_version": ("SELECT",),
}


def test_rights_on_columns_are_enough(server: Server, tmp_path: Path) -> None:
    """A role that has only the rights that the service needs is ready, and writes."""
    url = server.new_database()
    if server.kind == "postgresql":
        user, key, place = "limited", "key", ""
        grants = ["GRANT USAGE ON SEQUENCE notes_id_seq TO limited"]
        create = "CREATE ROLE limited LOGIN"
    else:
        user, key, place = "limited@'127.0.0.1'", "`key`", name_of(url) + "."
        grants, create = [], f"CREATE USER {user} IDENTIFIED BY '{PASSWORD}'"
    for table, rights in ENOUGH.items():
        listed = ", ".join(rights).format(key=key)
        grants.append(f"GRANT {listed} ON {place}{table} TO {user}")
    execute(server.of_superuser(url), create, *grants)
    with serving(url.replace(ROLE, "limited", 1), tmp_path / "log") as client:
        assert write_once(client).status_code == 200
        assert client.get("/health/ready").status_code == 200
