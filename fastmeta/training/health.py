"""Warnings while labels are being learned: things that a look at the final accuracy would not explain."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import torch

from fastmeta.losses import ClassLabels, InstanceLabels

#: share of the summed learning rate after which the movement says where the labels will end (digits: to a factor of 2)
EARLY = 0.3
#: labels that will move by less than this share of the way to a changed label have hardly moved
HARDLY = 0.1

#: label_lr above so many times its default is the first thing to doubt; the paper's grids end at 20
ABSURD = 1000
#: label logits so far apart leave nothing of the smaller one, and no gradient
RUN_AWAY = 100


def label_rate_to_blame(labels: InstanceLabels | ClassLabels, label_lr: float, usual: float) -> str | None:
    """What to lower in a run that has diverged, where that is the labels' rate; waits for the device."""
    if label_lr > ABSURD * usual:
        return f"lower labels.label_lr, now {label_lr:g} where about {usual:.2g} is usual"
    if isinstance(labels, InstanceLabels):
        rows = labels.rows(_sample(labels)).double()
        share = float((~(rows.amax(1) - rows.amin(1) < RUN_AWAY)).double().mean())
        if share > 0.1:
            return f"{share:.0%} of the labels have run away to one class: lower labels.label_lr, now {label_lr:g}"
    return None


@dataclass
class Health:
    """Looks at the labels at the end of each epoch; each warning is given once."""

    given: list[str] = field(default_factory=list)

    def look(
        self, labels: InstanceLabels | ClassLabels, target_prob: float, progress: float, grad_norm: float | None
    ) -> list[str]:
        """New warnings after `progress` (0, 1] of the run; waits for the device."""
        found = {
            "gradient": self._gradient(grad_norm),
            "entropy": _entropy(labels, target_prob),
            "clamp": _clamp(labels),
            "movement": _movement(labels, target_prob, progress),
        }
        new = [text for kind, text in found.items() if text is not None and kind not in self.given]
        self.given += [kind for kind, text in found.items() if text is not None and kind not in self.given]
        return new

    @staticmethod
    def _gradient(norm: float | None) -> str | None:
        if norm is not None and norm == 0:
            return (
                "the label gradient is exactly zero: no parameter is reached by both the train and the meta loss, "
                "or the learning rate is zero"
            )
        return None


def _entropy(labels: InstanceLabels | ClassLabels, target_prob: float) -> str | None:
    """Labels that started soft and have all become hard no longer move: the gradient of a softmax vanishes there."""
    if not isinstance(labels, InstanceLabels) or target_prob > 0.98:
        return None
    mean = float(torch.special.entr(labels.probs(_sample(labels))).sum(1).double().mean())
    if mean < 0.01 * math.log(labels.num_classes):
        return (
            f"the labels' entropy has collapsed to {mean:.2g} nats (log C = {math.log(labels.num_classes):.2f}): hard "
            "labels have no gradient any more; lower labels.label_lr or labels.target_prob"
        )
    return None


def _clamp(labels: InstanceLabels | ClassLabels) -> str | None:
    if not isinstance(labels, ClassLabels):
        return None
    share = float(((labels.alpha <= 0) | (labels.alpha >= 1)).double().mean())
    if share > 0.5:
        ends = "0 (one-hot)" if float(labels.alpha.mean()) < 0.5 else "1 (never the given class)"
        return (
            f"{share:.0%} of the class smoothing values stand at the clamp, mostly {ends}: either the labels want to "
            "be there, or labels.label_lr is too large"
        )
    return None


def _movement(labels: InstanceLabels | ClassLabels, target_prob: float, progress: float) -> str | None:
    """Compares the movement so far, extended to the end of the run, with what would change a label."""
    if progress < EARLY:
        return None
    C = labels.num_classes
    if isinstance(labels, InstanceLabels):
        margin = math.log(target_prob * (C - 1) / (1 - target_prob))
        rows = labels.rows(sample := _sample(labels)).double()
        start = torch.zeros_like(rows).scatter_(1, labels.targets[sample][:, None], margin)
        moved = float((rows - start).abs().amax(1).mean())
        # a label changes when the logit of another class has come up by the margin
        wanted, what = max(margin, 1.0), "label logits"
    else:
        moved = float((labels.alpha - (1 - target_prob)).abs().double().mean())
        wanted, what = 0.1, "class smoothing values"
    expected = moved / progress
    if expected >= HARDLY * wanted:
        return None
    factor = _round(wanted / expected) if expected > 0 else "1000 or more"
    return (
        f"labels have hardly moved ({what}: {moved:.2g} on average, {wanted:.2g} would change them): "
        f"labels.label_lr is too small by about ×{factor}"
    )


def _sample(labels: InstanceLabels) -> torch.Tensor:
    """At most 65,536 rows, evenly spread: enough for a mean, and small beside a large table."""
    return torch.arange(0, len(labels), max(1, len(labels) // 65536), device=labels.targets.device)


def _round(value: float) -> str:
    digit = 10 ** math.floor(math.log10(value))
    return f"{round(value / digit) * digit:g}"
