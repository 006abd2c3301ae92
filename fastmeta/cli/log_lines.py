"""What the library logs, as lines of a command: a library does not print, and who calls a command wants to see it."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from fastmeta._text import printable_lines


class _Lines(logging.Handler):
    """One line on stderr for each record; of what goes on in between only where stderr is a terminal.

    Of several ranks the first alone says what all do.
    """

    def emit(self, record: logging.LogRecord) -> None:
        if sys.stderr is None or (record.name.endswith(".progress") and not sys.stderr.isatty()):
            return
        if record.levelno < logging.WARNING and os.environ.get("RANK", "0") != "0":
            return
        try:
            print(printable_lines(f"fastmeta: {record.getMessage()}"), file=sys.stderr, flush=True)
        except OSError:  # whoever read it has gone
            pass
        except Exception:
            self.handleError(record)


@contextmanager
def on_stderr() -> Iterator[None]:
    """Inside, what the logger ``fastmeta`` says at INFO and above is printed."""
    logger, lines = logging.getLogger("fastmeta"), _Lines()
    level = logger.level
    logger.addHandler(lines)
    if not logger.isEnabledFor(logging.INFO):
        logger.setLevel(logging.INFO)
    try:
        yield
    finally:
        logger.removeHandler(lines)
        logger.setLevel(level)
