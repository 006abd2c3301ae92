"""Figures over the epochs: test accuracy of all that was trained, and what became of the labels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from fastmeta.report.numbers import plain
from fastmeta.report.result_table import title
from fastmeta.report.style import COLOURS, axes_of, legend, line, point, target
from fastmeta.training.canaries import percent_of
from fastmeta.training.distances import KEYS
from fastmeta.training.stage_names import is_aside

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Lines = Sequence[Mapping[str, Any]]


def series(lines: Lines, key: str, scale: float = 1.0) -> tuple[list[int], list[float]]:
    """Epochs, and `scale` times what stands under `key` there."""
    points = [(r["epoch"], scale * r[key]) for r in lines if r.get(key) is not None]
    return [e for e, _ in points], [v for _, v in points]


def accuracy(metrics: Mapping[str, Lines], finetuned: Mapping[str, float] | None = None) -> Figure | None:
    """Test accuracy of each stage, and of the copies that were `finetuned`, by stage, as points at the end."""
    figure, axes = axes_of("epoch", "test accuracy, %", "Test accuracy")
    drawn = False
    for number, (name, lines) in enumerate(pair for pair in metrics.items() if not is_aside(pair[0])):
        epochs, values = series(lines, "test_accuracy", 100)
        if epochs:
            drawn = True
            line(axes, number, epochs, values, f"{title(name)}: {values[-1]:.1f}")
            if (reached := (finetuned or {}).get(name)) is not None:
                point(axes, number, epochs[-1], 100 * reached, f"fine-tuned: {100 * reached:.1f}")
    if not drawn:
        return None
    legend(figure)
    return figure


def canaries(metrics: Mapping[str, Lines], summary: Mapping[str, Any]) -> Figure | None:
    """What has become of the canaries that report, and the intervals at the end; None where there are none."""
    told, lines = summary.get("canaries"), metrics.get(summary["method"], [])
    if not told:
        return None
    figure, axes = axes_of("epoch", "share of canaries, %", "Canaries: labels that are known to be wrong or right")
    words = (("put_right", "wrong, put right"), ("spoiled", "right, spoiled"))
    for number, (key, word) in enumerate(words, 2):
        epochs, values = series(lines, f"canaries_{key}", 100)
        if epochs:
            share = told[key]
            line(axes, number, epochs, values, f"{word}: {percent_of(share)}")
            at, low, high = told["kept_epoch"], 100 * share["low"], 100 * share["high"]
            axes.plot([at, at], [low, high], color=COLOURS[number], linewidth=1.2, alpha=0.6, clip_on=False)
    axes.set_ylim(0, 100)
    legend(figure)
    return figure


def distance(metrics: Mapping[str, Lines], summary: Mapping[str, Any]) -> Figure | None:
    """Cosine of inexact steps to exact ones, and how long they are by these; None where nobody looked."""
    told, lines = summary.get("distance"), metrics.get(summary["method"], [])
    if not told or not told["looks"]:
        return None
    figure, axes = axes_of("epoch", "exact step = 1", f"Inexact steps beside exact ones: {told['approx']}")
    means, least, length = (series(lines, KEYS[name]) for name in ("cosine", "least", "length"))
    line(axes, 0, *means, f"cosine: {plain(told['cosine'], 2)}")
    if least != means:
        line(axes, 1, *least, f"least of an epoch: {plain(told['least'], 2)}")
    line(axes, 2, *length, f"length: {plain(told['length'], 2)}")
    axes.set_ylim(bottom=min([0.0, *least[1]]), top=max(1.05, axes.get_ylim()[1]))
    legend(figure)
    return figure


def labels(metrics: Mapping[str, Lines], summary: Mapping[str, Any]) -> Figure | None:
    """How many labels are right, were put right, were spoiled; or how many have changed, where nobody knows."""
    lines, size = metrics.get(summary["method"], []), summary["train_size"]
    epochs, right = series(lines, "label_accuracy", 100)
    if epochs:
        figure, axes = axes_of("epoch", "share of training labels, %", "Labels over training")
        line(axes, 0, epochs, right, f"right: {right[0]:.1f} → {right[-1]:.1f}")
        for number, key, word in ((2, "labels_corrected", "wrong, put right"), (3, "labels_spoiled", "right, spoiled")):
            x, y = series(lines, key, 100 / size)
            line(axes, number, x, y, f"{word}: {y[-1]:.1f}")
        if summary.get("noise_rate"):  # as many as can be put right
            target(axes, 100 * summary["noise_rate"], f"wrong as given: {100 * summary['noise_rate']:.1f}")
    else:
        epochs, changed = series(lines, "labels_changed", 100 / size)
        if not epochs:
            return None
        figure, axes = axes_of("epoch", "share of training labels, %", "Labels over training (right ones unknown)")
        line(axes, 0, epochs, changed, f"changed: {changed[-1]:.1f}")
    axes.set_ylim(bottom=0, top=max(1.0, axes.get_ylim()[1]))
    legend(figure)
    return figure
