"""What a run measured, and the medians and ratios of it."""

import json
import platform
import shutil
import statistics
import subprocess
import sys
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import psutil

from benchmarks.contenders import ROOT, Contender
from benchmarks.large import Listing
from benchmarks.load import Paced, Shot, Workload

PACKAGES = [
    *["fastapi", "starlette", "litestar", "blacksheep", "granian", "uvicorn", "uvloop"],
    *["httptools", "databases", "sqlalchemy", "asyncpg", "asyncmy", "marshmallow", "msgspec"],
    *["orjson", "pydantic"],
]
NPM_PACKAGES = {"fastify/fastify": "fastify", "fastify/postgres": "postgres.js", "bun/bun": "bun"}


@dataclass
class Cell:
    """The shots at every contender for one workload, in rounds; then one at half its rate."""

    workload: Workload
    connections: int
    shots: dict[str, list[Shot]]
    paced: dict[str, Paced] = field(default_factory=dict)


@dataclass
class Results:
    """Everything that a run measured."""

    settings: dict[str, int]
    contenders: list[Contender] = field(default_factory=list)
    versions: dict[str, str] = field(default_factory=dict)
    left_out: dict[str, str] = field(default_factory=dict)
    start_seconds: dict[str, list[float]] = field(default_factory=dict)
    memory_rest: dict[str, int] = field(default_factory=dict)
    memory_after: dict[str, int] = field(default_factory=dict)
    cells: list[Cell] = field(default_factory=list)
    large: dict[str, list[Listing]] = field(default_factory=dict)

    def title(self, name: str) -> str:
        return next(one.title for one in self.contenders if one.name == name)

    def names(self) -> list[str]:
        return [one.name for one in self.contenders]


@dataclass(frozen=True)
class Ratio:
    """The median of the rounds' ratios, and their range."""

    median: float
    low: float
    high: float


def rate(cell: Cell, name: str) -> float | None:
    """Returns the median of the requests per second over the rounds that are not spoiled."""
    rates = [shot.rate for shot in cell.shots.get(name, []) if not shot.spoiled]
    return statistics.median(rates) if rates else None


def ratio(cell: Cell, of: str, to: str) -> Ratio | None:
    """Returns how much faster one contender was than another, compared round by round."""
    rounds = zip(cell.shots.get(of, []), cell.shots.get(to, []), strict=False)
    ratios = [a.rate / b.rate for a, b in rounds if not a.spoiled and not b.spoiled]
    return Ratio(statistics.median(ratios), min(ratios), max(ratios)) if ratios else None


def cpu_per_thousand(cell: Cell, name: str) -> tuple[float, float | None] | None:
    """Returns the CPU seconds of the server and of the database that 1,000 requests took."""
    shots = [shot for shot in cell.shots.get(name, []) if not shot.spoiled]
    requests = sum(shot.requests for shot in shots)
    if not requests:
        return None
    server = 1000 * sum(shot.server_cpu for shot in shots) / requests
    used = [shot.database_cpu for shot in shots if shot.database_cpu is not None]
    return server, 1000 * sum(used) / requests if used else None


def spoiled(results: Results) -> list[str]:
    """Returns a line for every spoiled round."""
    lines = [
        f"{cell.workload.title}, {cell.connections} conn., {results.title(name)}, "
        f"round {number}: {shot.spoiled}"
        for cell in results.cells
        for name, shots in cell.shots.items()
        for number, shot in enumerate(shots, start=1)
        if shot.spoiled
    ]
    lines += [
        f"{cell.workload.title}, at half the capacity, {results.title(name)}: {paced.spoiled}"
        for cell in results.cells
        for name, paced in cell.paced.items()
        if paced.spoiled
    ]
    lines += [
        f"large listing, {results.title(name)}, round {number}: {listing.spoiled}"
        for name, listings in results.large.items()
        for number, listing in enumerate(listings, start=1)
        if listing.spoiled
    ]
    return lines


def first_line(*command: str) -> str:
    """Returns the first line that a program prints, or nothing where it is missing."""
    if shutil.which(command[0]) is None:
        return ""
    run = subprocess.run(command, capture_output=True, text=True, check=False)
    return (run.stdout or run.stderr).partition("\n")[0]


def versions(databases: dict[str, str]) -> dict[str, str]:
    """Returns the versions of all that takes part; those of the databases are given."""
    found = {"python": platform.python_version(), **databases}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    found["node"] = first_line("node", "--version").removeprefix("v")
    for place, title in NPM_PACKAGES.items():
        folder, _, package = place.partition("/")
        manifest = ROOT / "benchmarks" / folder / "node_modules" / package / "package.json"
        if manifest.exists():
            found[title] = json.loads(manifest.read_text())["version"]
    found["wrk"] = first_line("wrk", "--version").partition(" [")[0].removeprefix("wrk ")
    return {name: value for name, value in found.items() if value}


def machine() -> dict[str, Any]:
    """Returns what matters of the machine, without its name."""
    return {
        "system": f"{platform.system()} {platform.release().partition('-')[0]}",
        "processor": processor(),
        "cores": psutil.cpu_count(),
        "memory_gb": round(psutil.virtual_memory().total / 2**30, 1),
    }


def processor() -> str:
    if sys.platform == "linux":
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
