"""The runs of a comparison in its folder: begun, gone on with, or left as they are; a failed one is noted."""

from __future__ import annotations

import gc
import os
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fastmeta._text import reason
from fastmeta._version import __version__
from fastmeta.comparison.figure import write_figure
from fastmeta.comparison.planned_runs import PLAIN, Plan, PlannedRun, identity
from fastmeta.comparison.standings import Done, Row, done_run, leaders, standings
from fastmeta.comparison.written import as_csv, failures, markdown
from fastmeta.data import InputError
from fastmeta.meta import OutOfMemory
from fastmeta.recipes import Published
from fastmeta.report import write_folder_report
from fastmeta.training import Listener, TrainConfig, TrainingError
from fastmeta.training.rundir import (
    check_no_run,
    check_same_config,
    only_process,
    parse_json,
    part_of,
    read,
    read_schema,
    to_json,
    user_path,
    write_atomically,
)

SCHEMA, SCHEMA_VERSION = "fastmeta.comparison", 1
FILE = "comparison.json"
_OTHER = (
    "the comparison in {path} was begun with another {key}: it was {begun!r}, is {now!r} now; go on with what it was, "
    "or choose another --out"
)


class Watcher:
    """Is told what happens to the runs of a comparison; the default says nothing."""

    def begin(self, path: Path, finished: int, total: int) -> None:
        """The comparison begins or goes on: how many of its runs are finished."""

    def run(self, number: int, total: int, run: PlannedRun) -> Listener:
        """A run begins or goes on; what it returns listens to it."""
        return Listener()

    def done(self, run: PlannedRun, done: Done) -> None:
        """It is finished, in this process."""

    def failed(self, run: PlannedRun, message: str) -> None:
        """It has failed, or was refused; the others go on."""

    def warning(self, text: str) -> None:
        """Something the user should look at."""
        warnings.warn(text, stacklevel=3)


@dataclass
class Comparison:
    """What a comparison has come to so far."""

    path: Path
    plan: Plan
    done: dict[str, list[Done]] = field(default_factory=dict)  # by setting
    failed: dict[str, list[tuple[int, str]]] = field(default_factory=dict)

    @property
    def rows(self) -> list[Row]:
        return standings(self.plan.settings, self.done, self.failed)

    @property
    def published(self) -> tuple[Published, ...]:
        """Rows of the recipe that were taken with these data, noise and network."""
        plain = next(s.config for s in self.plan.settings if s.kind == PLAIN)
        return () if plain is None else self.plan.recipe.published_for(plain)

    @property
    def leaders(self) -> str:
        """A sentence: the best row, and the best one without clean data."""
        return leaders(self.rows)

    @property
    def failures(self) -> list[str]:
        return failures(self.rows)

    def table(self) -> str:
        """table.md."""
        return markdown(self.plan.recipe, self.rows, self.published)

    def __repr__(self) -> str:
        return f"Comparison({str(self.path)!r})\n{self.table()}"


def run_all(
    plan: Plan, out: str | Path, train_one: Callable[[TrainConfig, Listener], Any], watcher: Watcher
) -> Comparison:
    """Begin or go on with every run of `plan` that is not finished, and write what they come to.

    Raises:
        InputError: a folder that holds something else or another comparison, or that another process is in; a recipe
            that plain training refuses.
        Interrupted: a signal; the same call goes on.
        TrainingError: what stands in the folder cannot be written.
    """
    folder = user_path(out, "out")
    made = _made(folder)
    with only_process(folder):
        begun = _begin(folder, plan)
        found = Comparison(folder, plan)
        runs = list(plan.runs(folder))
        try:
            open_ones = [(number, run) for number, run in enumerate(runs, 1) if not _is_done(found, run)]
            watcher.begin(folder, len(runs) - len(open_ones), len(runs))
            for number, run in open_ones:
                _one(found, run, train_one, watcher, (number, len(runs)))
                _write(found, complete=False)
        except InputError:
            if not begun and not any(found.done.values()):  # nothing was there and nothing has come of it
                _take_away(folder, made)
            raise
        _write(found, complete=True)
        _draw(found, watcher)
    return found


def _is_done(found: Comparison, run: PlannedRun) -> bool:
    """Whether a run is finished, or there is no hope for it; then it is noted."""
    name = run.setting.name
    try:
        done = done_run(run.path, run.setting, run.seed)
    except InputError as error:
        found.failed.setdefault(name, []).append((run.seed, str(error)))
        return True
    if done is not None:
        found.done.setdefault(name, []).append(done)
    return done is not None


