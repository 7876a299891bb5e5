"""Deploys: SIGTERM under load loses no request. Retries with a key store a note once."""

import asyncio
import itertools
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from functools import partial
from http.client import HTTPConnection, HTTPException
from pathlib import Path
from typing import IO, NamedTuple

import pytest
from uvicorn import Config

from service import shutdown
from tests.support import template
from tests.support.clusters import connections, is_gone
from tests.support.databases import CONNECTED, ROOT, NewDatabase, environment, execute, locked
from tests.support.flags import arguments, web_command
from tests.support.processes import executor
from tests.support.servers import free_port, wait_until_listening
from tests.support.sockets import head, json_request, read_answer, unread
from tests.support.template import Process
from tests.support.waiting import poll

GRACE = 20
# What only a process that hangs takes.
HANGS = 120
POOL = 2
PROCESSES = [1, 2]


class Web(NamedTuple):
    """The processes of uvicorn as the Procfile's web command starts it."""

    command: Process
    port: int

    def connect(self) -> socket.socket:
        return socket.create_connection(("127.0.0.1", self.port), timeout=HANGS)

    def terminate(self) -> None:
        """Sends SIGTERM to all processes at once, as the platform does."""
        os.killpg(self.command.pid, signal.SIGTERM)

    def wait(self) -> None:
        """Returns when all processes are gone. subprocess.TimeoutExpired if they stay too long."""
        self.command.wait(HANGS)
        poll(lambda: not processes_of(self.command.pid))


def processes_of(group: int) -> list[int]:
    """The processes of a group that have not ended."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        pid = int(folder.name)
        try:
            if os.getpgid(pid) == group and not is_gone(pid):
                found.append(pid)
        except ProcessLookupError:
            continue
    return found


def start_session(command: list[str], output: IO[bytes], **variables: str) -> Process:
    """Starts a command that leads a session, so that its processes are a group."""
    env, file = environment(**variables), output.fileno()
    if template.can_fork(command):
        return template.fork(command, ROOT, env, file, file, start_new_session=True)
    return subprocess.Popen(
        command,
        cwd=ROOT,
        env=env,
        stdin=subprocess.DEVNULL,
        stdout=file,
        stderr=file,
        start_new_session=True,
    )


@contextmanager
def web(
    database_url: str,
    log: Path,
    count: int,
    port: int = 0,
    loop: str = "uvloop",
    grace: int = GRACE,
    **variables: str,
) -> Iterator[Web]:
    """Serves as the Procfile does, with so many processes, and kills those that are left over."""
    script = web_command().replace("--loop uvloop", f"--loop {loop}")
    script = script.replace(f"-graceful-shutdown {GRACE}", f"-graceful-shutdown {grace}")
    variables |= {
        "PORT": str(port or free_port()),
        "WEB_CONCURRENCY": str(count),
        "DATABASE_URL": database_url,
        "DATABASE_POOL_MAX": str(POOL),
    }
    given = arguments(script, log.parent / "script", **variables)
    with log.open("ab") as output:
        running = start_session([sys.executable, "-m", "uvicorn", *given], output, **variables)
    server = Web(running, int(variables["PORT"]))
    begun = log.read_text().count(STARTED)
    try:
        wait_until_listening(running, server.port, log)
        poll(lambda: log.read_text().count(STARTED) >= begun + count, log.read_text)
        yield server
    finally:
        for pid in processes_of(running.pid):
            os.kill(pid, signal.SIGKILL)
        running.wait()


STARTED = "Application startup complete"


class Received(NamedTuple):
    """A complete answer."""

    status: int
    closes: bool
    body: bytes


def receive(connection: socket.socket) -> Received:
    """An answer. http.client's exceptions if it is missing or only a part."""
    response, body = read_answer(connection)
    return Received(response.status, response.getheader("connection") == "close", body)


