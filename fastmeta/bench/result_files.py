"""Tables for people, JSON for everything else."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

SCHEMA = 1


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Aligned columns; the first to the left, the others to the right."""
    widths = [max(len(line[i]) for line in (header, *rows)) for i in range(len(header))]
    lines = []
    for line in (header, *rows):
        padded = [cell.rjust(width) for cell, width in zip(line, widths, strict=True)]
        padded[0] = line[0].ljust(widths[0])
        lines.append("  ".join(padded).rstrip())
    return "\n".join(lines)


def number(value: float | None, digits: int = 2) -> str:
    return "-" if value is None else f"{value:.{digits}f}"


def check_writable(path: Path) -> None:
    """ValueError where :func:`write` could not begin."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        scratch = _scratch(path)
        scratch.touch()
        scratch.unlink()
    except OSError as error:
        raise ValueError(f"cannot write {path}: {error.strerror}; name another file") from error


def _scratch(path: Path) -> Path:
    return path.with_name(path.name + ".part")


def write(path: Path, kind: str, content: Mapping[str, Any]) -> None:
    """Atomically; the keys `schema` and `kind` are added."""
    path.parent.mkdir(parents=True, exist_ok=True)
    replace(path, {"schema": SCHEMA, "kind": kind, **content})


def replace(path: Path, document: Mapping[str, Any]) -> None:
    """Atomically, the whole file."""
    scratch = _scratch(path)
    scratch.write_text(json.dumps(document, indent=1) + "\n")
    os.replace(scratch, path)
