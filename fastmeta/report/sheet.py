"""The images whose labels have changed most, side by side, to be judged by eye."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from fastmeta._text import printable
from fastmeta.report.style import RIGHT, WRONG

if TYPE_CHECKING:
    from matplotlib.figure import Figure

ROWS, COLUMNS = 5, 8
#: inches of an image
SIDE = 1.2
#: characters of a class name below an image
NAME_LENGTH = 12


def most_changed(table: Mapping[str, np.ndarray], most: int) -> np.ndarray:
    """Rows whose learned class is not the given one, those with the least probability left to that first."""
    rows = np.flatnonzero(table["learned"] != table["given"])
    return rows[np.argsort(table["given_probability"][rows], kind="stable")][:most]


def changed_images(images: Any, table: Mapping[str, np.ndarray], summary: Mapping[str, Any]) -> Figure | None:
    """A sheet of the most changed rows; None where nothing has changed, or the samples are no images.

    Args:
        images: (N, H, W, 1 or 3) uint8 in the order of the table, which may be read as they are asked for; anything
            else is no images.
        table: given, learned, given_probability, and true where it is known.
        summary: with `class_names`.
    """
    from matplotlib.figure import Figure

    if getattr(images, "dtype", None) != np.uint8 or len(images.shape) != 4:
        return None
    if images.shape[3] not in (1, 3) or len(images) != len(table["given"]):
        return None
    rows = most_changed(table, ROWS * COLUMNS)
    if not len(rows):
        return None
    names, true = [printable(name, NAME_LENGTH) for name in summary["class_names"]], table.get("true")
    columns = min(COLUMNS, len(rows))
    lines = -(-len(rows) // columns)
    short = max(map(len, names)) <= 3  # both names fit into one line
    above = 0.18 if short else 0.33  # inches for the names of an image
    wide, high = max(SIDE * columns, 6.4), (SIDE + above) * lines + 0.4
    figure = Figure(figsize=(wide, high))
    # one picture of all, because axes of their own for so many would take seconds
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set_axis_off()
    axes.set(xlim=(0, wide), ylim=(high, 0))
    grey = images.shape[3] == 1
    pictures = [np.asarray(images[row]) for row in rows.tolist()]
    # of few levels, such as the digits' 16, all would be black
    brightest = max(1, int(np.max(pictures))) if grey else None
    inner = SIDE - 0.08
    width, height = (inner * side / max(images.shape[1:3]) for side in (images.shape[2], images.shape[1]))
    for number, row in enumerate(rows):
        x, y = (number % columns) * SIDE + 0.04, 0.4 + above + (number // columns) * (SIDE + above)
        picture = pictures[number][..., 0] if grey else pictures[number]
        left = x + (inner - width) / 2
        extent = (left, left + width, y + height, y)
        axes.imshow(picture, cmap="gray", vmin=0, vmax=brightest, extent=extent, aspect="auto", interpolation="nearest")
        given, learned = names[table["given"][row]], names[table["learned"][row]]
        told = f"{given} → {learned}" if short else f"{given}\n→ {learned}"
        colour = "black" if true is None else RIGHT if true[row] == table["learned"][row] else WRONG
        told += "" if true is None or true[row] == table["learned"][row] else f" ({names[true[row]]})"
        axes.text(x + inner / 2, y - 0.03, told, fontsize=8, color=colour, ha="center", va="bottom", parse_math=False)
    axes.set(xlim=(0, wide), ylim=(high, 0))  # imshow has moved them
    known = "" if true is None else "; green is right, else the right class in brackets"
    axes.text(0.06, 0.22, f"Labels changed most: given → learned{known}", fontsize=10)
    return figure
