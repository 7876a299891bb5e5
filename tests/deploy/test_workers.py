"""The metrics of a server with several processes, some of which are killed."""

import asyncio
import fcntl
import json
import os
import shutil
import signal
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from functools import partial
from pathlib import Path

import httpx2
import psutil
import pytest
from prometheus_client import CollectorRegistry, generate_latest

from service import metrics
from tests.support.clusters import is_gone
from tests.support.databases import NewDatabase, locked
from tests.support.metrics import counts, metric
from tests.support.processes import new_process
from tests.support.servers import started
from tests.support.sockets import connect, json_request
from tests.support.template import Process
from tests.support.waiting import poll

NOTE = {"text": "a", "completed": True}

# Of each process: its gauges, histograms, counters, and its lock.
FILES = 4

# Two processes, whose requests wait for a lock as long as a test holds it.
TWO = {
    "WEB_CONCURRENCY": "2",
    "DATABASE_STATEMENT_TIMEOUT": "60",
    "DATABASE_POOL_TIMEOUT": "60",
    "REQUEST_TIMEOUT": "200",
}


def pids(server: Process) -> list[int]:
    """The processes that serve."""
    children = psutil.Process(server.pid).children()
    return [one.pid for one in children if "--multiprocessing-fork" in one.cmdline()]


async def end_and_begin() -> None:
    """Ends and begins as processes do that meet."""
    folder = metrics._folder
    assert folder is not None
    assert metrics.LOCK.format(metrics._slot) in os.listdir(folder)
    with ThreadPoolExecutor() as pool:
        # One waits for the folder that is being removed.
        held = os.open(folder, os.O_RDONLY)
        fcntl.flock(metrics._entered, fcntl.LOCK_UN)
        fcntl.flock(held, fcntl.LOCK_EX)
        begins = pool.submit(metrics._enter, folder)
        await asyncio.sleep(0.1)
        shutil.rmtree(folder)
        os.close(held)
        entered = begins.result()
    slot, lock = metrics._take_slot(folder)
    # Another one, which ends, leaves it the folder.
    metrics._entered = metrics._enter(folder)
    metrics.end()
    assert os.listdir(folder) == [metrics.LOCK.format(slot)]
    metrics._entered = entered
    metrics.end()
    assert not folder.exists()
    lock.close()


async def ask_and_begin() -> int:
    """Gives how often the files are read, of which one is empty at first."""
    assert metrics._folder is not None
    file = metrics._folder / "counter_99.db"
    file.touch()
    reads = 0

    def read(registry: CollectorRegistry) -> bytes:
        nonlocal reads
        reads += 1
        if reads == 2:
            file.unlink()
        return generate_latest(registry)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(metrics, "generate_latest", read)
        metrics.exposition()
    return reads


def test_a_process_begins_while_the_last_one_ends(
    new_database: NewDatabase, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The last process leaves the folder to one that begins, or that one makes it again.

    Who asks while a process begins its files is answered.
    """
    monkeypatch.setenv("DATABASE_URL", new_database("sqlite"))
    with new_process() as run:
        assert run(ask_and_begin) == 2
        run(end_and_begin)


def test_killed_processes_leave_nothing_but_counts(
    new_database: NewDatabase, tmp_path: Path
) -> None:
    """After a process is killed, the gauges are right and no count has fallen.

    This is so even if nobody asks before another process takes its place. What other servers left
    in the folder of temporary files goes, if no process uses it.
    """
    database_url = new_database("postgresql")
    left, used, pipe = (tmp_path / f"notes-metrics-{letter * 16}" for letter in "abc")
    os.mkfifo(pipe)
    for folder in (left, used):
        folder.mkdir()
        (folder / "counter_0.db").touch()
    user = os.open(used, os.O_RDONLY)
    fcntl.flock(user, fcntl.LOCK_SH)
    log = tmp_path / "log"
    variables = TWO | {"TMPDIR": str(tmp_path), "DATABASE_POOL_MAX": "1"}
    write = json_request("POST", "/notes/", json.dumps(NOTE).encode())

    def in_use() -> float:
        return metric(client, "database_connections_in_use")

    def both_write() -> bool:
        # Each connection may come to either process.
        writers.enter_context(connect(url)).sendall(write)
        return in_use() == 2

    def ready() -> int:
        return log.read_text().count("Application startup complete")

    def created() -> float:
        return counts(client).get(("/notes/", "POST", "200"), 0)

    def replaced(number: int) -> bool:
        # Nobody asks while the second one is replaced.
        assert number or created() == 20
        return ready() == 3 + number

    with (
        started(database_url, log, **variables) as (url, server),
        # Each request may come to another process.
        httpx2.Client(base_url=url, headers={"connection": "close"}, timeout=30) as client,
    ):
        poll(lambda: ready() == 2)
        assert not left.exists()
        (folder,) = set(tmp_path.glob("notes-metrics-*")) - {used, pipe}
        for _ in range(20):
            assert client.post("/notes/", json=NOTE).status_code == 200
        with locked(database_url), ExitStack() as writers:
            poll(both_write)
            for number, pid in enumerate(pids(server)):
                os.kill(pid, signal.SIGKILL)
                poll(partial(is_gone, pid))
                poll(partial(replaced, number))
            assert (created(), in_use()) == (20, 0)
        assert len(os.listdir(folder)) == 2 * FILES
    assert not folder.exists()
    assert os.listdir(used) == ["counter_0.db"]
    os.close(user)
    assert "Traceback" not in log.read_text()


def test_a_killed_process_is_in_no_gauge(new_database: NewDatabase, tmp_path: Path) -> None:
    """The gauges leave a killed process out before another one takes its place."""
    database_url = new_database("sqlite")
    variables = TWO | {"TMPDIR": str(tmp_path)}
    write = json_request("POST", "/notes/", json.dumps(NOTE).encode())
    with (
        started(database_url, tmp_path / "log", **variables) as (url, supervisor),
        httpx2.Client(base_url=url, headers={"connection": "close"}, timeout=30) as client,
        locked(database_url),
        ExitStack() as writers,
    ):

        def in_use() -> float:
            return metric(client, "database_connections_in_use")

        def both_write() -> bool:
            # Each connection may come to either process, which writes once at a time.
            writers.enter_context(connect(url)).sendall(write)
            return in_use() == 2

        poll(both_write)
        killed = min(pids(supervisor))
        supervisor.send_signal(signal.SIGSTOP)
        try:
            os.kill(killed, signal.SIGKILL)
            # Its last thread may end a little later than it does.
            poll(lambda: in_use() == 1)
        finally:
            supervisor.send_signal(signal.SIGCONT)
