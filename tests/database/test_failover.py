"""Another PostgreSQL takes over, behind the same address or as one of several hosts."""

import asyncio
import itertools
import os
import signal
import socket
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing, contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlsplit

import httpx2
import pytest

from service.database import connecting
from tests.support.clusters import Server, running_server
from tests.support.daemons import PASSWORD, ROLE, copy_data
from tests.support.databases import alembic, execute, locked
from tests.support.debian import Cluster
from tests.support.folders import new_folder
from tests.support.notes import known
from tests.support.proxies import Proxy
from tests.support.servers import free_port, serving
from tests.support.waiting import poll

# Parameters of reads that don't share a query.
UNLIKE = ("", "&order=desc", "&completed=true")
POOL = len(UNLIKE)
NOTE = {"text": "new", "completed": True}
OTHER = {"text": "other", "completed": True}
READ_ONLY = "default_transaction_read_only"

_keys = (f"key-{number}" for number in itertools.count())


class Failover(NamedTuple):
    """A service and two servers. A switch, whose address the service knows, leads to one."""

    client: httpx2.Client
    servers: list[Server]
    switch: Proxy

    def begin(self) -> None:
        """The first server is in use. Each server has two notes with a text of its own."""
        for name, server in zip("ab", self.servers, strict=True):
            set_read_only(server, False)
            execute(
                server.of_superuser(server.url("template")),
                "TRUNCATE notes, idempotency_keys RESTART IDENTITY",
                f"INSERT INTO notes (text, completed) VALUES ('{name}', true), ('{name}', true)",
            )
        self.switch.target = self.servers[0].url("template")
        for server in self.servers:
            server.disconnect_all()
        connect_all(self.client, self.servers[0])

    def switch_over(self) -> None:
        """The switch leads to the second server. The first one is read-only."""
        set_read_only(self.servers[0], True)
        self.switch.target = self.servers[1].url("template")

    def check(self) -> None:
        """The service has left the first server, and the second one serves."""
        poll(lambda: self.servers[0].backends() == 0, self.servers[0].activity)
        texts = {self.client.get("/notes/2").json()["text"] for _ in range(10)}
        assert texts == {"b"}
        assert self.servers[1].backends() <= POOL


def connect_all(client: httpx2.Client, server: Server) -> None:
    """Returns when all connections of the pool are open and lead to the server."""
    with ThreadPoolExecutor() as threads:
        with locked(server.of_superuser(server.url("template"))):
            reads = [threads.submit(client.get, f"/notes/?limit=2{more}") for more in UNLIKE]
            poll(lambda: server.backends() == POOL, server.activity)
        assert {read.result().status_code for read in reads} == {200}


def set_read_only(server: Server, read_only: bool) -> None:
    """Makes new transactions read-only or not, also on connections that are open."""
    change = f"SET {READ_ONLY} = on" if read_only else f"RESET {READ_ONLY}"
    server.execute(f"ALTER SYSTEM {change}", "SELECT pg_reload_conf()")
    poll(lambda: bool(server.execute(f"SHOW {READ_ONLY}") == ("on" if read_only else "off")))


@pytest.fixture(scope="module")
def two_servers() -> Iterator[list[Server]]:
    with running_server() as one, running_server(1) as two:
        yield [one, two]


@pytest.fixture(scope="module")
def service(
    two_servers: list[Server], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Failover]:
    log = tmp_path_factory.mktemp("service") / "log"
    with (
        closing(Proxy(two_servers[0].url("template"))) as switch,
        serving(switch.url, log, DATABASE_POOL_MAX=str(POOL)) as client,
    ):
        yield Failover(client, two_servers, switch)


@pytest.fixture
def failover(service: Failover) -> Failover:
    service.begin()
    return service


def create(client: httpx2.Client) -> httpx2.Response:
    return client.post("/notes/", json=NOTE)


