"""Who takes part, and how each is started and stopped."""

import asyncio
import os
import shutil
import sys
import time
from asyncio.subprocess import DEVNULL, PIPE, STDOUT, Process
from contextlib import suppress
from dataclasses import dataclass
from http.client import HTTPException
from pathlib import Path
from socket import create_server

import psutil

from benchmarks.answers import ask

ROOT = Path(__file__).parent.parent
FASTIFY = ROOT / "benchmarks" / "fastify"
START_SECONDS = 30.0
QUIET_SECONDS = 20.0


@dataclass(frozen=True)
class Contender:
    """A server to measure; one without an app is the one that runs on Node."""

    name: str
    title: str
    app: str = ""
    http: str = "httptools"


CONTENDERS = [
    Contender("twin", "FastAPI twin", "benchmarks.fastapi_twin_by_id:app"),
    Contender("plain", "Starlette, plain", "benchmarks.starlette_plain:app"),
    # As the Procfile runs it.
    Contender("service", "this service", "service.app:app", "service.protocol:Protocol"),
    Contender("litestar", "Litestar", "benchmarks.litestar_app:app"),
    Contender("fastify", "Fastify", ""),
    Contender("bare", "bare ASGI", "benchmarks.bare_asgi:app"),
    Contender("constant", "constant body", "benchmarks.constant:app"),
]


@dataclass
class Server:
    """A running contender."""

    contender: Contender
    process: Process
    port: int
    start_seconds: float

    def rss(self) -> int:
        """Returns the resident memory in bytes, 0 of a server that is gone."""
        try:
            return int(psutil.Process(self.process.pid).memory_info().rss)
        except psutil.NoSuchProcess:
            return 0

    def cpu_seconds(self) -> float:
        try:
            times = psutil.Process(self.process.pid).cpu_times()
        except psutil.NoSuchProcess:
            return 0.0
        return float(times.user + times.system)

    async def quiet(self) -> None:
        """Waits until the server has worked off what wrk left in its queue.

        A server goes on with requests whose client is gone, for seconds if it is slow, and would
        slow the next one down and write into a table that is already reset.
        """
        deadline = time.monotonic() + QUIET_SECONDS
        used, before = self.cpu_seconds(), -1.0
        while used - before > 0.01 and time.monotonic() < deadline:
            await asyncio.sleep(0.1)
            used, before = self.cpu_seconds(), used


async def prepare_fastify() -> str:
    """Installs Fastify's packages; returns why it can't take part, or nothing."""
    node, npm = shutil.which("node"), shutil.which("npm")
    if node is None or npm is None:
        return "node and npm are not installed"
    if installed():
        return ""
    print("Installing Fastify with npm ...", flush=True)
    options = ["--ignore-scripts", "--no-audit", "--no-fund", "--loglevel=error"]
    process = await asyncio.create_subprocess_exec(
        npm, "ci", *options, cwd=FASTIFY, stdin=DEVNULL, stdout=PIPE, stderr=STDOUT
    )
    output, _ = await process.communicate()
    if process.returncode != 0:
        lines = output.decode().strip().splitlines()
        return f"npm ci failed: {lines[0] if lines else process.returncode}"
    return ""


def installed() -> bool:
    """Tells whether npm has installed what the lock file names."""
    marker = FASTIFY / "node_modules" / ".package-lock.json"
    lock = FASTIFY / "package-lock.json"
    return marker.exists() and marker.stat().st_mtime >= lock.stat().st_mtime


def free_port() -> int:
    with create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


def command(contender: Contender, port: int) -> list[str]:
    if not contender.app:
        return ["node", str(FASTIFY / "server.js")]
    options = ["--host", "127.0.0.1", "--port", str(port), "--loop", "uvloop"]
    options += ["--http", contender.http, "--no-access-log", "--log-level", "warning"]
    return [sys.executable, "-m", "uvicorn", contender.app, *options]


async def start(contender: Contender, database_env: dict[str, str], log: Path) -> Server:
    """Starts a contender and waits for its first answer."""
    port = free_port()
    env = os.environ | database_env
    env |= {"ACCESS_LOG": "0", "PORT": str(port), "NODE_ENV": "production"}
    with log.open("ab") as output:
        began = time.perf_counter()
        process = await asyncio.create_subprocess_exec(
            *command(contender, port),
            cwd=ROOT,
            env=env,
            stdin=DEVNULL,
            stdout=output,
            stderr=STDOUT,
            # An interrupt from the keyboard shall reach the benchmark only, which stops them all.
            start_new_session=True,
        )
    try:
        await first_answer(process, port)
    except RuntimeError as error:
        await stop_process(process)
        raise SystemExit(f"{contender.title}: {error}\n{tail(log)}") from None
    except asyncio.CancelledError:
        await stop_process(process)
        raise
    return Server(contender, process, port, time.perf_counter() - began)


def tail(log: Path) -> str:
    return log.read_text(errors="replace")[-2000:]


async def first_answer(process: Process, port: int) -> None:
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline:
        if process.returncode is not None:
            raise RuntimeError(f"ended with {process.returncode} at its start")
        try:
            status, _ = ask(port, "GET", "/notes/")
        except (OSError, HTTPException):
            await asyncio.sleep(0.005)
            continue
        if status != 200:
            raise RuntimeError(f"answered {status} at its start")
        return
    raise RuntimeError(f"gave no answer within {START_SECONDS:.0f} s")


async def stop(server: Server) -> None:
    """Ends a contender."""
    await stop_process(server.process)


async def stop_process(process: Process) -> None:
    with suppress(ProcessLookupError):
        process.terminate()
    try:
        await asyncio.wait_for(process.wait(), 10)
    except TimeoutError:
        process.kill()
        await process.wait()
