"""Who is told what happens in a run: the hook for loggers, progress bars and callbacks."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fastmeta._text import printable

if TYPE_CHECKING:
    from fastmeta.data import Splits
    from fastmeta.training.config import TrainConfig
    from fastmeta.training.stage import Stage


class Listener:
    """Is told what happens in a run: ``fastmeta.train(config, listener=MyListener())``.

    A subclass overrides what it wants to hear; the default says nothing but the warnings. Events come in this order, in
    the thread that trains::

        begin  (stage  (step ...  epoch) ...) ...  end         and note and warning wherever there is one

    The method's own stage comes first, behind a `pilot` where canaries need one, and behind `trial-1`, ... where a
    search asks for trials, then each baseline's. Epochs count
    from 1; the line of metrics.jsonl for epoch 0, before the first step, is no event. A run that is resumed begins anew
    and goes on in the middle of a stage. A run that is stopped or fails has no `end`. An exception of a listener ends
    the run as an error of the training would: what was saved stays, and ``--resume`` goes on.

    Nothing here should wait for the device in `step`: ``stage.step`` and ``stage.total`` are plain numbers, while
    figures of the device come with `epoch`, once per epoch.
    """

    def begin(self, path: Path, config: TrainConfig, splits: Splits, device: str) -> None:
        """The run starts or goes on; nothing has been trained yet.

        Args:
            path: the run directory.
            config: resolved, without a value left to the data set.
            splits: the data: ``len(splits.train)``, `splits.class_names`, `splits.noise_rate`.
            device: "cpu", "cuda:0".
        """

    def stage(self, stage: Stage) -> None:
        """A stage starts or goes on; see also `step`.

        `stage.name` is the method's, or pilot, trial-1, ..., noisy, union, clean.
        """

    def step(self, stage: Stage) -> None:
        """A step was taken: `stage.step` of `stage.total`, `stage.steps_per_epoch` in each epoch."""

    def epoch(self, stage: Stage, record: Mapping[str, Any]) -> None:
        """An epoch ended; `record` is its line of metrics.jsonl, plain numbers and None: run, epoch, step, lr, ..."""

    def note(self, text: str) -> None:
        """Something good to know."""

    def warning(self, text: str) -> None:
        """Something the user should look at."""
        warnings.warn(printable(text), stacklevel=3)

    def end(self, path: Path, summary: Mapping[str, Any]) -> None:
        """The run is finished and its files are written; `summary` is its summary.json."""


class Silent(Listener):
    """Says nothing at all."""

    def warning(self, text: str) -> None:
        pass


class Listeners(Listener):
    """Several listeners, each of which is told all, in this order."""

    def __init__(self, *listeners: Listener) -> None:
        self.listeners = listeners

    def begin(self, path: Path, config: TrainConfig, splits: Splits, device: str) -> None:
        for listener in self.listeners:
            listener.begin(path, config, splits, device)

    def stage(self, stage: Stage) -> None:
        for listener in self.listeners:
            listener.stage(stage)

    def step(self, stage: Stage) -> None:
        for listener in self.listeners:
            listener.step(stage)

    def epoch(self, stage: Stage, record: Mapping[str, Any]) -> None:
        for listener in self.listeners:
            listener.epoch(stage, record)

    def note(self, text: str) -> None:
        for listener in self.listeners:
            listener.note(text)

    def warning(self, text: str) -> None:
        for listener in self.listeners:
            listener.warning(text)

    def end(self, path: Path, summary: Mapping[str, Any]) -> None:
        for listener in self.listeners:
            listener.end(path, summary)
