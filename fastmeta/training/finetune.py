"""A few steps on the clean samples alone, which a copy of a trained model takes, and what that copy says of labels."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.functional import cross_entropy

from fastmeta.data import PILOT, EpochSampler, derived_seed
from fastmeta.functional.call import call_model, pick_logits
from fastmeta.functional.evaluation import (
    LEAST_ROWS,
    batch_statistics,
    evaluation,
    recurrent_backward,
    training_batch_norms,
)
from fastmeta.functional.finite import all_finite
from fastmeta.methods.plain_step import PlainStep
from fastmeta.training import global_generators
from fastmeta.training.config import TrainConfig
from fastmeta.training.measuring import tested
from fastmeta.training.model_copy import copy_of
from fastmeta.training.readings import Readings, look_steps, read
from fastmeta.training.stage_names import is_trial

if TYPE_CHECKING:
    from fastmeta.training.stage import Stage

MOMENTUM = 0.9
#: how often the rate is halved where steps diverge, which they do that raise the clean loss by more than this share of
#: log C at their end or as the mean of a pass: less may happen where batches are small and the loss is low already
HALVINGS, RISE = 5, 0.5
_ROWS = 256
#: stages without: what has been trained on clean samples alone has nothing to gain, and the pilot is no result
WITHOUT = ("clean", PILOT)


@dataclass
class FineTuned:
    """What :func:`finetune` gives."""

    figures: dict[str, Any]  # for the summary
    model: nn.Module | None  # the copy; None where a step was not finite
    readings: Readings | None = None  # of labels, by that copy too

    def warning(self, lr: float | None) -> str | None:
        """Where the rate `lr` that was asked for was not the one."""
        if self.model is None:
            return str(self.figures["failed"])
        rate = self.figures["lr"]
        return None if rate == lr else f"fine-tuning diverged at finetune_lr={lr:g}; taken anew at {rate:g}"

    def __str__(self) -> str:
        """In a line."""
        told = [("test", self.figures["test_accuracy"])]
        told += [(f"labels by {name}", r["label_accuracy"]) for name, r in self.figures["labels"].items()]
        known = [f"{what} {value:.1%}" for what, value in told if value is not None]
        return ": ".join([f"{self.figures['steps']:,} clean steps on a copy", *([", ".join(known)] if known else [])])


def steps_of(config: TrainConfig, stage: str) -> int:
    """How many steps the copy of a stage's model takes, 0 for none."""
    return 0 if stage in WITHOUT or is_trial(stage) else config.finetune_steps


def plain_steps(stage: Stage) -> float:
    """What the fine-tuning of `stage` costs, in plain steps on a batch: by counted forwards, three of each row."""
    steps = steps_of(stage.config, stage.name)
    if not steps:
        return 0.0
    return steps * stage.meta_sampler.batch_size / stage.sampler.batch_size + look_steps(stage)


def finetune(stage: Stage, stopped: Callable[[], bool]) -> FineTuned | None:
    """A copy of the stage's model behind K steps of SGD on clean batches, and its figures; None if `stopped`.

        theta <- theta - SGD step of L_clean(theta), at a constant rate, momentum 0.9

    In evaluation mode, without dropout; but BatchNorm that trains takes the statistics of clean batches of 8 rows and
    more, and the copy's running ones follow. Under running statistics a network may be stiff, above all where weight
    decay has made its weights small. Steps that raise the clean loss on their way or at their end are taken anew from
    the model at half the rate, up to five times; `lr` tells the rate of those that count.

    All is a function of the stage's end and of the run's seed alone; nothing of the stage moves but its labels to those
    that its canaries keep, and no random generator.
    """
    config, began = stage.config, time.perf_counter()
    steps, lr = steps_of(config, stage.name), config.finetune_lr
    assert lr is not None
    with global_generators.kept():
        global_generators.seed_all(derived_seed(config.seed, "finetune"))
        most = _clean_loss(stage, copy_of(stage.model)) + RISE * math.log(stage.data.num_classes)
        for halvings in range(HALVINGS + 1):
            model, rate = copy_of(stage.model), lr / 2**halvings
            highest = _descend(stage, model, steps, rate, stopped)
            if highest is None:
                return None
            if sound := highest <= most and _clean_loss(stage, model) <= most:
                break
        figures: dict[str, Any] = {"steps": steps, "lr": rate, **dict.fromkeys(("test_accuracy", "nll", "ece"))}
        readings = None
        if sound:
            readings = read(stage, model)
            assert readings is not None
            figures |= tested(stage, model) | {"labels": readings.figures(stage), "failed": None}
        else:
            reason = f"fine-tuning diverged at rates from finetune_lr={lr:g} down to {rate:g}; lower it"
            figures |= {"labels": {}, "failed": reason}
        figures["seconds"] = time.perf_counter() - began
        return FineTuned(figures, model if sound else None, readings)


def _descend(stage: Stage, model: nn.Module, steps: int, lr: float, stopped: Callable[[], bool]) -> float | None:
    """Take the steps, in place; the largest mean loss of a pass, infinite if one was not finite, None if `stopped`."""
    params = [p for p in model.parameters() if p.requires_grad]
    if not params:  # a predictor that its method moves without gradients, such as a mean of weights
        params = list(model.requires_grad_(True).parameters())
    optimizer = torch.optim.SGD(params, lr=lr, momentum=MOMENTUM)
    step, samples = PlainStep(model, optimizer, stage.config.micro_batch), stage.samples()
    targets, size = samples.clean_targets, stage.config.data.meta_batch_size or 1
    device, seed = stage.meta_sampler.device, stage.config.seed
    order = EpochSampler(len(targets), size, seed=seed, stream="finetune-order", device=device)
    sound, losses = torch.ones((), dtype=torch.bool, device=stage.device), []
    normed = training_batch_norms(model).values() if order.batch_size >= LEAST_ROWS else ()
    with evaluation(model), recurrent_backward(model, stage.device), batch_statistics(normed):
        for number in range(steps):
            if stopped():
                return None
            rows = order(number)
            y = targets[rows.to(targets.device)]

            def backward(logits: Tensor, part: slice, y: Tensor = y) -> Tensor:
                loss = cross_entropy(logits, y[part], reduction="sum") / len(y)
                loss.backward()
                return loss.detach()

            with stage.autocast():  # anew for each step: it keeps the weights that it has cast
                _, loss, finite = step(samples.clean_rows(rows), len(y), backward)
            sound &= finite
            losses.append(loss)
    if not bool(sound & all_finite(params)):
        return math.inf
    passes = torch.stack(losses)[: steps // order.batches * order.batches].view(-1, order.batches)
    return float(passes.mean(1).max()) if len(passes) else 0.0


def _clean_loss(stage: Stage, model: nn.Module) -> float:
    """Mean over the clean set, in evaluation mode."""
    samples = stage.samples()
    targets, total = samples.clean_targets, torch.zeros((), dtype=torch.float64, device=stage.device)
    with torch.no_grad(), evaluation(model):
        for rows in torch.arange(len(targets), device=stage.meta_sampler.device).split(_ROWS):
            with stage.autocast():
                logits = pick_logits(call_model(model, samples.clean_rows(rows)))
            total += functional.cross_entropy(logits.double(), targets[rows.to(targets.device)], reduction="sum")
    return float(total) / len(targets)
