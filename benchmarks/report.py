"""The tables in Markdown, from the results as they are in the file."""

import json
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks.load import QUIET
from benchmarks.options import PUBLISHED

Results = dict[str, Any]
Cell = dict[str, Any]

# A table with more columns is too wide for most terminals.
COLUMNS = 5
# What most readers want to know of the versions; all of them are at the end.
MAIN_VERSIONS = ("python", "postgresql", "starlette", "fastapi", "uvicorn", "node", "bun")
UNSHARED = "without-sharing"
# A gain below this is called little.
LITTLE = 1.5


class Ratio(NamedTuple):
    """The median of the rounds' ratios, and their range."""

    median: float
    low: float
    high: float

    @property
    def is_decided(self) -> bool:
        """Whether the same one was ahead in every round."""
        return self.low > 1 or self.high < 1

    def __str__(self) -> str:
        return f"{self.short()} ({number(self.low)}-{number(self.high)})"

    def short(self) -> str:
        return f"{'' if self.is_decided else '~'}{number(self.median)}"


def against(cell: Cell, of: str, to: str) -> Ratio | None:
    """Returns the requests a second of one contender / of another, compared round by round."""
    found = cell["contenders"]
    if of not in found or to not in found or of == to:
        return None
    rounds = zip(found[of]["rates"], found[to]["rates"], strict=False)
    ratios = [one / other for one, other in rounds if one and other]
    return Ratio(statistics.median(ratios), min(ratios), max(ratios)) if ratios else None


def number(value: float) -> str:
    """Returns a ratio with as many digits as mean something."""
    return f"{value:.2f}" if value < 10 else f"{value:.1f}" if value < 100 else f"{value:.0f}"


def clients(connections: int) -> str:
    return f"{connections} connection{'s' if connections > 1 else ''}"


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
    sections = [frameworks, methods, rates, costs, latencies, processes, large]
    lines = [line for section in sections for line in section(results)]
    for title, reason in results["left_out"].items():
        lines += ["", f"{title} is left out: {reason}."]
    lines += ["", about(results)]
    return "\n".join(lines).strip() + "\n"


def about(results: Results) -> str:
    """Returns the date, the machine and all versions."""
    memory = f"{results['machine']['memory_gb']} GB, {results['machine']['system']}"
    return f"{place(results)}, {memory}; {versions(results, *results['versions'])}."


def head(results: Results, title: str, text: str) -> list[str]:
    """Returns what is above a table: its title, the run, and how to read it."""
    run = f"{place(results)}; {versions(results, *MAIN_VERSIONS)}."
    return ["", f"### {title}", "", run, "", text]


def place(results: Results) -> str:
    machine = results["machine"]
    return f"{results['date']}, {machine['cores']} cores of {machine['processor']}"


def versions(results: Results, *names: str) -> str:
    found = results["versions"]
    return ", ".join(f"{name} {found[name]}" for name in names if name in found)


def label(results: Results, name: str) -> str:
    kind = results["kinds"][name]
    title = results["contenders"][name]
    return str(title) if kind == "variant" else f"{title} ({kind})"


def peers(results: Results) -> list[str]:
    """Returns all but those that are compared with this service alone, method by method."""
    names = results["contenders"]
    return [name for name in names if name == UNSHARED or not name.startswith("without-")]


def grid(
    results: Results,
    cells: list[Cell],
    names: list[str],
    show: Callable[[Cell, str], str],
    footers: dict[str, Callable[[Cell], str]] | None = None,
) -> list[str]:
    """Returns tables with a row for each contender and a column for each workload.

    A contender without a cell in a table has no row there; nor has a table any without columns.
    """
    lines = []
    for first in range(0, len(cells), COLUMNS):
        some = cells[first : first + COLUMNS]
        rows = [["", *(cell["title"] for cell in some)]]
        for name in names:
            row = [show(cell, name) for cell in some]
            if any(row):
                rows.append([label(results, name), *(text or "-" for text in row)])
        if len(rows) > 1:
            for title, foot in (footers or {}).items():
                rows.append([title, *map(foot, some)])
            lines += ["", *table(rows)]
    return lines


def with_connections(results: Results, connections: int) -> list[Cell]:
    return [cell for cell in results["workloads"] if cell["connections"] == connections]


