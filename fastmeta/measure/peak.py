"""Peak memory of one call, over what was allocated before it."""

from __future__ import annotations

import gc
import os

import torch
from torch.profiler import ProfilerActivity, profile

from fastmeta.measure.timing import Body


def peak_bytes(body: Body, device: torch.device) -> int:
    """The most bytes that torch's allocator held during one call, minus those that it held before.

    CUDA: the caching allocator's own peak, in which what a captured graph reuses does not show (`held_by_graphs`).
    CPU: the running sum over the allocation events of torch's profiler; scratch memory that a library (oneDNN, BLAS)
    takes for itself is not seen, on either side of a comparison.
    """
    gc.collect()
    if device.type == "cuda":
        torch.cuda.synchronize()
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        body()
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated() - before
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # a CUDA build reports a missing GPU as an error
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True, acc_events=True) as profiler:
        body()
    results = profiler.profiler.kineto_results
    changes = [(e.start_ns(), e.nbytes()) for e in results.events() if e.name() == "[memory]"]
    held = peak = 0
    for _, change in sorted(changes, key=lambda event: event[0]):
        held += change
        peak = max(peak, held)
    return peak


def held_by_graphs(device: torch.device) -> int:
    """Bytes that captured graphs keep for themselves, beyond what is allocated between their replays."""
    if device.type != "cuda":
        return 0
    segments = [s for s in torch.cuda.memory_snapshot() if s["segment_pool_id"] != (0, 0)]
    return sum(s["total_size"] - s["allocated_size"] for s in segments)
