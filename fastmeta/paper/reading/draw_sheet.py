"""Figure 3: a sheet of training rows whose given labels are wrong, and their labels at the start and at the end."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from fastmeta._text import printable
from fastmeta.paper.reading.learned_run import LearnedRun
from fastmeta.paper.reading.run_images import pictures
from fastmeta.report.style import RIGHT, WRONG

if TYPE_CHECKING:
    from matplotlib.figure import Figure

#: classes of a label that are shown
SHOWN = 5
#: rows of the sheet side by side
COLUMNS = 3
NAME_LENGTH = 13


@dataclass(frozen=True)
class Sample:
    picture: np.ndarray | None
    given: int
    true: int
    start: np.ndarray  # (C,)
    end: np.ndarray  # (C,)


def samples(run: LearnedRun, count: int, seed: int = 0) -> list[Sample]:
    """`count` training rows whose given labels are wrong, drawn at random; all of them where there are fewer."""
    wrong = np.flatnonzero(run.wrong)
    assert run.true is not None
    rows = np.sort(np.random.default_rng(seed).permutation(wrong)[:count])
    if not len(rows):
        return []
    tables = [np.concatenate([p for _, p in run.chunks(e, rows)]) for e in (run.epochs[0], run.epochs[-1])]
    images = pictures(run, rows.tolist())
    return [
        Sample(image, int(run.given[row]), int(run.true[row]), start, end)
        for image, row, start, end in zip(images, rows, *tables, strict=True)
    ]


def sheet(found: Sequence[Sample], class_names: Sequence[str], end_epoch: int) -> Figure:
    """Of each sample the image, and the likeliest classes of its label: grey at the start, coloured at the end."""
    from matplotlib.figure import Figure
    from matplotlib.patches import Patch

    names = [printable(name, NAME_LENGTH) for name in class_names]
    columns = min(COLUMNS, len(found))
    lines = -(-len(found) // columns)
    figure = Figure(figsize=(4.1 * columns, 1.75 * lines + 0.75), layout="constrained")
    grid = figure.add_gridspec(lines, 2 * columns, width_ratios=[1, 1.15] * columns)
    for number, one in enumerate(found):
        line, column = divmod(number, columns)
        image, bars = (figure.add_subplot(grid[line, 2 * column + k]) for k in (0, 1))
        image.set_axis_off()
        if one.picture is not None:
            image.imshow(one.picture, cmap="gray", vmin=0, vmax=255, interpolation="nearest")
        image.set_title(f"given {names[one.given]}\ntruly {names[one.true]}", fontsize=8, parse_math=False)
        shown = shown_classes(one)
        colours = [RIGHT if c == one.true else WRONG if c == one.given else "0.45" for c in shown]
        places = np.arange(len(shown))
        bars.barh(places - 0.19, one.start[shown], height=0.32, color="0.8")
        bars.barh(places + 0.19, one.end[shown], height=0.42, color=colours)
        bars.set_yticks(places, [names[c] for c in shown], fontsize=8, parse_math=False)
        for label, colour in zip(bars.get_yticklabels(), colours, strict=True):
            label.set_color(colour)
        bars.invert_yaxis()
        bars.set_xlim(0, 1)
        bars.set_xticks([0, 0.5, 1], ["0", "½", "1"] if line == lines - 1 or number + columns >= len(found) else [])
        bars.tick_params(labelsize=8, length=2)
        bars.spines[["top", "right"]].set_visible(False)
    keys = [
        Patch(color="0.8", label="at the start"),
        Patch(color=RIGHT, label=f"epoch {end_epoch}: true class"),
        Patch(color=WRONG, label=f"epoch {end_epoch}: given class"),
        Patch(color="0.45", label="other class"),
    ]
    figure.legend(handles=keys, loc="outside lower center", ncols=4 if columns > 1 else 2, frameon=False, fontsize=9)
    return figure


def shown_classes(one: Sample) -> list[int]:
    """The likeliest classes at the end, with the given and the true one among them."""
    order = [int(c) for c in np.argsort(-one.end, kind="stable")]
    must = [one.given, one.true]
    room = max(min(SHOWN, len(order)) - sum(c not in order[:SHOWN] for c in must), 0)
    kept = order[:room] + [c for c in must if c not in order[:room]]
    return sorted(dict.fromkeys(kept), key=order.index)
