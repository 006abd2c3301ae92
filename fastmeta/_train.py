"""``fastmeta.train``: training, and the figures of what it has written."""

from __future__ import annotations

from functools import wraps
from typing import Any

from fastmeta import report, training
from fastmeta.training import Run


@wraps(training.train)
def train(*args: Any, **options: Any) -> Run:
    options.setdefault("draw", lambda *run: report.write_figures(*run))  # looked up when it is called
    return training.train(*args, **options)
