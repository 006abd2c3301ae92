"""Soft targets that a run, or the folds of one, has learned, as they moved over it or as they were at its end."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from fastmeta.data import InputError, positive
from fastmeta.methods.base import Batch, Context, Outcome, Samples
from fastmeta.methods.fixed_labels import FixedLabels


class Replay(FixedLabels):
    """Labels of a trajectory (:mod:`fastmeta.trajectory`), at a temperature T.

        t_i = p_i(s)^(1/T) over its sum,  s the share of the run that is done
        loss = mean_i( -sum_k t_ik log q_ik )        q = softmax(z_i)

    Dynamic: step t of T steps takes class labels behind step floor(t S / T) of S that were recorded. Instance labels
    change between epochs: in epoch e of E they are those at the share (e + 1) / E of the recorded run, which the visit
    of each row in that epoch has left; where labels moved between epochs, those at e / E. Static: those at the end.
    """

    @dataclass(frozen=True)
    class Config:
        trajectory: str = ""
        """Directory of a finished run that was trained with trajectory_every, or the folder labels of --folds."""
        play: Literal["dynamic", "static"] = "dynamic"
        """dynamic: labels as they moved, by the share of the run that is done; static: as they were at the end."""
        temperature: float = 1.0
        """T, above 0: more than one makes targets softer."""

    supports = (FixedLabels.supports | {"ema", "mixup", "optim.warmup"}) - {"ranks"}
    not_on_ranks = "it reads the trajectory of all training rows"
    meta_fraction: ClassVar[float] = 0.0
    paths: ClassVar[tuple[str, ...]] = ("trajectory",)

    @classmethod
    def check(cls, config: Any, num_classes: int | None = None) -> None:
        positive("method.temperature", config.options.temperature)
        # without data a config may still be on its way, flag by flag
        if num_classes is not None and not config.options.trajectory:
            raise InputError(
                "method=replay needs method.trajectory: the directory of a run that was trained with "
                "--trajectory-every, or the folder labels of --folds"
            )

    def setup(self, context: Context) -> None:
        super().setup(context)
        self.context = context
        self.trajectory = context.trajectory(self.config.trajectory)
        self.steps_done = 0
        self.values: Tensor  # (S, C) of class labels, those of all steps; (N, C) of instance labels, of this epoch
        if self.trajectory.kind == "class":
            last = -1 if self.config.play == "static" else 0
            self.values = torch.from_numpy(self.trajectory.class_probs()[last:]).to(context.device)
        else:
            self._load()

    def _load(self) -> None:
        """Instance labels of the epoch that begins. Waits for the device."""
        if self.trajectory.kind == "instance":
            table = torch.from_numpy(self.trajectory.at(self._share()))
            self.values = table.to(self.context.device)

    def _share(self) -> Fraction:
        context = self.context
        if self.config.play == "static":
            return Fraction(1)
        epochs = self.steps_done // context.steps_per_epoch + (self.trajectory.about.moves == "steps")
        return Fraction(min(epochs * context.steps_per_epoch, context.steps), context.steps)

    def batch_targets(self, index: Tensor) -> Tensor:
        """p (n, C) of the rows `index` (n,), before the temperature."""
        if self.trajectory.kind == "instance":
            return self.values[index]
        given = self.targets[index]
        row = self.steps_done * len(self.values) // self.context.steps
        target = self.values[row][given].unsqueeze(1)
        classes = self.context.num_classes
        others = ((1 - target) / (classes - 1)).expand(-1, classes)
        return others.scatter(1, given.unsqueeze(1), target)

    def loss(self, logits: Tensor, targets: Tensor) -> Tensor:
        soft = (targets.to(logits.dtype).log() / self.config.temperature).softmax(1)
        return cross_entropy(logits, soft)

    def step(self, batch: Batch) -> Outcome:
        outcome = super().step(batch)
        self.steps_done += 1
        return outcome

    def end_epoch(self, samples: Samples) -> None:
        if self.config.play == "dynamic" and self.steps_done < self.context.steps:
            self._load()

    def stateful(self) -> Mapping[str, Any]:
        return {"replay": self}

    def state_dict(self) -> dict[str, Any]:
        return {"steps_done": self.steps_done}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.steps_done = state["steps_done"]
        self._load()

    def explain(self) -> str:
        about, own = self.trajectory.about, self.config
        of = f"the average of {about.folds} folds" if about.averaged else "a run"
        how = "as they were at the end" if own.play == "static" else f"as they moved in {about.epochs} epochs"
        return (
            f"labels: those of {own.trajectory}, {about.kind} labels of {of}, {how}, at temperature {own.temperature:g}"
        )