def create_once(client: httpx2.Client) -> httpx2.Response:
    return client.post("/notes/", json=NOTE, headers={"idempotency-key": next(_keys)})


def create_batch(client: httpx2.Client) -> httpx2.Response:
    return client.post("/notes/batch", json=[NOTE] * 2)


def replace(client: httpx2.Client) -> httpx2.Response:
    return client.put("/notes/1", json=NOTE)


def change(client: httpx2.Client) -> httpx2.Response:
    return client.patch("/notes/1", json=NOTE)


def delete(client: httpx2.Client) -> httpx2.Response:
    return client.delete("/notes/1")


def until_served(
    client: httpx2.Client, write: Callable[[httpx2.Client], httpx2.Response]
) -> httpx2.Response:
    """The first answer that is no 503."""
    answers: list[httpx2.Response] = []

    def is_served() -> bool:
        answers.append(write(client))
        return answers[-1].status_code != 503

    poll(is_served)
    return answers[-1]


WRITES = (create, create_once, create_batch, replace, change, delete)


@pytest.mark.parametrize(
    ("write", "count"),
    [(create, 3), (create_once, 3), (create_batch, 4), (replace, 2), (change, 2), (delete, 1)],
)
def test_a_write_notices_the_failover(
    failover: Failover, write: Callable[[httpx2.Client], httpx2.Response], count: int
) -> None:
    """Writes work after a failover, each is carried out once, and reads follow."""
    failover.switch_over()
    answer = until_served(failover.client, write)
    assert answer.status_code in (200, 204), answer.text
    failover.check()
    old, new = (
        execute(server.url("template"), "SELECT array_agg(text) FROM notes")
        for server in failover.servers
    )
    assert old == ["a"] * 2
    assert ("new" in new) == (write is not delete)
    assert len(new) == count


def test_a_conditional_write_notices_the_failover(failover: Failover) -> None:
    """A condition that the old server's note meets doesn't change the new server's."""
    failover.switch_over()
    tag = failover.client.get("/notes/1").headers["etag"]

    def change_if_unchanged(client: httpx2.Client) -> httpx2.Response:
        return client.patch("/notes/1", json=NOTE, headers={"if-match": tag})

    assert until_served(failover.client, change_if_unchanged).status_code == 412
    failover.check()
    assert failover.client.get("/notes/1").json()["text"] == "b"


def test_connections_in_use_at_the_failover(failover: Failover) -> None:
    """A connection that still reads from the old server is closed after its use."""
    client, (old, new), _ = failover
    with ThreadPoolExecutor() as threads:
        with locked(old.of_superuser(old.url("template"))):
            failover.switch_over()
            reading = threads.submit(client.get, "/notes/", params={"limit": 1})
            poll(lambda: "Lock" in old.activity(), old.activity)
            # It begins with another table than the one that is locked.
            assert until_served(client, create_once).status_code == 200
            poll(lambda: old.backends() == 1, old.activity)
        assert reading.result().json()[0]["text"] == "a"
    failover.check()
    assert execute(new.url("template"), "SELECT count(*) FROM notes") == 3


def test_a_server_that_stays_read_only(failover: Failover) -> None:
    """A read-only server serves reads. Refused writes don't open a connection each."""
    client, (server, _), switch = failover
    set_read_only(server, True)
    before, began, asked = switch.accepted, time.monotonic(), 0
    while asked < 60 or time.monotonic() - began < 1.5:
        assert WRITES[asked % len(WRITES)](client).status_code == 503
        assert client.get("/notes/1").status_code == 200
        asked += 1
    seconds = time.monotonic() - began
    assert 1 <= switch.accepted - before <= POOL * (seconds + 2)
    set_read_only(server, False)
    assert until_served(client, create).status_code == 200


