"""Real servers: uvicorn in a process of its own, on a free port of the loopback interface."""

import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.support.databases import ROOT, environment


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
        return port


def wait_until_listening(process: subprocess.Popen[bytes], port: int, log: Path) -> None:
    """Returns when the port takes connections; AssertionError with the log if it never does."""
    for _ in range(600):
        assert process.poll() is None, log.read_text()
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.05)
    raise AssertionError(f"no answer on port {port}: {log.read_text()}")


def fitting(variables: dict[str, str]) -> dict[str, str]:
    """With times for the database that fit into REQUEST_TIMEOUT, where that one is given."""
    if "REQUEST_TIMEOUT" not in variables:
        return variables
    parts = {"CONNECT": 0.2, "POOL": 0.2, "STATEMENT": 0.5}
    seconds = float(variables["REQUEST_TIMEOUT"])
    return {f"DATABASE_{part}_TIMEOUT": str(seconds * parts[part]) for part in parts} | variables


@contextmanager
def process(
    arguments: list[str], port: int, log: Path, variables: dict[str, str], cwd: Path = ROOT
) -> Iterator[subprocess.Popen[bytes]]:
    """Runs a server until the block ends, then asks it to stop; its output goes to the log."""
    with log.open("wb") as output:
        server = subprocess.Popen(
            arguments,
            cwd=cwd,
            env=environment(**fitting(variables)),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
        )
    try:
        wait_until_listening(server, port, log)
        yield server
    finally:
        server.terminate()
        try:
            server.wait(30)
        except subprocess.TimeoutExpired:
            server.kill()
            server.wait()
            raise


def uvicorn(port: int, *options: str, app: str = "service.app:app") -> list[str]:
    """The command that serves an app on a port."""
    flags = ["--port", str(port), "--http", "service.protocol:Protocol"]
    return [sys.executable, "-m", "uvicorn", app, *flags, *options]


@contextmanager
def running(
    database_url: str, log: Path, *options: str, app: str = "service.app:app", **variables: str
) -> Iterator[str]:
    """Serves an app on the database and yields its URL, without a slash at the end."""
    port = free_port()
    variables["DATABASE_URL"] = database_url
    with process(uvicorn(port, *options, app=app), port, log, variables):
        yield f"http://127.0.0.1:{port}"
