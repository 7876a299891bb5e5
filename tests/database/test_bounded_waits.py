"""Every wait for the database has its own bound. So has the end of the service."""

import asyncio
import itertools
import signal
import socket
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from functools import partial
from pathlib import Path
from typing import NamedTuple
from urllib.parse import urlsplit

import httpx2
import psutil
import pytest

from service import settings
from service.database.keepalive import notice_loss
from service.notes.resource import usual
from tests.support.databases import (
    CONNECTED,
    NewDatabase,
    execute,
    fetch,
    fill,
    kind_of,
    locked,
    waiting,
)
from tests.support.metrics import metric
from tests.support.processes import new_process
from tests.support.proxies import Proxy
from tests.support.servers import started
from tests.support.template import Process
from tests.support.waiting import at_once, poll

# How many seconds a client waits. The setting under test is half a second; all others allow far
# more than this.
PATIENCE = 50
LONG = {
    "DATABASE_POOL_MAX": "1",
    "DATABASE_CONNECT_TIMEOUT": "100",
    "DATABASE_POOL_TIMEOUT": "100",
    "DATABASE_STATEMENT_TIMEOUT": "100",
    "REQUEST_TIMEOUT": "400",
}
NOTE = {"text": "a", "completed": True}

_keys = (f"key-{number}" for number in itertools.count())


class Service(NamedTuple):
    """A service and a client with little patience."""

    client: httpx2.Client
    process: Process

    def read(self) -> int:
        return self.client.get("/notes/").status_code

    def write(self) -> int:
        return self.client.post("/notes/", json=NOTE).status_code

    def write_once(self) -> int:
        headers = {"idempotency-key": next(_keys)}
        return self.client.post("/notes/", json=NOTE, headers=headers).status_code


@contextmanager
def serving(url: str, folder: Path, *options: str, **variables: str) -> Iterator[Service]:
    log = folder / "log"
    with (
        started(url, log, *options, **LONG | variables) as (address, server),
        httpx2.Client(base_url=address, timeout=PATIENCE) as client,
    ):
        yield Service(client, server)
    assert "Traceback" not in log.read_text()


def in_use(service: Service) -> bool:
    """Whether one connection is at work."""
    return metric(service.client, "database_connections_in_use") == 1


def connected(service: Service, proxy: Proxy) -> bool:
    """Whether the service has a connection that its kernel takes for alive."""
    port = urlsplit(proxy.url).port
    found = psutil.Process(service.process.pid).net_connections()
    return any(one.raddr and one.raddr[1] == port and one.status == "ESTABLISHED" for one in found)


def connection_ids(database_url: str) -> set[int]:
    """The server's numbers of the other connections to the database."""
    kind = kind_of(database_url)
    number = {"postgresql": "pid", "mysql": "id"}[kind]
    return {row[0] for row in fetch(database_url, CONNECTED[kind].replace("count(*)", number))}


def open_two(service: Service, proxy: Proxy) -> None:
    """Returns when the service has two connections."""
    paths = ("/notes/", "/notes/1", "/notes/?order=desc")

    def are_two() -> bool:
        at_once([partial(service.client.get, path) for path in paths])
        return len(connection_ids(proxy.target)) == 2

    poll(are_two)


@pytest.fixture
def proxy(served_database_url: str) -> Iterator[Proxy]:
    with closing(Proxy(served_database_url)) as proxy:
        yield proxy


def until_served(ask: Callable[[], int]) -> None:
    """Asks again while the answer is a 503: on a busy machine half a second may be too short."""
    poll(lambda: ask() == 200)


def test_the_wait_for_a_connection_to_open(proxy: Proxy, tmp_path: Path) -> None:
    """A server that never answers a new connection is 503 at DATABASE_CONNECT_TIMEOUT."""
    with serving(proxy.url, tmp_path, DATABASE_CONNECT_TIMEOUT="0.5") as service:
        asks = (service.read, service.write, service.write_once)
        with proxy.hanging():
            assert [ask() for ask in asks] == [503] * 3
        for ask in asks:
            until_served(ask)