def test_a_primary_that_is_demoted(tmp_path: Path) -> None:
    """After a restart as a standby, then a switch to the new primary, writes work within 3 s."""
    with running_server() as server, ExitStack() as stack:
        switch = stack.enter_context(closing(Proxy(server.url("template"))))
        client = stack.enter_context(
            serving(switch.url, tmp_path / "log", DATABASE_POOL_MAX=str(POOL))
        )
        assert create(client).status_code == 200
        assert isinstance(server.cluster, Cluster)
        server.cluster.end(signal.SIGINT)
        promoted = stack.enter_context(running_copy(server.cluster))
        (server.cluster.data / "standby.signal").touch()
        server.cluster.start()
        with ThreadPoolExecutor() as threads:
            paths = [f"/notes/?limit={limit}" for limit in range(101, 120)]
            for answer in threads.map(client.get, paths):
                assert known(answer.json()) == [{"id": 1, **NOTE}]
        assert {write(client).status_code for write in WRITES} == {503}
        switch.target = server.url("template", port=promoted.port)
        assert until_served(client, create_once).status_code == 200
        poll(lambda: server.backends() == 0, server.activity)
        assert [note["text"] for note in client.get("/notes/").json()] == ["new"] * 2


DISCONNECT = f"""
    SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity WHERE usename = '{ROLE}'
"""
# For waits that are no matter of the test.
LONG = {
    "DATABASE_CONNECT_TIMEOUT": "100",
    "DATABASE_POOL_TIMEOUT": "100",
    "DATABASE_STATEMENT_TIMEOUT": "100",
    "REQUEST_TIMEOUT": "400",
}


@pytest.fixture
def servers(two_servers: list[Server]) -> list[Server]:
    """Two servers that take writes, without notes. Nobody is connected."""
    for server in two_servers:
        set_read_only(server, False)
        url = server.of_superuser(server.url("template"))
        execute(url, "TRUNCATE notes, idempotency_keys RESTART IDENTITY")
        server.disconnect_all()
    return two_servers


def several(*ports: int) -> str:
    hosts = ",".join(f"127.0.0.1:{port}" for port in ports)
    return f"postgresql://{ROLE}:{PASSWORD}@{hosts}/template"


def texts(server: Server) -> list[str]:
    sql = "SELECT coalesce(array_agg(text ORDER BY id), '{}') FROM notes"
    return list(execute(server.url("template"), sql))


def port_of(proxy: Proxy) -> int:
    return urlsplit(proxy.url).port or 0


