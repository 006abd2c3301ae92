"""Snapshots of a stage's labels, for the folder trajectory/ of its run: see :mod:`fastmeta.trajectory.contents`."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from fastmeta.data import InputError, Pool
from fastmeta.distributed import rows_to_first
from fastmeta.losses import ClassLabels
from fastmeta.training.config import TrainConfig
from fastmeta.training.rundir.files import digest_of, part_of, read, write_atomically
from fastmeta.trajectory import ABOUT, FOLDER, GIVEN, ROWS, SUMS, About, digest, npy_bytes, snapshot_name, sums_bytes

if TYPE_CHECKING:
    from fastmeta.training.stage import Stage

#: rows whose probabilities are made at a time
_ROWS = 65536


class Recorder:
    """What is written of the labels while a stage trains, canaries left out.

    Labels of classes are collected on the device in each step, and reach the host when the epoch ends: what an epoch
    that is not over has collected is part of the stage's state.
    """

    @classmethod
    def of(cls, stage: Stage) -> Recorder | None:
        """None of a stage whose labels are not kept."""
        config = stage.config
        if stage.name != config.method or config.trajectory_every is None:
            return None
        return cls(stage.method.labels, config, stage.data, stage.steps_per_epoch, stage.total)

    def __init__(self, labels: Any, config: TrainConfig, data: Pool, steps_per_epoch: int, steps: int) -> None:
        assert config.trajectory_every is not None
        assert config.epochs is not None
        splits = data.whole or data.splits
        assert splits is not None
        self.labels, self.data, self.size = labels, data, data.train_size
        self.rows, self.given = splits.train.row, np.asarray(splits.train.y, np.int64)
        of_classes = isinstance(labels, ClassLabels)
        self.about = About(
            kind="class" if of_classes else "instance",
            every=config.trajectory_every,
            epochs=config.epochs,
            steps_per_epoch=steps_per_epoch,
            steps=steps,
            moves="steps" if config.labels.update == "exact" else "epochs",
            class_names=splits.class_names,
            data=splits.data_hash,
            given=digest(self.given),
            fold=None if config.data.folds is None else config.data.fold or 0,
            folds=config.data.folds,
        )
        self.collected: Tensor | None = None
        if of_classes:
            self.collected = torch.zeros(steps_per_epoch, labels.num_classes, device=data.device)
        self.count = 0  # steps of this epoch that are collected
        self.sums: dict[str, str] = {}  # of the files that are written, by name
        self._swept = False  # whether what a cut-off process has left is gone

    def step(self, count: int) -> None:
        """Behind so many steps, in which labels have moved together. Nothing waits for the device."""
        if self.collected is not None:
            self.collected[self.count : self.count + count] = 1 - self.labels.alpha
            self.count += count

    def look(self, epoch: int) -> np.ndarray | None:
        """What :meth:`write` keeps of an epoch, on rank 0; all ranks look together. Waits for the device."""
        snapshot = self._snapshot(epoch) if self.about.has(epoch) else None
        self.count = 0
        return snapshot

    def write(self, run: Path, epoch: int, snapshot: np.ndarray | None) -> None:
        """At the end of an epoch, or at the start, which is epoch 0."""
        folder, sweeps = run / FOLDER, not self._swept
        if sweeps:
            self._sweep(folder)
        if not self.sums:
            self._keep(folder, ABOUT, self.about.to_bytes())
            self._keep(folder, ROWS, npy_bytes(np.asarray(self.rows, np.int64)))
            self._keep(folder, GIVEN, npy_bytes(self.given))
        if snapshot is not None:
            self._keep(folder, snapshot_name(epoch), npy_bytes(snapshot))
        if sweeps or snapshot is not None:
            write_atomically(folder / SUMS, sums_bytes(self.sums))

    def _keep(self, folder: Path, name: str, content: bytes) -> None:
        write_atomically(folder / name, content)
        self.sums[name] = digest(content)

    def _snapshot(self, epoch: int) -> np.ndarray:
        if self.collected is not None:
            of_start = (1 - self.labels.alpha).unsqueeze(0).float()
            return (self.collected[: self.count] if epoch else of_start).cpu().numpy()
        parts = torch.arange(self.size, device=self.labels.targets.device).split(_ROWS)
        own = torch.cat([self.labels.probs(rows).to(torch.float16).cpu() for rows in parts])
        return rows_to_first(own, self.data.ranks).numpy()

    def _sweep(self, folder: Path) -> None:
        """Files behind the checkpoint belong to epochs that will be trained again."""
        self._swept = True
        with contextlib.suppress(FileNotFoundError):
            known = {*self.sums, SUMS} if self.sums else set()
            for name in os.listdir(folder):
                if name not in known and not os.path.isdir(folder / name):
                    os.unlink(folder / name)

    # -- state --------------------------------------------------------------------------------------------

    def save(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        tensors = {} if self.collected is None else {"collected": self.collected[: self.count]}
        return tensors, {"sums": dict(self.sums), "count": self.count}

    def load(self, tensors: dict[str, Tensor], values: dict[str, Any], run: Path) -> None:
        """InputError unless the files that the state knows are in the directory `run`, whole."""
        self.sums, self.count = {str(k): str(v) for k, v in values["sums"].items()}, int(values["count"])
        if self.collected is not None:
            self.collected[: self.count].copy_(tensors["collected"])
        for name, wanted in self.sums.items():
            file = run / FOLDER / name
            what = "is gone, which the run had written"
            if os.path.isfile(file):
                if read(file, digest_of) == wanted:
                    continue
                what = "has changed since the run wrote it"
            raise InputError(f"{file} {what}; bring it back, or start a new run")
        for name in (ABOUT, ROWS, GIVEN, SUMS, *map(snapshot_name, range(self.about.epochs + 1))):
            for file in (run / FOLDER / name, part_of(run / FOLDER / name)):
                if os.path.isdir(file) and not os.path.islink(file):
                    raise InputError(f"{file} is a folder, and the run will write a file there; move it away")
