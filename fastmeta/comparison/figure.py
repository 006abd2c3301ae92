"""comparison.png: test accuracy of each row with its spread, those that use clean data marked, published ones apart."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fastmeta._text import printable
from fastmeta.comparison.standings import Row
from fastmeta.recipes import Published
from fastmeta.report.style import COLOURS, TARGET, write

#: inches of a row, and of what stands above and below them
_ROW, _REST = 0.3, 1.5
_NAME, _TITLE = 60, 100
#: rows
_MOST = 80


def write_figure(path: Path, title: str, rows: Sequence[Row], published: Sequence[Published]) -> list[Path]:
    """`path`.png and `path`.svg; nothing where no row has a test accuracy."""
    from matplotlib.figure import Figure

    shown = [row for row in rows if row.mean("last") is not None]
    if len(shown) > _MOST:  # of a search the points that are chosen alone, and no more than can be looked at
        shown = [row for row in shown if row.chosen is not False][:_MOST]
        title = f"{title} (table.md has more)"
    if not shown:
        return []
    names = [printable(row.title, _NAME) for row in shown]
    names += [f"{printable(one.row, _NAME - 12)} (published)" for one in published]
    figure = Figure(figsize=(8.0, _REST + _ROW * len(names)), layout="constrained")
    axes = figure.add_subplot()
    looks: dict[bool | None, dict[str, Any]] = {
        True: {"color": COLOURS[0], "marker": "D", "label": "uses clean data"},
        False: {"color": COLOURS[1], "marker": "o", "label": "uses no clean data"},
        None: {"color": TARGET, "marker": "s", "label": "published (filled: with clean data)"},
    }
    points: list[tuple[float, float | None, bool | None, bool]] = []  # mean, sd, look, and whether the mark is filled
    for row in shown:  # filled or not beside the colour, so that it reads in print
        clean = row.clean_data != 0
        points.append((row.mean("last") or 0.0, row.sd("last"), clean, clean))
    points += [(p.test / 100, None if p.std is None else p.std / 100, None, p.clean) for p in published]
    for y, (mean, sd, kind, filled) in enumerate(points):
        look = looks[kind]
        axes.errorbar(
            [100 * mean],
            [y],
            xerr=None if sd is None else [100 * sd],
            linestyle="none",
            capsize=3,
            markersize=6,
            markerfacecolor=look["color"] if filled else "white",
            **look,
        )
        look.pop("label", None)  # once in the legend
    for y, row in enumerate(shown):
        for value in row.figures["last"]:
            if value is not None and len(row.seeds) > 1:
                axes.plot([100 * value], [y], marker="|", color="0.6", markersize=5, zorder=1)
    if published:
        axes.axhline(len(shown) - 0.5, color="0.8", linewidth=0.8)
    axes.set_yticks(range(len(names)), names, fontsize=8)
    axes.set_ylim(len(names) - 0.5, -0.5)
    axes.set_xlabel("test accuracy after the last epoch, %", fontsize=8)
    axes.tick_params(axis="x", labelsize=8)
    about = "means, one standard deviation to either side, and a stroke for each seed"
    figure.suptitle(f"{printable(title, _TITLE)}\n{about}", x=0.01, ha="left", fontsize=9)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="x", color="0.9")
    axes.set_axisbelow(True)
    figure.legend(loc="outside lower center", ncols=3, frameon=False, fontsize=8)
    return write(figure, path)
