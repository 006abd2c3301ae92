"""Python values as JSON and tensors, without pickle: what a model keeps outside of its parameters and buffers.

A value is JSON of itself where JSON has it, else ``{kind: content}``; tensors and arrays stand beside it by number.
"""

from __future__ import annotations

import random
from collections import Counter, OrderedDict, deque
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

#: what is nested more deeply goes round in a circle, or might as well
DEEPEST = 32
_SEQUENCES = {"list": list, "tuple": tuple, "set": set, "frozenset": frozenset, "size": torch.Size}
_MAPPINGS = {"dict": dict, "ordered": OrderedDict, "counter": Counter}
_KINDS: dict[type, str] = {kind: name for name, kind in (*_SEQUENCES.items(), *_MAPPINGS.items())}


class Unsaved(TypeError):
    """A value of a kind that only its own code could write and read."""


class Encoder:
    """Gives values a form; `tensors` are those beside them. `own`: id and name of tensors that are kept elsewhere."""

    def __init__(self, own: Mapping[int, str] | None = None) -> None:
        self.tensors: dict[str, Tensor] = {}
        self.own = own or {}

    def __call__(self, value: Any, depth: int = 0) -> Any:
        """Raises :class:`Unsaved`."""
        kind = type(value)
        if value is None or kind in (bool, int, float, str):
            return value
        if depth > DEEPEST:
            raise Unsaved("nested too deeply")
        if kind in _KINDS:
            name = _KINDS[kind]
            if name in _MAPPINGS:
                return {name: [[self(k, depth + 1), self(v, depth + 1)] for k, v in value.items()]}
            items = [self(v, depth + 1) for v in value]
            return {name: sorted(items, key=repr) if isinstance(value, set | frozenset) else items}
        if kind is deque:
            return {"deque": [[self(v, depth + 1) for v in value], value.maxlen]}
        if kind is bytes:
            return {"bytes": value.hex()}
        if kind is complex:
            return {"complex": [value.real, value.imag]}
        if kind in (Tensor, nn.Parameter, nn.Buffer):
            return self._tensor(value)
        if isinstance(value, np.generic) or kind is np.ndarray:
            if value.dtype.hasobject:
                raise Unsaved(f"an array of {value.dtype}")
            array = np.ascontiguousarray(value)
            flat = torch.from_numpy(np.frombuffer(array.tobytes(), np.uint8).copy())
            return {"array": [self._put(flat), value.dtype.str, list(value.shape), isinstance(value, np.generic)]}
        state = generator_state(value)
        if state is not None:
            return {"generator": self(state, depth + 1)}
        raise Unsaved(f"of type {kind.__module__}.{kind.__qualname__}")

    def _tensor(self, value: Tensor) -> Any:
        if id(value) in self.own:
            return {"own": self.own[id(value)]}
        if value.layout == torch.sparse_coo:
            t = value.detach().coalesce()
            return {"sparse": [self._tensor(t.indices()), self._tensor(t.values()), list(t.shape)]}
        if value.layout != torch.strided or value.is_quantized or value.is_nested or value.device.type == "meta":
            raise Unsaved(f"a tensor of {value.dtype} and {value.layout} on {value.device}")
        t = value.detach().resolve_conj().resolve_neg()
        grad = value.is_leaf and value.requires_grad
        if t.is_complex():
            return {"tensor": [self._put(torch.view_as_real(t)), grad, True]}
        return {"tensor": [self._put(t), grad, False]}

    def _put(self, t: Tensor) -> str:
        name = str(len(self.tensors))
        self.tensors[name] = t
        return name


class Decoder:
    """The way back; `own` gives tensors that are kept elsewhere, by name, and `device` is where the others go."""

    def __init__(
        self, tensors: Mapping[str, Tensor], own: Mapping[str, Tensor] | None = None, device: Any = "cpu"
    ) -> None:
        self.tensors, self.own, self.device = tensors, own or {}, device

    def __call__(self, form: Any, like: Any = None) -> Any:
        """`like` is what stands there now: a generator is set to the state, and no new one made; a tensor's device."""
        if not isinstance(form, dict):
            return form
        ((kind, content),) = form.items()
        if kind in _SEQUENCES:
            there = like if isinstance(like, list | tuple) and len(like) == len(content) else [None] * len(content)
            return _SEQUENCES[kind](self(v, old) for v, old in zip(content, there, strict=True))
        if kind in _MAPPINGS:
            old = like if isinstance(like, Mapping) else {}
            pairs = [(self(k), v) for k, v in content]
            return _MAPPINGS[kind]((k, self(v, old.get(k))) for k, v in pairs)
        if kind == "deque":
            return deque(map(self, content[0]), content[1])
        if kind == "bytes":
            return bytes.fromhex(content)
        if kind == "complex":
            return complex(*content)
        if kind == "own":
            return self.own[content]
        if kind == "sparse":
            indices, values = (self(v) for v in content[:2])
            return torch.sparse_coo_tensor(indices, values, content[2], check_invariants=True).coalesce()
        if kind == "tensor":
            name, grad, is_complex = content
            t = self.tensors[name].to(like.device if isinstance(like, Tensor) else self.device)
            return (torch.view_as_complex(t) if is_complex else t).clone().requires_grad_(grad)
        if kind == "array":
            name, dtype, shape, scalar = content
            array = np.frombuffer(self.tensors[name].numpy().tobytes(), np.dtype(dtype)).reshape(shape).copy()
            return array[()] if scalar else array
        if kind == "generator":
            if like is None:
                raise ValueError("a generator was saved where there is none now")
            set_generator_state(like, self(content))
            return like
        raise ValueError(f"unknown kind {kind!r}")


def generator_state(value: Any) -> Any:
    """The state of a random generator as plain values; None for anything else."""
    if isinstance(value, torch.Generator):
        return ["torch", value.get_state()]
    if isinstance(value, random.Random) and not isinstance(value, random.SystemRandom):
        version, numbers, gauss = value.getstate()
        return ["python", [version, np.array(numbers, np.uint64), gauss]]
    if isinstance(value, np.random.Generator):
        return ["numpy", value.bit_generator.state]
    if isinstance(value, np.random.RandomState):
        return ["numpy", value.get_state(legacy=False)]
    if isinstance(value, np.random.BitGenerator):
        return ["numpy", value.state]
    return None


def set_generator_state(value: Any, state: Any) -> None:
    """What :func:`generator_state` gave, for a generator of the same kind."""
    content = state[1]
    if isinstance(value, torch.Generator):
        value.set_state(content.cpu())
    elif isinstance(value, random.Random):
        version, numbers, gauss = content
        value.setstate((version, tuple(numbers.tolist()), gauss))
    elif isinstance(value, np.random.Generator):
        value.bit_generator.state = content
    elif isinstance(value, np.random.RandomState):
        value.set_state(content)
    else:
        value.state = content
