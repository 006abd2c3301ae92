"""How well the learned labels tell which given ones are wrong."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from fastmeta.report.style import COLOURS, axes_of, legend, target

if TYPE_CHECKING:
    from matplotlib.figure import Figure


#: so many rows and fewer say nothing about a precision, and are not drawn
FEW = 10


def precision_recall(wrong: np.ndarray, score: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Precision and recall of "wrong" for the rows whose `score` is at least each of its values, highest first.

    Rows of equal score come together.
    """
    order = np.argsort(-score, kind="stable")
    found, ranked = np.cumsum(wrong[order]), score[order]
    last = np.append(np.flatnonzero(np.diff(ranked)), len(ranked) - 1)  # of each run of equal scores
    return found[last] / (last + 1), found[last] / max(int(wrong.sum()), 1)


def wrong_labels(true: np.ndarray, given: np.ndarray, learned: np.ndarray, quality: np.ndarray) -> Figure | None:
    """Precision over recall of 1 - quality as a finder of wrong labels; None where there is none of a kind.

    The mark is what the learned classes say by themselves: wrong is what has changed.
    """
    wrong = given != true
    if not wrong.any() or wrong.all():
        return None
    precision, recall = precision_recall(wrong, 1.0 - quality.astype(np.float64))
    figure, axes = axes_of("recall: share of the wrong labels that are found, %", "precision, %", "Wrong labels found")
    area = float(np.sum(np.diff(recall, prepend=0.0) * precision))
    begin = min(FEW, len(recall)) - 1
    x, y = 100 * recall[begin:], 100 * precision[begin:]
    axes.plot(x, y, color=COLOURS[0], linewidth=1.8, clip_on=False, label=f"average precision: {area:.3f}")
    changed = learned != given
    if changed.any():
        hit = int((changed & wrong).sum())
        p, r = 100 * hit / int(changed.sum()), 100 * hit / int(wrong.sum())
        label = f"changed labels: {p:.1f} of them wrong, {r:.1f} found"
        axes.plot([r], [p], "o", color=COLOURS[1], markersize=7, clip_on=False, label=label, zorder=3)
    target(axes, 100 * float(wrong.mean()), f"by chance: {100 * float(wrong.mean()):.1f}")
    axes.set(xlim=(0, 100), ylim=(0, 100))
    legend(figure)
    return figure
