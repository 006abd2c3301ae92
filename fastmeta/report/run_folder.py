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
from fastmeta.training import TrainConfig
from fastmeta.training.rundir import CONFIG, SEARCHING, SUMMARY, read, read_summary

#: folders below the one that is named in which runs are looked for
_DEPTH = 2
_MOST = 1000
#: keys of a summary that runs are summed up by
FIGURES = (
    *("test_accuracy_last", "nll", "ece", "label_accuracy_initial", "label_accuracy_final", "labels_changed"),
    *("labels_corrected", "labels_spoiled", "wrong_label_average_precision", "seconds"),
)


@dataclass(frozen=True)
class Entry:
    """A run directory in a folder."""

    name: str  # below the folder
    path: Path
    config: TrainConfig | None  # as it was asked for
    summary: Mapping[str, Any] | None  # None of a run that is not finished, or damaged
    state: str  # finished, not finished, or what is wrong


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
    """In order of their names. InputError where there is none."""
    found: list[Entry] = []

    def look(path: Path, depth: int) -> None:
        try:
            names = sorted(os.listdir(path), key=_natural)
        except OSError as error:
            raise InputError(f"cannot read the folder {path}: {error.strerror}") from error
        for name in names:
            inside = path / name
            if name.startswith(".") or not os.path.isdir(inside):
                continue
            if os.path.isfile(inside / CONFIG):
                found.append(_entry(str(inside.relative_to(folder)), inside))
                if len(found) > _MOST:
                    raise InputError(f"{folder} holds more than {_MOST:,} runs; name a folder of fewer")
            elif depth > 1 and not os.path.islink(inside):
                look(inside, depth - 1)

    look(folder, _DEPTH)
    if not found:
        raise InputError(f"{folder} is no run directory, and holds none: no {CONFIG} in it or below")
    return found


def _natural(name: str) -> list[str | int]:
    """seed9 before seed10."""
    return [int(part) if k % 2 else part for k, part in enumerate(re.split(r"([0-9]{1,18})", name))]


def _entry(name: str, path: Path) -> Entry:
    config = None
    try:
        # runs that have searched, and found other settings, are alike all the same
        config = TrainConfig.read(path / (SEARCHING if os.path.isfile(path / SEARCHING) else CONFIG))
        if not os.path.isfile(path / SUMMARY):
            return Entry(name, path, config, None, "not finished")
        return Entry(name, path, config, read(path / SUMMARY, read_summary), "finished")
    except InputError as error:
        return Entry(name, path, config, None, f"damaged: {error}")


def groups(found: Sequence[Entry]) -> list[Group]:
    """Of the finished ones, in the order of their first."""
    by_config: dict[str, list[Entry]] = {}
    for entry in found:
        if entry.config is not None and entry.summary is not None:
            values = {k: v for k, v in entry.config.to_mapping().items() if k not in ("seed", "out")}
            by_config.setdefault(json.dumps(values, sort_keys=True), []).append(entry)
    return [Group(tuple(members)) for members in by_config.values()]
