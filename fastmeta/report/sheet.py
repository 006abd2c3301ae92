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
#: characters of a class name below an image
NAME_LENGTH = 12


def most_changed(table: Mapping[str, np.ndarray], most: int) -> np.ndarray:
    """Rows whose learned class is not the given one, those with the least probability left to that first."""
    rows = np.flatnonzero(table["learned"] != table["given"])
    return rows[np.argsort(table["given_probability"][rows], kind="stable")][:most]


def changed_images(images: Any, table: Mapping[str, np.ndarray], summary: Mapping[str, Any]) -> Figure | None:
    """A sheet of the most changed rows; None where nothing has changed, or the samples are no images.

    Args:
        images: (N, H, W, 1 or 3) uint8, in the order of the table; anything else is no images.
        table: given, learned, given_probability, and true where it is known.
        summary: with `class_names`.
    """
    from matplotlib.figure import Figure

    if not isinstance(images, np.ndarray) or images.dtype != np.uint8:
        return None
    if images.ndim != 4 or images.shape[3] not in (1, 3) or len(images) != len(table["given"]):
        return None
    rows = most_changed(table, ROWS * COLUMNS)
    if not len(rows):
        return None
    names, true = [printable(name, NAME_LENGTH) for name in summary["class_names"]], table.get("true")
    columns = min(COLUMNS, len(rows))
    lines = -(-len(rows) // columns)
    short = max(map(len, names)) <= 3  # both names fit into one line
    figure = Figure(figsize=(max(1.25 * columns, 5.2), (1.5 if short else 1.7) * lines + 0.5), layout="constrained")
    for axes in figure.subplots(lines, columns, squeeze=False).flat:
        axes.set_axis_off()
    brightest = _brightest(images[rows])
    for row, axes in zip(rows, figure.axes, strict=False):
        picture = images[row]
        grey = picture.shape[2] == 1
        axes.imshow(picture[..., 0] if grey else picture, cmap="gray", vmin=0, vmax=brightest if grey else None)
        given, learned = names[table["given"][row]], names[table["learned"][row]]
        told = f"{given} → {learned}" if short else f"{given}\n→ {learned}"
        colour = "black" if true is None else RIGHT if true[row] == table["learned"][row] else WRONG
        told += "" if true is None or true[row] == table["learned"][row] else f" ({names[true[row]]})"
        axes.set_title(told, fontsize=8, color=colour, parse_math=False, pad=3)
    known = "" if true is None else "; green is right, else the right class in brackets"
    figure.suptitle(f"Labels changed most: given → learned{known}", x=0.02, ha="left", fontsize=11)
    return figure


def _brightest(images: np.ndarray) -> int:
    """White: images of few levels, such as the digits' 0 to 16, would be black otherwise."""
    return max(1, int(images.max()))
