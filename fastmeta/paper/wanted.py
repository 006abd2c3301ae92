"""A run that an artefact wants, as a value: who wants the same run gets the same folder."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cache, cached_property
from pathlib import Path
from typing import Any

from fastmeta.training import TrainConfig
from fastmeta.training.rundir import SUMMARY, lasting


@dataclass(frozen=True)
class Wanted:
    """One run for each seed.

    Two of them that are equal in what they train are one run, whichever artefact asks. `key` says so: it is a digest of
    the config without seed and folder, of `folds`, and of the keys of `sources`.
    """

    config: TrainConfig
    """Without seed and out, which each run gets."""
    folds: int = 0
    """Above 0: labels are learned on so many folds, and averaged. Its folder holds fold0, fold1, ..., labels/, a
    trajectory, and final/, the run that replays them as they moved, on all rows."""
    sources: Mapping[str, Wanted] = field(default_factory=dict)
    """By option of the method, such as teacher, labels or trajectory: whose run of the same seed it learns from. The
    option is set to that run's folder; of folds to their folder labels/, and of a teacher to their final run. The seed
    is the same."""

    @cached_property
    def key(self) -> str:
        """The name of its folder below OUT/runs, such as instance_labels-1f0c9a72; equal for equal runs."""
        told = _beside({k: v for k, v in lasting(self.config).items() if k != "seed"}, _usual(self.config.method))
        told["dataset"] = re.sub(r"[^:]*[/\\]", "", self.config.dataset)  # wherever the folder lies
        whole = [told, self.folds, {option: source.key for option, source in self.sources.items()}]
        digest = hashlib.blake2b(json.dumps(whole, sort_keys=True).encode(), digest_size=4).hexdigest()
        return f"{self.config.method}{f'-{self.folds}folds' if self.folds else ''}-{digest}"

    def path(self, runs: Path, seed: int) -> Path:
        """Its folder, below the folder `runs`."""
        return runs / self.key / f"seed{seed}"

    def run(self, runs: Path, seed: int) -> Path:
        """The run directory whose figures count: its folder, or final/ in it where there are folds."""
        return self.path(runs, seed) / "final" if self.folds else self.path(runs, seed)

    def is_finished(self, runs: Path, seed: int) -> bool:
        return (self.run(runs, seed) / SUMMARY).is_file()

    def result(self, runs: Path, seed: int) -> Path:
        """What other runs learn from: its folder, or labels/ in it where there are folds."""
        return self.path(runs, seed) / "labels" if self.folds else self.path(runs, seed)

    def config_for(self, runs: Path, seed: int) -> TrainConfig:
        """The config of the run with this seed."""
        config = replace(self.config, seed=seed, out=str(self.path(runs, seed)))
        if self.sources:
            own: dict[str, Any] = {
                key: str(source.run(runs, seed) if key == "teacher" else source.result(runs, seed))
                for key, source in self.sources.items()
            }
            config = replace(config, options=replace(config.options, **own))
        return config


@cache
def _usual(method: str) -> dict[str, Any]:
    return lasting(TrainConfig(method=method))


def _beside(values: Mapping[str, Any], usual: Mapping[str, Any]) -> dict[str, Any]:
    """`values` without those of `usual`, so that an option that is new tomorrow changes no key."""
    found = {}
    for key, value in values.items():
        if isinstance(value, Mapping):
            if own := _beside(value, usual.get(key, {})):
                found[key] = own
        elif key not in usual or value != usual[key]:
            found[key] = value
    return found


def in_order(wanted: Iterable[Wanted]) -> list[Wanted]:
    """Each run once, and behind those that it learns from."""
    found: dict[str, Wanted] = {}

    def visit(one: Wanted) -> Iterator[Wanted]:
        for source in one.sources.values():
            yield from visit(source)
        yield one

    for one in wanted:
        for each in visit(one):
            found.setdefault(each.key, each)
    return list(found.values())
