"""How the learned labels stand: against the given ones always, against the right ones where somebody knows them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fastmeta.distributed import ALONE, Ranks
from fastmeta.losses import Labels, read_out

#: rows at a time, and numbers in them, so that no second table (N, C) is ever held
_ROWS, _NUMBERS = 65536, 2**24
#: (n,) each: learned class; its probability, and that of the given class; entropy
Reading = dict[str, Tensor]


def read_rows(probs: Tensor, given: Tensor, margin: float) -> Reading:
    """Of distributions (n, C): what :func:`fastmeta.losses.read_out` makes of them beside the classes `given` (n,)."""
    learned = read_out(probs, given, margin)
    return {
        "learned": learned,
        "probability": probs.gather(1, learned[:, None]).squeeze(1),
        "given_probability": probs.gather(1, given[:, None]).squeeze(1),
        "entropy": torch.special.entr(probs).sum(1),
    }


def learned_labels(labels: Labels, rows: range | None = None) -> Reading:
    """Of all rows or of those in `rows`, on the labels' device, by the labels' own margin."""
    margin = getattr(labels, "margin", 1.0)  # which labels of others need not have
    wanted = range(len(labels)) if rows is None else rows
    at_once = max(1, min(_ROWS, _NUMBERS // getattr(labels, "num_classes", 1)))
    parts = [
        read_rows(labels.probs(index), labels.targets[index], margin)
        for index in torch.arange(wanted.start, wanted.stop, device=labels.targets.device).split(at_once)
    ]
    return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}


def label_figures(
    labels: Labels, y_true: Tensor | None, size: int | None = None, ranks: Ranks = ALONE
) -> dict[str, Any]:
    """One line's worth of figures, of the first `size` rows: (N,), by default all. Of several ranks, over all of them.

    `y_true` (N,) or None; what depends on it is then None.
    """
    size = len(labels) if size is None else size
    table = learned_labels(labels, range(size))
    figures = changes(labels.targets[:size], table["learned"], y_true, ranks)
    return {**figures, "label_entropy_all": ranks.row_mean(table["entropy"])}


def changes(given: Tensor, learned: Tensor, y_true: Tensor | None, ranks: Ranks = ALONE) -> dict[str, Any]:
    """How `learned` classes (N,) differ from given ones; None for what nobody knows without `y_true`.

    Of several ranks, each with rows of its own, over all of them.
    """
    figures: dict[str, Any] = {
        "labels_changed": ranks.count(learned != given),
        "label_accuracy": None,
        "labels_corrected": None,
        "labels_spoiled": None,
    }
    if y_true is not None:
        figures["label_accuracy"] = ranks.row_mean(learned == y_true)
        figures["labels_corrected"] = ranks.count((learned == y_true) & (given != y_true))
        figures["labels_spoiled"] = ranks.count((learned != y_true) & (given == y_true))
    return figures


def average_precision(quality: Tensor, given: Tensor, y_true: Tensor | None) -> float | None:
    """Average precision of the score 1 - quality (N,), of given labels, as a finder of wrong ones.

    None where nobody knows the right labels, or none is wrong.
    """
    if y_true is None or bool((given == y_true).all()):
        return None
    from sklearn.metrics import average_precision_score

    wrong = (given != y_true).cpu().numpy()
    found = float(average_precision_score(wrong, 1 - quality.double().cpu().numpy()))
    return min(found, 1.0)  # a sum of shares, which may round to the next number above


def flips(given: Tensor, learned: Tensor, num_classes: int, most: int = 10) -> list[dict[str, int]]:
    """The most frequent changes of class: [{"given": a, "learned": b, "count": k}, …]."""
    changed = given != learned
    pairs = (given * num_classes + learned)[changed].cpu()
    values, counts = pairs.unique(return_counts=True)
    order = counts.argsort(descending=True, stable=True)[:most].tolist()
    return [
        {
            "given": int(values[i]) // num_classes,
            "learned": int(values[i]) % num_classes,
            "count": int(counts[i]),
        }
        for i in order
    ]
