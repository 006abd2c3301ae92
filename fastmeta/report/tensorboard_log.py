"""The figures of each epoch for TensorBoard: ``fastmeta train --log tensorboard``, or a listener in Python."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fastmeta.data import InputError
from fastmeta.training import Listener

if TYPE_CHECKING:
    from fastmeta.data import Splits
    from fastmeta.training import TrainConfig
    from fastmeta.training.stage import Stage


class TensorBoardLog(Listener):
    """Writes every number of an epoch into RUN/tensorboard/STAGE, a folder for each stage, so that these overlay.

    A run that goes on leaves out what it had written behind its last checkpoint.

    Raises:
        InputError: tensorboard is not installed.
    """

    def __init__(self) -> None:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as error:
            raise InputError(
                f"the log for TensorBoard needs it: pip install 'fastmeta[tensorboard]' or pip install tensorboard "
                f"({error})"
            ) from error
        self._new: Any = SummaryWriter
        self._path = Path()
        self._writer: Any = None

    def begin(self, path: Path, config: TrainConfig, splits: Splits, device: str) -> None:
        self._path = path / "tensorboard"

    def stage(self, stage: Stage) -> None:
        self._close()
        epoch = stage.step // stage.steps_per_epoch
        folder = self._path / re.sub(r"[^\w.-]", "_", stage.name)
        self._writer = self._new(str(folder), purge_step=epoch + 1 if folder.exists() else None)

    def epoch(self, stage: Stage, record: Mapping[str, Any]) -> None:
        for name, value in record.items():
            if isinstance(value, int | float) and not isinstance(value, bool) and name != "epoch":
                self._writer.add_scalar(name, value, record["epoch"])
        self._writer.flush()

    def warning(self, text: str) -> None:
        """Others say it."""

    def end(self, path: Path, summary: Mapping[str, Any]) -> None:
        self._close()

    def _close(self) -> None:
        if self._writer is not None:
            self._writer.close()
            self._writer = None
