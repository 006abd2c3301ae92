"""A model as a function of (parameters, state, input), so that a pass can never move what it was not given.

Every pass of the meta step goes through :class:`Network`: the train forward moves a copy of the model's state, its
buffers above all (see fastmeta.functional.state), the meta forward and the tangent move others. The caller's state
moves when, and only when, the step commits that copy.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from fastmeta.functional.attention import PlainAttention
from fastmeta.functional.call import call_model, pick_logits
from fastmeta.functional.chain import Chain, Chains
from fastmeta.functional.fsdp_units import first_fsdp1, is_sharded
from fastmeta.functional.generators import Generators
from fastmeta.functional.given_input import GivenInput, versions
from fastmeta.functional.random_state import RandomState
from fastmeta.functional.state import State, StateOf, fits
from fastmeta.functional.watch import Structure

Tensors = dict[str, Tensor]


def functional_module(model: nn.Module, *, sharded: bool = False) -> nn.Module:
    """The module whose forward can run on other weights than its own; or, where `sharded` allows it, on its shards.

    What torch.compile returned gives the module inside: its compiled backward has no derivative. Raises TypeError for
    what is no module, and for wrappers that work behind the back of a function (replicas, gradient hooks, scripts).
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be a torch.nn.Module, got {type(model).__name__}")
    dynamo = sys.modules.get("torch._dynamo")  # torch.compile has imported it
    if dynamo is not None and isinstance(model, dynamo.OptimizedModule):
        return functional_module(model._orig_mod, sharded=sharded)
    kind = type(model).__name__
    if isinstance(model, torch.jit.ScriptModule):
        raise TypeError(f"model must run on weights from outside, which {kind} cannot; pass the module it is made of")
    if isinstance(model, nn.DataParallel):
        raise TypeError(f"model must run on weights from outside, which {kind} cannot; pass model.module")
    if isinstance(model, nn.parallel.DistributedDataParallel):
        raise TypeError(
            f"model must not be {kind}: a meta step takes gradients by name, which its hooks never see, so the ranks "
            "would drift apart; pass model.module, and process_group= to MetaStep"
        )
    if (part := first_fsdp1(model)) is not None:
        raise TypeError(
            f"model must not have FullyShardedDataParallel in it ({part or 'the model itself'}), which flattens its "
            "parameters; take torch.distributed.fsdp.fully_shard, with which fastmeta.MetaStep runs"
        )
    if not sharded and is_sharded(model):
        raise TypeError(
            f"model must run on weights from outside, which {kind} cannot, of which each rank holds a shard "
            "(fully_shard); fastmeta.MetaStep takes it as it is"
        )
    return model


