"""Matrices of classes: where the given labels went, and how learned labels stand to the true ones."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from fastmeta._text import printable

if TYPE_CHECKING:
    from matplotlib.figure import Figure

#: characters of a class name that a picture has room for
TICK_LENGTH = 16
#: more classes than a picture has room for, and a matrix of them than memory
MOST_CLASSES = 1000
#: classes up to which their names, and the shares, are written
NAMED, NUMBERED = 30, 15


def given_to_learned(given: np.ndarray, learned: np.ndarray, summary: Mapping[str, Any]) -> Figure | None:
    """Share of each given class (row) that ends as each learned class (column), in %."""
    title = "Where the labels went, % of each given class"
    return _figure(title, [("given class", "learned class", _shares(given, learned, summary))], summary)


def true_to_learned(
    true: np.ndarray, given: np.ndarray, learned: np.ndarray, summary: Mapping[str, Any]
) -> Figure | None:
    """Share of each true class (row) that is given as, and learned as, each class (columns), in %."""
    panels = [
        ("true class", "given class", _shares(true, given, summary)),
        ("", "learned class", _shares(true, learned, summary)),
    ]
    return _figure("Labels as given and as learned, % of each true class", panels, summary)


def _shares(rows: np.ndarray, columns: np.ndarray, summary: Mapping[str, Any]) -> np.ndarray | None:
    count = summary["num_classes"]
    if count > MOST_CLASSES:
        return None
    matrix = np.zeros((count, count))
    np.add.at(matrix, (rows, columns), 1)
    return 100 * matrix / np.maximum(matrix.sum(1, keepdims=True), 1)


def _figure(title: str, panels: list[tuple[str, str, np.ndarray | None]], summary: Mapping[str, Any]) -> Figure | None:
    from matplotlib.figure import Figure

    names, count = [printable(name, TICK_LENGTH) for name in summary["class_names"]], summary["num_classes"]
    if count > MOST_CLASSES:
        return None
    side = min(12.0, max(4.8, 0.42 * count + 1.6)) if len(panels) == 1 else min(8.0, max(4.2, 0.36 * count + 1.2))
    side += 0.07 * max(map(len, names)) if count <= NAMED else 0
    figure = Figure(figsize=(len(panels) * side + 0.9, side), layout="constrained")
    grid = figure.subplots(1, len(panels), squeeze=False, sharey=True)[0]
    for axes, (rows, columns, share) in zip(grid, panels, strict=True):
        image = axes.imshow(share, cmap="Blues", vmin=0, vmax=100)
        axes.set(xlabel=columns, ylabel=rows)
        if count <= NAMED:
            # a dollar in a name is no formula
            axes.set_xticks(range(count), names, rotation=90 if max(map(len, names)) > 2 else 0, parse_math=False)
            axes.set_yticks(range(count), names, parse_math=False)
        if count <= NUMBERED and share is not None:
            _write_shares(axes, share)
    # the figure's, not the axes': long class names leave those little width
    figure.suptitle(title, x=0.02, ha="left", fontsize=11)
    figure.colorbar(image, ax=list(grid), shrink=0.8)
    return figure


def _write_shares(axes: Any, share: np.ndarray) -> None:
    for a, b in zip(*np.nonzero(share >= 0.5), strict=True):
        colour = "white" if share[a, b] > 55 else "black"
        axes.text(b, a, f"{share[a, b]:.0f}", ha="center", va="center", color=colour, fontsize=8)
