"""Carrying artefacts out in a folder: runs begun, gone on with or left as they are, each artefact written behind them.

OUT/reproduce.json says what the folder is; OUT/runs/ has the runs, OUT/data/ the images of scale cpu, OUT/NAME/ an
artefact. Everything but the first is made again from the runs by the same command.
"""

from __future__ import annotations

import gc
import os
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fastmeta._text import reason
from fastmeta._version import __version__
from fastmeta.data import InputError
from fastmeta.meta import OutOfMemory
from fastmeta.paper.artefact import Artefact, Found, Reading
from fastmeta.paper.data_parts import make_parts
from fastmeta.paper.registry import artefact
from fastmeta.paper.scale import Scale, scale_name
from fastmeta.paper.tuning import SEED, VAL_FRACTION, Search
from fastmeta.paper.wanted import Wanted, in_order
from fastmeta.paper.written_reading import write_reading
from fastmeta.training import Listener, TrainConfig, TrainingError, train, train_folds
from fastmeta.training.rundir import (
    SUMMARY,
    check_no_run,
    check_same_config,
    only_process,
    part_of,
    read,
    read_schema,
    read_summary,
    to_json,
    user_path,
    write_atomically,
)

SCHEMA, SCHEMA_VERSION = "fastmeta.reproduce", 1
FILE = "reproduce.json"
_OTHER = "{path} was begun with another {key}: it was {begun!r}, is {now!r} now; give that, or choose another --out"


class Watcher:
    """Is told what happens; the default says nothing."""

    def begin(self, path: Path, finished: int, total: int) -> None:
        """So many runs of all artefacts together are finished already."""

    def run(self, number: int | None, total: int, name: str, config: TrainConfig) -> Listener:
        """A run begins or goes on, one of a tuning without a number; what it returns listens to it."""
        return Listener()

    def done(self, path: Path) -> None:
        """It is finished."""

    def failed(self, message: str) -> None:
        """It has failed; the others go on."""

    def artefact(self, made: Made) -> None:
        """An artefact is written."""

    def warning(self, text: str) -> None:
        warnings.warn(text, stacklevel=3)


@dataclass(frozen=True)
class Plan:
    """Artefacts with the runs that they want, at one scale."""

    scale: Scale
    seeds: tuple[int, ...]
    artefacts: tuple[Artefact, ...]
    wanted: Mapping[str, Mapping[str, Wanted]]  # by the name of an artefact

    @property
    def runs(self) -> list[tuple[int, Wanted]]:
        """Each once. Artefact by artefact, and of one seed by seed, so that who stops early has all rows of some."""
        found: dict[tuple[str, int], tuple[int, Wanted]] = {}
        for one in self.artefacts:
            for seed in self.seeds:
                for each in in_order(self.wanted[one.name].values()):
                    found.setdefault((each.key, seed), (seed, each))
        return list(found.values())


@dataclass
class Made:
    """An artefact as it was written."""

    artefact: Artefact
    path: Path
    reading: Reading
    failures: Mapping[str, str] = field(default_factory=dict)  # by the run's folder below OUT

    def missed(self, scale: Scale) -> list[str]:
        """Signs that a smoke run should have and has not."""
        return [c.text for c in self.reading.claims if scale.smoke and c.sign and c.verdict != "reproduced"]


def make_plan(
    names: Sequence[str],
    scale: str,
    out: str | Path,
    *,
    data: Mapping[str, Path] | None = None,
    root: str | None = None,
    seeds: int | None = None,
    first_seed: int = 0,
) -> Plan:
    """InputError for a name, a scale or a setting that there is not."""
    if twice := [name for k, name in enumerate(names) if name in names[:k]]:
        raise InputError(f"{twice[0]} stands twice; leave one out")
    found = Scale(scale_name(scale), user_path(out, "out"), dict(data or {}), root)
    artefacts = tuple(map(artefact, names))
    count = found.seeds if seeds is None else seeds
    wanted = {one.name: dict(one.wanted(found)) for one in artefacts}
    return Plan(found, tuple(range(first_seed, first_seed + count)), artefacts, wanted)


