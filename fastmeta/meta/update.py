"""Eq. (6) by any optimizer: its step and the new running statistics, or neither."""

from __future__ import annotations

import torch
from torch import Tensor

from fastmeta.functional.network import Network, Tensors, copy_all_
from fastmeta.functional.optimizers import drop_grads, take_step
from fastmeta.functional.state import State


def update(
    network: Network, optimizer: torch.optim.Optimizer, grads: Tensors, state: State, keep: Tensor | None = None
) -> None:
    """Step along `grads` and make `state` the model's own; the parameters' ``.grad`` is None then.

    With `keep`, a 0-d bool on the parameters' device, the step is taken and put back where that is False, without
    waiting for the device. What the optimizer keeps elsewhere (Adam counts its steps on the host) is not put back.
    It is waited for where the model has moved what is no tensor, or given itself tensors of another kind.
    """
    if keep is not None and not network.takes_in_place(state):
        if not bool(keep):
            drop_grads(optimizer)
            return
        keep = None
    params = list(network.params.values())
    written = [] if keep is None else [*params, *_state(optimizer, params), *network.writable_state()]
    before = [torch.empty_like(t) for t in written]
    if written:
        with torch.no_grad():
            copy_all_(before, written)
    for name, g in grads.items():
        network.params[name].grad = g
    take_step(optimizer)
    drop_grads(optimizer)
    network.write_state(state)
    if keep is None:
        return
    with torch.no_grad():
        for t, value in zip(written, before, strict=True):
            torch.where(keep, t, value, out=t)
        known = {id(t) for t in written}
        for t in _state(optimizer, params):
            if id(t) not in known:  # made in this step: a momentum buffer starts from zero
                t.masked_fill_(~keep, 0)


def _state(optimizer: torch.optim.Optimizer, params: list[Tensor]) -> list[Tensor]:
    """The optimizer's tensors beside the parameters."""
    return [
        t for p in params for t in optimizer.state.get(p, {}).values() if isinstance(t, Tensor) and t.device == p.device
    ]
