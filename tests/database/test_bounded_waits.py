"""Every wait for the database has its own bound. So has the end of the service."""

import itertools
import signal
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from pathlib import Path
from typing import NamedTuple
from urllib.parse import urlsplit

import httpx2
import psutil
import pytest

from tests.support.databases import NewDatabase, execute, fill, locked, waiting
from tests.support.metrics import metric
from tests.support.proxies import Proxy
from tests.support.servers import started
from tests.support.template import Process
from tests.support.waiting import poll

# A client has no more of it, where the setting that is tested is half a second; it is far more than
# what comes on top of it, and far less than what all the other settings allow.
PATIENCE = 10
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


@pytest.fixture
def proxy(served_database_url: str) -> Iterator[Proxy]:
    with closing(Proxy(served_database_url)) as proxy:
        yield proxy


def until_served(ask: Callable[[], int]) -> None:
    """Asks again until the answer is another one than 503."""
    began = time.monotonic()
    while ask() == 503:
        assert time.monotonic() - began < PATIENCE


def test_the_wait_for_a_connection_to_open(proxy: Proxy, tmp_path: Path) -> None:
    """A server that never answers a new connection is 503 at DATABASE_CONNECT_TIMEOUT."""
    with serving(proxy.url, tmp_path, DATABASE_CONNECT_TIMEOUT="0.5") as service:
        asks = (service.read, service.write, service.write_once)
        with proxy.hanging():
            assert [ask() for ask in asks] == [503] * 3
        assert [ask() for ask in asks] == [200] * 3


def test_the_wait_for_a_statement(proxy: Proxy, tmp_path: Path) -> None:
    """A server that stops answering is 503 at DATABASE_STATEMENT_TIMEOUT."""
    with serving(proxy.url, tmp_path, DATABASE_STATEMENT_TIMEOUT="0.5") as service:
        for ask in (service.read, service.write_once):
            assert ask() == 200
            proxy.hang()
            assert ask() == 503
            assert ask() == 200
            poll(lambda: sum(link.is_open for link in proxy.links) == 1)


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
        assert service.read() == 200
        proxy.vanish()
        assert service.read() == 200
        proxy.vanish()
        poll(lambda: not connected(service, proxy))
        assert service.write_once() == 200


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
        ThreadPoolExecutor() as threads,
    ):
        with locked(proxy.target):
            both = [threads.submit(service.client.get, path) for path in ("/notes/", "/notes/1")]
            poll(lambda: waiting(proxy.target) == 2)
        assert [one.result().status_code for one in both] == [200, 404]
        in_trouble(proxy)
        before = list(proxy.links)
        assert service.read() in (200, 503)
        poll(lambda: not any(link.is_open for link in before))
        assert service.write() == 200


def test_the_wait_for_the_pool(served_database_url: str, tmp_path: Path) -> None:
    """A request that waits for a free connection gets a 503 at DATABASE_POOL_TIMEOUT."""
    url = served_database_url
    with (
        serving(url, tmp_path, DATABASE_POOL_TIMEOUT="0.5") as service,
        ThreadPoolExecutor() as threads,
    ):
        with locked(url):
            first = threads.submit(service.client.get, "/notes/1", timeout=60)
            poll(lambda: waiting(url) > 0)
            for ask in (service.read, service.write, service.write_once):
                assert ask() == 503
            assert not first.done()
        assert first.result().status_code == 404
        assert execute(url, "SELECT count(*) FROM notes") == 0
        assert service.write() == 200


def test_the_wait_for_other_writes_to_a_file(new_database: NewDatabase, tmp_path: Path) -> None:
    """A write behind one that waits for SQLite is 503 at DATABASE_POOL_TIMEOUT."""
    url = new_database("sqlite")
    with (
        serving(url, tmp_path, DATABASE_POOL_TIMEOUT="0.5") as service,
        ThreadPoolExecutor() as threads,
    ):
        with locked(url):
            first = threads.submit(service.client.post, "/notes/batch", json=[NOTE], timeout=60)
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
            assert ask() == 200


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
    """Ends it. subprocess.TimeoutExpired if that takes nearly as long as platforms allow."""
    service.process.send_signal(signal.SIGTERM)
    service.process.wait(20)


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