def tune(plan: Plan, watcher: Watcher) -> list[Path]:
    """Carry out the searches of the plan's artefacts; OUT/tuning/NAME.json of each. Raises as :func:`carry_out`."""
    found = {search.name: search for one in plan.artefacts for search in one.searches(plan.scale)}
    if not found:
        raise InputError(f"{', '.join(one.name for one in plan.artefacts)} tunes nothing; leave --tune out")
    with _folder(plan, [search.at({}) for search in found.values()]) as out:
        watcher.begin(out, 0, sum(search.budget for search in found.values()))
        worker = _Worker(plan, watcher, {}, set())
        return [worker.tune(search) for search in found.values()]


def carry_out(plan: Plan, watcher: Watcher, command: str = "") -> list[Made]:
    """Train what is not finished, and write each artefact once its runs are.

    Raises:
        InputError: a folder that holds something else, another scale or other data; data that are not there; another
            process in the folder.
        Interrupted: a signal; the same call goes on.
        TrainingError: what stands in the folder cannot be written.
    """
    with _folder(plan, [one for _, one in plan.runs]) as out:
        runs = plan.runs
        open_ones = {(o.key, s) for s, o in runs if not o.is_finished(out / "runs", s)}
        watcher.begin(out, len(runs) - len(open_ones), len(runs))
        worker = _Worker(plan, watcher, {(o.key, s): k for k, (s, o) in enumerate(runs, 1)}, open_ones)
        return [worker.carry_out(one, command) for one in plan.artefacts]


@contextmanager
def _folder(plan: Plan, runs: Sequence[Wanted]) -> Iterator[Path]:
    """Hold OUT alone, with the data that `runs` want."""
    scale, out = plan.scale, plan.scale.out
    check_no_run(out, "reproduce wants")
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"cannot write the folder {out}: {error.strerror}; choose another --out") from error
    with only_process(out):
        _check_folder(out)
        data = make_parts(scale, runs)
        _begin(plan, data)
        yield out


