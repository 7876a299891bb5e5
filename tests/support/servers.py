"""Real servers: uvicorn in a process of its own, on a free port of the loopback interface."""

import atexit
import itertools
import os
import random
import signal
import socket
import subprocess
import sys
from collections import deque
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager, nullcontext
from pathlib import Path
from typing import Any

import httpx2

from tests.support.databases import ROOT, start
from tests.support.template import Process
from tests.support.waiting import poll

# Each worker of the tests has its own ports. Linux gives clients others, from 32768 on; browsers
# refuse some below 11000.
_WORKERS = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
_PORTS = 20_000 // _WORKERS
# A worker that takes the place of another has a new number.
_first = 11_000 + int(os.environ.get("PYTEST_XDIST_WORKER", "gw0")[2:]) % _WORKERS * _PORTS
_numbers = itertools.count(random.randrange(_PORTS))


# UDP ports of the same numbers: nobody listens there, and other runs of the tests see them.
_reserved: deque[socket.socket] = deque()
MOST_RESERVED = 100


@atexit.register
def _release() -> None:
    for reserved in _reserved:
        reserved.close()


def free_port() -> int:
    """A port on which nobody listens, and which is not given to anyone else soon."""
    while True:
        port = _first + next(_numbers) % _PORTS
        reserved = socket.socket(type=socket.SOCK_DGRAM)
        try:
            reserved.bind(("", port))
            with socket.socket() as listener:
                listener.bind(("", port))
        except OSError:
            reserved.close()
            continue
        _reserved.append(reserved)
        if len(_reserved) > MOST_RESERVED:
            _reserved.popleft().close()
        return port


def nowhere(kind: str = "postgresql") -> str:
    """The URL of a server that isn't there."""
    return f"{kind}://nobody@127.0.0.1:{free_port()}/notes"


def wait_until_listening(process: Process, port: int, log: Path) -> None:
    """Returns when the port takes connections. AssertionError with the log if it doesn't."""

    def is_listening() -> bool:
        assert process.poll() is None, log.read_text()
        with socket.socket() as probe:
            return probe.connect_ex(("127.0.0.1", port)) == 0

    poll(is_listening, log.read_text)


def end(process: subprocess.Popen[Any] | Process, how: signal.Signals = signal.SIGTERM) -> None:
    """Asks a process to end. Kills it, with subprocess.TimeoutExpired, if it doesn't."""
    process.send_signal(how)
    try:
        process.wait(120)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
        raise


def fitting(variables: dict[str, str]) -> dict[str, str]:
    """Adds timeouts for the database that fit into a given REQUEST_TIMEOUT."""
    if "REQUEST_TIMEOUT" not in variables:
        return variables
    parts = {"CONNECT": 0.2, "POOL": 0.2, "STATEMENT": 0.5}
    seconds = float(variables["REQUEST_TIMEOUT"])
    return {f"DATABASE_{part}_TIMEOUT": str(seconds * parts[part]) for part in parts} | variables


@contextmanager
def process(
    arguments: list[str],
    port: int,
    log: Path,
    variables: dict[str, str],
    cwd: Path = ROOT,
    errors: Path | None = None,
) -> Iterator[Process]:
    """Runs a server until the block ends. Its output goes to the log, or errors to another one."""
    with (
        log.open("wb") as stdout,
        errors.open("wb") if errors else nullcontext(stdout) as stderr,
    ):
        server = start(arguments, stdout, stderr, cwd, **fitting(variables))
    try:
        wait_until_listening(server, port, log)
        yield server
    finally:
        end(server)


def uvicorn(port: int, *options: str, app: str = "service.app:app") -> list[str]:
    """The command that serves an app on a port."""
    flags = ["--port", str(port), "--http", "service.protocol:Protocol"]
    return [sys.executable, "-m", "uvicorn", app, *flags, *options]


@contextmanager
def started(
    database_url: str, log: Path, *options: str, app: str = "service.app:app", **variables: str
) -> Iterator[tuple[str, Process]]:
    """Serves an app on the database, and yields its URL, without a final slash, and process."""
    port = free_port()
    variables["DATABASE_URL"] = database_url
    with process(uvicorn(port, *options, app=app), port, log, variables) as server:
        yield f"http://127.0.0.1:{port}", server


@contextmanager
def running(
    database_url: str, log: Path, *options: str, app: str = "service.app:app", **variables: str
) -> Iterator[str]:
    """Serves an app on the database, and yields its URL, without a final slash."""
    with started(database_url, log, *options, app=app, **variables) as (url, _):
        yield url


@contextmanager
def serving(
    database_url: str, log: Path, *options: str, **variables: str
) -> Iterator[httpx2.Client]:
    """Serves on the database and yields a client. AssertionError for a traceback in the log."""
    with (
        running(database_url, log, *options, **variables) as url,
        httpx2.Client(base_url=url, timeout=30) as client,
    ):
        yield client
    assert "Traceback" not in log.read_text()


@asynccontextmanager
async def async_clients(urls: list[str]) -> AsyncIterator[list[httpx2.AsyncClient]]:
    """A client of each service."""
    async with AsyncExitStack() as stack:
        yield [
            await stack.enter_async_context(httpx2.AsyncClient(base_url=url, timeout=60))
            for url in urls
        ]
