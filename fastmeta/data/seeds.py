"""Random streams by name: every draw of a run is a function of (seed, stream, counter) and of nothing else.

A resumed run therefore draws what the unbroken one would have drawn, without any generator state to save.
"""

from __future__ import annotations

import hashlib

import numpy as np
import torch


def derived_seed(seed: int, stream: str, counter: int = 0) -> int:
    """A 63-bit seed for draw number `counter` of a named stream."""
    digest = hashlib.blake2b(f"{seed}/{stream}/{counter}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1


def numpy_generator(seed: int, stream: str, counter: int = 0) -> np.random.Generator:
    return np.random.Generator(np.random.PCG64(derived_seed(seed, stream, counter)))


def torch_generator(device: torch.device, seed: int, stream: str, counter: int = 0) -> torch.Generator:
    return torch.Generator(device).manual_seed(derived_seed(seed, stream, counter))