def test_the_wait_for_a_statement(proxy: Proxy, tmp_path: Path) -> None:
    """A server that stops answering is 503 at DATABASE_STATEMENT_TIMEOUT."""
    with serving(proxy.url, tmp_path, DATABASE_STATEMENT_TIMEOUT="0.5") as service:
        for ask in (service.read, service.write_once):
            until_served(ask)
            proxy.hang()
            assert ask() == 503
            until_served(ask)
            poll(lambda: sum(link.is_open for link in proxy.links) == 1)


async def give_up(hangs: Path) -> None:
    """Gives up a statement as soon as a file says that its server hangs."""
    reading = asyncio.create_task(usual.items.queries.get([1]))
    await asyncio.to_thread(poll, hangs.exists)
    reading.cancel()
    _, waits = await asyncio.wait([reading], timeout=PATIENCE)
    assert not waits


def test_a_statement_that_is_given_up(
    proxy: Proxy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who gives up a statement waits no longer for a server that hangs."""
    for name, value in (LONG | {"DATABASE_URL": proxy.url}).items():
        monkeypatch.setenv(name, value)
    hangs = tmp_path / "hangs"
    with new_process() as run, ThreadPoolExecutor() as threads, locked(proxy.target):
        given_up = threads.submit(run, give_up, hangs)
        poll(lambda: waiting(proxy.target) == 1)
        proxy.hang()
        hangs.touch()
        given_up.result()


def test_a_server_that_vanished(proxy: Proxy, tmp_path: Path) -> None:
    """A machine that went without a word is noticed soon after DATABASE_STATEMENT_TIMEOUT."""
    with (
        serving(proxy.url, tmp_path, DATABASE_STATEMENT_TIMEOUT="1") as service,
        ThreadPoolExecutor() as threads,
    ):
        # A statement that was received, one that never arrives, and none at all.
        with locked(proxy.target):
            writing = threads.submit(service.write)
            poll(lambda: waiting(proxy.target) > 0)
            proxy.vanish()
            assert writing.result() == 503
        until_served(service.read)
        proxy.vanish()
        until_served(service.read)
        proxy.vanish()
        poll(lambda: not connected(service, proxy), pause=0.5)
        until_served(service.write_once)


class Transport:
    """What has a socket."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock

    def get_extra_info(self, name: str) -> socket.socket:
        return self.sock


@pytest.mark.skipif(not hasattr(socket, "TCP_USER_TIMEOUT"), reason="Linux has it")
def test_a_slow_network_is_waited_for() -> None:
    """The kernel gives up a connection no earlier than a statement."""
    with socket.socket() as sock:
        notice_loss(Transport(sock))
        milliseconds = sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT)
    assert milliseconds == settings.DATABASE_STATEMENT_TIMEOUT * 1000


@pytest.mark.parametrize("in_trouble", [Proxy.hang, lambda proxy: proxy.lose_answers(1)])
def test_neighbours_of_a_connection_in_trouble(
    new_database: NewDatabase, tmp_path: Path, in_trouble: Callable[[Proxy], None]
) -> None:
    """If one connection hangs or is lost, idle ones to the same server are closed too."""
    with (
        closing(Proxy(new_database("postgresql"))) as proxy,
        serving(
            proxy.url, tmp_path, DATABASE_STATEMENT_TIMEOUT="2", DATABASE_POOL_MAX="2"
        ) as service,
    ):
        open_two(service, proxy)
        in_trouble(proxy)
        before = list(proxy.links)
        assert service.read() in (200, 503)
        poll(lambda: not any(link.is_open for link in before))
        until_served(service.write)


def test_a_slow_search_closes_no_other_connection(proxy: Proxy, tmp_path: Path) -> None:
    """A search that is given up says nothing of the server: only its own connection ends."""
    variables = {"DATABASE_STATEMENT_TIMEOUT": "1", "DATABASE_POOL_MAX": "2"}
    with serving(proxy.url, tmp_path, **variables) as service:
        open_two(service, proxy)
        both = connection_ids(proxy.target)
        proxy.hang()
        assert service.client.get("/notes/?q=a").status_code == 503
        for link in proxy.links:
            link.hangs = False
        until_served(service.read)
        # Beside them there may be one for a moment, which ends the search on the server.
        poll(lambda: len(left := connection_ids(proxy.target)) == 1 and left < both)