@dataclass
class _Worker:
    plan: Plan
    watcher: Watcher
    numbers: Mapping[tuple[str, int], int]
    open_ones: set[tuple[str, int]]
    failures: dict[tuple[str, int], str] = field(default_factory=dict)

    @property
    def runs(self) -> Path:
        return self.plan.scale.out / "runs"

    def carry_out(self, one: Artefact, command: str) -> Made:
        wanted = self.plan.wanted[one.name]
        for seed in self.plan.seeds:
            for each in in_order(wanted.values()):
                if (each.key, seed) in self.open_ones and (each.key, seed) not in self.failures:
                    self.run(each, seed)
        made = self.write(one, command)
        self.watcher.artefact(made)
        return made

    def run(self, one: Wanted, seed: int) -> None:
        number = self.numbers.get((one.key, seed))
        listener = self.watcher.run(number, len(self.numbers), f"{one.key}/seed{seed}", one.config)
        missing = [s.key for s in one.sources.values() if not s.is_finished(self.runs, seed)]
        message = f"the run it learns from, {missing[0]}/seed{seed}, has failed" if missing else ""
        if not message:
            try:
                train_one(one, self.runs, seed, listener)
            except (InputError, TrainingError, OutOfMemory) as error:
                message = str(error)
            except Exception as error:  # torch's own, or a full memory: the others go on
                message = reason(error)
        if message:
            self.failures[one.key, seed] = message
            self.watcher.failed(message)
            gc.collect()  # what the failed run held on a device
        else:
            self.open_ones.discard((one.key, seed))
            self.watcher.done(one.run(self.runs, seed))

    def tune(self, search: Search) -> Path:
        """Option by option; a setting that fails is not chosen. All of it goes on where it was stopped."""
        best: dict[str, float] = {}
        tried: dict[str, dict[str, Any]] = {}
        for option, values in search.grid.items():
            for value in values:
                point = {**best, option: value}
                one = search.at(point)
                if one.key in tried:
                    continue
                if not one.is_finished(self.runs, SEED):
                    self.run(one, SEED)
                accuracy = None
                if (one.key, SEED) not in self.failures:
                    summary = read(one.path(self.runs, SEED) / SUMMARY, read_summary)
                    accuracy = summary["val_accuracy_last"]
                tried[one.key] = {
                    "values": point,
                    "val_accuracy": accuracy,
                    "failed": self.failures.get((one.key, SEED)),
                }
            able = [told for told in tried.values() if told["val_accuracy"] is not None]
            best = max(able, key=lambda told: told["val_accuracy"])["values"] if able else best
        content = {"schema": "fastmeta.tuning", "name": search.name, "scale": self.plan.scale.name, "seed": SEED}
        content |= {
            "chosen": best,
            "by": f"validation rows, {VAL_FRACTION:.0%} of the training set",
            "tried": [*tried.values()],
        }
        path = self.plan.scale.out / "tuning" / f"{search.name.replace('/', '-')}.json"
        try:
            write_atomically(path, (to_json(content, indent=1) + "\n").encode())
        except OSError as error:
            raise TrainingError(
                f"cannot write {path}: {error.strerror}; mend that and give the same command"
            ) from error
        return path

    def write(self, one: Artefact, command: str) -> Made:
        plan, wanted = self.plan, self.plan.wanted[one.name]
        keys = {each.key for each in in_order(wanted.values())}
        failures = {key: text for key, text in self.failures.items() if key[0] in keys}
        path = plan.scale.out / one.name
        path.mkdir(exist_ok=True)
        found = Found(plan.scale, plan.seeds, wanted, self.runs, path, failures)
        reading = one.read(found)
        if plan.scale.smoke:
            claims = [claim.by_sign() if claim.sign else claim for claim in reading.claims]
            reading = Reading(**{**vars(reading), "claims": claims})
        told = {f"runs/{key}/seed{seed}": text for (key, seed), text in failures.items()}
        try:
            write_reading(one, found, reading, told, command)
        except OSError as error:
            raise TrainingError(
                f"cannot write {path}: {error.strerror}; mend that and give the same command"
            ) from error
        return Made(one, path, reading, told)


def train_one(one: Wanted, runs: Path, seed: int, listener: Listener) -> None:
    """Begin a run or go on with it."""
    config = one.config_for(runs, seed)
    if one.folds:
        train_folds(config, folds=one.folds, out=config.out, listener=listener)
    else:
        train(config, auto_resume=True, listener=listener)


# -- the folder -------------------------------------------------------------------------------------------


def _check_folder(out: Path) -> None:
    others = set(os.listdir(out)) - {part_of(out / FILE).name, "data"}
    if others and not os.path.lexists(out / FILE):
        raise InputError(f"{out} is not empty, and holds no {FILE} to go on with; choose another --out")


def _begin(plan: Plan, data: Mapping[str, str]) -> None:
    """Write what the folder is, or check that it is this; data sets may become more."""
    file = plan.scale.out / FILE
    now: dict[str, Any] = {"scale": plan.scale.name, "data": dict(data)}
    if os.path.lexists(file):
        begun = read(file, _content)
        own = {"scale": begun["scale"], "data": {k: v for k, v in begun["data"].items() if k in data}}
        own["data"] |= {k: v for k, v in data.items() if k not in own["data"]}
        check_same_config(plan.scale.out, own, now, _OTHER)
        now["data"] = {**begun["data"], **data}
        if now["data"] == begun["data"]:
            return
    content = {"schema": SCHEMA, "schema_version": SCHEMA_VERSION, "fastmeta": __version__, **now}
    try:
        write_atomically(file, (to_json(content, indent=1) + "\n").encode())
    except OSError as error:
        raise InputError(f"cannot write {file}: {error.strerror}; choose another --out") from error


def _content(path: Path) -> dict[str, Any]:
    content = read_schema(path, SCHEMA, SCHEMA_VERSION)
    if not isinstance(content.get("data"), dict):
        raise ValueError("it has no data")
    return {"scale": content.get("scale"), "data": content["data"]}
