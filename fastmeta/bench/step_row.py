"""One row of the table of ``bench step``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from fastmeta.bench.step_variants import is_plain


@dataclass(frozen=True)
class StepRow:
    """The figures of one variant."""

    variant: str
    skipped: str | None = None  # why it was not timed
    note: str = ""  # the way of the tangent
    milliseconds: float | None = None  # median
    quartiles: tuple[float, float] | None = None  # of the milliseconds
    samples_per_second: float | None = None  # train samples
    ratios: Mapping[str, float] | None = None  # to every other variant's time, paired
    naive: str | None = None  # the naive step of the same loss; None for a plain step
    flops: float | None = None
    forwards: float | None = None  # FLOPs in units of one train forward
    share_of_matrix_rate: float | None = None  # FLOPs per second by those of the device's matrix product
    launches: float | None = None
    peak_bytes: int | None = None  # over the model, the labels and the batches
    error: float | None = None  # of the label step (a plain step: of the parameters) relative to the truth in float64

    def ratio_to(self, variant: str | None) -> float | None:
        return (self.ratios or {}).get(variant) if variant else None


def best_plain(rows: Sequence[StepRow]) -> str | None:
    """The fastest plain step."""
    timed = [(r.milliseconds, r.variant) for r in rows if is_plain(r.variant) and r.milliseconds is not None]
    return min(timed)[1] if timed else None