def frameworks(results: Results) -> list[str]:
    """Returns what leaving out FastAPI brings, and beside it what this service brings."""
    named = results["contenders"]
    pairs = [(of, "twin", connections) for of in ("plain", "service") for connections in (32, 1)]
    rows = [["", *(f"{named.get(of)}; {count}" for of, _, count in pairs)]]
    for title in dict.fromkeys(cell["title"] for cell in results["workloads"]):
        cells = {
            cell["connections"]: cell for cell in results["workloads"] if cell["title"] == title
        }
        nothing: Cell = {"contenders": {}}
        row = [ratio_text(cells.get(count, nothing), of, to) for of, to, count in pairs]
        if any(row):
            rows.append([title, *(text or "-" for text in row)])
    text = (
        "Requests a second / those of the FastAPI example, with 32 connections and with 1: the"
        " median of the rounds (lowest-highest). `~`: no lead, as one was ahead in some rounds"
        " and the other in others."
    )
    lines = head(results, "Starlette against FastAPI", versus(results["workloads"]))
    return [*lines, "", text, "", *table(rows)] if len(rows) > 1 else []


def versus(cells: list[Cell]) -> str:
    """Says what leaving out FastAPI brings, and what the use of the libraries brings."""
    plain, service = (
        [one.median for cell in cells if (one := against(cell, name, "twin"))]
        for name in ("plain", "service")
    )
    if not plain or not service:
        return ""
    text = (
        f"Plain Starlette answers {spread(plain)} times the requests of the FastAPI example, and"
        f" this service, with the libraries of plain Starlette, {spread(service)} times."
    )
    little, much = statistics.median(plain), statistics.median(service)
    if little < LITTLE and much > 2 * little:
        text += " Leaving out FastAPI gains little. The gain comes from how the libraries are used."
    return text


def spread(medians: list[float]) -> str:
    return f"{number(min(medians))} to {number(max(medians))}"


def methods(results: Results) -> list[str]:
    """Returns what each method of this service brings."""
    names = [name for name in results["contenders"] if name.startswith("without-")]
    others = [name for name in names if name != UNSHARED]
    lines = []
    for connections in (32, 1):
        cells = [
            cell
            for cell in with_connections(results, connections)
            if any(name in cell["contenders"] for name in others)
        ]
        found = grid(results, cells, names, lambda cell, name: ratio_text(cell, "service", name))
        lines += ["", f"{clients(connections)}:", *found] if found else []
    text = (
        "Requests a second of this service / of itself without the method, for which the plain way"
        " stands in its place. `~`: no gain in every round."
    )
    return [*head(results, "What each method brings", text), *lines] if lines else []


def ratio_text(cell: Cell, of: str, to: str) -> str:
    ratio = against(cell, of, to)
    return "" if ratio is None else str(ratio)


def rates(results: Results) -> list[str]:
    """Returns the ratios of this service and all others, the rates beside them, and the leads."""
    lines = []
    for connections in dict.fromkeys(cell["connections"] for cell in results["workloads"]):
        cells = with_connections(results, connections)
        lines += head(
            results,
            f"All servers, {clients(connections)}",
            "This service / the other (lowest-highest round), and the other's requests a second."
            " Above 1 this service is ahead; `~`: neither is.",
        )
        lines += grid(results, cells, peers(results), rate_text, footers(cells))
        lines += ["", leads(results, cells, others(results))]
    return lines


def rate_text(cell: Cell, name: str) -> str:
    if name not in cell["contenders"]:
        return ""
    good = [rate for rate in cell["contenders"][name]["rates"] if rate]
    if not good:
        return "spoiled"
    text = f"{statistics.median(good):,.0f}/s"
    ratio = against(cell, "service", name)
    return text if ratio is None else f"{ratio}, {text}"


def footers(cells: list[Cell]) -> dict[str, Callable[[Cell], str]]:
    """Returns the rows about the other programs, if the run looked at them."""
    if not all("others" in cell for cell in cells):
        return {}

    def quiet(cell: Cell) -> str:
        return f"{sum(one <= QUIET for one in cell['others'])} of {len(cell['others'])}"

    def cores(cell: Cell) -> str:
        return f"{statistics.median(cell['others']):.2f} ({max(cell['others']):.2f})"

    return {"quiet rounds": quiet, "cores that others took (most)": cores}


