"""Writes the figures of README and docs/benchmark.md, from the published results."""

import json
import re
from pathlib import Path

from benchmarks.contenders import CONTENDERS, ROOT
from benchmarks.options import PUBLISHED, QUOTED, QUOTED_CONTENDERS
from benchmarks.report import Results, against, leads, markdown, table, versus

# README's chart: this contender counts as 1.
BASE = "twin"


def chart(results: Results) -> list[str]:
    """README's chart, who is ahead of this service in it, and what the run says of frameworks."""
    titles = results["contenders"]
    cells = [
        cell for cell in results["workloads"] if (cell["workload"], cell["connections"]) in QUOTED
    ]
    rows = [[f"{titles[BASE]} = 1", *(f"{cell['title']}; {cell['connections']}" for cell in cells)]]
    names = [name for name in titles if name in QUOTED_CONTENDERS]
    for name in sorted(names, key=QUOTED_CONTENDERS.index):
        if name != BASE:
            ratios = [against(cell, name, BASE) for cell in cells]
            rows.append([titles[name], *("-" if one is None else one.short() for one in ratios)])
    rounds = len(cells[0]["contenders"][BASE]["rates"])
    text = f"Medians of {rounds} rounds; `~`: above 1 in some, below in others."
    return [*table(rows), "", f"{versus(cells)} {text} {leads(results, cells, names)}"]


def servers() -> list[str]:
    """The table of the contenders."""
    rows = [["name", "kind", "description"]]
    for one in CONTENDERS:
        kind = f"[{one.kind}]({one.page})" if one.page else one.kind
        rows.append([one.title, kind, one.about])
    return [f"| {' | '.join(row)} |" for row in [rows[0], ["---"] * 3, *rows[1:]]]


def put(page: Path, name: str, lines: list[str]) -> None:
    """Replaces what is between the marks of a name in a page. ValueError without them."""
    begin, end = f"<!-- {name} -->\n", f"<!-- /{name} -->\n"
    between = re.compile(f"{re.escape(begin)}.*?{re.escape(end)}", re.DOTALL)
    text, count = between.subn(lambda _: begin + "\n".join(lines) + "\n" + end, page.read_text())
    if count != 1:
        raise ValueError(f"{page} has {count} blocks {begin}")
    page.write_text(text)


def blocks(results: Results) -> dict[tuple[str, str], list[str]]:
    """The lines between the marks, by page and name."""
    return {
        ("README.md", "speed"): chart(results),
        ("docs/benchmark.md", "results"): markdown(results).splitlines(),
        ("docs/benchmark.md", "servers"): servers(),
    }


def write_pages() -> None:
    """Writes the blocks. ValueError for a run with spoiled rounds."""
    results = json.loads((PUBLISHED / "results.json").read_text())
    if results["spoiled"]:
        raise ValueError("a run with spoiled rounds is not published")
    for (page, name), lines in blocks(results).items():
        put(ROOT / page, name, lines)


if __name__ == "__main__":
    write_pages()
