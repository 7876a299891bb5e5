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
from typing import Literal

from benchmarks import processes
from benchmarks.answers import ask
from tests.support.daemons import PATH

ROOT = Path(__file__).parent.parent
START_SECONDS = 30.0
QUIET_SECONDS = 20.0

LISTS = ("list5", "list100", "list1000")
# What the FastAPI example does; pages are added to most, searches to few.
BASIC = (*LISTS, "changing5", "changing100", "changing1000", "one", "create", "mix")
PAGES = (*BASIC, "pages")
SEARCHES = (*PAGES, "search")
# Enough to see what a method of this service brings.
FEW = ("list100", "one", "create")

# As scripts/web has them.
UVICORN = [
    *["--loop", "uvloop", "--timeout-keep-alive", "95", "--timeout-graceful-shutdown", "20"],
    *["--no-server-header", "--no-access-log", "--forwarded-allow-ips"],
    "127.0.0.1,::1,10.0.0.0/8,172.16.0.0/12,192.168.0.0/16,fc00::/7",
]

# Standard: as the documentation shows an application. Tuned: written or configured for speed.
# A variant is this service in another way, and a bound is no alternative to it.
Kind = Literal["standard", "tuned", "variant", "bound"]


@dataclass(frozen=True)
class Contender:
    """A server to measure, what it is, and the workloads that it takes part in.

    `app` is an application for uvicorn or Granian, or the folder of one that npm installs. `page`
    is the documentation that recommends this configuration. `without` is a key of METHODS in
    without.py.
    """

    name: str
    title: str
    kind: Kind
    app: str
    about: str = ""
    page: str = ""
    server: str = "uvicorn"
    workloads: tuple[str, ...] = PAGES
    access: str = "open"
    processes: int = 1
    database: str = "postgresql"
    without: str = ""
    followers: int = 0
    """How many clients follow the notes during its turns."""


SERVICE = Contender(
    "service",
    "this service",
    "tuned",
    "service.app:app",
    "as `scripts/web` runs it",
    "deploying.md",
    workloads=SEARCHES,
)


def variant(without: str, title: str, about: str, workloads: tuple[str, ...] = FEW) -> Contender:
    """This service without one of its methods."""
    app = "benchmarks.without:app"
    name = f"without-{without}"
    return Contender(name, title, "variant", app, about, workloads=workloads, without=without)


CONTENDERS = [
    SERVICE,
    variant("sharing", "one query for each request", "queries aren't shared", SEARCHES),
    Contender(
        "twin",
        "FastAPI example",
        "standard",
        "benchmarks.fastapi_twin_by_id:app",
        "the example on today's FastAPI, with a route for one note in addition",
        "https://github.com/fastapi/fastapi/blob/0.115.0/docs_src/async_sql_databases/tutorial001.py",
        workloads=BASIC,
    ),
    Contender(
        "plain",
        "Starlette, plain",
        "standard",
        "benchmarks.starlette_plain:app",
        "databases, marshmallow and `JSONResponse`: the libraries of this service",
        "https://github.com/encode/databases/blob/master/docs/database_queries.md",
    ),
    Contender(
        "litestar",
        "Litestar",
        "standard",
        "benchmarks.litestar_app:app",
        "with msgspec and an asyncpg pool",
        "https://docs.litestar.dev/2/usage/applications.html",
    ),
    Contender(
        "blacksheep",
        "BlackSheep",
        "tuned",
        "benchmarks.blacksheep_app:app",
        "with msgspec, an asyncpg pool, and its low-level responses",
        "https://github.com/Neoteroi/BlackSheep-Docs/blob/main/docs/responses.md",
    ),
    Contender(
        "granian",
        "Granian",
        "tuned",
        "benchmarks.granian_app:app",
        "an RSGI application without a framework, with msgspec and an asyncpg pool",
        "https://github.com/emmett-framework/granian/blob/master/README.md",
        "granian",
    ),
    Contender(
        "fastify",
        "Fastify",
        "standard",
        "fastify",
        "on Node, with schemas and postgres.js",
        "https://fastify.dev/docs/latest/Reference/Validation-and-Serialization/",
        "node",
    ),
    Contender(
        "bun",
        "Bun",
        "standard",
        "bun",
        "`Bun.serve` with `Bun.SQL`",
        "https://bun.sh/docs/runtime/sql",
        "bun",
    ),
    Contender(
        "bare",
        "bare ASGI",
        "bound",
        "benchmarks.bare_asgi:app",
        "a function without a framework, with msgspec and an asyncpg pool",
        "https://jcristharif.com/msgspec/perf-tips.html",
        workloads=SEARCHES,
    ),
    Contender(
        "constant",
        "constant body",
        "bound",
        "benchmarks.constant:app",
        "Starlette without a database; it answers with bodies made in advance",
        workloads=FEW,
    ),
    Contender(
        "token",
        "with ACCESS=token",
        "variant",
        SERVICE.app,
        "with the token of a user in each request",
        workloads=("mix",),
        access="token",
    ),
    Contender(
        "mysql",
        "on MariaDB",
        "variant",
        SERVICE.app,
        "instead of PostgreSQL, and of the same durability",
        workloads=("one", "create", "mix"),
        database="mysql",
    ),
    Contender(
        "live",
        "with changes recorded",
        "variant",
        SERVICE.app,
        "with `LIVE=1`: triggers record each change",
        workloads=("create",),
        database="live",
    ),
    Contender(
        "followed",
        "with 100 followers",
        "variant",
        SERVICE.app,
        "the same, and 100 clients follow the notes",
        workloads=("create",),
        database="live",
        followers=100,
    ),
    variant(
        "statements",
        "without compiled statements",
        "as encode/databases does",
    ),
    variant("schemas", "without compiled schemas", "with marshmallow's `load` and `dump`"),
    variant("layer", "with three layers", "Starlette's two around the service's own"),
    variant("write", "without one write", "head and body are written apart, as uvicorn does"),
    variant(
        "pages",
        "without kept pages",
        "encoded also if the rows are the same",
    ),
    variant("all", "without all six", "all of these changes at once"),
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
    options = ["--host", "127.0.0.1", "--port", str(port)]
    if contender.server == "granian":
        options += ["--loop", "uvloop", "--log-level", "warning", "--no-access-log"]
        return [*python, *options, "--interface", "rsgi", "--http", "1", "--workers", "1"]
    is_service = contender.app == SERVICE.app or contender.without
    http = "service.protocol:Protocol" if is_service else "httptools"
    return [*python, *options, *UVICORN, "--http", http]


async def start(
    contender: Contender, database_env: dict[str, str], token: str, log: Path
) -> Server:
    """Starts a contender and waits for its first answer; the token is that of a user."""
    port = free_port()
    env = os.environ | database_env
    env |= {"ACCESS_LOG": "0", "PORT": str(port), "NODE_ENV": "production"}
    env |= {"ACCESS": contender.access, "WEB_CONCURRENCY": str(contender.processes)}
    env |= {"WITHOUT": contender.without}
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
