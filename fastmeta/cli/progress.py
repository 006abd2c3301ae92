"""Progress of a run in the terminal: a live bar where there is one, a line now and then where there is none."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from fastmeta._text import printable
from fastmeta.cli import stdout_to_nowhere
from fastmeta.report.table import percent, plain, result_table, title
from fastmeta.training.listener import Listener

if TYPE_CHECKING:
    from fastmeta.data import Splits
    from fastmeta.training import TrainConfig
    from fastmeta.training.stage import Stage

#: lines per stage where there is no terminal to draw a bar in
LINES = 5
#: a narrower terminal would cut the figures off, in the bar and in the table
LEAST_WIDTH = 80


class _Console(Console):
    """Outlives its reader: where nothing can be printed any more (`| head`, a full disk), the run goes on unheard.

    rich would end the process behind a broken pipe, and leave other errors to the caller.
    """

    def _write_buffer(self) -> None:
        try:
            super()._write_buffer()
        except OSError:
            self.on_broken_pipe()

    def on_broken_pipe(self) -> None:
        self.quiet = True
        stdout_to_nowhere()


class ConsoleListener(Listener):
    """Prints with rich."""

    def __init__(self, console: Console | None = None) -> None:
        self.console = console or _Console(highlight=False)
        self._progress: Progress | None = None
        self._task: Any = None

    def begin(self, path: Path, config: TrainConfig, splits: Splits, device: str) -> None:
        rate = splits.noise_rate
        wrong = "" if rate is None else f" ({percent(rate)}% of the labels wrong)"
        test = "no test set" if splits.test is None else f"{len(splits.test):,} test"
        self._line(
            f"{len(splits.train):,} train{wrong}, {len(splits.meta):,} clean, {test}; {splits.num_classes} classes; "
            f"{config.model} on {device}; {config.epochs} epoch{'s' * (config.epochs != 1)} → {path}"
        )
        if self.console.is_terminal and self.console.width >= LEAST_WIDTH:
            self._progress = Progress(
                TextColumn("{task.description:<20}"),
                BarColumn(),
                MofNCompleteColumn(),
                TextColumn("{task.fields[figures]}"),
                TimeRemainingColumn(),
                console=self.console,
            )
            self._progress.start()

    def stage(self, stage: Stage) -> None:
        if self._progress is not None:
            name = escape(title(stage.name))
            self._task = self._progress.add_task(name, total=stage.total, completed=stage.step, figures="")

    def step(self, stage: Stage) -> None:
        if self._progress is not None:
            self._progress.update(self._task, completed=stage.step)

    def epoch(self, stage: Stage, record: Mapping[str, Any]) -> None:
        if record.get("test_accuracy") is not None:
            figures = f"test {percent(record['test_accuracy'])}%"
        else:
            figures = f"loss {plain(record.get('train_loss'), 3)}"
        if record.get("label_accuracy") is not None:
            figures += f" labels {percent(record['label_accuracy'])}%"
        elif record.get("labels_changed") is not None:
            figures += f" changed {record['labels_changed']:,}"
        if self._progress is not None:
            self._progress.update(self._task, figures=figures)
        else:
            epochs = stage.total // stage.steps_per_epoch
            if record["epoch"] % max(1, epochs // LINES) == 0 or record["epoch"] == epochs:
                self._line(f"{title(stage.name):<20} epoch {record['epoch']:>4}/{epochs}  {figures}")

    def note(self, text: str) -> None:
        self._line(text)

    def warning(self, text: str) -> None:
        self.console.print(f"[yellow]warning:[/] {escape(printable(text))}", soft_wrap=True)

    def end(self, path: Path, summary: Mapping[str, Any]) -> None:
        self.close()
        self.console.print()
        self.console.width = max(LEAST_WIDTH, self.console.width)  # a terminal breaks lines, rich would drop figures
        self.console.print(result_table(summary))
        self._line(f"everything in {path}")

    def _line(self, text: str) -> None:
        """As it is, markup too, but for what the terminal would obey: it may hold names and paths of the user's."""
        self.console.print(printable(text), soft_wrap=True, markup=False)

    def close(self) -> None:
        """Leave the terminal as it should be; safe to call twice."""
        if self._progress is not None:
            self._progress.stop()
            self._progress = None
