"""Tables for people, JSON for everything else, and the comparison with goals."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

SCHEMA = 1


@dataclass(frozen=True)
class Verdict:
    """A goal beside the figure that was measured for it."""

    what: str
    sense: Literal["<=", ">="]
    goal: float
    measured: float

    @property
    def met(self) -> bool:
        return self.measured <= self.goal if self.sense == "<=" else self.measured >= self.goal

    def as_json(self) -> dict[str, Any]:
        return {**asdict(self), "met": self.met}


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Aligned columns; the first to the left, the others to the right."""
    widths = [max(len(line[i]) for line in (header, *rows)) for i in range(len(header))]
    lines = []
    for line in (header, *rows):
        padded = [cell.rjust(width) for cell, width in zip(line, widths, strict=True)]
        padded[0] = line[0].ljust(widths[0])
        lines.append("  ".join(padded).rstrip())
    return "\n".join(lines)


def verdict_table(verdicts: Sequence[Verdict]) -> str:
    rows = [[v.what, f"{v.sense} {v.goal:g}", f"{v.measured:.3g}", "yes" if v.met else "NO"] for v in verdicts]
    return table(["goal", "wanted", "measured", "met"], rows)


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


def write(path: Path, kind: str, content: dict[str, Any], verdicts: Sequence[Verdict]) -> None:
    """Atomically; the keys `schema`, `kind` and `goals` are added."""
    path.parent.mkdir(parents=True, exist_ok=True)
    document = {"schema": SCHEMA, "kind": kind, **content, "goals": [v.as_json() for v in verdicts]}
    scratch = _scratch(path)
    scratch.write_text(json.dumps(document, indent=1) + "\n")
    os.replace(scratch, path)
