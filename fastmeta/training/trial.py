"""What a run will need of a model, tried on copies before anything is written: batches, gradients, end, resume."""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from fastmeta.data import InputError
from fastmeta.functional.call import call_model, pick_logits
from fastmeta.functional.evaluation import evaluation
from fastmeta.training import global_generators
from fastmeta.training.model_copy import copy_of
from fastmeta.training.module_state import ModuleState, Watch, load_state, one_line
from fastmeta.training.rundir.checkpoint import pack

#: the trial's seed: what it draws is nobody's
_SEED = 1


def with_weights(model: nn.Module, x: Any, noun: str = "samples") -> nn.Module:
    """`model` itself, or for lazy layers a copy whose parameters have been made by a forward of `x`."""
    if not any(nn.parameter.is_lazy(t) for t in (*model.parameters(), *model.buffers())):
        return model
    model = copy_of(model).to(_device_of(x))
    try:
        with torch.no_grad(), evaluation(model):
            call_model(model, x)
    except Exception as error:  # a module of the user's may raise anything
        raise InputError(
            f"model {type(model).__name__} has lazy layers, whose weights a forward makes, and it fails on "
            f"{described(x, noun)}: {one_line(error)}"
        ) from error
    for name, t in (*model.named_parameters(), *model.named_buffers()):
        if nn.parameter.is_lazy(t):
            raise InputError(
                f"model {type(model).__name__} has a lazy layer that its forward never reaches: {name} has no shape; "
                "take it out"
            )
    return model


