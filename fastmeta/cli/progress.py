"""Progress of a run in the terminal: a live bar where there is one, a line now and then where there is none."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from fastmeta._text import printable
from fastmeta.cli import stdout_to_nowhere
from fastmeta.report.numbers import percent, plain
from fastmeta.report.result_table import result_table, title
from fastmeta.training.distances import KEYS
from fastmeta.training.finetune import plain_steps as finetune_steps
from fastmeta.training.finetune import steps_of
from fastmeta.training.label_moves import moves, steps_per_move
from fastmeta.training.listener import Listener
from fastmeta.training.outlook import (
    LONG,
    by_arithmetic,
    by_forwards,
    clock,
    end_at,
    plain_share,
    ways_out,
)
from fastmeta.training.readings import reading_steps
from fastmeta.training.stage_names import is_aside

if TYPE_CHECKING:
    from fastmeta.data import Splits
    from fastmeta.training import TrainConfig
    from fastmeta.training.stage import Stage

#: seconds of steps after which the expected end is told, and seconds of a run after which it is told anyway
SOON, LATE = 10.0, 40.0
#: seconds left that are not worth a line
SHORT = 30.0
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
        self._config: TrainConfig | None = None  # until the expected end has been told
        self._device = ""
        self._cosine = ""  # to the exact step, of the last epoch in which somebody looked
        self._first: tuple[int, float] | None = None  # the first step of this process, and when it was taken
        self._began = time.monotonic()

    def begin(self, path: Path, config: TrainConfig, splits: Splits, device: str) -> None:
        rate = splits.noise_rate
        wrong = "" if rate is None else f" ({percent(rate)}% of the labels wrong)"
        test = "no test set" if splits.test is None else f"{len(splits.test):,} test"
        self._config, self._device, self._began = config, device, time.monotonic()
        self._line(
            f"{len(splits.train):,} train{wrong}, {len(splits.meta):,} clean, {test}; {splits.num_classes} classes"
        )
        for line in getattr(splits, "told", ()):  # which a stand-in for data need not have
            self._line(line)
        self._line(f"{config.model} on {device}; {config.epochs} epoch{'s' * (config.epochs != 1)} → {path}")
        self.start_bar()

    def start_bar(self, *, transient: bool = False) -> None:
        """Where there is a terminal to draw it in; it stays when it is done, unless it is `transient`."""
        if self.console.is_terminal and self.console.width >= LEAST_WIDTH:
            self._progress = Progress(
                TextColumn("{task.description:<20}"),
                BarColumn(),
                MofNCompleteColumn(),
                TextColumn("{task.fields[figures]}"),
                TimeRemainingColumn(),
                console=self.console,
                transient=transient,
            )
            self._progress.start()

    @property
    def has_bar(self) -> bool:
        return self._progress is not None

    def stage(self, stage: Stage) -> None:
        self._cosine = ""
        if self._progress is not None:
            name = escape(title(stage.name))
            self._task = self._progress.add_task(name, total=stage.total, completed=stage.step, figures="")

    def step(self, stage: Stage) -> None:
        if self._progress is not None:
            self._progress.update(self._task, completed=stage.step)
        if self._config is not None:
            self._tell_end(stage, self._config, time.monotonic())

    def _tell_end(self, stage: Stage, config: TrainConfig, now: float) -> None:
        """Once, in the first minute: when all of it will be done, and what would be sooner where that is far off."""
        if is_aside(stage.name):  # whose steps are others
            self._began = now
            return
        if self._first is None:  # which chooses the tangent and fills caches
            self._first = stage.step, now
        exact = config.label_update == "exact"
        meta_steps = stage.name == config.method and exact and config.method_class().uses_meta_batch
        share = plain_share(meta_steps, config.approx)
        warm = config.labels.plain_epochs * stage.steps_per_epoch
        per_move = 0.0 if exact else steps_per_move(stage.config, stage.data)

        def effort(first: int, last: int, moved: int) -> float:
            """Of these steps, in those that the run is made for: it may begin with plain ones.

            With the moves of labels behind steps `first` to `moved`.
            """
            steps = last - first - (1 - share) * (min(last, warm) - min(first, warm))
            return steps + (moves(stage, first, moved) * per_move if per_move else 0.0)

        began, since = self._first
        if stage.step - began >= 2 and now - since >= SOON:
            pace = (now - since) / effort(began, stage.step, stage.step - 1)
        elif now - self._began >= LATE:
            pace = (now - self._began) / effort(began - 1, stage.step, stage.step - 1)
        else:
            return
        self._config = None
        plain = pace * share
        rest = effort(stage.step, stage.total, stage.total) * pace
        finetuning = finetune_steps(stage) * plain if config.finetune_steps else 0.0
        rest += finetuning + reading_steps(stage) * plain
        baselines = 0.0
        if stage.name == config.method:  # and not in the middle of what it is compared with
            names = config.baseline_names()
            baselines = len(names) * stage.total * plain + sum(finetuning for n in names if steps_of(config, n))
        left = rest + baselines
        if left < SHORT:
            return
        self._line(f"expected end: {end_at(left)}, in about {clock(left)}")
        if self._device == "cpu" and left > LONG:
            ways = by_arithmetic(left, baselines, config.epochs or 1)
            if meta_steps:
                ways += by_forwards(left, baselines, config)
            for line in ways_out(left, ways, "by ResNet-20's costs (--dry-run times yours)"):
                self._line(f"  {line}")

    def epoch(self, stage: Stage, record: Mapping[str, Any]) -> None:
        if record.get("test_accuracy") is not None:
            figures = f"test {percent(record['test_accuracy'])}%"
        else:
            figures = f"loss {plain(record.get('train_loss'), 3)}"
        if record.get("label_accuracy") is not None:
            figures += f" labels {percent(record['label_accuracy'])}%"
        elif record.get("labels_changed") is not None:
            figures += f" changed {record['labels_changed']:,}"
        if record.get("canaries_put_right") is not None:
            figures += f" canaries +{percent(record['canaries_put_right'], 0)}"
            figures += f" −{percent(record['canaries_spoiled'], 0)}%"
        if (cosine := record.get(KEYS["cosine"])) is not None:
            self._cosine = f" cosine {cosine:.2f}"
            if record[KEYS["looks"]] > 1:
                self._cosine += f" (worst {record[KEYS['least']]:.2f})"
        figures += self._cosine
        if self._progress is not None:
            self._progress.update(self._task, figures=figures)
        else:
            epochs = -(-stage.total // stage.steps_per_epoch)
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
