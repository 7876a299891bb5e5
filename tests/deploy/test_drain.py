"""DRAIN_SECONDS: what routers send before they learn that a process stops is served."""

import itertools
import signal
import threading
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing
from http.client import HTTPConnection, HTTPException
from pathlib import Path

from tests.support.databases import NewDatabase
from tests.support.servers import started
from tests.support.template import Process
from tests.support.waiting import poll

RESTARTS = 8
CLIENTS = 4
# Longer than the router needs on a busy machine. The restarts don't wait for its end.
DRAIN = "8"


class Router:
    """Sends requests to one of some ports, each by a connection of its own, until it `ends`."""

    def __init__(self) -> None:
        self.ports: list[int] = []
        self.served: Counter[int] = Counter()
        self.failed: list[str] = []
        self.ends = threading.Event()

    def send(self) -> None:
        for number in itertools.count():
            if self.ends.wait(0.05):
                return
            ports = self.ports
            port = ports[number % len(ports)]
            connection = HTTPConnection("127.0.0.1", port, timeout=60)
            try:
                connection.request("GET", "/notes/?limit=1")
                status = connection.getresponse().status
            except (OSError, HTTPException) as error:
                self.failed.append(repr(error))
                continue
            finally:
                connection.close()
            if status == 200:
                self.served[port] += 1
            else:
                self.failed.append(str(status))


def answer(port: int, path: str) -> tuple[int, str, str | None]:
    """The status, the body and the header Connection of a GET on a connection of its own."""
    with closing(HTTPConnection("127.0.0.1", port, timeout=60)) as connection:
        connection.request("GET", path)
        response = connection.getresponse()
        return response.status, response.read().decode(), response.headers["connection"]


def is_ready(port: int) -> bool:
    return answer(port, "/health/ready")[0] == 200


def stop_late(router: Router, port: int, process: Process) -> None:
    """Asks a process to stop. The router learns of it only after it has sent more requests."""
    process.send_signal(signal.SIGTERM)
    poll(lambda: not is_ready(port))
    served = router.served[port]
    poll(lambda: router.served[port] >= served + CLIENTS)
    router.ports = [other for other in router.ports if other != port]


def test_no_request_fails_in_rolling_restarts(new_database: NewDatabase, tmp_path: Path) -> None:
    """A router that learns of each stop after it has sent more requests sees none of them fail."""
    url = new_database("sqlite")
    router = Router()
    servers: list[tuple[int, Process]] = []
    with ExitStack() as stack, ThreadPoolExecutor(CLIENTS) as threads:
        clients = []
        try:
            for number in range(RESTARTS + 1):
                drain = DRAIN if number < RESTARTS else "0"
                log = tmp_path / f"{number}.log"
                address, process = stack.enter_context(started(url, log, DRAIN_SECONDS=drain))
                servers.append((int(address.rpartition(":")[2]), process))
                router.ports = [*router.ports, servers[-1][0]]
                if number:
                    stop_late(router, *servers[-2])
                else:
                    clients = [threads.submit(router.send) for _ in range(CLIENTS)]
        finally:
            router.ends.set()
        for client in clients:
            client.result()
    assert router.failed == []
    assert all(router.served[port] for port, _ in servers[:-1])
    for log in tmp_path.glob("*.log"):
        assert "Application shutdown complete" in log.read_text()
        assert "Traceback" not in log.read_text()


def test_what_is_served_meanwhile(new_database: NewDatabase, tmp_path: Path) -> None:
    """Until it stops it is live, but not ready, and its answers close their connections."""
    log = tmp_path / "log"
    with started(new_database("sqlite"), log, DRAIN_SECONDS="600") as (address, process):
        port = int(address.rpartition(":")[2])
        assert answer(port, "/health/ready") == (200, '{"status":"ready"}', None)
        process.send_signal(signal.SIGTERM)
        poll(lambda: not is_ready(port))
        stops = '{"detail":"The service is stopping"}'
        assert answer(port, "/health/ready") == (503, stops, "close")
        assert answer(port, "/health/live") == (200, '{"status":"live"}', "close")
        assert answer(port, "/notes/") == (200, "[]", "close")
        process.send_signal(signal.SIGINT)
        process.wait(60)
    assert "Traceback" not in log.read_text()