@contextmanager
def silent() -> Iterator[int]:
    """A port that takes connections and says nothing."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield listener.getsockname()[1]


def test_the_host_that_takes_writes(servers: list[Server], tmp_path: Path) -> None:
    """The host that takes writes serves, whatever the others do, and alone is connected."""
    standby, primary = servers
    set_read_only(standby, True)
    with (
        silent() as port,
        closing(Proxy(standby.url("template"))) as late,
        late.hanging(),
    ):
        ports = (port, free_port(), port_of(late), standby.cluster.port, primary.cluster.port)
        assert alembic(several(*ports), "upgrade", "head", **LONG).returncode == 0
        with serving(several(*ports), tmp_path / "log", **LONG) as client:
            assert create(client).status_code == 200
            assert client.get("/health/ready").status_code == 200
            poll(lambda: standby.backends() == 0, standby.activity)
            poll(lambda: not any(link.is_open for link in late.links))
            assert primary.backends() == 1
    assert (texts(standby), texts(primary)) == ([], ["new"])


def test_several_hosts_that_take_writes(servers: list[Server], tmp_path: Path) -> None:
    """Of several hosts that fit only one stays connected."""
    url = several(*(server.cluster.port for server in servers))
    with serving(url, tmp_path / "log", DATABASE_POOL_MAX="1", **LONG) as client:
        assert client.get("/notes/").status_code == 200
        poll(lambda: sum(server.backends() for server in servers) == 1)


@pytest.mark.parametrize("notice", [create_once, lambda client: client.get("/health/ready")])
def test_hosts_that_change_roles(
    servers: list[Server], tmp_path: Path, notice: Callable[[httpx2.Client], httpx2.Response]
) -> None:
    """A write or the check of readiness notices that another host takes writes now."""
    old, new = servers
    set_read_only(new, True)
    url = several(old.cluster.port, new.cluster.port)
    with serving(url, tmp_path / "log", DATABASE_POOL_MAX=str(POOL)) as client:
        connect_all(client, old)
        set_read_only(old, True)
        set_read_only(new, False)
        assert until_served(client, notice).status_code == 200
        poll(lambda: old.backends() == 0, old.activity)
        assert create(client).status_code == 200
    assert texts(old) == []
    assert texts(new)[-1] == "new"


def test_a_host_that_is_promoted_while_another_is_silent(
    servers: list[Server], tmp_path: Path
) -> None:
    """A standby that becomes the primary serves, while the old one has not said no yet."""
    server = servers[0]
    set_read_only(server, True)
    with (
        silent() as port,
        closing(Proxy(server.url("template"))) as standby,
        serving(several(port, port_of(standby)), tmp_path / "log", **LONG) as client,
        ThreadPoolExecutor() as threads,
    ):
        writing = threads.submit(create, client)
        poll(lambda: standby.accepted > 1)
        assert not writing.done()
        set_read_only(server, False)
        assert writing.result().status_code == 200


def test_no_host_that_takes_writes(servers: list[Server], tmp_path: Path) -> None:
    """If every host refuses, requests get a 503, and the log has the reason of each."""
    standby, server = servers
    set_read_only(standby, True)
    set_read_only(server, True)
    with silent() as port:
        ports = (port, free_port(), standby.cluster.port, server.cluster.port)
        url = several(*ports, ports[1])
        timeout = {"DATABASE_CONNECT_TIMEOUT": "0.5"}
        with serving(url, tmp_path / "log", **timeout) as client:
            assert create(client).status_code == 503
            assert client.get("/notes/").status_code == 503
            ready = client.get("/health/ready")
            assert ready.status_code == 503
            assert ready.json() == {"detail": "The database takes no writes: NoWritableHost"}
            result = alembic(url, "upgrade", "head", **timeout)
            set_read_only(server, False)
            assert client.get("/health/ready").status_code == 200
    assert result.returncode != 0
    assert result.stderr.count("\n") == 1
    for text in ((tmp_path / "log").read_text(), result.stderr):
        assert f"127.0.0.1:{ports[0]}: TimeoutError: no answer in 0.5 s;" in text
        assert f"127.0.0.1:{ports[1]}: ConnectionRefusedError: " in text
        for one in ports[2:]:
            assert f"127.0.0.1:{one}: TargetServerAttributeNotMatched: " in text
        assert PASSWORD not in text.replace("rights", "")


def test_the_readiness_of_a_single_host(servers: list[Server], tmp_path: Path) -> None:
    """A host that takes no writes is not ready, unless the URL asks for such a host."""
    server = servers[0]
    url = server.url("template")
    with (
        serving(url, tmp_path / "one", DATABASE_POOL_MAX="1") as one,
        serving(f"{url}?target_session_attrs=read-write", tmp_path / "two") as two,
        serving(f"{url}?target_session_attrs=read-only", tmp_path / "three") as three,
    ):
        clients = (one, two, three)
        assert [client.get("/health/ready").status_code for client in clients] == [200, 200, 503]
        set_read_only(server, True)
        answers = [client.get("/health/ready") for client in clients]
        assert [answer.status_code for answer in answers] == [503, 503, 200]
        for answer in answers[:2]:
            assert answer.json()["detail"].startswith("The database takes no writes: ")
            assert int(answer.headers["retry-after"]) > 0
        assert one.get("/notes/").status_code == 200


def test_cancelled_connecting_leaves_nothing(servers: list[Server]) -> None:
    """Whenever the caller is cancelled, no connection stays open at any host."""
    ports = [server.cluster.port for server in servers]
    options: dict[str, Any] = {"host": ["127.0.0.1"] * 2, "port": ports, "timeout": 30}
    options |= {"user": ROLE, "password": PASSWORD, "database": "template"}
    options |= {"target_session_attrs": "read-write"}

    async def connect_and_cancel() -> None:
        for step in range(100):
            opening = asyncio.create_task(connecting.connect(**options))
            await asyncio.sleep(step / 2000)
            if opening.cancel():
                with suppress(asyncio.CancelledError):
                    (await opening).terminate()
            else:
                opening.result().terminate()

    asyncio.run(connect_and_cancel())
    for server in servers:
        poll(lambda: server.backends() == 0, server.activity)  # noqa: B023


def test_a_commit_that_no_standby_confirms(servers: list[Server], tmp_path: Path) -> None:
    """A write that only the primary has is not acknowledged, also if it is sent again."""
    server = servers[0]

    def wait_for(standby: str) -> None:
        change = f"ALTER SYSTEM SET synchronous_standby_names = '{standby}'"
        server.execute(change, "SELECT pg_reload_conf()")
        poll(lambda: bool(server.execute("SHOW synchronous_standby_names") == standby))

    url = server.url("template")
    key = {"idempotency-key": "the-same"}
    with serving(url, tmp_path / "log", DATABASE_STATEMENT_TIMEOUT="0.5") as client:
        wait_for("nobody")
        try:
            for _ in range(2):
                assert client.post("/notes/", json=NOTE, headers=key).status_code == 503
                poll(lambda: known(client.get("/notes/").json()) == [{"id": 1, **NOTE}])
        finally:
            wait_for("")
        poll(
            lambda: (
                known(client.post("/notes/", json=NOTE, headers=key).json()) == {"id": 1, **NOTE}
            )
        )
    assert texts(server) == ["new"]


def test_a_former_primary_that_takes_writes(tmp_path: Path) -> None:
    """After another host was promoted, a primary that doesn't know is not used any more."""
    with running_server() as server, ExitStack() as stack:
        server.cluster.end(signal.SIGINT)
        assert isinstance(server.cluster, Cluster)
        copy = stack.enter_context(running_copy(server.cluster, "standby.signal"))
        server.cluster.start()
        url = several(server.cluster.port, copy.port)
        options = {"DATABASE_POOL_MAX": "1", "DATABASE_STATEMENT_TIMEOUT": "1"}
        client = stack.enter_context(serving(url, tmp_path / "log", **options))
        named = f"{url}?target_session_attrs=primary"
        other = stack.enter_context(serving(named, tmp_path / "other", **options))
        assert create(client).status_code == 200
        execute(copy.url, "SELECT pg_promote()")
        with server.hanging():
            poll(lambda: client.post("/notes/", json=OTHER).status_code == 200)
            poll(lambda: known(other.get("/notes/").json()) == [{"id": 1, **OTHER}])
        for _ in range(10):
            execute(copy.url, DISCONNECT)
            for one in (client, other):
                assert known(one.get("/notes/").json()) == [{"id": 1, **OTHER}]


@contextmanager
def running_copy(cluster: Cluster, *signals: str) -> Iterator[Cluster]:
    """Starts a server on a copy of the data of another one, which has ended.

    The signals are files without content that the server looks for at its start.
    """
    with new_folder("notes-copy-") as name:
        folder = Path(name)
        data = folder / "data"
        copy_data(cluster.data, data)
        owner = cluster.data.stat()
        os.chown(folder, owner.st_uid, owner.st_gid)
        for name in signals:
            (data / name).touch()
        copy = Cluster(cluster.binaries, data, folder / "log", cluster.user)
        try:
            copy.start()
            yield copy
        finally:
            copy.end(signal.SIGINT)
