"""Random generators that a model may draw from: their states taken, put back and replayed."""

from __future__ import annotations

import random
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor


def is_generator(value: Any) -> bool:
    """Whether `value` is a random generator whose state can be taken and put back: of torch, Python or NumPy.

    ``random.SystemRandom`` has no state.
    """
    if isinstance(value, torch.Generator | random.Random):
        return not isinstance(value, random.SystemRandom)
    numpy = sys.modules.get("numpy.random")
    return numpy is not None and isinstance(value, (numpy.Generator, numpy.RandomState, numpy.BitGenerator))


class RandomState:
    """The generators that a model on `device` may draw from, as they stand now; :meth:`replay` draws the same again.

    They are torch's of the CPU and of the device, Python's and NumPy's global ones, and `generators`: any for which
    :func:`is_generator` holds. Taking the state and replaying it costs 0.1 ms, nearly all of it for NumPy's legacy
    generator.
    """

    def __init__(self, device: torch.device, generators: Sequence[Any] = ()) -> None:
        self.device = device if device.type == "cuda" else None
        self.cpu = torch.get_rng_state()
        self.cuda = torch.cuda.get_rng_state(self.device) if self.device is not None else None
        self.generators = generators
        # the modules `random` and `numpy.random` have the methods of the generators behind them
        shared = [m for name in ("random", "numpy.random") if (m := sys.modules.get(name)) is not None]
        self.own = [(g, _state(g)) for g in (*shared, *generators)]

    def restore(self) -> None:
        torch.set_rng_state(self.cpu)
        if self.cuda is not None and self.device is not None:
            torch.cuda.set_rng_state(self.cuda, self.device)
        for generator, state in self.own:
            _set_state(generator, state)

    def has_drawn(self) -> bool:
        """Whether somebody has drawn from any of the generators since."""
        now = RandomState(self.device or torch.device("cpu"), self.generators)
        before, after = ((s.cpu, s.cuda, *(state for _, state in s.own)) for s in (self, now))
        return not all(map(_equal, before, after))

    def host_has_drawn(self) -> bool:
        """Whether somebody has drawn from a generator of Python or NumPy since."""
        host = [(g, state) for g, state in self.own if not isinstance(g, torch.Generator)]
        return any(not _equal(_state(g), state) for g, state in host)

    @contextmanager
    def replay(self) -> Iterator[None]:
        """Inside, the generators start from this state (the same dropout masks); after, they stand as before."""
        now = RandomState(self.device or torch.device("cpu"), self.generators)
        self.restore()
        try:
            yield
        finally:
            now.restore()


def _state(generator: Any) -> Any:
    if isinstance(generator, torch.Generator):
        return generator.get_state()
    if hasattr(generator, "getstate"):
        return generator.getstate()
    if hasattr(generator, "get_state"):
        return generator.get_state(legacy=False)
    return getattr(generator, "bit_generator", generator).state


def _set_state(generator: Any, state: Any) -> None:
    if isinstance(generator, torch.Generator):
        generator.set_state(state)
    elif hasattr(generator, "setstate"):
        generator.setstate(state)
    elif hasattr(generator, "set_state"):
        generator.set_state(state)
    else:
        getattr(generator, "bit_generator", generator).state = state


def _equal(a: Any, b: Any) -> bool:
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(_equal(value, b[key]) for key, value in a.items())
    if isinstance(a, Tensor):
        return torch.equal(a, b)
    if hasattr(a, "tobytes"):
        return bool(a.tobytes() == b.tobytes())
    return bool(a == b)