def _one(
    found: Comparison,
    run: PlannedRun,
    train_one: Callable[[TrainConfig, Listener], Any],
    watcher: Watcher,
    number: tuple[int, int],
) -> None:
    listener, message = watcher.run(*number, run), run.setting.refused
    classes = next((done.summary["num_classes"] for runs in found.done.values() for done in runs), None)
    config = run.config_for(classes)
    if config is not None:
        try:
            train_one(config, listener)
        except InputError as error:
            if run.setting.kind == PLAIN and not any(found.done.values()):  # the first of all: no other can be, either
                raise
            message = str(error)
        except (TrainingError, OutOfMemory) as error:
            message = str(error)
        except Exception as error:  # of a network or a method of the user's, or torch's own: the others go on
            message = reason(error)
    if message:
        found.failed.setdefault(run.setting.name, []).append((run.seed, message))
        watcher.failed(run, message)
        gc.collect()  # what the failed run held on a device
    elif _is_done(found, run):
        watcher.done(run, found.done[run.setting.name][-1])


# -- the folder -------------------------------------------------------------------------------------------


def _made(folder: Path) -> bool:
    """Make the folder; whether it was not there."""
    check_no_run(folder, "a comparison wants")
    there = os.path.isdir(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"cannot write the folder {folder}: {error.strerror}; choose another --out") from error
    return not there


def _begin(folder: Path, plan: Plan) -> bool:
    """Whether a comparison has begun here, which must be this one; else its first file is written."""
    file = folder / FILE
    if os.path.lexists(file):
        _check_same(folder, read(file, _read), identity(plan))
        return True
    others = set(os.listdir(folder)) - {part_of(file).name}
    if others:
        raise InputError(f"{folder} is not empty, and holds no {FILE} to go on with; choose another --out")
    _save(Comparison(folder, plan), complete=False)
    return False


def _read(path: Path) -> dict[str, Any]:
    content = read_schema(path, SCHEMA, SCHEMA_VERSION)
    if not isinstance(content.get("plan"), dict):
        raise ValueError("it has no plan")
    return content


def _check_same(folder: Path, content: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    """InputError unless it is this comparison; methods, seeds and points of the grid may have become more."""
    begun, now = content["plan"], parse_json(to_json(now))
    for key in ("recipe", "new_splits"):
        if begun.get(key) != now[key]:
            raise InputError(_OTHER.format(path=folder, key=key, begun=begun.get(key), now=now[key]))
    for key, word in (("methods", "methods"), ("seeds", "seeds"), ("settings", "rows")):
        gone = [value for value in begun.get(key, []) if value not in now[key]]
        if gone:
            raise InputError(
                f"the comparison in {folder} has {word} {', '.join(map(str, begun[key]))}, and {gone[0]} is not among "
                f"those of now; {word} may become more, not less: name them all, or choose another --out"
            )
    for name, config in begun.get("settings", {}).items():
        if config is not None and now["settings"][name] is not None:  # of one that is refused there is none
            check_same_config(folder, config, now["settings"][name], _OTHER)


def _take_away(folder: Path, made: bool) -> None:
    (folder / FILE).unlink(missing_ok=True)
    for name in ("table.md", "table.csv"):
        (folder / name).unlink(missing_ok=True)
    if made and not os.listdir(folder):
        folder.rmdir()


# -- what is written --------------------------------------------------------------------------------------


def _write(found: Comparison, *, complete: bool) -> None:
    _save(found, complete=complete)
    rows, published = found.rows, found.published
    _put(found.path / "table.md", markdown(found.plan.recipe, rows, published))
    _put(found.path / "table.csv", as_csv(rows, published))


def _save(found: Comparison, *, complete: bool) -> None:
    _put(found.path / FILE, to_json(_content(found, complete), indent=1) + "\n")


def _put(path: Path, text: str) -> None:
    try:
        write_atomically(path, text.encode("utf-8", "backslashreplace"))
    except OSError as error:
        raise TrainingError(f"cannot write {path}: {error.strerror}; mend that and give the same command") from error


def _content(found: Comparison, complete: bool) -> dict[str, Any]:
    recipe, rows = found.plan.recipe, found.rows
    summaries = [run.summary for runs in found.done.values() for run in runs]
    keys = ("torch", "device", "threads", "precision")
    return {
        "schema": SCHEMA,
        "schema_version": SCHEMA_VERSION,
        "complete": complete,
        "fastmeta": __version__,
        "environment": {key: summaries[0][key] for key in keys} if summaries else None,
        "recipe": {"name": recipe.name, "title": recipe.title, "source": recipe.source, "notes": recipe.notes},
        "plan": identity(found.plan),
        "leaders": leaders(rows),
        "rows": [row.told() for row in rows],
        "published": [
            {
                "row": p.row,
                "test": p.test,
                "std": p.std,
                "clean": p.clean,
                "pretrained": p.pretrained,
                "source": p.source,
            }
            for p in found.published
        ],
    }


def _draw(found: Comparison, watcher: Watcher) -> None:
    rows = found.rows
    try:
        write_figure(found.path / "comparison", found.plan.recipe.title, rows, found.published)
        if any(found.done.values()):
            write_folder_report(found.path)
    except Exception as error:  # a full disk, matplotlib's, files of others: the table is there without them
        watcher.warning(f"the figure or the report is not written: {reason(error)}")
