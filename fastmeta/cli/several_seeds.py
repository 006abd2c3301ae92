"""``fastmeta train --seeds N``: a run for each seed in one folder, and what they come to."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from fastmeta._text import printable, printable_lines
from fastmeta.cli.parser import wrapped
from fastmeta.cli.progress import ConsoleListener
from fastmeta.data import InputError
from fastmeta.data.sources import parse
from fastmeta.meta import OutOfMemory
from fastmeta.methods.label_store import check_one_run
from fastmeta.report import folder_table, sum_up
from fastmeta.report.numbers import percent
from fastmeta.report.run_folder import entries
from fastmeta.training import Interrupted, TrainConfig, TrainingError
from fastmeta.training.rundir import check_no_run, command, user_path

MOST = 1000
_MOST_NAME = 200


class OneOfMany(ConsoleListener):
    """Tells the result of a run in a line; the table of all comes at the end."""

    def end(self, path: Path, summary: Mapping[str, Any]) -> None:
        self.close()
        test = "" if summary["test_accuracy_last"] is None else f"test {percent(summary['test_accuracy_last'])}%, "
        self.note(f"seed {summary['seed']}: {test}labels changed {summary['labels_changed']:,}; in {path}")


def configs(config: TrainConfig, count: int) -> tuple[Path, list[TrainConfig]]:
    """The folder, and the config of each run in it: seeds from the config's own on. InputError for what cannot be."""
    if not 1 <= count <= MOST:
        raise InputError(f"seeds must be from 1 to {MOST:,}, got {count}")
    if count > 1:
        check_one_run(config.labels.store, "--seeds")
    if config.out is not None:
        folder = user_path(config.out, "out")
    else:
        short = "".join(c if c.isprintable() else "_" for c in parse(config.dataset).short)[:_MOST_NAME]
        last = config.seed + count - 1
        folder = Path("runs", f"{short}-{config.method.rpartition(':')[2]}-seeds{config.seed}to{last}")
    check_no_run(folder, "several seeds want")
    seeds = range(config.seed, config.seed + count)
    return folder, [replace(config, seed=seed, out=str(folder / f"seed{seed}")) for seed in seeds]


def run_seeds(
    config: TrainConfig, count: int, argv: list[str], train_one: Callable[[TrainConfig, ConsoleListener], Any]
) -> int:
    """Begin, go on with, or look at the run of each seed, then sum them up; the exit code.

    One that fails does not end the others. `argv` are the words of the command, which goes on where it was stopped.
    """
    folder, runs = configs(config, count)
    failed = 0
    for number, one in enumerate(runs, 1):
        listener = OneOfMany()
        listener.note(f"seed {one.seed}, {number} of {count}")
        try:
            train_one(one, listener)
        except (TrainingError, OutOfMemory) as error:
            failed += 1
            print(printable_lines(f"fastmeta train: seed {one.seed}: {error}"), file=sys.stderr)
        except Interrupted as stop:
            stop.way = command(*argv)
            raise
        finally:
            listener.close()
    if failed == count:
        return 1
    OneOfMany().console.print(folder_table(entries(folder)))
    for path in sum_up(folder):
        print(wrapped(printable(f"wrote {path}")))
    return 1 if failed else 0
