"""What a model keeps of its forwards, before a graph is made of them: of its Python a graph keeps nothing.

A cache of what depends on a batch's shape, or a record of what was computed, is there after one forward, and another
leaves it so: the model is given it, for the graph must not fill it with tensors that are none. What moves on with every
forward, and changes what is computed or is no number, would stand still in a graph.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from fastmeta.functional.network import Network
from fastmeta.functional.random_state import RandomState
from fastmeta.functional.state import State, alike
from fastmeta.meta.engines.graph import Untraceable

#: further forwards in which a counter goes its own way, then values that schedules may wait for
_FORWARDS, _LATER = 8, (10, 33, 100, 1_000, 10_000, 100_000, 1_000_000)


def fill_caches(
    network: Network, x: Any, random: RandomState, first_forward: Callable[[State], Tensor]
) -> tuple[bool, str]:
    """Run forwards on `x`, the first by `first_forward` of a state, and give the model what it keeps of them.

    Returns whether it keeps anything but new values, and the name of a buffer or parameter that has another form after
    a forward, else "". Raises Untraceable for what would stand still.
    """

    def forward(state: State) -> Tensor:
        with random.replay():
            return network(network.params, state, x).detach()

    start, first = network.state(), network.state()
    logits = first_forward(first)
    kept = network.caches(first)
    network.note_moved(start, first)
    if kept is None:
        return False, ""
    if name := network.registers(first):
        return True, name

    def refuse_other(contents: State, why: str) -> State:
        """The forward from the tensors of the first one, but these contents, must give the same."""
        state = contents.like(start | {name: contents[name] for name in kept}).clone()
        try:
            same = alike(forward(state), logits) and all(alike(first[name], state[name]) for name in first)
        except torch.OutOfMemoryError:
            raise
        except Exception:  # of the model, which has no such step
            same = False
        if moved := first.differs(state):
            raise Untraceable(f"the model moves {moved} in its forward, which is no buffer and would stand still")
        if not same:
            raise Untraceable(f"{why} moves in every forward, and decides what the model does")
        return state

    counters = network.counters(first)
    names = " and ".join(str(key) for _, key, _ in counters) or " and ".join(kept) or "what it keeps"
    state = first
    for _ in range(_FORWARDS if counters else 1):
        state = refuse_other(state, names)
    for value in _LATER if any(type(v) is int for _, _, v in counters) else ():
        for which, key, now in counters:
            holder, contents = state.contents[which]
            state.contents[which] = holder, contents | ({key: value} if type(now) is int else {})
        refuse_other(state, names)
    network.keep(first)
    return True, ""