@pytest.mark.parametrize("count", PROCESSES)
def test_requests_under_way_are_answered(
    new_database: NewDatabase, tmp_path: Path, count: int
) -> None:
    """Requests that wait for the database at SIGTERM are carried out and answered."""
    url = new_database("postgresql")
    execute(url, "INSERT INTO notes (text, completed) VALUES ('old', false)")
    with web(url, tmp_path / "log", count) as server, ExitStack() as stack:
        opened = [stack.enter_context(server.connect()) for _ in range(40)]
        for connection in opened:
            connection.sendall(head("GET", "/notes/1"))
            assert receive(connection).status == 200
        with locked(url):
            for number, connection in enumerate(opened):
                note = b'{"text":"%d","completed":true}' % number
                connection.sendall(
                    (
                        head("GET", f"/notes/?limit={number + 1}"),
                        json_request("POST", "/notes/", note),
                        json_request("POST", "/notes/", note, f"Idempotency-Key: {number}"),
                        json_request("PUT", "/notes/1", note),
                    )[number % 4]
                )
            poll(lambda: not unread(server.port))
            server.terminate()
            poll(lambda: (tmp_path / "log").read_text().count("Shutting down") == count)
        for connection in opened:
            answer = receive(connection)
            assert answer.status == 200
            assert answer.closes
            assert connection.recv(1) == b""
        server.wait()
    texts = execute(url, "SELECT array_agg(text) FROM notes WHERE id > 1")
    assert sorted(texts, key=int) == [str(n) for n in range(40) if n % 4 in (1, 2)]


@pytest.mark.parametrize("count", PROCESSES)
def test_requests_that_take_longer_end_with_the_grace(
    new_database: NewDatabase, tmp_path: Path, count: int
) -> None:
    """A request that takes longer than the grace is refused, and all processes end."""
    log = tmp_path / "log"
    url = new_database("sqlite")
    with (
        # The request's own deadline is far away.
        web(url, log, count, grace=1, REQUEST_TIMEOUT="600") as server,
        server.connect() as client,
    ):
        client.sendall(head("POST", "/notes/", "Content-Length: 9"))
        poll(lambda: not unread(server.port))
        server.terminate()
        answer = receive(client)
        server.wait()
    assert answer.status == 408
    assert "Traceback" not in log.read_text()


class Tally(NamedTuple):
    """The outcomes that clients have seen."""

    outcomes: Counter[str]
    stored: dict[int, str]
    broken: list[str]


def keep_asking(server: Web, name: str, tally: Tally, over: threading.Event) -> None:
    """Sends request after request on one connection, until the server takes no more."""
    connection = server.connect()
    for number in itertools.count():
        text = f"{name}-{number}"
        body = b'{"text":"%b","completed":true}' % text.encode()
        request = (
            json_request("POST", "/notes/", body),
            head("GET", f"/notes/?limit={number % 50 + 1}"),
            json_request("POST", "/notes/", body, f"Idempotency-Key: {text}"),
        )[number % 3]
        try:
            connection.sendall(request)
            first = connection.recv(1, socket.MSG_PEEK)
        except (ConnectionError, BrokenPipeError):
            first = b""
        if not first:
            tally.outcomes["closed before any byte"] += 1
        else:
            try:
                answer = receive(connection)
            except (HTTPException, OSError, ValueError) as error:
                tally.broken.append(repr(error))
                return
            tally.outcomes[str(answer.status)] += 1
            if number % 3 != 1 and answer.status == 200:
                found = re.search(rb'"id":(\d+)', answer.body)
                assert found is not None
                tally.stored[int(found[1])] = text
            if not answer.closes:
                continue
        connection.close()
        if over.is_set():
            return
        try:
            connection = server.connect()
        except OSError:
            return


@pytest.mark.parametrize("count", PROCESSES)
def test_termination_under_load(new_database: NewDatabase, tmp_path: Path, count: int) -> None:
    """At SIGTERM every answer is whole, every stored note is there, and all processes end."""
    url = new_database("postgresql")
    tally, over = Tally(Counter(), {}, []), threading.Event()
    with (
        web(url, tmp_path / "log", count) as server,
        ThreadPoolExecutor(20) as threads,
        connections(url) as (watch,),
    ):
        tasks = [threads.submit(keep_asking, server, str(n), tally, over) for n in range(16)]
        most = 0

        def busy() -> bool:
            nonlocal most
            most = max(most, watch(CONNECTED["postgresql"]))
            return len(tally.stored) > 300

        try:
            poll(busy)
        finally:
            over.set()
            server.terminate()
        server.wait()
        for task in tasks:
            task.result()
    assert not tally.broken
    assert set(tally.outcomes) <= {"200", "closed before any byte"}
    # What could not have been read is at most one request of a client.
    assert tally.outcomes["closed before any byte"] <= len(tasks)
    assert 0 < most <= POOL * count
    rows = json.loads(execute(url, "SELECT json_object_agg(id, text)::text FROM notes"))
    assert tally.stored.items() <= {int(key): rows[key] for key in rows}.items()


