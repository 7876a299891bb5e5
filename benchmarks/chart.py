"""The chart of how the service compares with the others, with 32 connections."""

from pathlib import Path

from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine

from benchmarks.report import Cell, Results, against, number, peers

CONNECTIONS = 32
COLUMNS = 2

# They stand out from white as well as from GitHub's dark background.
TEXT = "#7d8590"
AHEAD = "#e8590c"
BEHIND = "#3d8fe0"


def write_chart(results: Results, folder: Path) -> None:
    """Writes results.svg, where there is something to draw."""
    cells = [
        cell
        for cell in results["workloads"]
        if cell["connections"] == CONNECTIONS and len(others(results, cell)) > 1
    ]
    if not cells:
        return
    path = folder / "results.svg"
    with rc_context({"font.size": 9, "text.color": TEXT, "svg.hashsalt": "notes"}):
        draw(results, cells).savefig(path, transparent=True, metadata={"Date": None})
    print(f"Wrote {path}")


def others(results: Results, cell: Cell) -> list[str]:
    """Returns those that the service can be compared with."""
    return [name for name in peers(results) if against(cell, "service", name) is not None]


def draw(results: Results, cells: list[Cell]) -> Figure:
    """Returns a figure with one group of bars for each workload."""
    lines = -(-len(cells) // COLUMNS)
    most = max(len(others(results, cell)) for cell in cells)
    figure = Figure(
        figsize=(9, 0.6 + lines * (0.45 + 0.2 * most)),
        layout=ConstrainedLayoutEngine(w_pad=0.15, h_pad=0.08),
    )
    panels = figure.subplots(lines, COLUMNS, squeeze=False)
    for panel in panels.flat:
        panel.set_axis_off()
    for panel, cell in zip(panels.flat, cells, strict=False):
        draw_workload(panel, cell, results)
    figure.suptitle(
        f"Requests a second of this service / of the other, {CONNECTIONS} connections:"
        " to the right of the line this service is ahead",
        x=0.02,
        ha="left",
        fontsize=9,
    )
    return figure


def draw_workload(panel: Axes, cell: Cell, results: Results) -> None:
    """Draws the median ratios as bars from 1, and lines from the lowest to the highest."""
    names = others(results, cell)
    found = [one for name in names if (one := against(cell, "service", name)) is not None]
    for place, one in enumerate(found):
        colour = AHEAD if one.median >= 1 else BEHIND
        panel.barh(place, one.median - 1, left=1, height=0.7, color=colour)
        panel.plot([one.low, one.high], [place, place], color=TEXT, linewidth=1.2)
        panel.annotate(
            number(one.median),
            (max(one.high, 1), place),
            xytext=(4, 0),
            textcoords="offset points",
            va="center",
        )
    panel.set_xscale("log")
    low, high = min(one.low for one in found), max(one.high for one in found)
    panel.set_xlim(min(low, 1) / 1.1, max(high, 1) * (max(high, 1) / min(low, 1)) ** 0.15 * 1.1)
    panel.axvline(1, color=TEXT, linewidth=0.8)
    panel.set_axis_on()
    panel.set_frame_on(False)
    panel.xaxis.set_visible(False)
    panel.set_yticks(range(len(names)), [results["contenders"][name] for name in names])
    panel.tick_params(axis="y", length=0, labelcolor=TEXT)
    panel.invert_yaxis()
    panel.set_title(cell["title"], loc="left", fontsize=10, fontweight="bold", color=TEXT)
