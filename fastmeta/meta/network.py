"""A model as a function of (parameters, buffers, input), so that a pass can never move what it was not given.

Every pass of the meta step goes through :class:`Network`: the train forward writes its running statistics into a copy
of the buffers, the meta forward and the tangent write theirs into scratch. The caller's buffers move when, and only
when, the step commits that copy.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from fastmeta.attention import PlainAttention
from fastmeta.meta.draws import RandomState
from fastmeta.meta.watch import Generators, Structure

Tensors = dict[str, Tensor]


def pick_logits(output: Any) -> Tensor:
    """The default ``logits_of``: the output itself if it is a tensor, else its ``.logits``."""
    if isinstance(output, Tensor):
        return output
    logits = getattr(output, "logits", None)
    if isinstance(logits, Tensor):
        return logits
    raise TypeError(
        f"the model must return logits as a tensor or in an attribute `.logits`, got {type(output).__name__}; "
        "pass logits_of=lambda output: ... to pick them"
    )


def functional_module(model: nn.Module) -> nn.Module:
    """The module whose forward can run on other weights than its own.

    What torch.compile returned gives the module inside: its compiled backward has no derivative. Raises TypeError for
    what is no module, and for wrappers that work behind the back of a function (replicas, gradient hooks, scripts).
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be a torch.nn.Module, got {type(model).__name__}")
    dynamo = sys.modules.get("torch._dynamo")  # torch.compile has imported it
    if dynamo is not None and isinstance(model, dynamo.OptimizedModule):
        return functional_module(model._orig_mod)
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
    return model


class Network:
    """`model` as a function: ``network(params, buffers, x)`` gives float logits (n, C).

    Args:
        model: any nn.Module; it is called as ``model(x)`` with `x` just as the user gave it.
        trained: the parameters that move; None means all that require a gradient. Others are constants.
        logits_of: picks the logits from the model's output.

    Tied weights count once. Logits below float32 come back as float32 (inside the graph), so that the loss, the
    tangent and the labels are float32 under autocast.
    """

    def __init__(
        self,
        model: nn.Module,
        trained: list[Tensor] | None = None,
        logits_of: Callable[[Any], Tensor] | None = None,
    ) -> None:
        self.model = model = functional_module(model)
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
        # Where everything hangs is looked up once: walking the modules at every pass costs more than a small layer.
        # Parameters and buffers that stand under several names get all of them, so that a tie stays one.
        first = {id(p): name for name, p in model.named_parameters()}
        self._frozen = [name for name in first.values() if name not in self.params]
        seen: dict[int, str] = {}
        self._slots: dict[str, tuple[dict[str, Tensor | None], str]] = {}
        #: where tensors hang: a module's dict, the key in it, and the name that is passed to a forward
        self._places: list[tuple[dict[str, Any], str, str]] = []
        self._modules = list(model.modules())
        self._generators, self._structure = Generators(), Structure()
        for path, module in model.named_modules():
            for key, p in module._parameters.items():
                if p is not None:
                    self._places.append((module._parameters, key, first[id(p)]))
            for key, b in module._buffers.items():
                if b is not None:
                    canonical = seen.setdefault(id(b), f"{path}.{key}" if path else key)
                    self._places.append((module._buffers, key, canonical))
                    self._slots.setdefault(canonical, (module._buffers, key))

    def stands(self) -> bool:
        """Whether the model still is made of the modules and parameters that it was made of at the first question."""
        return self._structure.stands(self._modules)

    @property
    def buffer_names(self) -> list[str]:
        return list(self._slots)

    def _buffer(self, name: str) -> Tensor:
        holder, key = self._slots[name]
        b = holder[key]  # looked up anew: a move to another device replaces buffers
        assert b is not None
        return b

    def buffers(self) -> Tensors:
        """A copy of the model's buffers, for one pass to write into."""
        return {name: self._buffer(name).detach().clone() for name in self._slots}

    def own_buffers(self) -> Iterator[Tensor]:
        """The model's buffers themselves."""
        return map(self._buffer, self._slots)

    def write_buffers(self, buffers: Mapping[str, Tensor]) -> None:
        """Make `buffers` the model's own (in place)."""
        with torch.no_grad():
            copy_all_([self._buffer(name) for name in buffers], list(buffers.values()))

    def frozen(self) -> Tensors:
        """The parameters that do not move."""
        return {name: self.model.get_parameter(name) for name in self._frozen}

    def owners(self) -> list[nn.Module]:
        """The modules that own a parameter that moves."""
        trained = {id(p) for p in self.params.values()}
        return [m for m in self._modules if any(id(p) in trained for p in m.parameters(recurse=False))]

    def modes(self) -> tuple[bool, ...]:
        """train() or eval() of every module."""
        return tuple(m.training for m in self._modules)

    @contextmanager
    def settings_kept(self) -> Iterator[None]:
        """Put back the modules' plain attributes: a model that counts its forwards has not run."""
        before = [(m, {k: v for k, v in vars(m).items() if type(v) in (bool, int, float, str)}) for m in self._modules]
        try:
            yield
        finally:
            for m, then in before:
                vars(m).update(then)

    @contextmanager
    def attributes_kept(self) -> Iterator[None]:
        """Put back what the modules' attributes were: under tracing, a model that keeps results would keep fakes."""
        modules = [m for m in self._modules if not isinstance(m, torch.jit.ScriptModule)]
        before = [(kept, dict(kept)) for m in modules for kept in (vars(m), m._buffers)]
        try:
            yield
        finally:
            for now, then in before:
                now.clear()
                now.update(then)

    @property
    def generators(self) -> list[Any]:
        """Random generators beside the global ones: on modules, in what they hold, in hooks, closures and globals."""
        return self._generators(self._modules, [self.logits_of])

    def random_state(self, device: torch.device) -> RandomState:
        """All generators that the model may draw from, as they stand now."""
        return RandomState(device, self.generators)

    def held(self, params: Tensors, buffers: Tensors | None = None) -> AbstractContextManager[None]:
        """For the backward of a pass: inside, the model holds what that pass was given, `params` and `buffers`.

        Layers that run again in the backward (activation checkpointing, reversible blocks) read it there, on whatever
        thread autograd runs them. They write into copies of `buffers`, which the pass must have begun with; None are
        the model's own.
        """
        scratch = self.buffers() if buffers is None else {name: b.clone() for name, b in buffers.items()}
        return self._holding({**params, **scratch})

    @contextmanager
    def _holding(self, tensors: Tensors) -> Iterator[None]:
        """Inside, the model's tensors of these names are `tensors`."""
        own = [(holder, key, holder[key]) for holder, key, name in self._places if name in tensors]
        try:
            for holder, key, name in self._places:
                if name in tensors:
                    holder[key] = tensors[name]
            yield
        finally:
            for holder, key, tensor in own:
                holder[key] = tensor

    def __call__(self, params: Tensors, buffers: Tensors, x: Any) -> Tensor:
        """float logits (n, C); `params` may leave out frozen ones, which then are the model's own.

        `buffers` are written into; one that the model replaces (``self.mean = ...``) is replaced there.
        """
        with self._holding({**params, **buffers}):
            logits = self.logits_of(self.model(x))
            after = [(name, holder.get(key)) for holder, key, name in self._places if name in buffers]
        given = dict(buffers)
        for name, b in after:
            if b is not given[name] and isinstance(b, Tensor):
                buffers[name] = b.detach()
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