def connect_each_time(server: Web, outcomes: Counter[str]) -> None:
    """Sends each request on a connection of its own, until the server takes no more."""
    while True:
        try:
            connection = server.connect()
        except ConnectionRefusedError:
            return
        with connection:
            try:
                connection.sendall(head("GET", "/notes/?limit=5"))
                outcomes[str(receive(connection).status)] += 1
            except (HTTPException, ConnectionError):
                outcomes["lost"] += 1


def busy(outcomes: Counter[str], answers: int) -> bool:
    return outcomes["200"] >= answers


@pytest.mark.parametrize("count", PROCESSES)
def test_termination_loses_no_connection(
    new_database: NewDatabase, tmp_path: Path, count: int
) -> None:
    """At SIGTERM each client with a connection is answered. Later ones are refused."""
    url = new_database("sqlite")
    outcomes: Counter[str] = Counter()
    for number in range(1, 4):
        with web(url, tmp_path / "log", count) as server, ThreadPoolExecutor(16) as threads:
            tasks = [threads.submit(connect_each_time, server, outcomes) for _ in range(16)]
            try:
                poll(partial(busy, outcomes, number * 300))
            finally:
                server.terminate()
            for task in tasks:
                task.result()
            server.wait()
    assert outcomes["lost"] <= 1
    assert set(outcomes) <= {"200", "lost"}


@pytest.mark.parametrize("loop", ["uvloop", "asyncio"])
@pytest.mark.parametrize("count", PROCESSES)
def test_the_queue_is_served(
    new_database: NewDatabase, tmp_path: Path, count: int, loop: str
) -> None:
    """Connections that wait to be accepted at SIGTERM get their answers, and then end."""
    url, log = new_database("sqlite"), tmp_path / "log"
    with (
        # Neither of the two ends who sends nothing.
        web(url, log, count, loop=loop, grace=600, REQUEST_TIMEOUT="600") as server,
        ExitStack() as stack,
    ):
        os.killpg(server.command.pid, signal.SIGSTOP)
        waiting = [stack.enter_context(server.connect()) for _ in range(40)]
        early, late = waiting[:30], waiting[30:]
        for connection in early:
            connection.sendall(head("GET", "/notes/"))
        server.terminate()
        os.killpg(server.command.pid, signal.SIGCONT)
        for connection in early:
            assert receive(connection).status == 200
            assert connection.recv(1) == b""
        poll(lambda: log.read_text().count("Shutting down") == count)
        for connection in late[:5]:
            connection.sendall(head("GET", "/notes/"))
        for connection in late[:5]:
            assert receive(connection)[:2] == (200, True)
        with pytest.raises(ConnectionRefusedError):
            server.connect()
        for connection in late[5:]:
            assert connection.recv(1) == b""
        server.wait()
    assert "Traceback" not in log.read_text()


def test_the_queue_is_left_when_it_is_empty(monkeypatch: pytest.MonkeyPatch) -> None:
    """A connection that the event loop accepts only some turns later is waited for."""
    monkeypatch.setattr(shutdown, "HANDSHAKE_SECONDS", 0)
    monkeypatch.setattr(shutdown, "MAX_DRAIN_SECONDS", 10)

    async def stop(listener: socket.socket) -> bool:
        emptying = asyncio.create_task(shutdown._accept_queued([listener]))
        for _ in range(5):
            await asyncio.sleep(0)
        is_waiting = not emptying.done()
        listener.accept()[0].close()
        await emptying
        return is_waiting

    with (
        socket.create_server(("127.0.0.1", 0)) as listener,
        socket.create_connection(listener.getsockname()),
    ):
        assert asyncio.run(stop(listener))


SHARED: list[socket.socket] = []


def share(listener: socket.socket) -> None:
    """Keeps a listening socket that another process has, too, as a server's process does."""
    SHARED.append(listener)
    shutdown._lock_shared(SHARED)


