"""The global random generators of torch, Python and NumPy: a run draws its own, and the caller's stand as before."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch

from fastmeta.functional.random_state import RandomState

#: NumPy's old global generator is what models draw from that draw from NumPy without one of their own
_numpy: Any = np.random


def seed_all(seed: int) -> None:
    """Start all of them from `seed`."""
    torch.manual_seed(seed)
    random.seed(seed)
    _numpy.seed(seed % 2**32)


@contextmanager
def kept() -> Iterator[None]:
    """After, all of them stand where they stood before."""
    before = RandomState(torch.device("cpu"))
    try:
        with torch.random.fork_rng(list(range(torch.cuda.device_count()))):
            yield
    finally:
        before.restore()


def host_state() -> list[Any]:
    """Python's and NumPy's, as :class:`fastmeta.training.encoding.Encoder` takes them."""
    version, numbers, gauss = random.getstate()
    return [version, np.array(numbers, np.uint64), gauss, _numpy.get_state(legacy=False)]


def set_host_state(state: list[Any]) -> None:
    """What :func:`host_state` gave."""
    version, numbers, gauss, numpy = state
    random.setstate((version, tuple(numbers.tolist()), gauss))
    _numpy.set_state(numpy)
