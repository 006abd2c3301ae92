"""What a stage offers its method: see :class:`fastmeta.methods.Context`."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from fastmeta.data import InputError, Source, Splits
from fastmeta.distributed import ALONE, Ranks
from fastmeta.losses import Labels
from fastmeta.training.config import CUSTOM, TrainConfig, is_code
from fastmeta.training.metrics import StepTotals
from fastmeta.training.optimizer import build_optimizer
from fastmeta.training.rundir.files import seal_of, user_path
from fastmeta.training.rundir.layout import CONFIG
from fastmeta.training.rundir.load import LABELS, load_learned_labels, load_run
from fastmeta.trajectory import SUMS, Trajectory, check_classes


class StageContext:
    """Hands out models and optimizers of one stage, and keeps them by name.

    Args:
        config: resolved.
        targets: (N,) int64 given labels of the rows that the stage trains on, on its device.
        source: of the samples, on the device to train on.
        splits: what the training rows are of.
        build: makes a network by its name, on the host.
        place: moves a network to where the stage trains.
        fixed_samples: gives the training rows, or None where they are others in each step.
        noise_rate: share of wrong labels among the training rows, where the run has added noise.
        batch_size: rows of a batch of this rank.
    """

    def __init__(
        self,
        config: TrainConfig,
        targets: Tensor,
        num_classes: int,
        *,
        noise_rate: float | None,
        batch_size: int,
        steps_per_epoch: int,
        steps: int,
        source: Source,
        splits: Splits | None,
        build: Callable[[str], nn.Module],
        place: Callable[[nn.Module], nn.Module],
        fixed_samples: Callable[[], Iterator[tuple[Any, Tensor]] | None],
        ranks: Ranks = ALONE,
    ) -> None:
        assert config.epochs is not None
        self.config, self.targets, self.num_classes, self.device = config, targets, num_classes, targets.device
        self.epochs, self.steps_per_epoch, self.steps = config.epochs, steps_per_epoch, steps
        self.batch_size, self.ranks = batch_size, ranks
        self.input_shape = source.input_shape
        self.transform, self.totals = source.transform, StepTotals(targets.device, ranks)
        self.noise_rate, self._build, self._place, self._splits = noise_rate, build, place, splits
        self.fixed_samples = fixed_samples
        self.models: dict[str, nn.Module] = {}
        self.optimizers: dict[str, torch.optim.Optimizer] = {}
        self.teachers: dict[str, Any] = {}  # path -> size and digest of the weights

    def network_input(self, x: Any) -> Any:
        return self.transform(x, self.transform.tensors)

    def model(self, name: str = "model") -> nn.Module:
        _check_new(name, self.models)
        self.models[name] = self._place(self._build(name))
        return self.models[name]

    def optimizer(self, params: Iterable[Tensor], name: str = "optimizer") -> torch.optim.Optimizer:
        _check_new(name, self.optimizers)
        self.optimizers[name] = optimizer = build_optimizer(self.config.optim, params)
        if self.config.optim.warmup:  # as schedules of torch write down what a rate grows to
            for group in optimizer.param_groups:
                group["initial_lr"] = self.config.optim.lr
        return optimizer

    def teacher(self, path: str | Path, model: nn.Module | None = None) -> nn.Module:
        run = load_run(path, model=self._own_network(path) if model is None else model)
        if run.summary["num_classes"] != self.num_classes:
            raise InputError(f"the teacher {path} knows {run.summary['num_classes']} classes, not {self.num_classes}")
        self.teachers[str(path)] = seal_of(run.path / "model.safetensors")
        return self._place(run.model.requires_grad_(False)).eval()

    def learned_labels(self, path: str | Path) -> Labels:
        folder, summary, labels = load_learned_labels(path)
        if labels is None:
            why = "withheld" if summary.get("labels_withheld") else "none that can be read"
            raise InputError(f"the learned labels of {path} are {why}; name a run of a method that learns labels")
        targets = labels.targets.to(self.device)
        here, there = (len(self.targets), self.num_classes), (len(targets), labels.num_classes)
        if here != there:
            raise InputError(
                f"the learned labels of {path} are {there[0]:,} of {there[1]:,} classes, and this run trains on "
                f"{here[0]:,} rows of {here[1]:,} classes; it needs the same data and split"
            )
        if others := int((targets != self.targets).sum()):
            raise InputError(
                f"the learned labels of {path} belong to other rows or other noise: {others:,} of {len(targets):,} "
                "given labels differ; it needs the same data, noise and seed"
            )
        file = folder / LABELS
        self.teachers[str(file)] = seal_of(file)
        return labels.to(self.device)

    def trajectory(self, path: str | Path) -> Trajectory:
        splits, found = self._splits, Trajectory.read(user_path(path, "path"))
        assert splits is not None
        found.check_finished()
        check_classes(splits.class_names, found.class_names, f"the trajectory in {found.path}")
        if found.about.data != splits.data_hash:
            raise InputError(
                f"the trajectory in {found.path} is of other data (other samples or labels, by their hash), and this "
                "run's are not those; name the data that it was learned on"
            )
        self.teachers[str(found.path / SUMS)] = seal_of(found.path / SUMS)
        return found.on(splits.train.row, self.targets.cpu().numpy())

    def _own_network(self, path: str | Path) -> nn.Module | None:
        """A copy of this run's network, where it is the caller's and the run at `path` had the same; None elsewhere.

        So that nothing has to be trusted to read what was trained with it.
        """
        own, file = str(self.config.model), user_path(path, "path") / CONFIG
        if not (own.startswith(CUSTOM) or is_code("model", own)) or not file.is_file():
            return None
        return self._build("model") if TrainConfig.read(file).model == own else None

    def parts(self) -> dict[str, Any]:
        return {**self.models, **self.optimizers}


def _check_new(name: str, known: Iterable[str]) -> None:
    if not isinstance(name, str) or not name or "/" in name:
        raise InputError(f"a model or optimizer of a method is named by a text without a slash, got {name!r}")
    if name in known:
        raise InputError(f"the method asks for {name!r} twice; give the second one a name of its own")
