"""Three nodes under Patroni and etcd: their primary fails, and nothing is taken back."""

import os
import random
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from itertools import pairwise
from typing import Any

import httpx2
import pytest

from tests.support.databases import execute, migrate
from tests.support.debian import SUPERUSER
from tests.support.following import live, replay
from tests.support.patroni import ROLE, Node, Nodes, running_nodes
from tests.support.servers import running
from tests.support.waiting import poll

WRITERS, READERS = 8, 4
# Every answer comes within 20 seconds, as the service gives up at REQUEST_TIMEOUT.
PATIENCE = 60
TIMEOUTS = {"REQUEST_TIMEOUT": "19", "DATABASE_CONNECT_TIMEOUT": "5", "DATABASE_POOL_TIMEOUT": "5"}
TIMEOUTS |= {"DATABASE_STATEMENT_TIMEOUT": "8"}


@pytest.fixture(scope="module")
def nodes() -> Iterator[Nodes]:
    with running_nodes() as nodes:
        server = nodes.primary().url("postgres", SUPERUSER)
        execute(server, f"CREATE ROLE {ROLE} LOGIN")
        execute(server, f"CREATE DATABASE notes OWNER {ROLE}")
        migrate(nodes.url("notes"))
        live(nodes.url("notes"))
        yield nodes


