"""Writes the figures of README and docs/benchmark.md, from the published results."""

import json
import re
import statistics
from pathlib import Path
from typing import Any

from benchmarks.contenders import ROOT
from benchmarks.report import number, table
from benchmarks.results import Ratio

PUBLISHED = ROOT / "benchmarks"

# README's chart: the contenders, the workloads, and the contender that counts as 1.
NAMES = ("twin", "plain", "service", "fastify", "go", "bun")
WORKLOADS = ("list100", "one", "create")
BASE = "twin"
# They are this service in another way, or no alternatives to it.
NO_OTHERS = {"token", "mysql", "bare", "constant"}

Cell = dict[str, Any]


def against(cell: Cell, of: str, to: str) -> Ratio | None:
    """The requests a second of one contender / of another, by the rounds."""
    found = cell["contenders"]
    if of not in found or to not in found or of == to:
        return None
    rounds = zip(found[of]["rates"], found[to]["rates"], strict=True)
    ratios = [one / other for one, other in rounds]
    return Ratio(statistics.median(ratios), min(ratios), max(ratios))


def clients(connections: int) -> str:
    return f"{connections} connection{'s' if connections > 1 else ''}"


def chart(results: dict[str, Any]) -> list[str]:
    """README's chart, and who is ahead of this service in it."""
    titles = results["contenders"]
    cells = [cell for cell in results["workloads"] if cell["workload"] in WORKLOADS]
    rows = [[f"{titles[BASE]} = 1", *(f"{cell['title']}, {cell['connections']}" for cell in cells)]]
    names = [name for name in NAMES if name in titles]
    for name in names:
        if name != BASE:
            rows.append([titles[name], *(speed(against(cell, name, BASE)) for cell in cells)])
    rounds = (
        f"Medians of {results['settings']['rounds']} rounds; `~`: above 1 in some, below in others."
    )
    return [*table(rows), "", " ".join([rounds, *leads(results, cells, names)])]


def speed(ratio: Ratio | None) -> str:
    if ratio is None:
        return "-"
    return f"{'~' if ratio.low <= 1 <= ratio.high else ''}{number(ratio.median)}"


def leads(results: dict[str, Any], cells: list[Cell], names: list[str]) -> list[str]:
    """Says for each number of connections who is ahead of this service, and where that is open.

    A contender is ahead if it was so in each round, and not if it was so in none.
    """
    lines = []
    for connections in dict.fromkeys(cell["connections"] for cell in cells):
        ahead: dict[str, list[str]] = {}
        undecided: dict[str, list[str]] = {}
        for name in names:
            for cell in cells:
                ratio = against(cell, "service", name)
                if ratio and cell["connections"] == connections and ratio.low < 1:
                    group = ahead if ratio.high < 1 else undecided
                    group.setdefault(results["contenders"][name], []).append(cell["title"])
        lines.append(
            f"**Ahead of this service with {clients(connections)}:** {listed(ahead)}."
            f" Undecided, because the rounds differ: {listed(undecided)}."
        )
    return lines


def listed(found: dict[str, list[str]]) -> str:
    parts = [f"{name} ({', '.join(titles)})" for name, titles in found.items()]
    return "; ".join(parts) or "none"


def ratios(results: dict[str, Any]) -> list[str]:
    """The report's tables of ratios, and who is ahead of this service in them."""
    tables, _, _ = (PUBLISHED / "results.md").read_text().partition("\nCPU seconds")
    others = [name for name in results["contenders"] if name not in NO_OTHERS]
    lines = [tables.strip()]
    for line in leads(results, results["workloads"], others):
        lines += ["", line]
    return lines


def put(page: Path, name: str, lines: list[str]) -> None:
    """Replaces what is between the marks of a name in a page. ValueError without them."""
    begin, end = f"<!-- {name} -->\n", f"<!-- /{name} -->\n"
    between = re.compile(f"{re.escape(begin)}.*?{re.escape(end)}", re.DOTALL)
    text, count = between.subn(lambda _: begin + "\n".join(lines) + "\n" + end, page.read_text())
    if count != 1:
        raise ValueError(f"{page} has {count} blocks {begin}")
    page.write_text(text)


def write_pages() -> None:
    """Writes the blocks. ValueError for a run with spoiled rounds."""
    results = json.loads((PUBLISHED / "results.json").read_text())
    if results["spoiled"]:
        raise ValueError("a run with spoiled rounds is not published")
    put(ROOT / "README.md", "speed", chart(results))
    put(ROOT / "docs/benchmark.md", "ratios", ratios(results))


if __name__ == "__main__":
    write_pages()
