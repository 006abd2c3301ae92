"""Time and peak memory of calls: for ``fastmeta.check``, the trainer and ``fastmeta bench``."""

from fastmeta.measure.peak import held_by_graphs, peak_bytes
from fastmeta.measure.timing import MAX_ROUNDS, MIN_ROUNDS, Body, Stopped, Timing, interleave

__all__ = ["MAX_ROUNDS", "MIN_ROUNDS", "Body", "Stopped", "Timing", "held_by_graphs", "interleave", "peak_bytes"]
