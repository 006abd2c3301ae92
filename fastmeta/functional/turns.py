"""What torch has once for a whole process, which threads use in turns.

Steps may run in several threads at once, each with its own model, labels and optimizer. They switch nothing that other
threads would see. Where they need what torch has once, one lock is held:

* the level of dual numbers: a second one beside it raises, and its end drops the tangents of the first;
* the random generators: a step draws the same numbers again for its tangent, so nobody may draw in between. Which
  numbers a thread gets depends on who comes first; a torch.Generator that is an attribute of a module is its own;
* torch's tracer, which puts its own calls in the place of nn.Module's while it runs.

What other code does at that moment, nobody can hold up: its dual levels and traces would raise or be raised upon. Its
draws would make a step's two forwards differ; the step finds that out, is taken again and, if need be, raises.
Steps of ranks wait for each other and so cannot take turns: of these, one process has one.
"""

from __future__ import annotations

import functools
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch.autograd import forward_ad

TURN = threading.RLock()


@contextmanager
def dual_level() -> Iterator[None]:
    """``forward_ad.dual_level``, in turns."""
    with TURN, forward_ad.dual_level():
        _load_formulas()
        yield


@functools.cache
def _load_formulas() -> None:
    """What torch loads at a process's first dual number, by functions that it calls deprecated itself."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        forward_ad.make_dual(torch.zeros(()), torch.zeros(()))
