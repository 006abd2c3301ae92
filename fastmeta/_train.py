"""``fastmeta.train``: training, and the figures of what it has written."""

from __future__ import annotations

from functools import wraps
from typing import Any

from fastmeta import report, training
from fastmeta.training import Run


def _draw(*run: Any) -> Any:
    return report.write_figures(*run)  # looked up when it is called


@wraps(training.train)
def train(*args: Any, **options: Any) -> Run:
    options.setdefault("draw", _draw)
    return training.train(*args, **options)


@wraps(training.train_folds)
def train_folds(*args: Any, **options: Any) -> Run:
    options.setdefault("draw", _draw)
    return training.train_folds(*args, **options)
