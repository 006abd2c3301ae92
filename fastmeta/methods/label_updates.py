"""When and how learned labels move: by a meta-gradient in each step, or between epochs."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any

import torch
from torch import nn

from fastmeta.data.seeds import derived_seed
from fastmeta.losses import InstanceLabels, Labels
from fastmeta.meta import EpochLookahead, MetaStep
from fastmeta.meta.epoch import EpochResult
from fastmeta.methods.base import Batch, Context, Outcome, Samples
from fastmeta.methods.held_labels import HeldLabelsStep
from fastmeta.methods.label_curriculum import Restart, entropy_weights
from fastmeta.posterior import LabelEstimate, LabelPosterior

#: share that all classes have alike of the given labels that a network is warmed up on
SMOOTHED = 0.1
#: of the rate of clean steps, which falls with that of the model, no less than this share stays
LEAST_SHARE = 0.05
#: rows of the table that are written at a time
_ROWS = 65536


class Updates(ABC):
    """A model that is trained on labels, and how these move.

    For the first `warmup_epochs` the network is trained on the given labels, smoothed: it has something to say of the
    labels then, which a soft start would leave for later.
    """

    #: does :meth:`step` want a batch of clean samples?
    uses_meta_batch: bool

    def __init__(
        self,
        context: Context,
        model: nn.Module,
        labels: Labels,
        optimizer: torch.optim.Optimizer,
        warnings: list[str],
    ) -> None:
        self.context, self.config, self.warnings = context, context.config, warnings
        self.model, self.labels, self.optimizer = model, labels, optimizer
        self.held = False
        self.epochs_done = 0
        self.prepare()

    @abstractmethod
    def prepare(self) -> None:
        """Make what moves the labels."""

    @cached_property
    def held_step(self) -> HeldLabelsStep:
        return HeldLabelsStep(self.context, self.model, self.labels, self.optimizer)

    def step(self, batch: Batch) -> Outcome:
        if self.epochs_done < self.config.labels.warmup_epochs:
            return self.held_step(batch, SMOOTHED)
        return self.held_step(batch) if self.held else self.train(batch)

    def train(self, batch: Batch) -> Outcome:
        """A step behind the warm-up."""
        return self.held_step(batch)

    @property
    def steps_together(self) -> int:
        """Most steps that the next call takes."""
        return 1

    def several_steps(self, batches: Sequence[Batch]) -> Outcome:
        """As many as that, behind the warm-up."""
        raise NotImplementedError

    def skip_warm_up(self) -> None:
        self.epochs_done = self.config.labels.warmup_epochs

    @abstractmethod
    def explain(self) -> str: ...

    def end_epoch(self, samples: Samples) -> None:
        """Behind the last step of an epoch."""
        self.epochs_done = samples.epoch

    def hold(self) -> None:
        """Labels stay as they are from here on, and steps are plain ones."""
        self.held = True

    def stateful(self) -> Mapping[str, Any]:
        return {"label_updates": self}

    def state_dict(self) -> dict[str, Any]:
        return {"epochs_done": self.epochs_done}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.epochs_done = state["epochs_done"]

    def figures(self) -> Mapping[str, Any]:
        return {}


class ExactUpdates(Updates):
    """labels.update=exact: :class:`fastmeta.MetaStep`."""

    uses_meta_batch = True

    def prepare(self) -> None:
        of_labels = self.config.labels
        self.restart = Restart(self.labels, of_labels.target_prob) if of_labels.reset else None
        self.meta_step = MetaStep(
            self.model,
            self.labels,
            self.optimizer,
            label_lr=of_labels.label_lr,
            label_step=of_labels.label_step,
            lookahead=of_labels.lookahead_choice,
            tangent=of_labels.tangent,
            unique_index=True,  # a pass over the training set meets no row twice
            compile=self.config.compile,
            approx=self.config.approx_choice,
            watch_every=self.config.watch_choice,
            transform=self.context.transform,
            totals=self.context.totals,
            micro_batch=self.config.micro_batch,
            process_group=self.context.ranks.group,
            own_rows=True,
            lookahead_steps=of_labels.lookahead_steps,
        )
        self.meta_step.on_warning = self.warnings.append

    def hold(self) -> None:
        super().hold()
        self.uses_meta_batch = False

    @property
    def steps_together(self) -> int:
        plain = self.held or self.epochs_done < self.config.labels.warmup_epochs
        return 1 if plain else self.meta_step.lookahead_steps

    def train(self, batch: Batch) -> Outcome:
        return self.several_steps([batch])

    def several_steps(self, batches: Sequence[Batch]) -> Outcome:
        """The clean batch is that of the last step."""
        meta = batches[-1].meta
        assert meta is not None
        if self.restart is not None:
            self.restart.before_step()
        kind = self.config.labels.entropy_weight
        train: Any = [(b.x, b.index) for b in batches]
        weights: Any = None
        if kind != "none":
            weights = [entropy_weights(self.labels.probs(b.index), kind, self.context.ranks) for b in batches]
        if len(batches) == 1:
            train, weights = train[0], weights and weights[0]
        r = self.meta_step(train, meta, weight=weights)
        told = r.logits, r.train_loss, r.finite, r.meta_loss, r.entropy, r.label_grad_norm, r.skipped
        return Outcome(*told, counted=True, distance=r.distance)

    def explain(self) -> str:
        warmup, lines = self.config.labels.warmup_epochs, [self.meta_step.explain()]
        if warmup:
            lines.append(f"moves:      behind {warmup} epochs on the given labels, smoothed by {SMOOTHED:g}")
        if (kind := self.config.labels.entropy_weight) != "none":
            lines.append(f"weights:    of samples {kind} by the entropy H of their labels, with mean 1 in a batch")
        if self.restart is not None:
            lines.append("restart:    labels start anew in each epoch")
        return "\n".join(lines)

    def end_epoch(self, samples: Samples) -> None:
        super().end_epoch(samples)
        if self.restart is not None and self.epochs_done > self.config.labels.warmup_epochs:  # labels have moved in it
            self.restart.due = True

    def stateful(self) -> Mapping[str, Any]:
        kept = {"meta_step": self.meta_step, **super().stateful()}
        return kept if self.restart is None else {**kept, "restart": self.restart}


class BetweenEpochs(Updates):
    """Plain steps under the labels as they are, which move when an epoch ends."""

    uses_meta_batch = False

    def end_epoch(self, samples: Samples) -> None:
        super().end_epoch(samples)
        due = not self.held and self.config.labels.moves_after(samples.epoch, self.config.epochs)
        self.move(samples if due else None)

    @abstractmethod
    def move(self, samples: Samples | None) -> None:
        """Move the labels; None behind an epoch where they stay."""


class EpochUpdates(BetweenEpochs):
    """labels.update=epoch: :class:`fastmeta.EpochLookahead`.

    Labels move from the end of the `warmup_epochs` on and not behind the last epoch, for on what moved there nothing
    would be trained. The rate of the clean steps follows that of the model.
    """

    def prepare(self) -> None:
        of_labels = self.config.labels
        self.lookahead = EpochLookahead(
            self.model,
            self.labels,
            steps=of_labels.steps,
            lr=of_labels.clean_lr,
            eta=of_labels.eta,
            micro_batch=self.config.micro_batch,
            process_group=self.context.ranks.group,
            own_rows=True,
        )
        self.last: EpochResult | None = None  # of the epoch that has just ended, if labels moved then

    def move(self, samples: Samples | None) -> None:
        self.last = None
        if samples is None:
            return
        share = self.optimizer.param_groups[0]["lr"] / self.config.optim.lr
        self.lookahead.lr = self.config.labels.clean_lr * max(LEAST_SHARE, share)
        self.last = self.lookahead.update(samples.train(), samples.clean(self.lookahead.steps))
        if not self.last.finite:
            self.warnings.append(
                "the clean steps at the end of an epoch were not finite, and no label moved: lower labels.clean_lr, "
                f"now {self.config.labels.clean_lr:g}"
            )
        elif self.last.skipped:
            self.warnings.append(
                "training rows had logits that are not finite at the end of an epoch: their labels did not move then"
            )

    def explain(self) -> str:
        warmup, epochs = self.config.labels.warmup_epochs, self.config.epochs
        first = f"; first {warmup} on the given labels, smoothed by {SMOOTHED:g}" if warmup else ""
        return (
            f"{self.lookahead.explain()}\n"
            f"moves:      at the end of epochs {max(1, warmup)} to {epochs - 1} of {epochs}{first}"
        )

    def figures(self) -> Mapping[str, Any]:
        r = self.last
        return {
            "label_change": None if r is None else r.change,
            "alignment": None if r is None else r.alignment,
            "clean_loss_before": None if r is None else r.meta_loss[0],
            "clean_loss_ahead": None if r is None else r.meta_loss[-1],
        }


class PosteriorUpdates(BetweenEpochs):
    """labels.update=posterior: :class:`fastmeta.LabelPosterior`, from the end of epoch `warmup_epochs` on.

    An estimate is the posterior mixed with the prediction, every so many epochs, and behind the last one. Labels are
    the mean of all estimates so far: one is off by what the network has just learned by heart, and early ones least.
    """

    def prepare(self) -> None:
        of_labels = self.config.labels
        self.labels.margin = of_labels.margin
        self.posterior = LabelPosterior(
            self.model,
            self.labels,
            steps=of_labels.steps,
            lr=of_labels.clean_lr,
            trust=of_labels.trust,
            batch_size=of_labels.clean_batch,
            seed=derived_seed(self.config.seed, "clean-order"),
            micro_batch=self.config.micro_batch,
            process_group=self.context.ranks.group,
            own_rows=True,
        )
        self.estimates = 0
        self.last: LabelEstimate | None = None  # of the epoch that has just ended, if labels were estimated then

    def move(self, samples: Samples | None) -> None:
        self.last = None
        if samples is None:
            return
        try:
            self.last = self.posterior.estimate(samples.train, (samples.clean_rows, samples.clean_targets))
        except FloatingPointError as error:
            self.warnings.append(f"at the end of an epoch {error}; labels stayed as they were")
            return
        self.estimates += 1
        mixed = self.last.mixed(self.config.labels.mix)
        assert isinstance(self.labels, InstanceLabels)
        for rows in torch.arange(len(mixed), device=mixed.device).split(_ROWS):
            before = self.labels.probs(rows).to(mixed.dtype)
            self.labels.assign_(rows, before.lerp(mixed[rows], 1 / self.estimates))

    def state_dict(self) -> dict[str, Any]:
        return {**super().state_dict(), "estimates": self.estimates}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        super().load_state_dict(state)
        self.estimates = state["estimates"]

    def explain(self) -> str:
        of_labels, epochs = self.config.labels, self.config.epochs
        moves = [e for e in range(1, epochs + 1) if of_labels.moves_after(e, epochs)]
        return (
            f"labels:     instance, their posterior under the noise that is there, {of_labels.mix:.0%} prediction\n"
            f"copies:     {self.posterior.folds}, {of_labels.steps} clean steps each at rate {of_labels.clean_lr:g}, "
            f"of at most {of_labels.clean_batch} samples\n"
            f"estimated:  at the end of {len(moves)} of {epochs} epochs, the first time behind epoch {moves[0]}"
        )

    def figures(self) -> Mapping[str, Any]:
        r = self.last
        return {
            "given_right_estimated": None if r is None else r.right,
            "clean_accuracy": None if r is None else r.clean_accuracy,
        }


class NoUpdates(Updates):
    """labels.update=none: plain steps on the labels as they start."""

    uses_meta_batch = False

    def prepare(self) -> None:
        pass

    def explain(self) -> str:
        of_labels = self.config.labels
        start = f"at probability {of_labels.target_prob:g} of the given class"
        warmup = f", behind {of_labels.warmup_epochs} epochs at {1 - SMOOTHED:g}" if of_labels.warmup_epochs else ""
        return f"labels:     stay as they start, {start}{warmup}"


UPDATES: dict[str, type[Updates]] = {
    "exact": ExactUpdates,
    "epoch": EpochUpdates,
    "posterior": PosteriorUpdates,
    "none": NoUpdates,
}
