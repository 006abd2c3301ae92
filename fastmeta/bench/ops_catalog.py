"""Every operation over rows as the benchmarks call it: its arguments, the bytes it cannot avoid, what others offer."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from fastmeta.bench.peers import liger_cross_entropy

DTYPES = {
    "float64": torch.float64,
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
}


@dataclass
class Inputs:
    """Arguments of every operation under the names of their parameters."""

    logits: Tensor  # (n, C)
    u: Tensor  # (n, C) float32 beside low-precision logits, as the meta step has it
    v: Tensor  # (n, C)
    probs: Tensor  # (n, C)
    label_logits: Tensor  # (n, C)
    index: Tensor  # (n,) a permutation
    alpha: Tensor  # (C,)
    targets: Tensor  # (n,)
    scale: float
    label_lr: float

    @classmethod
    def random(cls, n: int, C: int, dtype: torch.dtype, device: torch.device, seed: int) -> Inputs:
        generator = torch.Generator(device).manual_seed(seed)
        acc = torch.float64 if dtype == torch.float64 else torch.float32

        def normal(scale: float, dtype: torch.dtype) -> Tensor:
            return (scale * torch.randn(n, C, device=device, generator=generator)).to(dtype)

        targets = torch.randint(C, (n,), device=device, generator=generator)
        alpha = (0.2 * torch.rand(C, device=device, generator=generator)).to(acc)
        index = torch.randperm(n, device=device, generator=generator)
        probs = normal(1, acc).softmax(-1).to(dtype)
        logits, u, v, label_logits = normal(3, dtype), normal(1, acc), normal(1, dtype), normal(3, acc)
        # steps this small leave the labels as they are over thousands of timed calls
        return cls(logits, u, v, probs, label_logits, index, alpha, targets, scale=1e-3 / n, label_lr=1e-3)

    def double(self) -> Inputs:
        """A float64 copy."""
        return self._each(lambda t: t.double() if t.is_floating_point() else t.clone())

    def clone(self) -> Inputs:
        return self._each(Tensor.clone)

    def _each(self, f: Callable[[Tensor], Tensor]) -> Inputs:
        tensors = {k: f(x) for k, x in vars(self).items() if isinstance(x, Tensor)}
        return replace(self, **tensors)  # type: ignore[arg-type]  # a name is either a tensor or a number

    def nbytes(self, names: Sequence[str]) -> int:
        return sum(t.nbytes for name in names if isinstance(t := getattr(self, name), Tensor))


def _with_backward(loss: Callable[..., Tensor]) -> Callable[..., tuple[Tensor, Tensor]]:
    def both(logits: Tensor, *rest: Tensor) -> tuple[Tensor, Tensor]:
        logits = logits.detach().requires_grad_()
        value = loss(logits, *rest)
        return value.detach(), torch.autograd.grad(value, logits)[0]

    return both


def _identity(f: Callable[..., Any]) -> Callable[..., Any]:
    return f


@dataclass(frozen=True)
class Operation:
    """How to call one operation and its twin, which take the same arguments."""

    arguments: tuple[str, ...]
    moved: tuple[int, int]  # n C elements read and written: in the dtype of logits and v, in that of labels and u
    options: dict[str, Any] = field(default_factory=dict)  # of both
    fused_options: dict[str, Any] = field(default_factory=dict)
    wrap: Callable[[Callable[..., Any]], Callable[..., Any]] = _identity
    mutates: str | None = None
    #: what others offer for it: name -> (function or the reason why not, its arguments, whether it is the same maths)
    peers: dict[str, tuple[Callable[[], Callable[..., Any] | str], tuple[str, ...], bool]] = field(default_factory=dict)


def _torch_cross_entropy() -> Callable[..., Any]:
    return _with_backward(partial(F.cross_entropy, reduction="mean"))


_HARD_LABELS: dict[str, Any] = {
    "torch cross_entropy": (_torch_cross_entropy, ("logits", "targets"), False),
    "liger": (liger_cross_entropy, ("logits", "targets"), False),
}

OPERATIONS = {
    "instance_loss": Operation(("logits", "label_logits", "index"), (2, 1), peers=_HARD_LABELS),
    "instance_label_step_": Operation(
        ("label_logits", "index", "logits", "u", "scale", "label_lr"),
        (2, 3),
        fused_options={"unique": True},
        mutates="label_logits",
    ),
    "class_loss": Operation(("logits", "alpha", "targets"), (2, 0), peers=_HARD_LABELS),
    "class_label_step_": Operation(("alpha", "targets", "logits", "u", "scale", "label_lr"), (2, 1), mutates="alpha"),
    "soft_cross_entropy": Operation(
        ("logits", "probs"),
        (5, 0),  # forward and the gradient for the logits
        options={"reduction": "mean"},
        wrap=_with_backward,
        peers={"torch cross_entropy": (_torch_cross_entropy, ("logits", "probs"), True)},
    ),
    "soft_cross_entropy_hvp": Operation(("logits", "v"), (3, 0)),
    "soft_cross_entropy_label_grad": Operation(("logits", "v"), (3, 0)),
    "row_dot": Operation(("logits", "v"), (2, 0)),
}
