"""What torch has once for a whole process, and a training needs for itself."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from fastmeta.data import InputError
from fastmeta.distributed import ALONE, Ranks
from fastmeta.training import global_generators
from fastmeta.training.config import TrainConfig
from fastmeta.training.device import arithmetic
from fastmeta.training.presets import preset_threads

_ONE = threading.Lock()


@contextmanager
def whole_process(config: TrainConfig, ranks: Ranks = ALONE) -> Iterator[None]:
    """Inside, threads, random generators, cuDNN and float32 products are the config's; they come back after.

    InputError where another training of this process is inside, in any thread: each would draw the other's numbers.
    """
    if not _ONE.acquire(blocking=False):
        raise InputError(
            "another training runs in this process, whose random state and number of threads it has for itself; "
            "begin this one after it, or in a process of its own"
        )
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(preset_threads(config) or before)
        with global_generators.kept(), arithmetic(config, ranks):
            yield
    finally:
        torch.set_num_threads(before)
        _ONE.release()
