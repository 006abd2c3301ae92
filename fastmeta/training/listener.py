"""Who is told what happens in a run. The default is silent but for warnings."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fastmeta._text import printable

if TYPE_CHECKING:
    from fastmeta.data import Splits
    from fastmeta.training.config import TrainConfig
    from fastmeta.training.stage import Stage


class Listener:
    """Override what you want to hear; nothing here may wait for the device."""

    def begin(self, path: Path, config: TrainConfig, splits: Splits, device: str) -> None:
        """The run starts or goes on; nothing has been trained yet."""

    def stage(self, stage: Stage) -> None:
        """A stage starts or goes on."""

    def step(self, stage: Stage) -> None:
        """A step was taken."""

    def epoch(self, stage: Stage, record: Mapping[str, Any]) -> None:
        """An epoch ended; `record` is its line of metrics.jsonl."""

    def note(self, text: str) -> None:
        """Something good to know."""

    def warning(self, text: str) -> None:
        """Something the user should look at."""
        warnings.warn(printable(text), stacklevel=3)

    def end(self, path: Path, summary: Mapping[str, Any]) -> None:
        """The run is finished and its files are written."""