class Trial:
    """A model on a few samples `x`, as it takes them, on the device to train on; `noun` is what people call these."""

    def __init__(
        self,
        model: nn.Module,
        name: str,
        x: Any,
        num_classes: int,
        autocast: Callable[[], AbstractContextManager[Any]],
        device: torch.device,
        noun: str,
    ) -> None:
        self.initial, self.name, self.x, self.num_classes, self.autocast = model, name, x, num_classes, autocast
        self.device, self.noun = device, noun
        self.count = len(tree_leaves(x)[0])

    def __call__(self) -> tuple[str, ...]:
        """What the user should know before it starts. InputError, in one line, for what would fail later."""
        with global_generators.kept():
            model, watch = self._copy()
            self._train(model)
            _move(model)
            logits = self._evaluate(model)
            # the end: a fresh copy with the state of this one is the same function
            saved = self._saved(watch, constants=False)
            last, _ = self._copy()
            self._load(last, saved)
            again = self._evaluate(model)
            if _same(logits, again) and not _same(logits, self._evaluate(last)):
                lost = f" ({', '.join(watch.unsaved[:3])} cannot be saved)" if watch.unsaved else ""
                raise InputError(
                    f"model {self.name} would be lost with the run: a fresh one that is loaded with its state_dict "
                    f"gives other logits{lost}; keep what forward uses in parameters and buffers"
                )
            return (*self._softmax(logits), *self._resume(model, watch))

    def _softmax(self, logits: Tensor) -> tuple[str, ...]:
        rows = logits.float()
        if not bool((rows >= 0).all()) or not torch.allclose(rows.sum(1), torch.ones(len(rows), device=rows.device)):
            return ()
        return (
            f"model {self.name} gives rows that are not negative and sum to 1, as a softmax does; the loss has a "
            "softmax of its own: return the logits before it",
        )

    def _resume(self, model: nn.Module, watch: Watch) -> tuple[str, ...]:
        """Warns unless two copies with one state, here and in a process to come, take the same step."""
        saved, unsaved = self._saved(watch, constants=True), watch.unsaved
        other, _ = self._copy()
        self._load(other, saved)
        outputs = []
        for m in (model, other):
            global_generators.seed_all(_SEED)
            outputs.append(self._train(m))
        reason = ", ".join(unsaved[:3]) + (f" and {len(unsaved) - 3} more" if len(unsaved) > 3 else "")
        if unsaved:
            reason = f"forward moves what cannot be saved: {reason}"
        elif not _same(*outputs):
            reason = "two copies in one state give different logits: forward uses what is outside of the module"
        else:
            return ()
        return (
            f"model {self.name}: a resumed run will not be bitwise that of an unbroken one; {reason}; keep it in "
            "buffers, numbers, texts, lists, dicts or random generators that are attributes of the module",
        )

    def _copy(self) -> tuple[nn.Module, Watch]:
        model = copy_of(self.initial).to(self.device)
        return model, Watch(model)

    def _saved(self, watch: Watch, constants: bool) -> ModuleState:
        """Through the bytes that a file would hold."""
        from safetensors.torch import load

        try:
            saved = watch.state(constants)
            values = json.loads(json.dumps(saved.values))
            state, beside = (load(pack(t, {})) for t in (saved.state, saved.beside))
        except Exception as error:  # state_dict and its hooks are the user's; safetensors has its own idea of names
            reason = str(error) if type(error) is ValueError else one_line(error)
            raise InputError(f"model {self.name} cannot be saved: {reason}") from error
        return ModuleState(state, beside, values)

    def _load(self, model: nn.Module, saved: ModuleState) -> None:
        try:
            load_state(model, saved)
        except ValueError as error:
            raise InputError(
                f"model {self.name} cannot be loaded again: its state_dict does not fit a fresh copy ({error})"
            ) from error

    def _train(self, model: nn.Module) -> Tensor:
        """A forward and a backward in the modes that the model has."""
        logits = self._logits(model, "training")
        params = [p for p in model.parameters() if p.requires_grad]
        grads: tuple[Tensor | None, ...] = ()
        if logits.requires_grad:
            try:
                grads = torch.autograd.grad(logits.float().sum(), params, allow_unused=True)
            except Exception as error:  # of the user's functions
                raise InputError(f"model {self.name} fails in its backward: {one_line(error)}") from error
        if all(g is None for g in grads):
            raise InputError(
                f"model {self.name} trains nothing: no gradient of its logits reaches a parameter that requires one "
                "(it detaches them, or runs under no_grad)"
            )
        return logits.detach()

    def _evaluate(self, model: nn.Module) -> Tensor:
        global_generators.seed_all(_SEED)
        with torch.no_grad(), evaluation(model):
            return self._logits(model, "evaluation")

    def _logits(self, model: nn.Module, mode: str) -> Tensor:
        x, name = self.x, self.name
        try:
            with self.autocast():
                output = call_model(model, x)
        except Exception as error:
            raise InputError(
                f"model {name} fails on {described(x, self.noun)} in {mode} mode: {one_line(error)}"
                f"{_other_dtype(model, x)}"
            ) from error
        try:
            logits = pick_logits(output)
        except TypeError as error:
            raise InputError(
                f"model {name} must return logits as a tensor, as .logits or as ['logits'], got "
                f"{type(output).__name__} in {mode} mode; wrap it in a module that returns the logits"
            ) from error
        if logits.shape != (self.count, self.num_classes):
            raise InputError(
                f"model {name} must return logits (batch, {self.num_classes}), "
                f"got {tuple(logits.shape)} for a batch of {self.count}; there are {self.num_classes} classes, and its "
                "last layer wants an output for each"
            )
        if not logits.is_floating_point() or logits.device != self.device:
            raise InputError(
                f"model {name} must return floating-point logits on {self.device}, got {logits.dtype} on "
                f"{logits.device}"
            )
        return logits


def _move(model: nn.Module) -> None:
    """As a step would, every parameter that is trained: what is lost of them shows."""
    with torch.no_grad():
        for p in model.parameters():
            if p.requires_grad:
                p.mul_(1 + 2**-5).add_(2**-6)


def described(x: Any, noun: str) -> str:
    """A batch for messages: 2 images of shape (height, width, channels), as the user's arrays have it."""
    if not isinstance(x, Tensor):
        return f"a batch of {len(tree_leaves(x)[0])} {noun} of type {type(x).__name__}"
    shape = tuple(x.shape[1:])
    return f"{len(x)} {noun} of shape {(*shape[1:], shape[0]) if noun == 'images' else shape}"


def _other_dtype(model: nn.Module, x: Any) -> str:
    """Of a model that failed: that its numbers are of another kind than those it was given."""
    given = next((t.dtype for t in tree_leaves(x) if isinstance(t, Tensor) and t.is_floating_point()), None)
    own = next((p.dtype for p in model.parameters() if p.is_floating_point()), None)
    if None in (given, own) or given == own:
        return ""
    return f"; the samples are {given}, its parameters {own}: bring both to float32"


def _device_of(x: Any) -> torch.device:
    return next((t.device for t in tree_leaves(x) if isinstance(t, Tensor)), torch.device("cpu"))


def _same(a: Tensor, b: Tensor) -> bool:
    return torch.equal(a.nan_to_num(), b.nan_to_num())
