"""The posterior of every training label: cross-fitted predictions, and a noise model fitted to the labels as given."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from fastmeta._numbers import as_real, as_whole
from fastmeta._text import shown
from fastmeta.distributed import ALONE, Ranks
from fastmeta.losses import Labels, read_out
from fastmeta.meta import EpochLookahead, InputTransform
from fastmeta.posterior.calibration import inverse_temperature, row_weights, share_shift, shares
from fastmeta.posterior.folds import batches, stratified
from fastmeta.posterior.noise_model import fit_transition, posterior

#: how many times as probable as the given class another one must be to be put in its place
MARGIN = 2.0
#: copies, each without the clean rows of its fold
FOLDS = 3
#: rows at a time in double precision
_CHUNK = 65536


@dataclass
class LabelEstimate:
    """What :meth:`LabelPosterior.estimate` tells, of all ranks together; N counts the rows of `labels`."""

    probs: Tensor  #: (N, C) P(class | sample, given label)
    predicted: Tensor  #: (N, C) P(class | sample), without the row's given label
    transition: Tensor  #: (C, C) float64 P(given | class): rows are classes
    right: float  #: share of given labels estimated to be right
    clean_accuracy: float  #: of the predictions, on clean rows left out, weighted to the training set's class shares
    inverse_temperature: float  #: that the logits were multiplied by

    def mixed(self, share: float) -> Tensor:
        """(N, C): (1 - share) of `probs` and `share` of `predicted`, which the noise model cannot mislead."""
        return (1 - share) * self.probs + share * self.predicted

    def labels(self, targets: Tensor, share: float = 0.0, margin: float = MARGIN) -> Tensor:
        """(N,) int64: the given `targets`, but where ``mixed(share)`` has another class `margin` times as probable."""
        return read_out(self.mixed(share), targets, margin)


class LabelPosterior:
    """The probability of every class for every training row, by its sample and its given label.

    The clean rows are split into `folds`. For each fold a copy of the model takes `steps` small SGD steps on the rows
    of the other folds. The copies' mean log-probabilities on a training row are q_i. A copy has never seen the clean
    rows of its own fold, and these set a temperature. Classes are shifted from the clean rows' shares to the training
    set's: those of the given labels, moved by half of a round of EM for shares (Saerens, Latinne, Decaestecker 2002).
    Then EM fits a transition matrix T to the given labels y_i, and

        P(c | x_i, y_i) ~ q_i(c) T[c, y_i]

    It is right as far as q is calibrated on training rows, and noise depends on the class alone: estimate while the
    network has not learned the noise by heart, as after a tenth of a run, or train it on the estimate. Noise that
    looks like the sample, as people's mistakes do, is partly taken for truth. docs/posterior.md has what was measured::

        estimate = fastmeta.LabelPosterior(model, labels).estimate(batches, (x_meta, y_meta))
        labels.assign_(torch.arange(len(labels)), estimate.mixed(0.3))

    The model is in evaluation mode meanwhile, but that BatchNorm takes the statistics of the batch in clean steps of 8
    rows and more; it, its ``.grad`` and all random generators stand as before.

    Args:
        model: with logits (n, C), as :class:`fastmeta.MetaStep` takes it.
        labels: the family over the training set: its given labels and its classes.
        folds: at least 2; fewer where no class has so many clean rows.
        steps: clean steps of each copy.
        lr, momentum: of these.
        batch_size: most clean rows of a step.
        trust: weight of "labels are right" beside the data: see :func:`fastmeta.posterior.fit_transition`. None takes
            4 e^2, e the error of the copies on clean rows left out: who cannot tell the classes shall not judge labels.
        seed: of the order of the clean rows where they are more than `batch_size`.
        logits_of, transform, micro_batch, per_row: as in :class:`fastmeta.EpochLookahead`.
        process_group: each rank looks at training rows of its own, and all have the same clean ones. The copies are
            those of the first rank.
        own_rows: with it, `labels` holds the rows of its rank alone, and so does the estimate: counts of rows are all
            that is sent. Else every rank has all rows, and gets the estimate of all.

    Raises:
        TypeError, ValueError: arguments that do not fit.
    """

    def __init__(
        self,
        model: nn.Module,
        labels: Labels,
        *,
        folds: int = FOLDS,
        steps: int = 30,
        lr: float = 0.02,
        momentum: float = 0.9,
        batch_size: int = 512,
        trust: float | None = None,
        seed: int = 0,
        logits_of: Callable[[Any], Tensor] | None = None,
        transform: InputTransform | None = None,
        micro_batch: int | None = None,
        per_row: Any = None,
        process_group: dist.ProcessGroup | None = None,
        own_rows: bool = False,
    ) -> None:
        if not isinstance(labels, Labels):
            raise TypeError(
                f"labels must be InstanceLabels or ClassLabels, which hold given labels, got {type(labels).__name__}"
            )
        self.labels = labels
        self.folds, self.batch_size = _whole("folds", folds, 2), _whole("batch_size", batch_size, 1)
        self.seed = _whole("seed", seed, 0)
        number = None if trust is None else as_real(trust)
        if trust is not None and (number is None or number < 0):
            raise ValueError(f"trust must be None, or finite and >= 0, got {shown(trust)}")
        self.trust = number
        self._ranks, self.own_rows = Ranks(process_group), own_rows
        self.lookahead = EpochLookahead(
            model,
            labels,
            steps=steps,
            lr=lr,
            momentum=momentum,
            logits_of=logits_of,
            transform=transform,
            micro_batch=micro_batch,
            per_row=per_row,
            batch_statistics=True,
        )

    def estimate(
        self,
        train: Iterable[tuple[Any, Tensor]] | Callable[[], Iterable[tuple[Any, Tensor]]],
        clean: tuple[Any | Callable[[Tensor], Any], Tensor],
    ) -> LabelEstimate:
        """Look at all rows once for each fold.

        Args:
            train: batches ``(x, index)`` that hold each training row once, as it is, without augmentation; begun anew
                for each fold, so a list, a DataLoader or a function that gives an iterator. Over ranks, each gives a
                part of the rows.
            clean: ``(x_meta, y_meta)``; x_meta a tensor, or a function from row numbers (m,) int64 to their x.

        Raises:
            ValueError: fewer than two clean rows; rows missing from `train` or there twice.
            FloatingPointError: logits that are not finite.
        """
        x_meta, y = clean
        fetch: Callable[[Tensor], Any] = x_meta if callable(x_meta) else x_meta.__getitem__
        labels, classes, ranks = self.labels, self.labels.num_classes, self._ranks
        share = ranks if self.own_rows else ALONE  # who else has rows, once the logits are there
        if len(y) < 2:
            raise ValueError(f"a posterior needs at least 2 clean rows, of which some are left out, got {len(y)}")
        given = labels.targets
        folds = min(self.folds, max(2, int(torch.bincount(y).max())))
        fold = stratified(y, folds)
        held_out = torch.zeros(len(y), classes, dtype=torch.float64, device=y.device)
        predictions = []
        for k in range(folds):
            own, others = ((fold == k).nonzero().squeeze(1), (fold != k).nonzero().squeeze(1))
            if not len(others):
                continue
            steps = batches(others, self.batch_size, self.lookahead.steps, self.seed + k)
            with self.lookahead.ahead((fetch(rows), y[rows]) for rows in steps) as copy:
                copy.take_first(ranks)
                for rows in own.split(self.batch_size):
                    held_out[rows] = copy.logits(fetch(rows), y.device).double()
                out = torch.zeros(len(labels), classes, device=given.device)
                times = torch.zeros(len(labels), dtype=torch.int64, device=given.device)
                for x, index in train() if callable(train) else train:
                    out[index] = copy.logits(x, index.device).float()
                    times[index] += 1
            if not self.own_rows:
                out, times = ranks.sum(out), ranks.sum(times)
            # over ranks, where one raises all do: none is left waiting for it
            told = (times == 0).sum(), (times > 1).sum(), (~out.isfinite().all(1)).sum()
            never, often, lost = share.sum(torch.stack(told)).tolist()
            if never or often:
                size = int(share.sum(torch.tensor(len(labels), device=given.device)))
                raise ValueError(
                    f"train must give each of the {size} rows once, got {never} of them never and {often} more than "
                    "once"
                )
            if lost:
                raise FloatingPointError(f"{lost} training rows have logits that are not finite behind the clean steps")
            predictions.append(out)
        if lost := int((~held_out.isfinite().all(1)).sum()):
            raise FloatingPointError(f"{lost} clean rows have logits that are not finite behind the clean steps")
        few, many = shares(y, classes), shares(given, classes, share)
        for _ in range(2):
            shift = share_shift(few, many)
            weight = row_weights(y, shift)
            b = inverse_temperature(held_out + shift, y, weight)
            q = _mean_prediction(predictions, shift, b)
            # half-way: given shares are off by the noise, the round by how little a weak network can tell
            many = (many + _mean(q.double(), share)) / 2
        accuracy = float((((held_out + shift).argmax(1) == y) * weight).mean())
        trust = 4 * (1 - accuracy) ** 2 if self.trust is None else self.trust
        transition = fit_transition(q, given, trust, ranks=share)
        probs = torch.cat(
            [posterior(a, k, transition).to(a.dtype) for a, k in zip(q.split(_CHUNK), given.split(_CHUNK), strict=True)]
        )
        return LabelEstimate(
            probs=probs,
            predicted=q,
            transition=transition,
            right=float(_mean(probs.gather(1, given[:, None]).double(), share)),
            clean_accuracy=accuracy,
            inverse_temperature=b,
        )

    def __repr__(self) -> str:
        look = self.lookahead
        return (
            f"LabelPosterior({type(look.model).__name__}, {self.folds} folds, {look.steps} clean steps at rate "
            f"{look.lr:g}, trust {'by accuracy' if self.trust is None else f'{self.trust:g}'})"
        )


def _mean(rows: Tensor, ranks: Ranks) -> Tensor:
    """Over the rows (N, ...) of all ranks."""
    if ranks.size == 1:
        return rows.mean(0)
    return ranks.sum(rows.sum(0)) / ranks.sum(torch.tensor(len(rows), device=rows.device))


def _mean_prediction(logits: list[Tensor], shift: Tensor, b: float) -> Tensor:
    """(N, C): the geometric mean of what the copies say."""
    log_q = torch.zeros_like(logits[0])
    for z in logits:
        log_q += ((z + shift.to(z.dtype)) * b).log_softmax(1)
    return (log_q / len(logits)).softmax(1)


def _whole(name: str, value: Any, least: int) -> int:
    number = as_whole(value)
    if number is None or number < least:
        raise ValueError(f"{name} must be a whole number from {least} on, got {shown(value)}")
    return number
