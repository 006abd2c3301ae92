"""Figures 2 and 4: curves over training, means over seeds with bands of one standard deviation to either side."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from fastmeta._text import printable
from fastmeta.paper.reading.label_entropy import CLEAN, CORRECTED, UNCORRECTED, Entropies
from fastmeta.paper.reading.over_classes import ClassCurves
from fastmeta.paper.reading.top_shares import Correctness
from fastmeta.report.style import COLOURS, axes_of, band, dress, legend, line, target

if TYPE_CHECKING:
    from matplotlib.figure import Figure

#: characters of a class name
NAME_LENGTH = 14
GROUP_TITLES = {
    CORRECTED: "given wrong, right at the end",
    UNCORRECTED: "given wrong, still wrong at the end",
    CLEAN: "given right",
}


@dataclass(frozen=True)
class Example:
    """A training row, and what its label holds likeliest beside the given class."""

    picture: np.ndarray | None
    given: str
    given_prob: float
    others: Sequence[tuple[str, float]]  # the likeliest first


def class_figure(
    seeds: Sequence[ClassCurves], classes: Sequence[int], examples: Sequence[Example], *, examples_title: str
) -> Figure:
    """Left: meta accuracy of `classes`; middle: their target probability; right: `examples`.

    Args:
        seeds: curves of each seed, over the same epochs.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(13.0 if examples else 8.6, 4.3), layout="constrained")
    parts: Any = figure.subfigures(1, 2, width_ratios=[2.1, 1]) if examples else [figure]
    first, second = parts[0].subplots(1, 2)
    dress(first, "epoch", "meta accuracy, %", "Meta accuracy (optimistic)")
    dress(second, "epoch", "probability of the given class", "Target probability")
    names = seeds[0].class_names
    for number, c in enumerate(classes):
        label = printable(names[c], NAME_LENGTH)
        _curves(first, number, seeds[0].accuracy_epochs, [100 * s.accuracy[:, c] for s in seeds], label)
        _curves(second, number, seeds[0].epochs, [s.target_prob[:, c] for s in seeds], label)
    first.set_ylim(0, 100)
    handles, labels = first.get_legend_handles_labels()
    parts[0].legend(handles, labels, loc="outside lower center", ncols=len(classes), frameon=False)
    if examples:
        _examples(parts[1], examples, examples_title)
    return figure


def _examples(part: Any, examples: Sequence[Example], title: str) -> None:
    most = max(1e-9, *(prob for one in examples for _, prob in one.others))
    part.suptitle(title, fontsize=11)
    grid = part.subplots(len(examples), 2, width_ratios=[1, 1.6], squeeze=False)
    for number, (one, (image, bars)) in enumerate(zip(examples, grid, strict=True)):
        colour = COLOURS[number % len(COLOURS)]
        image.set_axis_off()
        if one.picture is not None:
            image.imshow(one.picture, cmap="gray", vmin=0, vmax=255, interpolation="nearest")
        told = f"{printable(one.given, NAME_LENGTH)} {one.given_prob:.2f}"
        image.set_title(told, fontsize=9, color=colour, parse_math=False)
        values, places = [prob for _, prob in one.others], range(len(one.others))
        bars.barh(places, values, color=colour, height=0.62)
        bars.set_yticks(places, [printable(n, NAME_LENGTH) for n, _ in one.others], fontsize=9, parse_math=False)
        bars.invert_yaxis()
        bars.set_xlim(0, 1.4 * most)  # the longest bar leaves room for its number
        for place, value in zip(places, values, strict=True):
            bars.text(value + 0.03 * most, place, f"{value:.2g}", va="center", fontsize=8)
        bars.spines[["top", "right", "bottom"]].set_visible(False)
        bars.set_xticks([])


def correctness_figure(seeds: Sequence[Correctness]) -> Figure:
    """Left: of all training labels; right: of those that were given wrong. Top-1 and top-k, and where they start.

    The start of wrong labels is chance: the given class leads, and the others follow in any order.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10.4, 4.3), layout="constrained")
    axes = figure.subplots(1, 2, sharey=True)
    first = seeds[0]
    titles = ("All training labels", "Labels that were given wrong")
    for side, title, of in zip(axes, titles, ("of_all", "of_wrong"), strict=True):
        dress(side, "epoch", "" if of == "of_wrong" else "true class among the top k, %", title)
        for number, k in enumerate(first.chance):
            values = [100 * getattr(s, of)[k] for s in seeds]
            mean = np.mean(values, axis=0)
            _curves(side, number, first.epochs, values, f"top-{k}")
            side.annotate(
                f"{mean[-1]:.1f}",
                (first.epochs[-1], mean[-1]),
                xytext=(4, 0),
                textcoords="offset points",
                va="center",
                fontsize=9,
                annotation_clip=False,
            )
        for k, chance in first.chance.items():
            level = chance if of == "of_wrong" else np.mean([s.of_all[k][0] for s in seeds])
            target(side, 100 * level, "start; of wrong labels: chance" if k == 1 else "_")
        side.set_ylim(0, 100)
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=len(labels), frameon=False)
    return figure


def _curves(axes: Any, number: int, x: Any, seeds: Sequence[np.ndarray], label: str) -> None:
    stack = np.stack(seeds)
    mean = stack.mean(0)
    line(axes, number, x, mean, label)
    if len(stack) > 1:
        spread = stack.std(0, ddof=1)
        band(axes, number, x, mean - spread, mean + spread)


def entropy_figure(seeds: Sequence[Entropies]) -> Figure:
    """Mean entropy of labels over training: put right, still wrong, clean; each over the seeds that have such."""
    figure, axes = axes_of("epoch", "mean entropy of labels, nats", "Entropy of training labels")
    for number, (name, words) in enumerate(GROUP_TITLES.items()):
        values = [s.mean[name] for s in seeds if name in s.mean]
        if values:
            _curves(axes, number, seeds[0].epochs, values, words)
    target(axes, seeds[0].most, "all classes equal")
    axes.set_ylim(bottom=0)
    legend(figure)
    return figure
