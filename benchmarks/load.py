"""The workloads, and what wrk makes of them."""

import asyncio
import re
from asyncio.subprocess import PIPE, STDOUT
from dataclasses import dataclass
from pathlib import Path

SCRIPTS = Path(__file__).parent / "wrk"

MISSING_WRK = """\
wrk makes the load, and it is not installed. How to get it:
  Debian, Ubuntu   apt-get install wrk
  Fedora           dnf install wrk
  macOS            brew install wrk
  from source      https://github.com/wg/wrk"""

MILLISECONDS = {"us": 0.001, "ms": 1.0, "s": 1000.0, "m": 60_000.0}


@dataclass(frozen=True)
class Workload:
    """What wrk asks for, of a table that holds so many notes."""

    name: str
    title: str
    notes: int
    kinds: tuple[str, ...] = ("list",)
    script: str = ""

    @property
    def writes(self) -> bool:
        return "create" in self.kinds


WORKLOADS = [
    Workload("list5", "list 5 notes", 5),
    Workload("list100", "list 100 notes", 100),
    Workload("list1000", "list 1,000 notes", 1000),
    Workload("one", "one note by id", 1000, ("one",), "one.lua"),
    Workload("create", "create a note", 100, ("create",), "create.lua"),
    Workload("mix", "90 % reads, 10 % creates", 100, ("list", "one", "create"), "mix.lua"),
]


@dataclass(frozen=True)
class Shot:
    """What one run of wrk saw; a spoiled one says why."""

    rate: float
    p99_ms: float
    spoiled: str


async def shoot(workload: Workload, port: int, connections: int, seconds: int) -> Shot:
    """Loads a contender with wrk once."""
    script = ["-s", str(SCRIPTS / workload.script)] if workload.script else []
    process = await asyncio.create_subprocess_exec(
        *["wrk", "-t1", f"-c{connections}", f"-d{seconds}s", "--timeout", "10s", "--latency"],
        *[*script, f"http://127.0.0.1:{port}/notes/", "--", str(workload.notes)],
        stdout=PIPE,
        stderr=STDOUT,
    )
    output, _ = await process.communicate()
    return parse(output.decode(), process.returncode or 0)


def parse(output: str, code: int) -> Shot:
    """Reads wrk's report."""
    rate = re.search(r"^Requests/sec:\s+([\d.]+)", output, re.MULTILINE)
    p99 = re.search(r"^\s+99%\s+([\d.]+)(us|ms|s|m)\s*$", output, re.MULTILINE)
    if code != 0 or rate is None or p99 is None:
        return Shot(0.0, 0.0, f"wrk failed: {' '.join(output.split())[-200:]}")
    # wrk has lines for these only where there were any. It counts 4xx and 5xx; that a contender
    # does not redirect is known from the check of its answers.
    troubles = re.findall(r"^\s+(Socket errors: .+|Non-2xx or 3xx responses: .+)$", output, re.M)
    spoiled = "; ".join(troubles) if float(rate[1]) > 0 else "no answers"
    return Shot(float(rate[1]), float(p99[1]) * MILLISECONDS[p99[2]], spoiled)
