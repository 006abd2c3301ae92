"""Warnings while labels are being learned: things that a look at the final accuracy would not explain."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from fastmeta.losses import Labels, MomentumLabels, SimplexLabels
from fastmeta.training.config import TrainConfig

#: share of the summed learning rate after which the movement says where the labels will end (digits: to a factor of 2)
EARLY = 0.3
#: labels that will move by less than this share of the way to a changed label have hardly moved
HARDLY = 0.1

#: label_lr above so many times its default is the first thing to doubt; the paper's grids end at 20
ABSURD = 1000
#: share of right labels that may be lost without a word
WORSE = 0.005


def label_rate_to_blame(labels: Labels, rate: float, usual: float, name: str = "labels.label_lr") -> str | None:
    """What to lower in a run that has diverged, where that is the labels' `rate`, the option `name`.

    Waits for the device.
    """
    if rate > ABSURD * usual:
        return f"lower {name}, now {rate:g} where about {usual:.2g} is usual"
    share = labels.run_away()
    if share > 0.1:
        return f"{share:.0%} of the labels have run away to one class: lower {name}, now {rate:g}"
    return None


def rate_to_lower(config: TrainConfig, labels: Any, batch_size: int) -> str:
    """What to lower in a run of a resolved `config` that has diverged; waits for the device."""
    optim, of_labels = config.optim, config.labels
    exact = of_labels.update == "exact"
    rate = of_labels.rate if of_labels.label_step is None else of_labels.label_step
    now = rate if exact else of_labels.eta
    if isinstance(labels, Labels) and now is not None:
        assert optim.lr is not None
        assert config.epochs is not None
        usual = labels.default_eta
        if of_labels.label_step is not None:
            usual = labels.default_step
        elif exact:
            usual = labels.default_label_lr(of_labels.lookahead_rate or optim.lr, batch_size, config.epochs)
        if (why := label_rate_to_blame(labels, now, usual, of_labels.rate_name)) is not None:
            return why
    return f"lower optim.lr, now {optim.lr}"


@dataclass
class Health:
    """Looks at the labels at the end of each epoch; each warning is given once."""

    given: list[str] = field(default_factory=list)

    def look(
        self,
        labels: Labels,
        target_prob: float,
        progress: float,
        grad_norm: float | None,
        rate_name: str = "labels.label_lr",
    ) -> list[str]:
        """New warnings after `progress` (0, 1] of the way that labels go; waits for the device.

        `rate_name` is the option that says how far they move.
        """
        found = {
            "gradient": self._gradient(grad_norm),
            "movement": _movement(labels, target_prob, progress, rate_name),
        }
        stuck = labels.stuck(target_prob, rate_name)
        # a look-ahead moves the logits of a hard label as far as those of a soft one
        if stuck is not None and (stuck[0], rate_name) != ("entropy", "labels.eta"):
            found[stuck[0]] = stuck[1]
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


def _movement(labels: Labels, target_prob: float, progress: float, rate_name: str) -> str | None:
    """Compares the movement so far, extended to the end of the run, with what would change a label."""
    if progress < EARLY:
        return None
    moved, wanted, what = labels.movement(target_prob)
    expected = moved / progress
    if expected >= HARDLY * wanted:
        return None
    factor = _round(wanted / expected) if expected > 0 else "1000 or more"
    return (
        f"labels have hardly moved ({what}: {moved:.2g} on average, {wanted:.2g} would change them): "
        f"{rate_name} is too small by about ×{factor} for that. Labels that go further may get worse: "
        f"{_way_further(labels, rate_name)}"
    )


def _way_further(labels: Labels, rate_name: str) -> str:
    """What to do in place of a rate that nobody has tried."""
    if isinstance(labels, SimplexLabels | MomentumLabels):  # which have no other option
        return "canaries tell (labels.canaries)"
    if rate_name == "labels.label_lr":
        return f"labels.label_step={labels.default_step:g} in its place says how far a visit moves a label"
    usual = labels.default_step if rate_name == "labels.label_step" else labels.default_eta
    return f"canaries tell (labels.canaries), and by default {rate_name} is {usual:g}"


def told_worse(figures: Mapping[str, Any], config: TrainConfig) -> str | None:
    """What to say of the labels of a finished run of a resolved `config`, by the right ones, if they got worse."""
    before, after = figures["label_accuracy_initial"], figures["label_accuracy_final"]
    if before is None or before - after <= WORSE:
        return None
    slower = "" if config.labels.update in ("posterior", "none") else f"lower {config.labels.rate_name}, or "
    return (
        f"labels are worse than they were given: {before:.1%} were right, and {after:.1%} are; {slower}train on the "
        "given ones (method=onehot, finetune_steps)"
    )


def _round(value: float) -> str:
    digit = 10 ** math.floor(math.log10(value))
    return f"{round(value / digit) * digit:g}"
