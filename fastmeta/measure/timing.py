"""Paired timing: variants take turns within a round, in random order, so that drift hits all of them alike."""

from __future__ import annotations

import gc
import random
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

Body = Callable[[], Any]

MIN_ROUNDS, MAX_ROUNDS = 5, 200
# A sample shorter than this is repeated: the clock and the loop around it must not show. On a GPU the host runs ahead
# of the device, as in training: the first of several calls waits for its launch (milliseconds for a graph of a
# thousand kernels), the later ones are launched meanwhile.
MIN_SAMPLE_SECONDS = {"cpu": 1e-3, "cuda": 3e-2}


@dataclass(frozen=True)
class Timing:
    """Seconds per call, one entry per round."""

    seconds: tuple[float, ...]

    @property
    def median(self) -> float:
        return statistics.median(self.seconds)

    @property
    def quartiles(self) -> tuple[float, float]:
        if len(self.seconds) == 1:
            return self.seconds[0], self.seconds[0]
        low, _, high = statistics.quantiles(self.seconds, n=4)
        return low, high

    def ratio_to(self, other: Timing) -> float:
        """Median over the rounds of this variant's time by the other's in the same round."""
        return statistics.median(a / b for a, b in zip(self.seconds, other.seconds, strict=True))


class Stopped(KeyboardInterrupt):
    """Ctrl-C while variants were timed; `timings` are those of the rounds that were whole, at least one."""

    def __init__(self, timings: dict[str, Timing]) -> None:
        super().__init__("stopped while timing")
        self.timings = timings


def interleave(
    variants: Mapping[str, Sequence[Body]], device: torch.device, *, seconds: float, rounds: int | None = None
) -> dict[str, Timing]:
    """Time every variant in turns.

    Args:
        variants: name -> bodies that do the same work on different inputs. A sample calls them in rotation, so that
            inputs can be made to exceed a cache. All must have been called before (compiled, warmed up).
        device: CUDA is timed by events on the current stream, the CPU by its clock.
        seconds: time to spend, spread over at least 5 and at most 200 rounds.
        rounds: exactly so many rounds instead.

    Raises :class:`Stopped` where somebody stops it behind the first round.
    """
    if not variants:
        return {}
    sampler = _cuda_sample if device.type == "cuda" else _cpu_sample
    least = MIN_SAMPLE_SECONDS[device.type]
    repeats = {name: _calibrate(sampler, bodies, least) for name, bodies in variants.items()}
    one_round = sum(sampler(bodies, repeats[name]) * repeats[name] for name, bodies in variants.items())
    if rounds is None:
        rounds = min(MAX_ROUNDS, max(MIN_ROUNDS, int(seconds / one_round)))
    samples: dict[str, list[float]] = {name: [] for name in variants}
    order, shuffle = list(variants), random.Random(0).shuffle
    # what is alive now need not be looked at again by the collection between rounds
    gc.collect()
    gc.freeze()
    enabled = gc.isenabled()
    gc.disable()
    try:
        for _ in range(rounds):
            shuffle(order)
            for name in order:
                samples[name].append(sampler(variants[name], repeats[name]))
            gc.collect()  # autograd graphs with cycles, outside of the samples
    except KeyboardInterrupt:
        whole = min(map(len, samples.values()))
        if not whole:
            raise
        raise Stopped({name: Timing(tuple(values[:whole])) for name, values in samples.items()}) from None
    finally:
        if enabled:
            gc.enable()
        gc.unfreeze()
    return {name: Timing(tuple(values)) for name, values in samples.items()}


def _calibrate(sampler: Callable[[Sequence[Body], int], float], bodies: Sequence[Body], least: float) -> int:
    """Calls per sample: all bodies equally often, at least `least` seconds in all."""
    sampler(bodies, len(bodies))
    once = sampler(bodies, len(bodies))
    turns = max(1, round(least / max(once * len(bodies), 1e-9)))
    return turns * len(bodies)


def _cpu_sample(bodies: Sequence[Body], repeats: int) -> float:
    count = len(bodies)
    start = time.perf_counter()
    for i in range(repeats):
        bodies[i % count]()
    return (time.perf_counter() - start) / repeats


def _cuda_sample(bodies: Sequence[Body], repeats: int) -> float:
    count = len(bodies)
    start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    torch.cuda.synchronize()
    start.record()
    for i in range(repeats):
        bodies[i % count]()
    end.record()
    end.synchronize()
    return start.elapsed_time(end) * 1e-3 / repeats
