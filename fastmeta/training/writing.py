"""What is said where a run cannot write."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from fastmeta.losses import TableError
from fastmeta.training.config import TrainConfig
from fastmeta.training.rundir.layout import resume_command
from fastmeta.training.stage import TrainingError


@contextmanager
def writing(path: Path, config: TrainConfig) -> Iterator[None]:
    """A full disk ends the run at `path` in one line; what was saved before stays, and so does --resume."""
    try:
        yield
    except TableError:  # which says what to do
        raise
    except OSError as error:
        raise TrainingError(
            f"cannot write {error.filename or path}: {error.strerror}; mend that and go on with: "
            f"{resume_command(path, config)}"
        ) from error
