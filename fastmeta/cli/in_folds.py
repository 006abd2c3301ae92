"""``fastmeta train --folds K``: a run for each fold, then the final one, in one folder."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from fastmeta.cli.folds_at_once import train_at_once
from fastmeta.cli.progress import ConsoleListener
from fastmeta.report.numbers import percent
from fastmeta.training import Interrupted, Run, TrainConfig
from fastmeta.training.fold_runs import FINAL, Play, plan_folds, run_folds
from fastmeta.training.rundir import command


class OneFold(ConsoleListener):
    """Tells the result of a fold in a line; the table is that of the final run."""

    def end(self, path: Path, summary: Mapping[str, Any]) -> None:
        self.close()
        test = "" if summary["test_accuracy_last"] is None else f"test {percent(summary['test_accuracy_last'])}%, "
        self.note(f"{path.name}: {test}labels changed {summary['labels_changed']:,}; in {path}")


def run_in_folds(
    config: TrainConfig,
    folds: int,
    replay: Play | None,
    argv: list[str],
    train_one: Callable[[TrainConfig, ConsoleListener], Run],
    at_once: int = 1,
    flags: Sequence[str] = (),
) -> Run:
    """The final run. `argv` are the words of the command, which goes on where it was stopped.

    With `at_once` above 1, folds are trained by so many processes side by side, which get `flags`.
    """
    plan = plan_folds(config, folds, replay=replay)

    def one(name: str, config: TrainConfig) -> Run:
        listener = ConsoleListener() if name == FINAL else OneFold()
        where = "the final run, on all rows" if name == FINAL else f"{name}, of {folds} folds"
        listener.note(f"{where}, in {config.out}")
        try:
            return train_one(config, listener)
        except Interrupted as stop:
            stop.way = command(*argv)
            raise
        finally:
            listener.close()

    def ahead() -> None:
        try:
            train_at_once(plan, at_once, flags, ConsoleListener())
        except Interrupted as stop:
            stop.way = command(*argv)
            raise

    return run_folds(plan, one, ConsoleListener(), ahead=ahead if at_once > 1 else None)
