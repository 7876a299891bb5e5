"""Who takes part, and how each is started and stopped."""

import asyncio
import os
import shutil
import signal
import sys
import time
from asyncio.subprocess import DEVNULL, PIPE, STDOUT, Process
from contextlib import suppress
from dataclasses import dataclass, field
from http.client import HTTPException
from pathlib import Path
from socket import create_server

from benchmarks import processes
from benchmarks.answers import ask
from tests.support.daemons import PATH

ROOT = Path(__file__).parent.parent
START_SECONDS = 30.0
QUIET_SECONDS = 20.0

# What the FastAPI example does; pages are added to most, searches to few.
BASIC = ("list5", "list100", "list1000", "one", "create", "mix")
PAGES = (*BASIC, "pages")
SEARCHES = (*PAGES, "search")


@dataclass(frozen=True)
class Contender:
    """A server to measure, and the workloads that it takes part in.

    `app` is an application for uvicorn or Granian, or the folder of one that npm installs.
    """

    name: str
    title: str
    app: str
    server: str = "uvicorn"
    workloads: tuple[str, ...] = PAGES
    access: str = "open"
    processes: int = 1
    database: str = "postgresql"


# The last two are no alternatives: one has no framework, and one has no database.
CONTENDERS = [
    # As scripts/web runs it.
    Contender("service", "this service", "service.app:app", workloads=SEARCHES),
    Contender("token", "with ACCESS=token", "service.app:app", workloads=("mix",), access="token"),
    Contender("mysql", "on MariaDB", "service.app:app", workloads=SEARCHES, database="mysql"),
    Contender("twin", "FastAPI example", "benchmarks.fastapi_twin_by_id:app", workloads=BASIC),
    Contender("plain", "Starlette, plain", "benchmarks.starlette_plain:app"),
    Contender("litestar", "Litestar", "benchmarks.litestar_app:app"),
    Contender("blacksheep", "BlackSheep", "benchmarks.blacksheep_app:app"),
    Contender("granian", "Granian", "benchmarks.granian_app:app", "granian"),
    Contender("fastify", "Fastify", "fastify", "node"),
    Contender("bun", "Bun", "bun", "bun"),
    Contender("bare", "bare ASGI", "benchmarks.bare_asgi:app", workloads=SEARCHES),
    Contender("constant", "constant body", "benchmarks.constant:app", workloads=BASIC),
]


@dataclass
class Server:
    """A running contender."""

    contender: Contender
    process: Process
    port: int
    start_seconds: float
    headers: dict[str, str] = field(default_factory=dict)

    def ids(self, notes: int) -> int:
        """Returns how many of the notes to ask for; the constant contender has the first."""
        return 1 if self.contender.name == "constant" else notes

    def rss(self) -> int:
        """Returns the resident memory in bytes, 0 of a server that is gone."""
        return processes.rss(self.process.pid)

    def cpu_seconds(self) -> float:
        return processes.cpu_seconds(self.process.pid)

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


async def prepare(contender: Contender) -> str:
    """Installs what npm has to; returns why the contender can't take part, or nothing."""
    if contender.database == "mysql" and shutil.which("mariadbd", path=PATH) is None:
        return "MariaDB is not installed"
    if contender.server not in ("node", "bun"):
        return ""
    node, npm = shutil.which("node"), shutil.which("npm")
    if node is None or npm is None:
        return "node and npm are not installed"
    folder = folder_of(contender)
    if not installed(folder):
        print(f"Installing {contender.title} with npm ...", flush=True)
        options = ["--ignore-scripts", "--no-audit", "--no-fund", "--loglevel=error"]
        process = await asyncio.create_subprocess_exec(
            npm, "ci", *options, cwd=folder, stdin=DEVNULL, stdout=PIPE, stderr=STDOUT
        )
        output, _ = await process.communicate()
        if process.returncode != 0:
            lines = output.decode().strip().splitlines()
            return f"npm ci failed: {lines[0] if lines else process.returncode}"
    if contender.server == "bun" and not bun_programs(contender):
        return "there is no Bun for this machine"
    return ""


def folder_of(contender: Contender) -> Path:
    return ROOT / "benchmarks" / contender.app


def installed(folder: Path) -> bool:
    """Tells whether npm has installed what the lock file names."""
    marker = folder / "node_modules" / ".package-lock.json"
    lock = folder / "package-lock.json"
    return marker.exists() and marker.stat().st_mtime >= lock.stat().st_mtime


def bun_programs(contender: Contender) -> list[Path]:
    """Returns where npm has put Bun; the package's own command is made by a script of its own."""
    return sorted(folder_of(contender).glob("node_modules/@oven/*/bin/bun"))


def free_port() -> int:
    with create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


def command(contender: Contender, port: int) -> list[str]:
    if contender.server in ("node", "bun"):
        program = "node" if contender.server == "node" else str(bun_programs(contender)[0])
        return [program, str(folder_of(contender) / "server.js")]
    python = [sys.executable, "-m", contender.server, contender.app]
    options = ["--host", "127.0.0.1", "--port", str(port), "--loop", "uvloop"]
    options += ["--log-level", "warning", "--no-access-log"]
    if contender.server == "granian":
        return [*python, *options, "--interface", "rsgi", "--http", "1", "--workers", "1"]
    http = "service.protocol:Protocol" if contender.app == "service.app:app" else "httptools"
    return [*python, *options, "--http", http]


async def start(
    contender: Contender, database_env: dict[str, str], token: str, log: Path
) -> Server:
    """Starts a contender and waits for its first answer; the token is that of a user."""
    port = free_port()
    env = os.environ | database_env
    env |= {"ACCESS_LOG": "0", "PORT": str(port), "NODE_ENV": "production"}
    env |= {"ACCESS": contender.access, "WEB_CONCURRENCY": str(contender.processes)}
    headers = {"Authorization": f"Bearer {token}"} if contender.access == "token" else {}
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
        await first_answer(process, port, headers)
    except RuntimeError as error:
        await stop_process(process)
        raise SystemExit(f"{contender.title}: {error}\n{tail(log)}") from None
    except asyncio.CancelledError:
        await stop_process(process)
        raise
    return Server(contender, process, port, time.perf_counter() - began, headers)


def tail(log: Path) -> str:
    return log.read_text(errors="replace")[-2000:]


async def first_answer(process: Process, port: int, headers: dict[str, str]) -> None:
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline:
        if process.returncode is not None:
            raise RuntimeError(f"ended with {process.returncode} at its start")
        try:
            status, _ = ask(port, "GET", "/notes/", headers=headers)
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
        # With the processes that it started; it began a group of its own.
        os.killpg(process.pid, signal.SIGKILL)
        await process.wait()