def test_the_wait_for_the_pool(served_database_url: str, tmp_path: Path) -> None:
    """A request that waits for a free connection gets a 503 at DATABASE_POOL_TIMEOUT."""
    url = served_database_url
    with (
        serving(url, tmp_path, DATABASE_POOL_TIMEOUT="0.5") as service,
        ThreadPoolExecutor() as threads,
    ):
        with locked(url):
            first = threads.submit(service.client.get, "/notes/1", timeout=100)
            poll(lambda: waiting(url) > 0)
            for ask in (service.read, service.write, service.write_once):
                assert ask() == 503
            assert not first.done()
        assert first.result().status_code == 404
        assert execute(url, "SELECT count(*) FROM notes") == 0
        until_served(service.write)


def test_the_wait_for_other_writes_to_a_file(new_database: NewDatabase, tmp_path: Path) -> None:
    """A write behind one that waits for SQLite is 503 at DATABASE_POOL_TIMEOUT."""
    url = new_database("sqlite")
    with (
        serving(url, tmp_path, DATABASE_POOL_TIMEOUT="0.5") as service,
        ThreadPoolExecutor() as threads,
    ):
        with locked(url):
            first = threads.submit(service.client.post, "/notes/batch", json=[NOTE], timeout=100)
            poll(lambda: in_use(service))
            for ask in (service.write, service.write_once):
                assert ask() == 503
            assert not first.done()
            assert service.read() == 200
        assert first.result().status_code == 200
        assert execute(url, "SELECT count(*) FROM notes") == 1


def test_the_wait_for_another_programs_write(new_database: NewDatabase, tmp_path: Path) -> None:
    """A write to SQLite that another program locks out is 503 at DATABASE_STATEMENT_TIMEOUT."""
    url = new_database("sqlite")
    with serving(url, tmp_path, DATABASE_STATEMENT_TIMEOUT="0.5") as service:
        for ask in (service.write, service.write_once):
            with locked(url):
                assert ask() == 503
            until_served(ask)


# For each note that is stored, SQLite compares all that is there with itself.
SLOW = """
CREATE TRIGGER slow AFTER INSERT ON notes BEGIN
    SELECT count(*) FROM notes a, notes b, notes c WHERE a.text || b.text || c.text = NEW.text;
END
"""


@pytest.fixture(scope="module")
def slow_file(new_database: NewDatabase) -> str:
    """A SQLite file where storing a note takes minutes."""
    url = new_database("sqlite")
    fill(url, 2000, "x")
    execute(url, SLOW)
    return url


def test_a_slow_statement(slow_file: str, tmp_path: Path) -> None:
    """A slow statement on SQLite is interrupted at its timeout, and the next one works."""
    with serving(slow_file, tmp_path, DATABASE_STATEMENT_TIMEOUT="0.5") as service:
        for _ in range(2):
            assert service.write() == 503
            assert service.client.delete("/notes/5000").status_code == 404
            assert service.client.get("/notes/?limit=1").status_code == 200


def end(service: Service) -> None:
    """Ends it. subprocess.TimeoutExpired if it waits for the database."""
    service.process.send_signal(signal.SIGTERM)
    service.process.wait(60)


def test_the_end_while_the_server_hangs(proxy: Proxy, tmp_path: Path) -> None:
    """SIGTERM ends a service whose connections hang, an idle one and one at work."""
    options = ("--timeout-graceful-shutdown=1",)
    with (
        serving(proxy.url, tmp_path, *options, DATABASE_POOL_MAX="2") as service,
        ThreadPoolExecutor() as threads,
    ):
        paths = ("/notes/", "/notes/1")
        with locked(proxy.target):
            both = [threads.submit(service.client.get, path) for path in paths]
            poll(lambda: waiting(proxy.target) == 2)
        assert [one.result().status_code for one in both] == [200, 404]
        proxy.hang()
        asked = threads.submit(service.client.get, "/notes/1")
        poll(lambda: in_use(service))
        end(service)
        assert asked.result().status_code == 503


def test_the_end_while_a_statement_is_slow(slow_file: str, tmp_path: Path) -> None:
    """SIGTERM ends a service whose statement on SQLite would take minutes."""
    with (
        serving(slow_file, tmp_path, "--timeout-graceful-shutdown=1") as service,
        ThreadPoolExecutor() as threads,
    ):
        asked = threads.submit(service.client.post, "/notes/", json=NOTE)
        poll(lambda: in_use(service))
        end(service)
        assert asked.result().status_code == 503
