"""The runs in a folder: what each has reached, and means over those that differ by their seed alone."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from fastmeta.data import InputError
from fastmeta.report.run_progress import Progress, progress
from fastmeta.training import TrainConfig
from fastmeta.training.distances import KEYS
from fastmeta.training.rundir import CONFIG, SEARCHING, SUMMARY, read, read_summary

#: levels of folders below the one that is named in which runs are looked for, folders that are looked into, and runs
_DEPTH, _MOST_FOLDERS, _MOST = 8, 20_000, 10_000
#: keys of a summary that runs are summed up by
FIGURES = (
    *("test_accuracy_last", "nll", "ece", "label_accuracy_initial", "label_accuracy_final", "labels_changed"),
    *("labels_corrected", "labels_spoiled", "wrong_label_average_precision", "seconds"),
)


FINISHED, WITHHELD = "finished", "withheld"


@dataclass(frozen=True)
class Entry:
    """A run directory in a folder."""

    name: str  # below the folder
    path: Path
    config: TrainConfig | None  # as it was asked for
    summary: Mapping[str, Any] | None  # None of a run that is not finished, or damaged
    state: str  # finished, withheld, running, stopped, failed, or what is wrong: damaged: why
    progress: Progress | None = None  # of a run that is not finished

    def as_json(self) -> dict[str, Any]:
        """What `fastmeta show --json` says of it; null where nobody knows."""
        config, at, done = self.config, self.progress, self.summary
        state, _, why = self.state.partition(": ")
        last = {} if at is None or at.last is None else at.last
        told = {
            "run": self.name,
            "path": str(self.path),
            "state": state,
            "why": why or (at.why if at is not None else None),
            "method": None if config is None else str(config.method),
            "dataset": None if config is None else str(config.dataset),
            "model": None if config is None else config.model and str(config.model),
            "seed": None if config is None else config.seed,
            "fold": None if config is None else config.data.fold,
        }
        if done is not None:
            return {
                **told,
                "stage": None,
                "epoch": done["epochs"],
                "epochs": done["epochs"],
                "seconds_left": 0.0,
                **{key: done.get(key) for key in FIGURES},
                KEYS["cosine"]: (done.get("distance") or {}).get("cosine"),
            }
        return {
            **told,
            "stage": None if at is None else at.stage,
            "epoch": None if at is None else at.epoch,
            "epochs": None if at is None else at.epochs,
            "seconds_left": None if at is None else at.left,
            "test_accuracy_last": last.get("test_accuracy"),
            "val_accuracy_last": last.get("val_accuracy"),
            "label_accuracy_final": last.get("label_accuracy"),
            "train_loss": last.get("train_loss"),
            "seconds": last.get("seconds"),
            KEYS["cosine"]: last.get(KEYS["cosine"]),
        }


@dataclass(frozen=True)
class Group:
    """Finished runs that differ by their seed alone."""

    entries: tuple[Entry, ...]

    @property
    def method(self) -> str:
        return str(self.summaries[0]["method"])

    @property
    def summaries(self) -> list[Mapping[str, Any]]:
        return [entry.summary for entry in self.entries if entry.summary is not None]

    def stages(self) -> dict[str, list[Mapping[str, Any]]]:
        """The method's own figures and those of each baseline, one for each seed."""
        found = {self.method: self.summaries}
        for name in self.summaries[0]["baselines"]:
            found[name] = [s["baselines"][name] for s in self.summaries if name in s["baselines"]]
        return found


def spread(values: Sequence[float | None]) -> tuple[float, float | None] | None:
    """Mean and standard deviation (of a sample, None of one value) of those that are there; None of none."""
    there = [float(v) for v in values if v is not None]
    return (mean(there), stdev(there) if len(there) > 1 else None) if there else None


def in_words(values: Sequence[float | None], scale: float = 1.0, digits: int = 1) -> str:
    """83.1 ± 0.4, or a dash."""
    found = spread(values)
    if found is None:
        return "–"
    centre, deviation = found
    return f"{scale * centre:.{digits}f}" + ("" if deviation is None else f" ± {scale * deviation:.{digits}f}")


def entries(folder: Path) -> list[Entry]:
    """In order of their names; `folder` itself where it is a run. InputError where there is none.

    A folder below that cannot be read is an entry that says so.
    """
    if os.path.isfile(folder / CONFIG):
        return [entry(folder.resolve().name, folder)]
    found: list[Entry] = []
    looked = 0

    def look(path: Path, depth: int) -> None:
        nonlocal looked
        looked += 1
        if looked > _MOST_FOLDERS or len(found) > _MOST:
            what = f"{_MOST:,} runs" if len(found) > _MOST else f"{_MOST_FOLDERS:,} folders"
            raise InputError(f"{folder} holds more than {what}; name a folder of fewer")
        try:
            names = sorted(os.listdir(path), key=_natural)
        except OSError as error:
            if path == folder:
                raise InputError(f"cannot read the folder {path}: {error.strerror}") from error
            why = f"damaged: cannot be read: {error.strerror}"
            found.append(Entry(str(path.relative_to(folder)), path, None, None, why))
            return
        for name in names:
            inside = path / name
            if name.startswith(".") or not os.path.isdir(inside):
                continue
            if os.path.isfile(inside / CONFIG):
                found.append(entry(str(inside.relative_to(folder)), inside))
            elif depth > 1 and not os.path.islink(inside):
                look(inside, depth - 1)

    look(folder, _DEPTH)
    if not found:
        raise InputError(f"{folder} is no run directory, and holds none: no {CONFIG} in it or below")
    return found


def _natural(name: str) -> list[str | int]:
    """seed9 before seed10."""
    return [int(part) if k % 2 else part for k, part in enumerate(re.split(r"([0-9]{1,18})", name))]


def entry(name: str, path: Path) -> Entry:
    """The run directory at `path` as it stands now."""
    config = None
    try:
        # runs that have searched, and found other settings, are alike all the same
        config = TrainConfig.read(path / (SEARCHING if os.path.isfile(path / SEARCHING) else CONFIG))
        if not os.path.isfile(path / SUMMARY):
            at = progress(path, config)
            return Entry(name, path, config, None, at.state, at)
        summary = read(path / SUMMARY, read_summary)
        return Entry(name, path, config, summary, WITHHELD if summary.get("labels_withheld") else FINISHED)
    except InputError as error:
        return Entry(name, path, config, None, f"damaged: {error}")


def _seedless(method: Any, seed: int) -> Any:
    """Of a method that learns from another run, which lies in the folder of its seed."""
    if not isinstance(method, Mapping):
        return method
    parts = {k: v.split(os.sep) if isinstance(v, str) else v for k, v in method.items()}
    return {k: ["seed" if p == f"seed{seed}" else p for p in v] if isinstance(v, list) else v for k, v in parts.items()}


def groups(found: Sequence[Entry]) -> list[Group]:
    """Of the finished ones, in the order of their first."""
    by_config: dict[str, list[Entry]] = {}
    for entry in found:
        if entry.config is not None and entry.summary is not None:
            values = {k: v for k, v in entry.config.to_mapping().items() if k not in ("seed", "out")}
            values["method"] = _seedless(values["method"], entry.config.seed)
            by_config.setdefault(json.dumps(values, sort_keys=True), []).append(entry)
    return [Group(tuple(members)) for members in by_config.values()]
