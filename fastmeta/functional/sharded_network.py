"""A model under ``fully_shard`` in the passes of a step: on its shards, on other values in them, with tangents."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.utils._pytree import tree_map

from fastmeta.functional.fsdp_units import Units, is_sharded, local, reshard
from fastmeta.functional.network import Network, Tensors
from fastmeta.functional.recompute import tangents_pass
from fastmeta.functional.state import State, StateOf
from fastmeta.functional.turns import dual_level


class ShardedNetwork(Network):
    """A network whose passes run through FSDP's own machinery.

    FSDP gathers what lies in the shards, so no pass can be given parameters: :meth:`at_shards` writes others into the
    shards for a while. Gradients are averages over the ranks, of which each has its shards.
    """

    sharded = True

    def _state_of(self, model: nn.Module) -> StateOf:
        self.units = Units(model)
        return StateOf(model, self.params | self.units.parameters)

    def __call__(self, params: Tensors, state: State, x: Any) -> Tensor:
        """float logits (n, C) of the model's own shards; `params` are not looked at."""
        with ExitStack() as after:

            def call() -> Any:
                out = self._called(x)
                after.enter_context(self.units.shards_in_place())
                return out

            return self._logits(self._state.run({}, state, call))

    @contextmanager
    def held(self, params: Tensors, state: State | None = None) -> Iterator[None]:
        """As of every network, for a backward; what is gathered stays so."""
        before = ExitStack()
        before.enter_context(self.units.shards_in_place())
        with super().held({}, state):
            before.close()
            try:
                yield
            except BaseException:
                self.units.drop_gathered_grads()
                raise
            self.units.reshard()

    def gradient(self, output: Tensor, v: Tensor | None, names: list[str], state: State) -> Tensors:
        """The gradients of `output` along `v`, averaged over the ranks, as DTensors; of what it reaches."""
        with self.held({}, state):
            output.backward(v)
            left = [place.name for place in self.units.places if place.gathered and place.parameter.grad is None]
        if any(name in self.params for name in left):
            raise RuntimeError(
                f"FSDP has not finished the backward: {left[0]} has no gradient and is still gathered. An error has "
                "stopped an earlier backward, after which FSDP needs reset_iter_state (torch 2.14, and then a step "
                "calls it), or to be made anew from a checkpoint; or set_reshard_after_backward(False) is in force"
            )
        grads = {name: p.grad for name, p in self.params.items() if p.grad is not None}
        self.drop_grads()
        if not grads:
            raise RuntimeError(
                "the backward has left no gradient in the shards: set_requires_gradient_sync(False) is in force, or "
                "the logits hang on no parameter that is trained"
            )
        return {name: grads[name] for name in names if name in grads}

    def tangent(self, state: State, x: Any, direction: Tensors) -> tuple[Tensor, Tensor, list[torch.dtype]]:
        """Logits, u = J d for a direction of shards, and the dtypes that were computed in; `state` is scratch."""
        with ExitStack() as stack:
            for context in (torch.no_grad(), dual_level(), tangents_pass()):
                stack.enter_context(context)
            stack.enter_context(torch.compiler.set_stance("force_eager"))  # what is compiled has no tangents
            dtypes = stack.enter_context(self.units.duals(direction))
            logits, u = forward_ad.unpack_dual(self({}, state, x))
        self.units.reshard()
        return logits, torch.zeros_like(logits) if u is None else u, dtypes

    @contextmanager
    def at_shards(self, values: Tensors) -> Iterator[None]:
        """Inside, the shards hold `values`, which are taken out of their dict; then each has its own again."""
        shards, own = {name: local(self.params[name]) for name in values}, Tensors()
        self.units.reshard()
        try:
            for name, shard in shards.items():
                own[name] = shard.clone()
                shard.copy_(values.pop(name))
            yield
        finally:
            self.units.reshard()
            for name, value in own.items():
                shards[name].copy_(value)

    @contextmanager
    def running(self) -> Iterator[None]:
        """Around a step: an error leaves FSDP ready for another, and gradients of what is not trained stay."""
        trained = {id(p) for p in self.params.values()}
        others = [(p, p.grad) for p in self.model.parameters() if p.requires_grad and id(p) not in trained]
        for p, _ in others:
            p.grad = None
        try:
            yield
        except BaseException:
            self.units.recover()
            raise
        finally:
            self.units.reshard()
            self.drop_grads()
            for p, grad in others:
                p.grad = grad

    def drop_grads(self) -> None:
        for p in self.model.parameters():
            p.grad = None


def network_of(
    model: nn.Module, trained: list[Tensor] | None = None, logits_of: Callable[[Any], Tensor] | None = None
) -> Network:
    """`model` as a function, whether it is sharded or not."""
    if not is_sharded(model):
        return Network(model, trained, logits_of)
    reshard(model)
    return ShardedNetwork(model, trained, logits_of)


def detached(x: Any) -> Any:
    """Network input whose own gradient nobody asks for."""
    return tree_map(lambda t: t.detach() if isinstance(t, Tensor) and t.requires_grad else t, x)
