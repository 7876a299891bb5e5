"""The report on the terminal, and the results as JSON."""

import json
import statistics
from pathlib import Path
from typing import Any

from benchmarks.large import Listing
from benchmarks.results import Cell, Ratio, Results, machine, percentile, rate, ratio, spoiled

# How many times as many requests as another contender the service shall answer.
TARGETS = {
    ("list5", 32): {"twin": 5.0, "fastify": 1.0, "constant": 0.5},
    ("list100", 32): {"twin": 10.0, "fastify": 1.5, "constant": 0.7},
    ("list1000", 32): {"twin": 40.0, "fastify": 5.0, "constant": 0.5},
    ("one", 32): {"twin": 5.0, "fastify": 0.9},
    ("create", 32): {"twin": 4.5, "fastify": 1.0, "constant": 0.5},
    ("list100", 1): {"twin": 2.5},
    ("create", 1): {"twin": 1.8},
}
LARGE_TARGETS = {"first_byte_ms": 250.0, "memory_mb": 32.0, "create_p99_ms": 150.0}


def print_table(rows: list[list[str]]) -> None:
    """Prints rows as columns: the first one's cells to the left, the others' to the right."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    for row in rows:
        cells = [row[0].ljust(widths[0])]
        cells += [cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True)]
        print("  " + "  ".join(cells).rstrip())


def label(cell: Cell) -> str:
    return f"{cell.workload.title}, {cell.connections} conn."


def print_report(results: Results) -> None:
    """Prints everything that a run measured."""
    rounds, seconds = results.settings["rounds"], results.settings["seconds"]
    if results.cells:
        print(f"\nRequests per second (median of {rounds} rounds of {seconds} s)\n")
        head = ["", *map(results.title, results.names())]
        print_table([head, *(rates_row(results, cell) for cell in results.cells)])
        print_ratios(results, "service", [name for name in results.names() if name != "service"])
        print_ratios(results, "plain", [name for name in results.names() if name == "twin"])
        print_targets(results)
    print("\nProcesses\n")
    print_table(process_rows(results))
    if results.large:
        count = results.settings["large"]
        print(f"\nListing {count:,} notes, {rounds} times, another client creating 50 a second\n")
        print_table(large_rows(results))
    for title, reason in results.left_out.items():
        print(f"\n{title} is left out: {reason}.")
    for line in spoiled(results):
        print(f"\nSPOILED: {line}")


def rates_row(results: Results, cell: Cell) -> list[str]:
    rates = [rate(cell, name) for name in results.names()]
    return [label(cell), *("spoiled" if one is None else f"{one:,.0f}" for one in rates)]


def print_ratios(results: Results, of: str, others: list[str]) -> None:
    """Prints how one contender compares with others: the rounds' median ratio and their range."""
    if of not in results.names() or not others:
        return
    print(f"\nRatios of {results.title(of)} to ... (median of the rounds, lowest-highest)\n")
    rows = [["", *map(results.title, others)]]
    for cell in results.cells:
        ratios = [ratio(cell, of, other) for other in others]
        rows.append([label(cell), *("spoiled" if one is None else show(one) for one in ratios)])
    print_table(rows)


def show(one: Ratio) -> str:
    return f"{one.median:.2f} ({one.low:.2f}-{one.high:.2f})"


def print_targets(results: Results) -> None:
    """Prints the ratios that the service shall reach, and whether it does."""
    rows = [["", "to", "shall be", "is", ""]]
    for cell in results.cells:
        wanted = TARGETS.get((cell.workload.name, cell.connections), {})
        for other, factor in wanted.items():
            if (found := ratio(cell, "service", other)) is not None:
                verdict = "reached" if found.median >= factor else "MISSED"
                title = results.title(other)
                rows.append([label(cell), title, f"{factor}", f"{found.median:.2f}", verdict])
    if len(rows) > 1:
        print("\nTargets of this service\n")
        print_table(rows)


def process_rows(results: Results) -> list[list[str]]:
    rows = [["", "first answer s", "memory at rest MB", "memory after MB"]]
    for name in results.names():
        row = [results.title(name), f"{statistics.median(results.start_seconds[name]):.2f}"]
        for memory in (results.memory_rest, results.memory_after):
            row.append(f"{memory[name] / 2**20:.0f}")
        rows.append(row)
    return rows


def large_rows(results: Results) -> list[list[str]]:
    rows = [["", "first byte ms", "total ms", "memory more MB", "creates' p99 ms", ""]]
    for name, listings in results.large.items():
        summary = summarize(listings)
        if not summary:
            rows.append([results.title(name), *["spoiled"] * 4, ""])
            continue
        missed = [key for key, most in LARGE_TARGETS.items() if summary[key] > most]
        verdict = ("MISSED" if missed else "targets reached") if name == "service" else ""
        rows.append([results.title(name), *(f"{one:,.0f}" for one in summary.values()), verdict])
    return rows


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
        "workloads": [cell_to_json(cell, results.names()) for cell in results.cells],
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


def cell_to_json(cell: Cell, names: list[str]) -> dict[str, Any]:
    contenders = {}
    for name in names:
        entry: dict[str, Any] = {
            "rates": [round(shot.rate, 1) for shot in cell.shots[name]],
            "p99_ms": [round(shot.p99_ms, 2) for shot in cell.shots[name]],
        }
        found = ratio(cell, "service", name) if "service" in names else None
        if found is not None and name != "service":
            entry["service_ratio"] = {
                key: round(value, 3)
                for key, value in (
                    ("median", found.median),
                    ("lowest", found.low),
                    ("highest", found.high),
                )
            }
        contenders[name] = entry
    return {
        "workload": cell.workload.name,
        "title": cell.workload.title,
        "connections": cell.connections,
        "contenders": contenders,
    }


def write_json(results: Results, folder: Path) -> None:
    """Writes results.json."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "results.json"
    path.write_text(json.dumps(to_json(results), indent=2) + "\n")
    print(f"\nWrote {path}")
