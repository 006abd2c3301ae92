"""The global random generators of torch, Python and NumPy: a run draws its own, and the caller's stand as before."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fastmeta.functional.random_state import RandomState
from fastmeta.training.encoding import Decoder, Encoder

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


def save(device: torch.device) -> tuple[dict[str, Tensor], Any]:
    """Where all of them stand, those of `device` too: tensors and JSON, for :func:`load`."""
    version, numbers, gauss = random.getstate()
    host = Encoder()
    values = host([version, np.array(numbers, np.uint64), gauss, _numpy.get_state(legacy=False)])
    tensors = {f"host/{k}": v for k, v in host.tensors.items()} | {"rng/cpu": torch.get_rng_state()}
    if device.type == "cuda":
        tensors["rng/cuda"] = torch.cuda.get_rng_state(device)
    return tensors, values


def load(tensors: dict[str, Tensor], values: Any, device: torch.device) -> None:
    """Set them as :func:`save` found them; `tensors` may hold others too."""
    of_host = {k.removeprefix("host/"): v for k, v in tensors.items() if k.startswith("host/")}
    version, numbers, gauss, numpy = Decoder(of_host)(values)
    random.setstate((version, tuple(numbers.tolist()), gauss))
    _numpy.set_state(numpy)
    torch.set_rng_state(tensors["rng/cpu"])
    if device.type == "cuda" and "rng/cuda" in tensors:
        torch.cuda.set_rng_state(tensors["rng/cuda"], device)
