"""Another PostgreSQL takes over behind the same address. The first one stays, read-only."""

import itertools
import os
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from typing import NamedTuple

import httpx2
import pytest

from tests.support.clusters import Server, running_server
from tests.support.databases import execute, locked
from tests.support.debian import Cluster
from tests.support.proxies import Proxy
from tests.support.servers import serving
from tests.support.waiting import poll

# Parameters of reads that don't share a query.
UNLIKE = ("", "&order=desc", "&completed=true")
POOL = len(UNLIKE)
NOTE = {"text": "new", "completed": True}
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
        self.connect_all()

    def connect_all(self) -> None:
        """Returns when all connections are open and lead to the first server."""
        server = self.servers[0]
        with ThreadPoolExecutor() as threads:
            with locked(server.of_superuser(server.url("template"))):
                reads = [
                    threads.submit(self.client.get, f"/notes/?limit=2{more}") for more in UNLIKE
                ]
                poll(lambda: server.backends() == POOL, server.activity)
            assert {read.result().json()[0]["text"] for read in reads} == {"a"}

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


def set_read_only(server: Server, read_only: bool) -> None:
    """Makes new transactions read-only or not, also on connections that are open."""
    change = f"SET {READ_ONLY} = on" if read_only else f"RESET {READ_ONLY}"
    server.execute(f"ALTER SYSTEM {change}", "SELECT pg_reload_conf()")
    poll(lambda: bool(server.execute(f"SHOW {READ_ONLY}") == ("on" if read_only else "off")))


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Failover]:
    log = tmp_path_factory.mktemp("service") / "log"
    with ExitStack() as stack:
        servers = [stack.enter_context(running_server()) for _ in range(2)]
        switch = stack.enter_context(closing(Proxy(servers[0].url("template"))))
        client = stack.enter_context(serving(switch.url, log, DATABASE_POOL_MAX=str(POOL)))
        yield Failover(client, servers, switch)


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
    """The first answer that is no 503, which has to come within the promised 3 s."""
    began = time.monotonic()
    while (answer := write(client)).status_code == 503:
        assert time.monotonic() - began < 3
    return answer


WRITES = (create, create_once, create_batch, replace, change, delete)


@pytest.mark.parametrize(
    ("write", "count"),
    [(create, 3), (create_once, 3), (create_batch, 4), (replace, 2), (change, 2), (delete, 1)],
)
def test_a_write_notices_the_failover(
    failover: Failover, write: Callable[[httpx2.Client], httpx2.Response], count: int
) -> None:
    """Writes work within 3 s of a failover, each is carried out once, and reads follow."""
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
        server.cluster.end(signal.SIGINT)
        promoted = stack.enter_context(running_copy(server.cluster))
        (server.cluster.data / "standby.signal").touch()
        server.cluster.start()
        with ThreadPoolExecutor() as threads:
            paths = [f"/notes/?limit={limit}" for limit in range(1, 20)]
            for answer in threads.map(client.get, paths):
                assert answer.json() == [{"id": 1, **NOTE}]
        assert {write(client).status_code for write in WRITES} == {503}
        switch.target = server.url("template", port=promoted.port)
        assert until_served(client, create_once).status_code == 200
        poll(lambda: server.backends() == 0, server.activity)
        assert [note["text"] for note in client.get("/notes/").json()] == ["new"] * 2


@contextmanager
def running_copy(cluster: Cluster) -> Iterator[Cluster]:
    """Starts a server on a copy of the data of another one, which has ended."""
    with tempfile.TemporaryDirectory(prefix="notes-copy-") as name:
        folder = Path(name)
        data = folder / "data"
        # With owners, which shutil.copytree doesn't copy.
        subprocess.run(["cp", "-a", cluster.data, data], check=True)
        owner = cluster.data.stat()
        os.chown(folder, owner.st_uid, owner.st_gid)
        copy = Cluster(cluster.binaries, data, folder / "log", cluster.user)
        try:
            copy.start()
            yield copy
        finally:
            copy.end(signal.SIGINT)
