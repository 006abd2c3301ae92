"""Labels of all training rows, learned in folds; then a final model that is trained on all rows with their average."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
from torch import nn

from fastmeta._numbers import as_whole
from fastmeta._text import shown
from fastmeta._trust import trusting_pickles
from fastmeta.data import InputError
from fastmeta.data.noise import parse as parse_noise
from fastmeta.data.sources import parse as parse_dataset
from fastmeta.methods.label_store import check_one_run
from fastmeta.training.config import TrainConfig
from fastmeta.training.estimate import duration
from fastmeta.training.listener import Listener
from fastmeta.training.outlook import clock
from fastmeta.training.prepare import Data, load_data, split_data
from fastmeta.training.presets import preset_noise
from fastmeta.training.run import Draw
from fastmeta.training.rundir.files import make_folders, user_path, write_atomically
from fastmeta.training.rundir.layout import CONFIG, SUMMARY, check_no_run
from fastmeta.training.rundir.load import Run
from fastmeta.training.rundir.lock import only_process
from fastmeta.training.sections import LabelConfig
from fastmeta.training.stage import TrainingError
from fastmeta.training.trainer import train
from fastmeta.trajectory import FOLDER, SUMS, Trajectory, average, check_classes, digest, steps_differ

Play = Literal["dynamic", "static"]
LABELS, FINAL = "labels", "final"
#: folds, at most
MOST = 1000
_MOST_NAME = 200
#: options that say what is held out, which folds say
_HELD = ("meta_fraction", "meta_count", "meta_balanced", "folds", "fold", "val_fraction")


@dataclass(frozen=True)
class Folds:
    """What `train_folds` does: a run for each fold, then the final one."""

    folder: Path
    runs: tuple[TrainConfig, ...]
    final: TrainConfig

    def path(self, fold: int) -> Path:
        return self.folder / f"fold{fold}"

    def state(self) -> list[str]:
        """A line for each run: what there is to do."""
        names = [*(f"fold{k}" for k in range(len(self.runs))), FINAL]
        return [f"{name}: {_state(self.folder / name)}" for name in names]


def plan_folds(config: TrainConfig, folds: int = 5, out: str | Path | None = None, replay: Play | None = None) -> Folds:
    """The runs of so many folds of `config`; nothing is read. InputError for what cannot be learned in folds."""
    count = as_whole(folds)
    if count is None or not 2 <= count <= MOST:
        raise InputError(f"folds must be a whole number from 2 to {MOST:,}, got {shown(folds)}")
    play = replay or "dynamic"
    if play not in ("dynamic", "static"):
        raise InputError(f"replay must be dynamic or static, got {shown(replay)}")
    _check_asked(config)
    folder = _folder(config, count, out)
    check_no_run(folder, "folds want")
    every = config.trajectory_every or 1
    runs = tuple(
        replace(
            config,
            data=replace(config.data, folds=count, fold=fold),
            trajectory_every=every,
            baselines="none",
            out=str(folder / f"fold{fold}"),
        )
        for fold in range(count)
    )
    final = replace(
        config,
        method="replay",
        options={"trajectory": str(folder / LABELS), "play": play},
        labels=LabelConfig(),
        compile="off",
        approx="none",
        watch_every=None,
        trajectory_every=None,
        baselines=config.baselines or "none",
        data=replace(config.data, meta_fraction=0.0, meta_count=0, meta_batch_size=None, meta_is_train=False),
        out=str(folder / FINAL),
    )
    return Folds(folder, runs, final)


def _folder(config: TrainConfig, count: int, out: str | Path | None) -> Path:
    if out is not None or config.out is not None:
        return user_path(config.out if out is None else out, "out")
    short = "".join(c if c.isprintable() else "_" for c in parse_dataset(config.dataset).short)[:_MOST_NAME]
    return Path("runs", f"{short}-{config.method.rpartition(':')[2]}-folds{count}-seed{config.seed}")


def _check_asked(config: TrainConfig) -> None:
    check_one_run(config.labels.store, "--folds")
    if "trajectory_every" not in config.method_class().supports:
        raise InputError(f"folds learn labels that move, and method={config.method} has none; take instance_labels")
    for name in _HELD:
        if (value := getattr(config.data, name)) is not None:
            raise InputError(f"data.{name}={value} says what is held out, and folds say it: a part each; leave it out")
    if config.labels.searches:
        raise InputError(
            "labels.label_lr=search searches in each run, and folds must be alike; search on one fold (data.folds=5 "
            "data.fold=0), and give here what it has chosen"
        )
    if config.finetune_steps:
        raise InputError(
            f"finetune_steps={config.finetune_steps} takes clean rows, and the final run of folds holds none out; "
            "leave it out"
        )
    if beside := [name for name in config.baseline_names() if name != "noisy"]:
        raise InputError(
            f"baselines={config.baselines} has {beside[0]}, which trains on clean rows, and the final run of folds "
            "holds none out; take noisy or none"
        )
    noise = preset_noise(config)
    if parse_noise(noise).kind not in ("none", "file"):
        raise InputError(
            f"noise {noise} is drawn for the rows of each fold, so that a row would have other labels in each; write "
            "it to a file by fastmeta labels noise and give noise=file:PATH, or take noise=none"
        )


def run_folds(
    plan: Folds,
    train_one: Callable[[str, TrainConfig], Run],
    listener: Listener,
    data: Data | None = None,
    ahead: Callable[[], None] | None = None,
) -> Run:
    """Begin or go on with every run of `plan` that is not finished; the final run.

    Args:
        train_one: trains a run of a name, such as fold0 or final, or goes on with it, or loads it.
        ahead: trains folds in some other way, once those that are there have been looked at; `train_one` has the rest.

    Raises:
        InputError: as :func:`train_folds`.
    """
    made: list[Path] = []
    try:
        make_folders(plan.folder, made)
    except OSError as error:
        raise InputError(f"cannot write the folder {plan.folder}: {error.strerror}; choose another --out") from error
    with only_process(plan.folder):
        try:
            known, dataset = load_data(plan.runs[0], data)
            check = _Check(plan, known, dataset)
            for fold in range(len(plan.runs)):
                if os.path.isfile(plan.path(fold) / FOLDER / SUMS):
                    check(fold)
            if ahead is not None:
                ahead()
            for fold, config in enumerate(plan.runs):
                train_one(f"fold{fold}", config)
        except InputError:
            for folder in reversed(made):
                if not os.listdir(folder):
                    folder.rmdir()
            raise
        parts = [check(fold) for fold in range(len(plan.runs))]
        _write_average(plan.folder / LABELS, parts, listener)
        return train_one(FINAL, plan.final)


class _Check:
    """Whether what lies in a fold's folder is of this fold of these data."""

    def __init__(self, plan: Folds, config: TrainConfig, dataset: Any) -> None:
        self.plan, self.config, self.dataset = plan, config, dataset

    def __call__(self, fold: int) -> Trajectory:
        """InputError, in one line, where it is not."""
        path, of = self.plan.path(fold), replace(self.config.data, fold=fold)
        splits = split_data(replace(self.config, data=of), self.dataset)
        found, way = Trajectory.read(path), "take it away to have it trained anew, or choose another --out"
        check_classes(splits.class_names, found.class_names, str(path))
        for what, wanted, got in (
            ("fold,", f"{fold} of {of.folds}", f"{found.about.fold} of {found.about.folds}"),
            ("data set, by its hash", splits.data_hash, found.about.data),
            ("split, by the hash of its rows", digest(np.asarray(splits.train.row, np.int64)), digest(found.rows)),
            ("set of given labels, by its hash", digest(np.asarray(splits.train.y, np.int64)), found.about.given),
        ):
            if wanted != got:
                raise InputError(f"{path} is of another {what} {got} and not {wanted}; {way}")
        return found