def others(results: Results) -> list[str]:
    """Returns the alternatives to this service."""
    return [name for name, kind in results["kinds"].items() if kind in ("standard", "tuned")]


def leads(results: Results, cells: list[Cell], names: list[str]) -> str:
    """Says who is ahead of this service, and where that is open."""
    lines = []
    for connections in dict.fromkeys(cell["connections"] for cell in cells):
        ahead: dict[str, list[str]] = {}
        undecided: dict[str, list[str]] = {}
        for name in names:
            for cell in cells:
                ratio = against(cell, "service", name)
                if ratio and cell["connections"] == connections and ratio.low <= 1:
                    group = ahead if ratio.is_decided else undecided
                    group.setdefault(results["contenders"][name], []).append(cell["title"])
        lines.append(
            f"**Ahead of this service with {clients(connections)}:** {listed(ahead)}."
            f" Undecided, because the rounds differ: {listed(undecided)}."
        )
    return " ".join(lines)


def listed(found: dict[str, list[str]]) -> str:
    parts = [f"{name} ({'; '.join(titles)})" for name, titles in found.items()]
    return ", ".join(parts) or "none"


def costs(results: Results) -> list[str]:
    def show(cell: Cell, name: str) -> str:
        found = cell["contenders"].get(name, {}).get("cpu_seconds_per_1000")
        if found is None:
            return ""
        database = found.get("database")
        return f"{found['server']:.3f} + {'?' if database is None else f'{database:.3f}'}"

    lines = grid(results, with_connections(results, 32), list(results["contenders"]), show)
    text = "CPU seconds of the server + of the database for 1,000 requests, 32 connections."
    return [*head(results, "CPU time", text), *lines] if lines else []


def latencies(results: Results) -> list[str]:
    cells = [
        cell
        for cell in results["workloads"]
        if any("paced" in found for found in cell["contenders"].values())
    ]
    rows = [["", *(cell["title"] for cell in cells)]]
    for name in results["contenders"]:
        found = [cell["contenders"].get(name, {}).get("paced") for cell in cells]
        if any(found):
            rows.append([label(results, name), *map(paced_text, found)])
    text = (
        "Latency in ms, p50 / p99, then CPU ms of the server for a request. All servers get the"
        " same requests a second over 32 connections: half of what the slowest can answer. The"
        " requests are due at random moments, and their latencies count from these moments."
    )
    title = "Latency at the same rate"
    return [*head(results, title, text), "", *table(rows)] if len(rows) > 1 else []


def paced_text(paced: dict[str, float] | None) -> str:
    if paced is None:
        return "-"
    latency = f"{paced['p50_ms']:.1f} / {paced['p99_ms']:.1f}"
    return f"{latency}, {paced['cpu_ms']:.2f} at {paced['rate']:,.0f}/s"


def processes(results: Results) -> list[str]:
    rows = [["", "first answer, s", "memory at the start, MB", "after the load, MB"]]
    for name in peers(results):
        found = results["processes"][name]
        row = [label(results, name), f"{min(found['start_seconds']):.2f}"]
        rows.append([*row, *(f"{found[key] / 2**20:.0f}" for key in ("rest_bytes", "after_bytes"))])
    text = "The fastest start, and the resident memory of all processes of a server."
    return [*head(results, "Start and memory", text), "", *table(rows)]


def large(results: Results) -> list[str]:
    if not results["large"]:
        return []
    rows = [["", "first byte, ms", "all, ms", "memory more, MB", "creates' p99, ms"]]
    for name, summary in results["large"].items():
        values = [f"{one:,.0f}" for one in summary.values()] if summary else ["spoiled"] * 4
        rows.append([label(results, name), *values])
    count = results["settings"]["large"]
    text = f"Listing {count:,} notes, while another client creates 50 a second."
    return [*head(results, "A very long list", text), "", *table(rows)]


def write_report(results: Results, folder: Path) -> None:
    """Prints the report, and writes results.json; results.md too, unless a page has the tables."""
    text = markdown(results)
    print(f"\n{text}")
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "results.json").write_text(json.dumps(results, indent=2) + "\n")
    if folder != PUBLISHED:
        (folder / "results.md").write_text(text)
    print(f"Wrote the results in {folder}")
    for line in results["spoiled"]:
        print(f"\nSPOILED: {line}")
