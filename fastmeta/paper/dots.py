"""The figure of a table: of each row what was measured here, with its spread, and what is published."""

from __future__ import annotations

from pathlib import Path

from fastmeta._text import printable
from fastmeta.paper.artefact import Cell, Reading
from fastmeta.report.style import COLOURS, TARGET, write

#: inches of a row, of what stands above and below, and of a column
_ROW, _REST, _COLUMN, _NAMES = 0.3, 1.6, 3.0, 2.6
CLEAN, WITHOUT, PUBLISHED = "here, with clean data", "here, without clean data", "published"


def draw_dots(path: Path, title: str, reading: Reading) -> list[Path]:
    """`path`.png and `path`.svg."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    rows, columns = reading.rows, list(reading.columns)
    size = (_NAMES + _COLUMN * len(columns), _REST + _ROW * len(rows))
    figure = Figure(figsize=size, layout="constrained")
    all_axes = figure.subplots(1, len(columns), sharey=True, squeeze=False)[0]
    shown: set[str] = set()
    for number, (axes, column) in enumerate(zip(all_axes, columns, strict=True)):
        for y, row in enumerate(rows):
            cell = row.cells.get(column, Cell())
            if cell.mean is not None:
                clean = row.clean != "no"
                shown.add(CLEAN if clean else WITHOUT)
                spread = {} if cell.std is None else {"xerr": [cell.std], "capsize": 3}
                look = {"color": COLOURS[0 if clean else 1], "marker": "D" if clean else "o"}
                axes.errorbar([cell.mean], [y], linestyle="none", markersize=6, **look, **spread)
                if len(cell.values) > 1:
                    axes.plot([*cell.values.values()], [y] * len(cell.values), "|", color="0.6", markersize=5, zorder=1)
            if cell.published is not None:
                shown.add(PUBLISHED)
                spread = {} if cell.published.std is None else {"xerr": [cell.published.std], "capsize": 2}
                look = {"color": TARGET, "marker": "s", "markerfacecolor": "white"}
                axes.errorbar([cell.published.mean], [y + 0.25], linestyle="none", markersize=4, **look, **spread)
        axes.set_title(printable(column, 60), loc="left", fontsize=9)
        axes.set_xlabel(reading.unit, fontsize=8)
        axes.tick_params(axis="x", labelsize=8)
        axes.xaxis.set_major_locator(MaxNLocator(4))  # numbers of many digits have room
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(axis="x", color="0.9")
        axes.set_axisbelow(True)
        if not number:
            axes.set_yticks(range(len(rows)), [printable(row.title, 60) for row in rows], fontsize=8)
            axes.set_ylim(len(rows) - 0.5, -0.5)
    looks = ((COLOURS[0], "D", CLEAN), (COLOURS[1], "o", WITHOUT), (TARGET, "s", PUBLISHED))
    for colour, marker, label in (look for look in looks if look[2] in shown):
        filled = "white" if marker == "s" else colour
        all_axes[0].plot([], [], marker, color=colour, markerfacecolor=filled, label=label)
    figure.suptitle(printable(title, 100), x=0.01, ha="left", fontsize=10)
    figure.legend(loc="outside lower center", ncols=3, frameon=False, fontsize=8)
    return write(figure, path)
