"""The workloads, and what wrk makes of them."""

import asyncio
import re
import sys
from asyncio.subprocess import PIPE, STDOUT
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path

from benchmarks import paced
from benchmarks.answers import NEW_NOTE, to_json
from benchmarks.contenders import ROOT, Server

SCRIPT = Path(__file__).parent / "notes.lua"

MISSING_WRK = """\
wrk makes the load, and it is not installed. How to get it:
  Debian, Ubuntu   apt-get install wrk
  Fedora           dnf install wrk
  macOS            brew install wrk
  from source      https://github.com/wg/wrk"""


@dataclass(frozen=True)
class Workload:
    """What is asked for, in turns, of a table that holds so many notes."""

    name: str
    title: str
    notes: int
    kinds: tuple[str, ...]
    connections: tuple[int, ...] = (32,)

    @property
    def writes(self) -> bool:
        return "create" in self.kinds

    @property
    def changes(self) -> bool:
        """Whether somebody else changes the notes while they are read."""
        return "changing" in self.kinds


WORKLOADS = [
    Workload("list5", "list 5, unchanging", 5, ("list",)),
    Workload("list100", "list 100, unchanging", 100, ("list",)),
    Workload("list1000", "list 1,000, unchanging", 1000, ("list",)),
    Workload("changing5", "list 5, changing", 5, ("changing",)),
    Workload("changing100", "list 100, changing", 100, ("changing",), (32, 1)),
    Workload("changing1000", "list 1,000, changing", 1000, ("changing",)),
    Workload("one", "one note", 1000, ("one",), (32, 1)),
    Workload("create", "create", 100, ("create",), (32, 1)),
    Workload("mix", "90 % reads", 100, ("one", "list") * 4 + ("one", "create")),
    Workload("pages", "pages of 20", 10_000, ("page",)),
    Workload("search", "searches", 1000, ("search",)),
]

# More of a core than this disturbs a turn, which is then done again so often at most.
QUIET = 0.25
AGAIN = 3


@dataclass(frozen=True)
class Shot:
    """What one run of wrk saw, and the CPU seconds that it cost; a spoiled one says why.

    `others` is how many cores other programs took meanwhile.
    """

    requests: int = 0
    rate: float = 0.0
    server_cpu: float = 0.0
    database_cpu: float | None = None
    others: float = 0.0
    spoiled: str = ""


async def quietly(take: Callable[[], Awaitable[Shot]], may_repeat: Callable[[], bool]) -> Shot:
    """Takes a shot, again while others disturb it and it may be repeated; returns the quietest."""
    shot = await take()
    for _ in range(AGAIN):
        if shot.others <= QUIET or not may_repeat():
            break
        shot = min(shot, await take(), key=lambda one: one.others)
    return shot


@dataclass(frozen=True)
class Paced:
    """The latencies at a steady rate, and the server's CPU time for a request, in milliseconds.

    Spoiled ones say why.
    """

    rate: float
    p50_ms: float = 0.0
    p99_ms: float = 0.0
    cpu_ms: float = 0.0
    spoiled: str = ""


async def shoot(
    workload: Workload, server: Server, connections: int, seconds: int, notes: Path
) -> tuple[int, float, str]:
    """Loads a server with wrk once; returns the requests, those a second, and what went wrong.

    `notes` is a file with the table's notes, each as JSON on a line.
    """
    new = to_json(NEW_NOTE)[1:].decode()
    headers = [part for pair in server.headers.items() for part in ("-H", ": ".join(pair))]
    process = await asyncio.create_subprocess_exec(
        *["wrk", "-t1", f"-c{connections}", f"-d{seconds}s", "--timeout", "10s", *headers],
        *["-s", str(SCRIPT), f"http://127.0.0.1:{server.port}/notes/"],
        *["--", str(notes), str(server.ids(workload.notes)), new, *workload.kinds],
        stdout=PIPE,
        stderr=STDOUT,
    )
    output, _ = await process.communicate()
    return parse(output.decode(errors="replace"), process.returncode or 0)


def parse(output: str, code: int) -> tuple[int, float, str]:
    """Reads wrk's report: the requests, those a second, and what went wrong."""
    requests = re.search(r"^\s+(\d+) requests in ", output, re.MULTILINE)
    rate = re.search(r"^Requests/sec:\s+([\d.]+)", output, re.MULTILINE)
    if code != 0 or rate is None or requests is None:
        return 0, 0.0, f"wrk failed: {' '.join(output.split())[-200:]}"
    # There are lines for these only where there were any.
    troubles = re.findall(
        r"^\s*(Socket errors: .+|Non-2xx or 3xx responses: .+|Wrong answers: .+)$", output, re.M
    )
    spoiled = "; ".join(troubles) if float(rate[1]) > 0 else "no answers"
    return int(requests[1]), float(rate[1]), spoiled


async def pace(
    workload: Workload, server: Server, connections: int, rate: float, seconds: int
) -> Paced:
    """Sends requests at a steady rate, from a process of its own."""
    ids = server.ids(workload.notes)
    order = paced.Order(
        server.port, server.headers, connections, rate, seconds, workload.notes, ids, workload.kinds
    )
    process = await asyncio.create_subprocess_exec(
        *[sys.executable, "-m", "benchmarks.paced"],
        cwd=ROOT,
        stdin=PIPE,
        stdout=PIPE,
        stderr=STDOUT,
    )
    before = server.cpu_seconds()
    output, _ = await process.communicate(order.to_json())
    used = server.cpu_seconds() - before
    if process.returncode != 0:
        return Paced(rate, spoiled=f"the paced client failed: {output.decode()[-200:]}")
    count, p50, p99, spoiled = paced.read(output)
    return Paced(rate, 1000 * p50, 1000 * p99, 1000 * used / max(1, count), spoiled)
