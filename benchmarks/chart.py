"""The chart of the requests per second with 32 connections."""

from pathlib import Path

from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine

from benchmarks.results import Cell, Results, rate

CONNECTIONS = 32
COLUMNS = 2

# Both colours and text stand out from white as well as from GitHub's dark background.
TEXT = "#7d8590"
COLOURS = {
    "service": "#e8590c",
    "twin": "#0b9e8a",
    "plain": "#8a63d2",
    "litestar": "#c99a00",
    "fastify": "#3d8fe0",
    "bare": "#6e7681",
    "constant": "#b1bac4",
}


def write_chart(results: Results, folder: Path) -> None:
    """Writes results.svg, where there is something to draw."""
    cells = [cell for cell in results.cells if cell.connections == CONNECTIONS]
    if not cells:
        return
    path = folder / "results.svg"
    with rc_context({"font.size": 9, "text.color": TEXT, "svg.hashsalt": "notes"}):
        draw(results, cells).savefig(path, transparent=True, metadata={"Date": None})
    print(f"Wrote {path}")


def draw(results: Results, cells: list[Cell]) -> Figure:
    """Returns a figure with one group of bars for each workload."""
    names = [name for name in COLOURS if name in results.names()]
    lines = -(-len(cells) // COLUMNS)
    height = 0.9 + lines * (0.45 + 0.2 * len(names))
    figure = Figure(figsize=(9, height), layout=ConstrainedLayoutEngine(w_pad=0.15, h_pad=0.08))
    panels = figure.subplots(lines, COLUMNS, squeeze=False)
    for panel in panels.flat:
        panel.set_axis_off()
    for panel, cell in zip(panels.flat, cells, strict=False):
        draw_workload(panel, cell, names)
    handles = [
        panels[0][0].barh(0, 0, color=COLOURS[name], label=results.title(name)) for name in names
    ]
    figure.legend(
        handles=handles,
        loc="outside upper left",
        ncols=len(names),
        frameon=False,
        handlelength=0.9,
        handleheight=0.9,
        columnspacing=1.3,
        title=f"Requests per second, {CONNECTIONS} connections",
        alignment="left",
    )
    return figure


def draw_workload(panel: Axes, cell: Cell, names: list[str]) -> None:
    rates = [rate(cell, name) or 0.0 for name in names]
    bars = panel.barh(names, rates, height=0.78, color=[COLOURS[name] for name in names])
    labels = panel.bar_label(bars, [f"{one:,.0f}" if one else "\u2013" for one in rates], padding=4)
    for name, text in zip(names, labels, strict=True):
        text.set_fontweight("bold" if name == "service" else "normal")
    panel.invert_yaxis()
    panel.set_xlim(0, max(rates) * 1.15 or 1)
    panel.set_title(cell.workload.title, loc="left", fontsize=10, fontweight="bold")