class Network:
    """`model` as a function: ``network(params, state, x)`` gives float logits (n, C).

    Args:
        model: any nn.Module; see :func:`fastmeta.functional.call.call_model` for how it gets `x`.
        trained: the parameters that are trained; None means all that require a gradient. The others are state.
        logits_of: picks the logits from the model's output.

    Tied weights count once. Logits below float32 come back as float32 (inside the graph), so that the loss, the
    tangent and the labels are float32 under autocast.
    """

    #: whether the parameters are shards of FSDP
    sharded = False

    def __init__(
        self,
        model: nn.Module,
        trained: list[Tensor] | None = None,
        logits_of: Callable[[Any], Tensor] | None = None,
    ) -> None:
        self.model = model = functional_module(model, sharded=self.sharded)
        self.logits_of = logits_of or pick_logits
        wanted = None if trained is None else {id(p) for p in trained}
        self.params: Tensors = {
            name: p for name, p in model.named_parameters() if p.requires_grad and (wanted is None or id(p) in wanted)
        }
        if not self.params:
            raise ValueError(
                "the model has no parameter to train: none requires a gradient"
                + ("" if wanted is None else " and belongs to the optimizer; build it from model.parameters()")
            )
        self._wanted = wanted
        self._state = self._state_of(model)
        self._modules = list(model.modules())
        self._generators, self._structure, self._chains = Generators(), Structure(), Chains()
        self._input = GivenInput()

    def _state_of(self, model: nn.Module) -> StateOf:
        return StateOf(model, self.params)

    def stands(self) -> bool:
        """Whether the model still is made of the modules and parameters that it was made of at the first question."""
        return self._structure.stands(self._modules)

    @property
    def whole(self) -> bool:
        """Whether the parameters to train are still those, each the model's."""
        if self._state.stands():
            return True
        self._state.look()
        wanted = (p for p in self.model.parameters() if p.requires_grad)
        found = {id(p) for p in wanted if self._wanted is None or id(p) in self._wanted}
        return found == {id(p) for p in self.params.values()}

    def state(self) -> State:
        """A copy of what a forward may move beside parameters, for one pass to move."""
        return self._state.state()

    def own_state(self) -> Tensors:
        """The model's own tensors of which :meth:`state` has copies."""
        return self._state.own

    def takes_in_place(self, state: State) -> bool:
        """Whether `state` differs from the model's in the values of :meth:`own_state` alone."""
        return not state.contents and state.keys() <= self._state.own.keys() and not self._state.in_place(state)[2]

    def write_state(self, state: State) -> None:
        """Make `state` the model's own, in place where it fits."""
        targets, values, others = self._state.in_place(state)
        if targets:
            with torch.no_grad():
                copy_all_(targets, values)
        self._state.settle(state, others)

    def writable_state(self) -> list[Tensor]:
        """Those of :meth:`own_state` that anybody can write into."""
        return [t for t in self._state.own.values() if fits(t, t)]

    def registers(self, state: State) -> str:
        """A buffer or parameter that a pass has made, dropped or given another form, or ""."""
        return self._state.registers(state)

    def trying(self) -> AbstractContextManager[None]:
        """An error inside puts back what the model has in its dicts and containers."""
        return self._state.trying()

    def caches(self, state: State) -> list[str] | None:
        """Names of tensors that a pass has made for the model to keep; None where it has moved values alone."""
        return self._state.caches(state)

    def counters(self, state: State) -> list[tuple[int, Any, Any]]:
        """Plain values that a pass has moved: where in ``state.contents``, the key, and what it is now."""
        return self._state.counters(state)

    def note_moved(self, before: State, after: State) -> None:
        """That a pass has moved these plain attributes: what they are is not the model's Python, but its state."""
        self._state.note_moved(before, after)

    def moving(self) -> list[Tensor]:
        """The model's own tensors that a graph reads and writes as such, whatever they are."""
        return self._state.moving()

    def count(self, state: State) -> None:
        """Let the model's plain numbers be what they are in `state`."""
        self._state.count(state)

    def keep(self, state: State) -> None:
        """Give the model what a pass has made for it to keep beside buffers, parameters and plain values."""
        self._state.keep(state)

    @property
    def together(self) -> list[list[str]]:
        """Names in :meth:`own_state` that lie in the same memory, in groups."""
        return self._state.together

    def frozen(self) -> Tensors:
        """Parameters that are not trained, and other tensors, of which :meth:`state` has no copies."""
        return self._state.watched

    def chain(self) -> Chain | None:
        """The chain of linear layers that the model is by now, if it is one."""
        return self._chains(self._modules, self.params) if self.logits_of is pick_logits else None

    def owners(self) -> list[nn.Module]:
        """The modules that own a parameter that moves."""
        trained = {id(p) for p in self.params.values()}
        return [m for m in self._modules if any(id(p) in trained for p in m.parameters(recurse=False))]

    def modes(self) -> tuple[bool, ...]:
        """train() or eval() of every module."""
        return tuple(m.training for m in self._modules)

    @property
    def generators(self) -> list[Any]:
        """Random generators beside the global ones: on modules, in what they hold, in hooks, closures and globals."""
        return self._generators(self._modules, [self.logits_of])

    def random_state(self, device: torch.device) -> RandomState:
        """All generators that the model may draw from, as they stand now."""
        return RandomState(device, self.generators)

    def held(self, params: Tensors, state: State | None = None) -> AbstractContextManager[None]:
        """For the backward of a pass: inside, the model holds what that pass was given, `params` and `state`.

        Layers that run again in the backward (activation checkpointing, reversible blocks) read it there, on whatever
        thread autograd runs them. They move a copy of `state`, with which the pass must have begun; None is the
        model's own.
        """
        return self._state.held(params, self.state() if state is None else state.clone())

    def at(self, params: Tensors) -> Tensors:
        """The parameters that the model sees in a pass on `params`."""
        return params

    def __call__(self, params: Tensors, state: State, x: Any) -> Tensor:
        """float logits (n, C); `params` may leave out some, which then are the model's own.

        `state` is moved as the forward moves the model's; the model stands as before.
        """
        return self._logits(self._state.run(params, state, lambda: self._called(x)))

    def _called(self, x: Any) -> Any:
        given = self._input.of(x)
        before = versions(given)
        out = call_model(self.model, given)
        self._input.check(given, before)
        return self.logits_of(out)

    @staticmethod
    def _logits(logits: Any) -> Tensor:
        if not isinstance(logits, Tensor) or logits.ndim != 2:
            got = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
            raise ValueError(
                f"logits must have shape (batch, classes), got {got}; "
                "pass logits_of= to pick or reshape the model's output"
            )
        return logits.float() if logits.dtype in (torch.bfloat16, torch.float16) else logits


def copy_all_(targets: Sequence[Tensor], values: Sequence[Tensor]) -> None:
    """Copy each value into its target. On CUDA one launch takes many tensors, but only of one dtype and layout.

    A single BatchNorm's int64 counter among the parameters would make a launch of every tensor.
    """
    groups: dict[Any, tuple[list[Tensor], list[Tensor]]] = {}
    for target, value in zip(targets, values, strict=True):
        alike = target.dtype, value.dtype, target.stride() == value.stride()
        pair = groups.setdefault(alike, ([], []))
        pair[0].append(target)
        pair[1].append(value)
    for pair in groups.values():
        torch._foreach_copy_(*pair)


@contextmanager
def recorded() -> Iterator[None]:
    """Autograd records, also for a caller under no_grad; and autocast without its cache of cast weights.

    The cache is keyed on the leaf and outlives an in-place update and a freed graph, for passes that look at one model
    through several sets of weights; each pass here uses a weight once, so nothing is lost.
    """
    if torch.is_inference_mode_enabled():
        raise RuntimeError("under torch.inference_mode() nothing has a gradient; call this outside of it")
    if parametrize._cache_enabled:
        raise RuntimeError("parametrize.cached() would keep the weights of theta for theta*; call this outside of it")
    cached = torch.is_autocast_cache_enabled()
    torch.set_autocast_cache_enabled(False)
    try:
        with torch.enable_grad():
            yield
    finally:
        torch.set_autocast_cache_enabled(cached)


def math_attention(on: bool) -> AbstractContextManager[Any]:
    """Scaled-dot-product attention as plain maths, the only form with a double backward and a forward derivative."""
    return PlainAttention() if on else nullcontext()


def is_out_of_memory(error: BaseException) -> bool:
    """CUDA has a type for it, the CPU's allocator a sentence."""
    if isinstance(error, torch.OutOfMemoryError):
        return True
    return isinstance(error, RuntimeError) and "DefaultCPUAllocator" in str(error) and "memory" in str(error)
