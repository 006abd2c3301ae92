"""figures/*.png of a run directory, from metrics.jsonl, labels.npz and the summary."""

from __future__ import annotations

import io
import json
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from fastmeta._text import printable
from fastmeta.data.npz import NpzFile
from fastmeta.report.table import title
from fastmeta.training.rundir.files import write_atomically

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# blue, orange, green, purple of Okabe and Ito: told apart with any colour vision; and by dashes, in print and on top of
# each other
_COLOURS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7")
_DASHES = ("solid", "dashed", "dashdot", "dotted")
#: characters of a class name that a picture has room for
TICK_LENGTH = 16
#: more classes than a picture has room for, and a matrix of them than memory
MOST_CLASSES = 1000


def read_metrics(path: Path) -> dict[str, list[dict[str, Any]]]:
    """Lines of metrics.jsonl by stage, in order."""
    lines: dict[str, list[dict[str, Any]]] = defaultdict(list)
    with open(path, encoding="utf-8") as file:
        for line in file:
            record = json.loads(line)
            lines[record["run"]].append(record)
    return dict(lines)


def write_figures(path: Path, summary: Mapping[str, Any]) -> list[Path]:
    """accuracy.png, labels.png and label_matrix.png under path/figures, as far as the run has their figures.

    The matrix is left out above MOST_CLASSES classes.
    """
    metrics = read_metrics(path / "metrics.jsonl")
    figures = {"accuracy": _accuracy(metrics), "labels": _labels(metrics, summary)}
    with NpzFile(path / "labels.npz") as file:
        table = file.read({name: file.declared(name) for name in ("given", "learned")})
    figures["label_matrix"] = _matrix(table["given"], table["learned"], summary)
    written = []
    for name, figure in figures.items():
        if figure is not None:
            written.append(path / "figures" / f"{name}.png")
            _write(figure, written[-1])
    return written


def _write(figure: Figure, path: Path) -> None:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=120)
    write_atomically(path, buffer.getvalue())


def _axes(x_label: str, y_label: str, title: str) -> tuple[Figure, Any]:
    # a figure of its own, not pyplot's: no global state, no display
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    figure = Figure(figsize=(6.4, 4.0), layout="constrained")
    axes = figure.add_subplot()
    axes.set(xlabel=x_label, ylabel=y_label)
    axes.set_title(title, loc="left", fontsize=11)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="y", color="0.9")
    return figure, axes


def _line(axes: Any, number: int, x: list[int], y: list[float], label: str) -> None:
    # not clipped, or one along an edge could not be seen
    axes.plot(x, y, color=_COLOURS[number], linestyle=_DASHES[number], linewidth=1.8, label=label, clip_on=False)


def _legend(figure: Figure) -> None:
    # below the axes, where no curve can be
    figure.legend(loc="outside lower center", ncols=2, frameon=False)


def _series(lines: list[dict[str, Any]], key: str, scale: float = 1.0) -> tuple[list[int], list[float]]:
    points = [(r["epoch"], scale * r[key]) for r in lines if r.get(key) is not None]
    return [e for e, _ in points], [v for _, v in points]


def _accuracy(metrics: Mapping[str, list[dict[str, Any]]]) -> Figure | None:
    figure, axes = _axes("epoch", "test accuracy, %", "Test accuracy")
    drawn = False
    for number, (name, lines) in enumerate(metrics.items()):
        epochs, values = _series(lines, "test_accuracy", 100)
        if epochs:
            drawn = True
            _line(axes, number, epochs, values, f"{title(name)}: {values[-1]:.1f}")
    if not drawn:
        return None
    _legend(figure)
    return figure


def _labels(metrics: Mapping[str, list[dict[str, Any]]], summary: Mapping[str, Any]) -> Figure | None:
    lines = metrics.get(summary["method"], [])
    size = summary["train_size"]
    epochs, right = _series(lines, "label_accuracy", 100)
    if epochs:
        figure, axes = _axes("epoch", "share of training labels, %", "Labels over training")
        _line(axes, 0, epochs, right, f"right: {right[0]:.1f} → {right[-1]:.1f}")
        for number, key, word in ((2, "labels_corrected", "wrong, put right"), (3, "labels_spoiled", "right, spoiled")):
            x, y = _series(lines, key, 100 / size)
            _line(axes, number, x, y, f"{word}: {y[-1]:.1f}")
    else:
        epochs, changed = _series(lines, "labels_changed", 100 / size)
        if not epochs:
            return None
        figure, axes = _axes("epoch", "share of training labels, %", "Labels over training (right ones unknown)")
        _line(axes, 0, epochs, changed, f"changed: {changed[-1]:.1f}")
    axes.set_ylim(bottom=0, top=max(1.0, axes.get_ylim()[1]))
    _legend(figure)
    return figure


def _matrix(given: np.ndarray, learned: np.ndarray, summary: Mapping[str, Any]) -> Figure | None:
    """Share of each given class (row) that ends as each learned class (column), in %."""
    from matplotlib.figure import Figure

    names, count = [printable(name, TICK_LENGTH) for name in summary["class_names"]], summary["num_classes"]
    if count > MOST_CLASSES:
        return None
    matrix = np.zeros((count, count))
    np.add.at(matrix, (given, learned), 1)
    share = 100 * matrix / np.maximum(matrix.sum(1, keepdims=True), 1)
    side = min(12.0, max(4.8, 0.42 * count + 1.6))
    figure = Figure(figsize=(side + 0.9, side), layout="constrained")
    axes = figure.add_subplot()
    image = axes.imshow(share, cmap="Blues", vmin=0, vmax=100)
    axes.set(xlabel="learned class", ylabel="given class")
    # the figure's, not the axes': long class names leave those little width
    figure.suptitle("Where the labels went, % of each given class", x=0.02, ha="left", fontsize=11)
    if count <= 30:
        # a dollar in a name is no formula
        axes.set_xticks(range(count), names, rotation=90 if max(map(len, names)) > 2 else 0, parse_math=False)
        axes.set_yticks(range(count), names, parse_math=False)
    if count <= 15:
        for a in range(count):
            for b in range(count):
                if share[a, b] >= 0.5:
                    colour = "white" if share[a, b] > 55 else "black"
                    axes.text(b, a, f"{share[a, b]:.0f}", ha="center", va="center", color=colour, fontsize=8)
    figure.colorbar(image, ax=axes, shrink=0.8)
    return figure
