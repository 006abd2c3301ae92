"""Figures of a run: sums over steps that stay on the device, and the evaluation of a model on a held-out part."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from fastmeta._numbers import as_real
from fastmeta._text import shown
from fastmeta.data import InputError, Source
from fastmeta.distributed import ALONE, Ranks
from fastmeta.functional.call import call_model, pick_logits
from fastmeta.functional.evaluation import evaluation
from fastmeta.meta import StepResult
from fastmeta.methods import Outcome

ECE_BINS = 15
_OF_LABEL_STEPS = ("label_steps", "meta_loss", "label_grad_norm")
_SUMS = ("rows", "fits", "steps", "train_loss", "entropy", *_OF_LABEL_STEPS, "index_skips", "nonfinite")
_STATE = (*_SUMS, "streak", "longest_streak")
_OF_ROWS = ("rows", "fits", "entropy", "index_skips")


class StepTotals:
    """Sums over the steps since :meth:`reset`, in one float64 vector on the device; adding never waits for it.

    Steps that were not finite count in `index_skips`, `nonfinite` and the streaks alone; steps that left the labels be
    (a meta loss of NaN in a finite step) are no `label_steps`.
    """

    def __init__(self, device: torch.device, ranks: Ranks = ALONE) -> None:
        self._ranks = ranks
        self.values = torch.zeros(len(_STATE), dtype=torch.float64, device=device)

    def add(self, outcome: Outcome | StepResult, targets: Tensor) -> None:
        """`targets` (n,) are the given labels of the batch."""
        self.values.copy_(self.added(self.values, outcome, targets))

    def added(self, values: Tensor, outcome: Outcome | StepResult, targets: Tensor) -> Tensor:
        """`values` and one step more; pure, so that a graph can hold it (:class:`fastmeta.meta.Totals`)."""
        is_finite = outcome.train_loss.isfinite() if outcome.finite is None else outcome.finite
        finite = is_finite.to(torch.float64)
        zero = torch.zeros_like(finite)
        # fits: how often the network already gives the given label
        fits = (outcome.logits.argmax(1) == targets).sum()
        entropy = zero if outcome.entropy is None else outcome.entropy.nansum()
        meta_loss = zero if outcome.meta_loss is None else outcome.meta_loss
        grad_norm = zero if outcome.label_grad_norm is None else outcome.label_grad_norm
        moves = not (outcome.meta_loss is None and outcome.label_grad_norm is None)
        of_finite_steps = [
            zero + len(targets),
            fits,
            zero + 1,
            outcome.train_loss,
            entropy,
            ~meta_loss.isnan() if moves else zero,
            meta_loss.nan_to_num(0.0),
            grad_norm.nan_to_num(0.0),
        ]
        counted = torch.stack([t.to(torch.float64) for t in of_finite_steps])
        sums = torch.where(is_finite, counted, 0.0)
        # The kernels also skip rows whose logits or tangent are not finite. A row whose logits are fine and whose loss
        # is NaN all the same had an index outside the label table, or a label row that is not finite.
        astray = outcome.train_loss.isnan() & outcome.logits.isfinite().all()
        skips = zero if outcome.skipped is None else torch.where(astray, outcome.skipped, 0).to(torch.float64)
        streak = (values[-2] + 1) * (1 - finite)
        longest = torch.maximum(values[-1], streak)
        steps = torch.cat([sums, torch.stack([skips, 1 - finite])])
        return torch.cat([values[: len(_SUMS)] + steps, torch.stack([streak, longest])])

    def read(self) -> dict[str, float]:
        """The sums on the host: waits for the device.

        Of several ranks, those of rows over all of them, and those of steps, which all take together, their mean.
        """
        sums = dict(zip(_STATE, self._ranks.sum(self.values).tolist(), strict=True))
        if self._ranks.size == 1:
            return sums
        return {name: value if name in _OF_ROWS else value / self._ranks.size for name, value in sums.items()}

    def regroup(self, before: int) -> None:
        """The sums are the mean of those that so many ranks had; each of the ranks of now has its share of them."""
        for name in _OF_ROWS:
            self.values[_STATE.index(name)] *= before / self._ranks.size

    def reset(self) -> None:
        """Start a new interval; a streak of steps that were not finite goes on."""
        self.values[: len(_SUMS)] = 0
        self.values[-1] = self.values[-2]


def means(sums: dict[str, float], *, meta: bool, learned: bool) -> dict[str, float | None]:
    """Means per step or row of what :meth:`StepTotals.read` gave; None where nothing was counted."""
    steps, rows, label_steps = sums["steps"], sums["rows"], sums["label_steps"]
    figures: dict[str, float | None] = {
        "train_loss": sums["train_loss"] / steps if steps else None,
        "train_fit": sums["fits"] / rows if rows else None,
    }
    if meta:
        figures["meta_loss"] = sums["meta_loss"] / label_steps if label_steps else None
    if learned:
        figures["label_entropy"] = sums["entropy"] / rows if rows else None
        figures["label_grad_norm"] = sums["label_grad_norm"] / label_steps if label_steps else None
    return figures


def not_finite(record: Mapping[str, Any]) -> list[str]:
    """Warnings about the figures of an epoch: steps, and logits of test samples, that were not finite."""
    warnings = []
    if record["nonfinite_steps"]:
        warnings.append(
            f"{record['nonfinite_steps']} steps of epoch {record['epoch']} were not finite and were skipped"
        )
    if record.get("test_accuracy") is not None and record["ece"] is None:
        warnings.append(
            f"at the end of epoch {record['epoch']} some test samples have logits that are not finite: they count as "
            "wrong, and nll and ece are null"
        )
    return warnings


def own_figures(method: str, figures: Mapping[str, Any]) -> dict[str, float | None]:
    """What a method measures of itself, as numbers; InputError for what is none."""
    found: dict[str, float | None] = {}
    for name, value in figures.items():
        number = None if value is None else as_real(value)
        if value is not None and number is None:
            raise InputError(f"method {method}: figure {shown(name)} must be a number or None, got {shown(value)}")
        found[str(name)] = number
    return found


@torch.no_grad()
def evaluate(
    model: nn.Module, source: Source, targets: Tensor, *, batch_size: int, autocast: Any, ranks: Ranks = ALONE
) -> dict[str, float | None]:
    """Accuracy, mean negative log-likelihood and expected calibration error in evaluation mode.

    ece = sum over 15 equal bins b of the confidence max_k q_k of |B_b| / N * |accuracy(B_b) - mean confidence(B_b)|.

    A row without a softmax (a NaN or +inf among its logits) counts as wrong; where there is one, nll and ece are None,
    and so is an nll that is infinite. Each of `ranks` measures its share of the rows.
    """
    device = targets.device
    nll = torch.zeros((), dtype=torch.float64, device=device)
    # per bin: right ones, sum of confidences
    bins = torch.zeros(2, ECE_BINS, dtype=torch.float64, device=device)
    without = torch.zeros((), dtype=torch.int64, device=device)  # rows without a softmax
    with evaluation(model):
        for logits, y in _answers(model, source, targets, range(*ranks.share(len(source))), batch_size, autocast):
            log_q = logits.double().log_softmax(1)
            confidence, predicted = log_q.exp().max(1)
            sound = confidence.isfinite()
            without += (~sound).sum()
            nll -= log_q.gather(1, y[:, None]).sum()
            member = (confidence.nan_to_num(0.0) * ECE_BINS).ceil().long().clamp(1, ECE_BINS) - 1
            in_bin = (member == torch.arange(ECE_BINS, device=device)[:, None]).double()  # (bins, n)
            bins += torch.stack([in_bin @ (sound & (predicted == y)).double(), in_bin @ confidence.nan_to_num(0.0)])
    right, confident = ranks.sum(bins).cpu()
    total = len(source)
    mean = float(ranks.sum(nll)) / total
    return {
        "test_accuracy": float(right.sum()) / total,
        "nll": mean if math.isfinite(mean) else None,
        "ece": None if int(ranks.sum(without)) else float((right - confident).abs().sum()) / total,
    }


@torch.no_grad()
def class_accuracy(
    model: nn.Module,
    source: Source,
    targets: Tensor,
    rows: range,
    num_classes: int,
    *,
    batch_size: int,
    autocast: Any,
    ranks: Ranks = ALONE,
) -> tuple[float, list[float | None]]:
    """Accuracy in evaluation mode on the samples `rows` of `source`, whose classes are `targets[rows]`: of all of them,
    and of each class, None where it has no row. A row without a softmax counts as wrong, as in :func:`evaluate`.
    """
    # per class: right ones, all
    counts = torch.zeros(2, num_classes, dtype=torch.float64, device=targets.device)
    first, last = ranks.share(len(rows))
    with evaluation(model):
        for logits, y in _answers(model, source, targets, rows[first:last], batch_size, autocast):
            confidence, predicted = logits.double().softmax(1).max(1)
            right = confidence.isfinite() & (predicted == y)
            counts.index_add_(1, y, torch.stack([right, torch.ones_like(right)]).double())
    right, count = ranks.sum(counts).tolist()
    return sum(right) / len(rows), [r / n if n else None for r, n in zip(right, count, strict=True)]


def _answers(
    model: nn.Module, source: Source, targets: Tensor, rows: range, batch_size: int, autocast: Any
) -> Iterator[tuple[Tensor, Tensor]]:
    """Logits (n, C) of a batch of `rows` after another, and its classes (n,)."""
    if not rows:  # of a rank that has none
        return
    device = targets.device
    of_source = torch.arange(rows.start, rows.stop, device="cpu" if source.rows_on_host else device)
    batches = of_source.split(batch_size)
    for batch, x in zip(batches, source.read(batches, device), strict=True):
        with autocast():
            logits = pick_logits(call_model(model, x))
        yield logits, targets[batch.to(device)]
