"""How all figures look, and how they are written: colours, axes, legends, PNG and SVG."""

from __future__ import annotations

import io
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fastmeta.training.rundir import write_atomically

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# blue, orange, green, purple of Okabe and Ito: told apart with any colour vision; and by dashes, in print and on top of
# each other
COLOURS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7")
DASHES = ("solid", "dashed", "dashdot", "dotted")
RIGHT, WRONG = "#009E73", "#D55E00"
TARGET = "0.35"


def axes_of(x_label: str, y_label: str, title: str) -> tuple[Figure, Any]:
    # a figure of its own, not pyplot's: no global state, no display
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.4, 4.0), layout="constrained")
    axes = figure.add_subplot()
    dress(axes, x_label, y_label, title)
    return figure, axes


def dress(axes: Any, x_label: str, y_label: str, title: str) -> None:
    """Axes of curves over epochs."""
    from matplotlib.ticker import MaxNLocator

    axes.set(xlabel=x_label, ylabel=y_label)
    axes.set_title(title, loc="left", fontsize=11)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="y", color="0.9")


def line(axes: Any, number: int, x: Any, y: Any, label: str) -> None:
    look = {"color": COLOURS[number % len(COLOURS)], "linestyle": DASHES[number % len(DASHES)]}
    # not clipped, or one along an edge could not be seen
    axes.plot(x, y, **look, linewidth=1.8, label=label, clip_on=False)


def band(axes: Any, number: int, x: Any, low: Any, high: Any) -> None:
    """Around a line, in its colour."""
    axes.fill_between(x, low, high, color=COLOURS[number % len(COLOURS)], alpha=0.18, linewidth=0)


def point(axes: Any, number: int, x: float, y: float, label: str) -> None:
    """What became of a curve behind its end, in the curve's colour."""
    axes.plot([x], [y], color=COLOURS[number % len(COLOURS)], linestyle="none", marker="D", label=label, clip_on=False)


def target(axes: Any, y: float, label: str) -> None:
    """A level that the curves are held against."""
    axes.axhline(y, color=TARGET, linewidth=1.0, linestyle=(0, (1, 2)), label=label, zorder=1.5)


def legend(figure: Figure) -> None:
    # below the axes, where no curve can be
    figure.legend(loc="outside lower center", ncols=2, frameon=False)


def write(figure: Figure, path: Path) -> list[Path]:
    """`path`.png and `path`.svg; equal runs write equal bytes."""
    import matplotlib

    written = []
    with matplotlib.rc_context({"svg.hashsalt": path.name}):
        for kind, options in (("png", {"dpi": 120}), ("svg", {"metadata": {"Date": None}})):
            buffer = io.BytesIO()
            figure.savefig(buffer, format=kind, **options)
            written.append(path.with_name(f"{path.name}.{kind}"))
            write_atomically(written[-1], buffer.getvalue())
    return written
