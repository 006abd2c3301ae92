"""How far a run is that is not finished: its state, where it stands, what is left, what it reached last.

It is only looked at: no file of the run is written, and nothing waits for a process that is in it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Any

from fastmeta.data import InputError
from fastmeta.training import TrainConfig
from fastmeta.training.outlook import plain_share
from fastmeta.training.pilot import pilot_epochs
from fastmeta.training.rundir import METRICS, failure, is_held, parse_json, read_tail
from fastmeta.training.stage_names import is_aside, is_trial

RUNNING, STOPPED, FAILED = "running", "stopped", "failed"
#: bytes at the end of metrics.jsonl that are read, and epochs whose pace is taken
_TAIL, _EPOCHS = 2**16, 5


@dataclass(frozen=True)
class Progress:
    """Of a run that is not finished; what nobody can know is None."""

    state: str  # running, stopped or failed
    stage: str | None = None
    epoch: int | None = None  # done, of the stage
    epochs: int | None = None  # of the stage
    left: float | None = None  # seconds of work until the run is finished
    last: Mapping[str, Any] | None = None  # the last line of metrics.jsonl
    why: str | None = None  # it has failed


def progress(path: Path, config: TrainConfig) -> Progress:
    """Of the run at `path`, whose config it is, as it stands now."""
    state, why = STOPPED, None
    if is_held(path):
        state = RUNNING
    elif (why := failure(path)) is not None:
        state = FAILED
    lines = _lines(path / METRICS)
    if not lines:
        return Progress(state, epochs=config.epochs, why=why)
    last = lines[-1]
    stage, epochs = last["run"], config.epochs
    if epochs is not None and is_aside(stage):
        epochs = None if is_trial(stage) else pilot_epochs(config)
    own = [line for line in lines if line["run"] == stage]
    return Progress(state, stage, last["epoch"], epochs, _left(config, own, epochs), last, why)


def _lines(path: Path) -> list[dict[str, Any]]:
    """Whole lines at the end of a file that may be written just now, those that any run would write."""
    found = []
    with suppress(OSError):
        for text in read_tail(path, _TAIL).split(b"\n")[:-1]:
            with suppress(ValueError):
                line = parse_json(text)
                if isinstance(line, dict) and isinstance(line.get("run"), str) and _is_count(line.get("epoch")):
                    found.append(line)
    return found


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**53


def _left(config: TrainConfig, own: Sequence[Mapping[str, Any]], epochs: int | None) -> float | None:
    """Seconds by the pace of the last epochs of a stage, whose lines are `own`, and by what others cost beside it."""
    stage, epoch = own[-1]["run"], own[-1]["epoch"]
    paces = [
        (b["seconds"] - a["seconds"]) / (b["epoch"] - a["epoch"])
        for a, b in pairwise(own)
        if b["epoch"] > a["epoch"] and all(isinstance(line.get("seconds"), int | float) for line in (a, b))
    ][-_EPOCHS:]
    if not paces and epoch and isinstance(own[-1].get("seconds"), int | float):
        paces = [own[-1]["seconds"] / epoch]
    whole = config.epochs
    if not paces or epochs is None or whole is None:
        return None
    pace = max(0.0, median(paces))
    exact = False
    with suppress(InputError):  # a method that is not trusted
        exact = config.label_update == "exact" and config.method_class().uses_meta_batch
    share = plain_share(exact, config.approx)  # what a plain epoch costs of the method's own
    baselines = config.baseline_names()
    if stage == config.method:
        warm = config.labels.plain_epochs if exact else 0
        full = pace / share if epoch <= warm else pace
        plain_left = max(0, min(warm, epochs) - epoch)
        left = full * (epochs - epoch - plain_left) + full * share * plain_left
        return left + len(baselines) * whole * full * share
    if stage in baselines:
        return pace * (epochs - epoch) + pace * whole * (len(baselines) - 1 - baselines.index(stage))
    return pace * (epochs - epoch) + pace / share * whole + len(baselines) * whole * pace  # of the pilot: all else