@pytest.fixture(scope="module")
def service(nodes: Nodes, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    log = tmp_path_factory.mktemp("service") / "log"
    with running(nodes.url("notes"), log, LIVE="1", **TIMEOUTS) as url:
        yield url
    assert "Traceback" not in log.read_text()


class Clients:
    """Writers that insist until each note is stored, and readers of what was acknowledged."""

    def __init__(self, url: str, name: str) -> None:
        self.url = url
        self.name = name
        self.acknowledged: list[tuple[int, str]] = []
        self.acknowledged_at: list[float] = []
        self.answers: Counter[tuple[str, int]] = Counter()
        self.slowest = 0.0
        # What events have made of the table.
        self.told: dict[int, Any] = {}
        self._ended = threading.Event()

    @contextmanager
    def following(self) -> Iterator[None]:
        """A client follows while the block runs, and until it has read all."""
        last = f"{self.name}-last"
        with ThreadPoolExecutor(1) as threads:
            follower = threads.submit(replay, lambda number: f"{self.url}/notes", last)
            yield
            note = {"text": last, "completed": False}
            httpx2.post(f"{self.url}/notes/", json=note, timeout=PATIENCE).raise_for_status()
            self.told = follower.result()

    @contextmanager
    def at_work(self) -> Iterator[None]:
        """Clients ask while the block runs. An error of one of them is raised at its end."""
        with ThreadPoolExecutor(WRITERS + READERS) as threads:
            clients = [threads.submit(self._write, number) for number in range(WRITERS)]
            clients += [threads.submit(self._read) for _ in range(READERS)]
            try:
                self.store_some()
                yield
            finally:
                self._ended.set()
        for client in clients:
            client.result()

    def store_some(self) -> None:
        """Returns after a hundred more notes."""
        before = len(self.acknowledged)
        poll(lambda: len(self.acknowledged) > before + 100, lambda: self.answers)

    def _ask(self, client: httpx2.Client, method: str, path: str, **more: Any) -> httpx2.Response:
        began = time.monotonic()
        answer = client.request(method, path, **more)
        self.slowest = max(self.slowest, time.monotonic() - began)
        self.answers[method, answer.status_code] += 1
        if answer.status_code != 200:
            assert answer.json() == {"detail": "Service Unavailable"}
        # People pause, too, and a failover takes many seconds.
        time.sleep(0.02 if answer.status_code == 200 else 0.05)
        return answer

    def _write(self, writer: int) -> None:
        with httpx2.Client(base_url=self.url, timeout=2 * PATIENCE) as client:
            count = 0
            while not self._ended.is_set():
                text = f"{self.name}-{writer}-{count}"
                note = {"text": text, "completed": False}
                headers = {"idempotency-key": text}
                answer = self._ask(client, "POST", "/notes/", json=note, headers=headers)
                if answer.status_code == 200:
                    self.acknowledged_at.append(time.monotonic())
                    self.acknowledged.append((answer.json()["id"], text))
                    count += 1

    def _read(self) -> None:
        with httpx2.Client(base_url=self.url, timeout=2 * PATIENCE) as client:
            while not self._ended.is_set():
                note_id, text = random.choice(self.acknowledged[-30:] or [(0, "")])
                if note_id:
                    answer = self._ask(client, "GET", f"/notes/{note_id}")
                    assert answer.status_code == 503 or answer.json()["text"] == text


def crash(nodes: Nodes, primary: Node) -> None:
    """The primary crashes with a note that no standby has."""
    senders = "SELECT array_agg(pid) FROM pg_stat_replication"
    for pid in execute(primary.url("postgres", SUPERUSER), senders):
        os.kill(pid, signal.SIGSTOP)
    insert = "INSERT INTO notes (text, completed) VALUES ('crash-lost', false)"
    execute(primary.url("notes"), "SET synchronous_commit = local", insert)
    # Time to tell it, which would be wrong.
    time.sleep(1)
    primary.signal(signal.SIGKILL)
    nodes.wait_for_another(primary)


def freeze(nodes: Nodes, primary: Node) -> None:
    """For longer than the lease lasts."""
    primary.freeze()
    try:
        nodes.wait_for_another(primary)
    finally:
        primary.thaw()


def switch_over(nodes: Nodes, primary: Node) -> None:
    (standby,) = [name for name, role in nodes.roles().items() if role == "sync_standby"]
    primary.ask("/switchover", leader=primary.name, candidate=standby)
    nodes.wait_for_another(primary)


@pytest.mark.parametrize("event", [crash, freeze, switch_over])
def test_another_node_takes_over(
    nodes: Nodes, service: str, event: Callable[[Nodes, Node], None]
) -> None:
    """Acknowledged notes stay and are read, each is stored once, and nobody waits for long.

    A follower has all of them, and nothing that was told is taken back.
    """
    nodes.wait_until_whole()
    clients = Clients(service, event.__name__)
    with clients.following(), clients.at_work():
        began = time.monotonic()
        event(nodes, nodes.primary())
        promoted = time.monotonic()
        poll(lambda: clients.acknowledged_at[-1] > promoted)
        poll(lambda: httpx2.get(f"{service}/health/ready", timeout=30).status_code == 200)
        if event is freeze:
            # The former primary goes on where it stopped, until Patroni makes it a standby.
            nodes.wait_until_whole()
        clients.store_some()
    sql = "SELECT array_agg(id || ' ' || text) FROM notes"
    stored = Counter(execute(nodes.primary().url("notes"), sql))
    assert Counter("{id} {text}".format(**note) for note in clients.told.values()) == stored
    assert [note for note in clients.acknowledged if not stored["{} {}".format(*note)]] == []
    texts = Counter(note.split()[1] for note in stored)
    assert [text for text, count in texts.items() if count > 1] == []
    assert texts["crash-lost"] == 0
    assert {status for _, status in clients.answers} <= {200, 503}, clients.answers
    assert clients.slowest < PATIENCE
    moments = sorted(clients.acknowledged_at)
    pause = max(after - before for before, after in pairwise(moments))
    back = next(moment for moment in moments if moment > promoted) - promoted
    # For people: pytest -rP shows it.
    print(  # noqa: T201
        f"{len(moments)} acknowledged; promoted {promoted - began:.1f} s after the event; written"
        f" {back:.1f} s after that; longest pause {pause:.1f} s; slowest answer"
        f" {clients.slowest:.1f} s; {dict(clients.answers)}"
    )
