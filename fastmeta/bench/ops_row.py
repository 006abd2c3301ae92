"""One row of the table of ``bench ops``: variants whose outputs have been compared, timed in turns."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from fastmeta._memory import check_room
from fastmeta._text import reason
from fastmeta.bench.captured_bodies import replayed
from fastmeta.bench.ops_catalog import DTYPES, OPERATIONS
from fastmeta.measure import Body, Timing, interleave

#: not over rows of logits: each in a file of its own
LOOKAHEAD, IMAGES = "lookahead_update", "load_images"
NAMES = (*OPERATIONS, LOOKAHEAD, IMAGES)


@dataclass(frozen=True)
class OpsConfig:
    device: str = "cpu"
    operations: tuple[str, ...] = NAMES
    sizes: tuple[tuple[int, int], ...] | None = None  # (n, C); default by device
    dtypes: tuple[str, ...] = ("float32", "bfloat16")
    threads: int | None = None
    seconds: float = 1.0  # per operation, size and dtype
    compile: bool = True
    graph: bool = True  # CUDA: replay captured graphs instead of timing launches from the host
    limit: float | None = None  # seconds after which no further case is begun

    def __post_init__(self) -> None:
        for name in self.operations:
            if name not in NAMES:
                raise ValueError(f"unknown operation {name!r}: expected some of {', '.join(NAMES)}")
        for name in self.dtypes:
            if name not in DTYPES:
                raise ValueError(f"unknown dtype {name!r}: expected some of {', '.join(DTYPES)}")
        for n, C in self.sizes or ():
            if n < 1 or C < 2:
                raise ValueError(f"sizes must be n x C with n >= 1 and C >= 2, got {n}x{C}")
            if self.device == "cpu":  # logits, u, labels, v and more, with their doubles
                check_room(64 * n * C, f"operands of {n}x{C}")
        for name, value in (("seconds", self.seconds), ("limit", self.limit)):
            if value is not None and value <= 0:
                raise ValueError(f"{name} must be positive, got {value}")


@dataclass(frozen=True)
class OpsRow:
    operation: str
    n: int
    C: int
    dtype: str
    microseconds: dict[str, float]  # variant -> median
    speedup: dict[str, float]  # variant -> its time by the fused one's, paired
    gigabytes_per_second: float  # of the fused variant
    share_of_copy: float
    error: dict[str, float]  # variant -> max |output - float64 truth| / max |truth|, worst output
    notes: dict[str, str]  # peer -> why it is absent, or was not timed like the others


#: the fused operation launched from the host, for the ratio to what no CUDA graph holds
FROM_HOST = "fused, from the host"


class WrongResult(AssertionError):
    """A fused operation disagrees with its twin: it is not timed."""


def deviations(outputs: Sequence[Tensor], truth: Sequence[Tensor]) -> list[float]:
    """Largest deviation of every output, relative to the truth's largest entry."""
    return [
        float((a.double() - b).abs().max() / b.abs().max().clamp_min(1e-30))
        for a, b in zip(outputs, truth, strict=True)
    ]


def slots_needed(moved_bytes: int, device: torch.device) -> int:
    """Copies of the inputs to rotate through: twice the L2 cache of a GPU, at most 16."""
    if device.type != "cuda":
        return 1
    l2 = torch.cuda.get_device_properties(device).L2_cache_size
    return min(16, max(1, math.ceil(2 * l2 / moved_bytes)))


@dataclass(frozen=True)
class Prepared:
    """Variants of one case, compared and called once, ready for timing."""

    bodies: dict[str, list[Body]]
    errors: dict[str, float]
    moved_bytes: int
    notes: dict[str, str] = field(default_factory=dict)


def timed(case: Prepared, operation: str, n: int, C: int, dtype: str, *, config: OpsConfig, copy: float) -> OpsRow:
    """Its row of the table; `copy` is the device's copy bandwidth in bytes per second."""
    timings, uncaptured = _time(case.bodies, torch.device(config.device), config)
    fused = timings["fused"]
    bandwidth = case.moved_bytes / fused.median
    return OpsRow(
        operation=operation,
        n=n,
        C=C,
        dtype=dtype,
        microseconds={k: t.median * 1e6 for k, t in timings.items()},
        speedup={
            k: t.ratio_to(timings[FROM_HOST] if k in uncaptured else fused)
            for k, t in timings.items()
            if k not in ("fused", FROM_HOST)
        },
        gigabytes_per_second=bandwidth / 1e9,
        share_of_copy=bandwidth / copy,
        error=case.errors,
        notes={**case.notes, **uncaptured},
    )


def _time(
    bodies: dict[str, list[Body]], device: torch.device, config: OpsConfig
) -> tuple[dict[str, Timing], dict[str, str]]:
    """Timings per call, and the variants that could not be captured, with the reason."""
    if device.type != "cuda" or not config.graph:
        return interleave(bodies, device, seconds=config.seconds), {}
    captured: dict[str, tuple[list[Body], int]] = {}
    notes: dict[str, str] = {}
    for name, calls in bodies.items():
        try:
            replay, count = replayed(calls)
            captured[name] = [replay], count
        except RuntimeError as error:  # it waits for the device, as others' code may
            if name == "fused":
                raise
            captured[name] = calls, 1
            notes[name] = f"timed from the host, as the fused one beside it: no graph holds it, {reason(error)}"
    if notes:
        captured[FROM_HOST] = bodies["fused"], 1
    timings = interleave({k: calls for k, (calls, _) in captured.items()}, device, seconds=config.seconds)
    return {k: Timing(tuple(s / captured[k][1] for s in t.seconds)) for k, t in timings.items()}, notes
