"""``fastmeta bench scale``: what large runs are made of, part by part."""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

#: each a file scale_NAME.py here, with `measure(seconds)` and, for people, `told(result)`
PARTS = {
    "stores": "label tables on the host and in a file beside a dense one",
    "rows": "a table in a file, from 10,000 rows to 14 million",
    "ranks": "one process and two",
    "data": "samples that do not fit into memory",
}


#: parts that a CUDA device has, too
ON_CUDA = ("stores",)


def here(part: str) -> bool:
    """Whether this build measures the part."""
    return importlib.util.find_spec(f"fastmeta.bench.scale_{part}") is not None


@dataclass(frozen=True)
class ScaleConfig:
    parts: tuple[str, ...] = tuple(filter(here, PARTS))
    seconds: float = 60.0
    threads: int | None = None
    device: str = "cpu"

    def __post_init__(self) -> None:
        for part in self.parts:
            if part not in PARTS or not here(part):
                known = ", ".join(filter(here, PARTS))
                raise ValueError(f"--part must be some of {known}, got {part!r}")
            if self.device == "cuda" and part not in ON_CUDA:
                raise ValueError(f"--part {part} is measured on a CPU; with --device cuda name {', '.join(ON_CUDA)}")


def run(config: ScaleConfig, say: Callable[[str], None]) -> dict[str, Any]:
    """Each part takes about `seconds`. Ctrl-C ends the measuring; the parts before it come back with "stopped"."""
    if config.threads is not None:
        torch.set_num_threads(config.threads)
    found: dict[str, Any] = {}
    stopped = False
    for part in config.parts:
        module = importlib.import_module(f"fastmeta.bench.scale_{part}")
        say(f"{part}: {PARTS[part]}")
        on = {"device": config.device} if part in ON_CUDA else {}
        try:
            found[part] = module.measure(config.seconds, **on)
        except KeyboardInterrupt:
            if not found:
                raise
            stopped = True
            break
        say(module.told(found[part]) if hasattr(module, "told") else str(found[part]))
    return {"seconds": config.seconds, "parts": found, "stopped": stopped}
