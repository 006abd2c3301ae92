"""Dual numbers of forward-mode AD, one thread at a time."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

from torch.autograd import forward_ad

#: torch has one level for the whole process: a second one beside it raises, and its end drops the tangents of the first
_TURN = threading.RLock()


@contextmanager
def dual_level() -> Iterator[None]:
    """``forward_ad.dual_level`` that waits for those of other threads. One that is opened elsewhere it cannot see."""
    with _TURN, forward_ad.dual_level():
        yield
