"""The report as tables in Markdown, and the results as JSON."""

import json
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.large import Listing
from benchmarks.paced import percentile
from benchmarks.results import (
    Cell,
    Ratio,
    Results,
    cpu_per_thousand,
    machine,
    ratio,
    spoiled,
)

# A table with more columns is too wide for most terminals.
COLUMNS = 5


def table(rows: list[list[str]]) -> list[str]:
    """Returns rows as a table in Markdown, the first of them its head; only it tells columns."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = []
    for row in rows:
        cells = [row[0].ljust(widths[0])]
        cells += [cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True)]
        lines.append(f"| {' | '.join(cells)} |")
    rule = ["-" * widths[0], *("-" * (width - 1) + ":" for width in widths[1:])]
    return [lines[0], f"| {' | '.join(rule)} |", *lines[1:]]


def markdown(results: Results) -> str:
    """Returns everything that a run measured."""
    lines = [*ratios(results), *costs(results), *latencies(results), *processes(results)]
    lines += large(results)
    for title, reason in results.left_out.items():
        lines += ["", f"{title} is left out: {reason}."]
    lines += ["", about(results)]
    return "\n".join(lines).strip() + "\n"


def about(results: Results) -> str:
    of = machine()
    versions = ", ".join(f"{name} {version}" for name, version in results.versions.items())
    cores = f"{of['cores']} cores of {of['processor']}, {of['memory_gb']} GB"
    return f"{cores}, {of['system']}; {versions}."


def grid(results: Results, connections: int, show: Callable[[Cell, str], str]) -> list[str]:
    """Returns tables with a row for each contender and a column for each workload.

    A contender without a cell in a table has no row there; nor has a table any without columns.
    """
    lines = []
    cells = [cell for cell in results.cells if cell.connections == connections]
    for first in range(0, len(cells), COLUMNS):
        some = cells[first : first + COLUMNS]
        rows = [["", *(cell.workload.title for cell in some)]]
        for name in results.names():
            row = [show(cell, name) for cell in some]
            if any(row):
                rows.append([results.title(name), *(text or "-" for text in row)])
        if len(rows) > 1:
            lines += ["", *table(rows)]
    return lines


def ratios(results: Results) -> list[str]:
    if "service" not in results.names():
        return []
    rounds = results.settings["rounds"]
    lines = []
    for connections in dict.fromkeys(cell.connections for cell in results.cells):
        clients = f"{connections} connection{'s' if connections > 1 else ''}"
        lines += [
            "",
            f"Requests a second of this service / of the other, {clients}: the median of {rounds}"
            " rounds (lowest-highest). Above 1 this service is ahead.",
            *grid(results, connections, show_ratio),
        ]
    return lines


def show_ratio(cell: Cell, name: str) -> str:
    if name == "service" or name not in cell.shots:
        return ""
    found = ratio(cell, "service", name)
    return "spoiled" if found is None else str_ratio(found)


def str_ratio(one: Ratio) -> str:
    return f"{number(one.median)} ({number(one.low)}-{number(one.high)})"


def number(value: float) -> str:
    """Returns a ratio with as many digits as mean something."""
    return f"{value:.2f}" if value < 10 else f"{value:.1f}" if value < 100 else f"{value:.0f}"


def costs(results: Results) -> list[str]:
    def show(cell: Cell, name: str) -> str:
        found = cpu_per_thousand(cell, name)
        if found is None:
            return ""
        server, database = found
        return f"{server:.3f} + {'?' if database is None else f'{database:.3f}'}"

    lines = grid(results, 32, show)
    title = "CPU seconds of the server + of the database for 1,000 requests, 32 connections."
    return ["", title, *lines] if lines else []


def latencies(results: Results) -> list[str]:
    def show(cell: Cell, name: str) -> str:
        paced = cell.paced.get(name)
        if paced is None or paced.spoiled:
            return ""
        return f"{paced.p50_ms:.1f} / {paced.p99_ms:.1f} at {paced.rate:,.0f}"

    lines = grid(results, 32, show)
    title = (
        "Latency in ms, p50 / p99, at half of the requests a second that each server can answer,"
        " which are due at random moments, over 32 connections. It counts from these moments."
    )
    return ["", title, *lines] if lines else []


def processes(results: Results) -> list[str]:
    rows = [["", "first answer, s", "memory at the start, MB", "after the load, MB"]]
    for name in results.names():
        row = [results.title(name), f"{statistics.median(results.start_seconds[name]):.2f}"]
        for memory in (results.memory_rest, results.memory_after):
            row.append(f"{memory[name] / 2**20:.0f}")
        rows.append(row)
    return ["", "Start and resident memory, of all processes of a server.", "", *table(rows)]


def large(results: Results) -> list[str]:
    if not results.large:
        return []
    count = results.settings["large"]
    rows = [["", "first byte, ms", "all, ms", "memory more, MB", "creates' p99, ms"]]
    for name, listings in results.large.items():
        summary = summarize(listings)
        values = [f"{one:,.0f}" for one in summary.values()] if summary else ["spoiled"] * 4
        rows.append([results.title(name), *values])
    title = f"Listing {count:,} notes, while another client creates 50 a second."
    return ["", title, "", *table(rows)]


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


def to_json(results: Results) -> dict[str, Any]:
    """Returns the results as they go into the file."""
    titles = {name: results.title(name) for name in results.names()}
    return {
        "machine": machine(),
        "versions": results.versions,
        "settings": results.settings,
        "contenders": titles,
        "left_out": results.left_out,
        "spoiled": spoiled(results),
        "workloads": [cell_to_json(cell) for cell in results.cells],
        "processes": {
            name: {
                "start_seconds": [round(one, 3) for one in results.start_seconds[name]],
                "rest_bytes": results.memory_rest[name],
                "after_bytes": results.memory_after[name],
            }
            for name in titles
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
        "contenders": {name: entry(cell, name) for name in cell.shots},
    }


def entry(cell: Cell, name: str) -> dict[str, Any]:
    """Returns what is known of one contender in one workload."""
    found: dict[str, Any] = {"rates": [round(shot.rate, 1) for shot in cell.shots[name]]}
    one = ratio(cell, "service", name)
    if one is not None and name != "service":
        values = {"median": one.median, "lowest": one.low, "highest": one.high}
        found["service_ratio"] = {key: round(value, 3) for key, value in values.items()}
    cpu = cpu_per_thousand(cell, name)
    if cpu is not None:
        names = ("server", "database")
        found["cpu_seconds_per_1000"] = {
            key: round(value, 4) for key, value in zip(names, cpu, strict=True) if value is not None
        }
    paced = cell.paced.get(name)
    if paced is not None and not paced.spoiled:
        found["at_half"] = {
            "rate": round(paced.rate, 1),
            "p50_ms": round(paced.p50_ms, 2),
            "p99_ms": round(paced.p99_ms, 2),
        }
    return found


def write_report(results: Results, folder: Path) -> None:
    """Prints the report, and writes it as results.md and everything behind it as results.json."""
    text = markdown(results)
    print(f"\n{text}")
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "results.md").write_text(text)
    (folder / "results.json").write_text(json.dumps(to_json(results), indent=2) + "\n")
    print(f"Wrote results.md and results.json in {folder}")
    for line in spoiled(results):
        print(f"\nSPOILED: {line}")
