"""failed.json: why a run that is not finished came to an end by itself; gone again once it goes on."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

from fastmeta.training.rundir.files import parse_json, read_bytes, to_json, write_atomically

FAILED = Path("failed.json")
_MOST = 2**16


def note_failure(path: Path, message: str) -> None:
    """For whoever looks at the run at `path` later. On a disk that takes no more there is none."""
    with suppress(OSError):
        write_atomically(path / FAILED, (to_json({"message": message}) + "\n").encode())


def forget_failure(path: Path) -> None:
    with suppress(OSError):
        (path / FAILED).unlink(missing_ok=True)


def failure(path: Path) -> str | None:
    """The message; None where there is none that can be read."""
    with suppress(OSError, ValueError):
        content = parse_json(read_bytes(path / FAILED, _MOST))
        if isinstance(content, dict) and isinstance(message := content.get("message"), str):
            return message
    return None
