"""What a run measured, and the file that it goes into."""

import argparse
import json
import platform
import shutil
import statistics
import subprocess
import sys
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from itertools import zip_longest
from pathlib import Path
from typing import Any

import psutil

from benchmarks.contenders import ROOT, Contender
from benchmarks.large import Listing
from benchmarks.load import Paced, Shot, Workload
from benchmarks.paced import percentile

PACKAGES = [
    *["fastapi", "starlette", "litestar", "blacksheep", "granian", "uvicorn", "uvloop"],
    *["httptools", "databases", "sqlalchemy", "asyncpg", "asyncmy", "marshmallow", "msgspec"],
    *["orjson", "pydantic"],
]
NPM_PACKAGES = {"fastify/fastify": "fastify", "fastify/postgres": "postgres.js", "bun/bun": "bun"}


@dataclass
class Cell:
    """The shots at every contender for one workload, in rounds; then all at the same rate."""

    workload: Workload
    connections: int
    shots: dict[str, list[Shot]]
    paced: dict[str, Paced] = field(default_factory=dict)

    def others(self) -> list[float]:
        """Returns for each round how many cores other programs took, in its worst turn."""
        rounds = zip_longest(*self.shots.values())
        return [max(shot.others for shot in shots if shot is not None) for shots in rounds]


@dataclass
class Results:
    """Everything that a run measured."""

    options: argparse.Namespace
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


def rate(cell: Cell, name: str) -> float | None:
    """Returns the median of the requests per second over the rounds that are not spoiled."""
    rates = [shot.rate for shot in cell.shots.get(name, []) if not shot.spoiled]
    return statistics.median(rates) if rates else None


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
        f"{cell.workload.title}, at the same rate, {results.title(name)}: {paced.spoiled}"
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


def to_json(results: Results) -> dict[str, Any]:
    """Returns the results as they go into the file, from which the tables are made."""
    names = [one.name for one in results.contenders]
    return {
        "date": today(),
        "machine": machine(),
        "versions": results.versions,
        "settings": {name: getattr(results.options, name) for name in ("rounds", "large")},
        "contenders": {one.name: one.title for one in results.contenders},
        "kinds": {one.name: one.kind for one in results.contenders},
        "left_out": results.left_out,
        "spoiled": spoiled(results),
        "workloads": [cell_to_json(cell) for cell in results.cells],
        "processes": {
            name: {
                "start_seconds": [round(one, 3) for one in results.start_seconds[name]],
                "rest_bytes": results.memory_rest[name],
                "after_bytes": results.memory_after[name],
            }
            for name in names
        },
        "large": {
            name: {key: round(value, 1) for key, value in summarize(listings).items()}
            for name, listings in results.large.items()
        },
    }


def cell_to_json(cell: Cell) -> dict[str, Any]:
    return {
        "workload": cell.workload.name,
        "title": cell.workload.title,
        "connections": cell.connections,
        "others": [round(cores, 3) for cores in cell.others()],
        "contenders": {name: entry(cell, name) for name in cell.shots},
    }


def entry(cell: Cell, name: str) -> dict[str, Any]:
    """Returns what is known of one contender in one workload; a spoiled round has no rate."""
    found: dict[str, Any] = {
        "rates": [None if shot.spoiled else round(shot.rate, 1) for shot in cell.shots[name]]
    }
    cpu = cpu_per_thousand(cell, name)
    if cpu is not None:
        keys = ("server", "database")
        found["cpu_seconds_per_1000"] = {
            key: round(value, 4) for key, value in zip(keys, cpu, strict=True) if value is not None
        }
    paced = cell.paced.get(name)
    if paced is not None and not paced.spoiled:
        figures = asdict(paced)
        found["paced"] = {key: round(figures[key], 3) for key in figures if key != "spoiled"}
    return found


def summarize(listings: list[Listing]) -> dict[str, float]:
    """Returns the medians of the listings, their largest memory, and the p99 of all creates."""
    good = [listing for listing in listings if not listing.spoiled]
    if not good:
        return {}
    return {
        "first_byte_ms": statistics.median(listing.first_byte_ms for listing in good),
        "total_ms": statistics.median(listing.total_ms for listing in good),
        "memory_mb": max(listing.memory_mb for listing in good),
        "create_p99_ms": percentile([late for one in good for late in one.creates_ms], 99),
    }


def today() -> str:
    return datetime.now(UTC).date().isoformat()


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
        "system": system(),
        "processor": processor(),
        "cores": psutil.cpu_count(),
        "memory_gb": round(psutil.virtual_memory().total / 2**30, 1),
    }


def system() -> str:
    """Returns the distribution, whose Python it may be, and the kernel."""
    kernel = f"{platform.system()} {platform.release().partition('-')[0]}"
    try:
        return f"{platform.freedesktop_os_release()['PRETTY_NAME']}, {kernel}"
    except OSError:
        return kernel


def processor() -> str:
    if sys.platform == "linux":
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