def is_last() -> bool:
    return shutdown._is_last(SHARED[0], Config("", workers=2))


def test_of_two_that_stop_together_one_is_last() -> None:
    """Of two processes that have not yet closed their socket, one serves the queue for both."""
    with socket.create_server(("127.0.0.1", 0)) as listener, ExitStack() as stack:
        processes = [stack.enter_context(executor()) for _ in range(2)]
        for process in processes:
            process.submit(share, listener).result(60)
        assert [process.submit(is_last).result(60) for process in processes] == [False, True]


def test_a_port_that_another_program_takes_meanwhile(tmp_path: Path) -> None:
    """Processes that can't listen say so in a line, and nobody starts them again."""
    log = tmp_path / "log"
    with socket.socket() as other, log.open("wb") as output:
        other.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        other.bind(("", free_port()))
        variables = {"PORT": str(other.getsockname()[1]), "WEB_CONCURRENCY": "2"}
        with subprocess.Popen(
            ["sh", "-c", web_command()],
            cwd=ROOT,
            env=environment(DATABASE_URL=f"sqlite:///{tmp_path}/notes.db", **variables),
            stdout=output,
            stderr=subprocess.STDOUT,
        ) as running:
            try:
                poll(lambda: "Uvicorn running on" in log.read_text(), log.read_text)
                other.listen()
                running.wait(30)
            finally:
                running.terminate()
    written = log.read_text()
    assert "Another program has begun to listen on the port." in written
    assert "Traceback" not in written


def test_one_process_less_takes_no_connection_from_the_other(
    new_database: NewDatabase, tmp_path: Path
) -> None:
    """A single process that ends is replaced, and its sibling keeps the socket."""
    log = tmp_path / "log"
    with web(new_database("sqlite"), log, 2) as server:
        started = re.findall(r"Started server process \[(\d+)\]", log.read_text())
        os.kill(int(started[0]), signal.SIGTERM)

        def ask() -> bool:
            with server.connect() as connection:
                connection.sendall(head("GET", "/notes/"))
                assert receive(connection).status == 200
            return log.read_text().count(STARTED) == 3

        poll(ask)


def post_until_stored(port: int, key: str, stored: dict[str, int]) -> None:
    """Retries with the same key until there is an answer, and once more after that."""
    body = f'{{"text":"{key}","completed":true}}'
    headers = {"content-type": "application/json", "idempotency-key": key}
    answers = 0
    deadline = time.monotonic() + 60
    while answers < 2:
        assert time.monotonic() < deadline
        connection = HTTPConnection("127.0.0.1", port, timeout=HANGS)
        try:
            connection.request("POST", "/notes/", body, headers)
            response = connection.getresponse()
            text = response.read()
        except (OSError, HTTPException):
            time.sleep(0.1)  # a client that waits before it tries again
            continue
        finally:
            connection.close()
        assert response.status in (200, 503), text
        if response.status == 200:
            answers += 1
            note_id = int(text.split(b'"id":')[1].split(b",")[0])
            assert stored.setdefault(key, note_id) == note_id


def test_restarts_lose_and_double_nothing(new_database: NewDatabase, tmp_path: Path) -> None:
    """Behind clients that retry with a key, restarts under load store each note exactly once."""
    url = new_database("postgresql")
    port = free_port()
    stored: dict[str, int] = {}
    over = threading.Event()

    def client(name: int) -> None:
        for number in itertools.count():
            if over.is_set():
                return
            post_until_stored(port, f"{name}-{number}", stored)

    def more(than: int) -> Callable[[], bool]:
        return lambda: len(stored) > than

    with ThreadPoolExecutor() as threads:
        tasks: list[Future[None]] = []
        for count in (1, 2, 1):
            with web(url, tmp_path / "log", count, port) as server:
                tasks = tasks or [threads.submit(client, name) for name in range(6)]
                poll(more(len(stored) + 50), (tmp_path / "log").read_text)
                server.terminate()
                server.wait()
        with web(url, tmp_path / "log", 1, port):
            over.set()
            for task in tasks:
                task.result()
    texts = execute(url, "SELECT array_agg(text) FROM notes")
    assert sorted(texts) == sorted(stored)
    assert "Traceback" not in (tmp_path / "log").read_text()