def _write_average(folder: Path, parts: list[Trajectory], listener: Listener) -> None:
    """The folder labels, unless it is the average of these parts already."""
    if steps_differ(parts):
        steps = sorted({part.about.steps_per_epoch for part in parts})
        listener.note(f"folds have {steps[0]} and {steps[-1]} steps in an epoch: class labels go by its share")
    try:
        there = Trajectory.read(folder)
        if there.about.averaged == tuple(part.digest for part in parts) and there.finished:
            for epoch in there.epochs:
                there.snapshot(epoch)
            return
    except InputError:  # none, cut off, or damaged: it is made of what is there
        pass
    try:
        if os.path.lexists(folder / SUMS):
            os.unlink(folder / SUMS)  # which says that the rest is whole
        for name, content in average(parts):
            write_atomically(folder / name, content)
    except OSError as error:
        raise TrainingError(
            f"cannot write {error.filename or folder}: {error.strerror}; the same call goes on"
        ) from error
    listener.note(f"labels: the average of {len(parts)} folds, in {folder}")


def train_folds(
    config: TrainConfig | None = None,
    *,
    folds: int = 5,
    out: str | Path | None = None,
    replay: Play = "dynamic",
    model: nn.Module | None = None,
    data: Data | None = None,
    trust_code: bool = False,
    trust_pickle: bool = False,
    listener: Listener | None = None,
    draw: Draw | None = None,
) -> Run:
    """Learn labels in folds, average how they moved, and train a final model on all rows with them.

    Fold k of K trains on all training rows but part k, which is its clean set, in OUT/foldk. The average of the
    trajectories over the folds in which a row trained is OUT/labels; OUT/final is a run of the method `replay` on all
    rows. Each is trained once: the same call goes on wherever it was stopped, with the same result.

    Args:
        config: of a fold, with a method whose labels move; what is held out, baselines and the folder are not its own.
            `baselines` may be noisy, beside the final run. `trajectory_every` is 1 by default.
        out: the folder; by default `config.out`, else runs/DATASET-METHOD-foldsK-seedN.
        replay: dynamic, labels as they moved, or static, as they were at the end.
        model, data, trust_code, trust_pickle, draw: as :func:`fastmeta.train` takes them.
        listener: is told of every run, one after the other.

    Returns:
        The final run.

    Raises:
        InputError, Interrupted, TrainingError: as :func:`fastmeta.train` does, and InputError for a fold that is there
            of another config, split, class order or data, by their hashes.
    """
    config = TrainConfig() if config is None else config
    if not isinstance(config, TrainConfig):
        raise InputError(f"config must be a TrainConfig, got {type(config).__name__}")
    if data is not None and config.noise is None:
        config = replace(config, noise="none")  # what `dataset` would have by default is not asked for
    listener, plan = listener or Listener(), plan_folds(config.trusted() if trust_code else config, folds, out, replay)
    options: dict[str, Any] = {"model": model, "data": data, "trust_pickle": trust_pickle, "draw": draw}

    def one(name: str, config: TrainConfig) -> Run:
        return train(config, auto_resume=True, listener=listener, **options)

    with trusting_pickles(trust_pickle):
        return run_folds(plan, one, listener, data)


def cost(plan: Folds) -> list[str]:
    """Lines for people: what there is to do, and how long that takes, from a few steps on copies; writes nothing."""
    states = plan.state()
    todo, each, last = sum("finished" not in line for line in states[:-1]), 0.0, 0.0
    if todo:
        each = duration(replace(plan.runs[0], out=None, trajectory_every=None))
    if "finished" not in states[-1]:  # what it costs to replay labels, which are not there yet
        last = duration(replace(plan.final, method="onehot", options=None, out=None))
    return [
        f"folds     {len(plan.runs)} in {plan.folder}, then {FINAL} on all rows; {'; '.join(states)}",
        f"cost      {todo} folds of about {clock(each)} and the final run of about {clock(last)}, one after the other: "
        f"about {clock(todo * each + last)}",
    ]


def _state(path: Path) -> str:
    if os.path.isfile(path / SUMMARY):
        return "finished"
    return "begun" if os.path.isfile(path / CONFIG) else "to do"
