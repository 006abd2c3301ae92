"""Progress of a comparison in the terminal: a line for each run, and its bar while it trains."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fastmeta._text import printable
from fastmeta.cli.progress import ConsoleListener
from fastmeta.comparison import Watcher
from fastmeta.report.numbers import percent

if TYPE_CHECKING:
    from fastmeta.comparison.planned_runs import PlannedRun
    from fastmeta.comparison.standings import Done
    from fastmeta.data import Splits
    from fastmeta.training import Listener, TrainConfig


class OneRun(ConsoleListener):
    """Of a run its bar, where there is a terminal, and its warnings, each once in a comparison."""

    def __init__(self, said: set[str]) -> None:
        super().__init__()
        self._said = said

    def begin(self, path: Path, config: TrainConfig, splits: Splits, device: str) -> None:
        self.start_bar(transient=True)

    def epoch(self, stage: Any, record: Mapping[str, Any]) -> None:
        if self.has_bar:
            super().epoch(stage, record)

    def note(self, text: str) -> None:
        pass

    def warning(self, text: str) -> None:
        if text not in self._said:
            self._said.add(text)
            super().warning(text)

    def end(self, path: Path, summary: Mapping[str, Any]) -> None:
        self.close()


class ConsoleWatcher(Watcher):
    def __init__(self) -> None:
        self._said: set[str] = set()
        self._listener = OneRun(self._said)

    @property
    def console(self) -> Any:
        return self._listener.console

    def begin(self, path: Path, finished: int, total: int) -> None:
        already = f", {finished} finished already" if finished else ""
        print(printable(f"{total} runs{already} → {path}"), flush=True)

    def run(self, number: int, total: int, run: PlannedRun) -> Listener:
        self.close()
        self._listener = OneRun(self._said)
        print(printable(f"{number}/{total} {run.name}"), flush=True)
        return self._listener

    def done(self, run: PlannedRun, done: Done) -> None:
        self.close()
        seconds = done.summary["seconds"] + sum(s["seconds"] for s in done.summary["baselines"].values())
        test = done.summary["test_accuracy_last"]
        told = "no test set" if test is None else f"test {percent(test)}%"
        print(f"    {told}, {seconds:.1f} s", flush=True)

    def failed(self, run: PlannedRun, message: str) -> None:
        self.close()
        print(printable(f"    failed: {message}"), file=sys.stderr, flush=True)

    def warning(self, text: str) -> None:
        self._listener.warning(text)

    def close(self) -> None:
        self._listener.close()
