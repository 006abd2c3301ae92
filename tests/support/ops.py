"""Inputs of every operation, and its float64 truth, so that each property is tested on all of them."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from fastmeta import ops, reference

SCALE, LABEL_LR = 0.1, 5.0


def acc(dtype: torch.dtype) -> torch.dtype:
    return torch.float64 if dtype == torch.float64 else torch.float32


@dataclass
class Batch:
    """n rows of everything that an operation may ask for."""

    n: int
    num_classes: int
    dtype: torch.dtype = torch.float32
    device: str = "cpu"
    size: int = 50  # rows of the table
    magnitude: float = 1.0
    weighted: bool = True
    distinct: bool = False
    table_dtype: torch.dtype | None = None
    seed: int = 0
    logits: Tensor = field(init=False)
    u: Tensor = field(init=False)
    probs: Tensor = field(init=False)
    table: Tensor = field(init=False)
    alpha: Tensor = field(init=False)
    index: Tensor = field(init=False)
    targets: Tensor = field(init=False)
    weight: Tensor | None = field(init=False)
    grad: Tensor = field(init=False)

    def __post_init__(self) -> None:
        rng = torch.Generator().manual_seed(self.seed)
        n, c = self.n, self.num_classes
        wide = acc(self.dtype)

        def put(x: Tensor, dtype: torch.dtype) -> Tensor:
            return x.to(dtype).to(self.device)

        def randn(*shape: int) -> Tensor:
            return torch.randn(*shape, generator=rng, dtype=torch.float64)

        def rand(*shape: int) -> Tensor:
            return torch.rand(*shape, generator=rng, dtype=torch.float64)

        self.logits = put(self.magnitude * randn(n, c), self.dtype)
        self.u = put(randn(n, c), self.dtype)
        self.probs = put(randn(n, c).softmax(-1), wide)
        self.table = put(self.magnitude * randn(self.size, c), self.table_dtype or wide)
        self.alpha = put(0.1 + 0.8 * rand(c), wide)
        index = (
            torch.randperm(self.size, generator=rng)[:n]
            if self.distinct
            else torch.randint(self.size, (n,), generator=rng)
        )
        self.index = index.to(self.device)
        self.targets = torch.randint(c, (n,), generator=rng).to(self.device)
        self.weight = put(0.5 + rand(n), wide) if self.weighted else None
        self.grad = put(randn(n), wide)


def double(x: Any) -> Any:
    """A float64 copy on the CPU."""
    return (
        x.detach().cpu().to(torch.float64, copy=True)
        if isinstance(x, Tensor) and x.is_floating_point()
        else (x.cpu() if isinstance(x, Tensor) else x)
    )


@dataclass(frozen=True)
class Op:
    """An operation: its arguments in a batch, what it returns in tensors, and its truth in float64."""

    name: str
    arguments: Callable[[Batch], tuple[Any, ...]]
    outputs: tuple[str, ...]

    def fused(self, b: Batch) -> dict[str, Tensor]:
        return self._run(ops, self.arguments(b))

    def truth(self, b: Batch) -> dict[str, Tensor]:
        return self._run(reference, tuple(double(x) for x in self.arguments(b)))

    def plain(self, b: Batch) -> dict[str, Tensor]:
        """The twin in the batch's own dtypes, as one would write it in torch, which does not mix them in a step."""
        wide = acc(b.dtype)
        args = tuple(
            x.to(wide)
            if "_step" in self.name and isinstance(x, Tensor) and x.is_floating_point() and x is not b.logits
            else x
            for x in self.arguments(b)
        )
        return {
            name: x.to(b.table.dtype) if name in WRITTEN and x.ndim == 2 else x
            for name, x in self._run(reference, args).items()
        }

    def _run(self, module: Any, args: tuple[Any, ...]) -> dict[str, Tensor]:
        keywords = {"reduction": "none"} if self.name == "soft_cross_entropy" else {}
        written = args[0].clone() if self.name.endswith("_") else None
        if written is not None:
            args = (written, *args[1:])
        result = getattr(module, self.name)(*args, **keywords)
        parts = result if isinstance(result, tuple) else (result,)
        out = dict(zip(self.outputs, parts, strict=False))
        if written is not None:
            out["written"] = written
        return out


#: the labels after a step, in place or as a result
WRITTEN = ("written", "new_rows", "new_alpha")
LOSS = ("loss", "v", "entropy")
STEP = (*LOSS, "alignment")

OPS = [
    Op("soft_cross_entropy", lambda b: (b.logits, b.probs), ("loss",)),
    Op("soft_cross_entropy_hvp", lambda b: (b.logits, b.u, b.probs), ("out",)),
    Op("soft_cross_entropy_label_grad", lambda b: (b.logits, b.u), ("out",)),
    Op("instance_loss", lambda b: (b.logits, b.table, b.index, b.weight), LOSS),
    Op("instance_label_step_", lambda b: (b.table, b.index, b.logits, b.u, SCALE, LABEL_LR, b.weight), STEP),
    Op(
        "instance_label_step",
        lambda b: (b.table[b.index], b.index, b.logits, b.u, SCALE, LABEL_LR, b.weight),
        ("new_rows", *STEP),
    ),
    Op("class_loss", lambda b: (b.logits, b.alpha, b.targets, b.weight), LOSS),
    Op("class_label_step_", lambda b: (b.alpha, b.targets, b.logits, b.u, SCALE, LABEL_LR, b.weight), STEP),
    Op(
        "class_label_step",
        lambda b: (b.alpha, b.targets, b.logits, b.u, SCALE, LABEL_LR, b.weight),
        ("new_alpha", *STEP),
    ),
    Op("row_dot", lambda b: (b.logits, b.u), ("out",)),
]
BY_NAME = {op.name: op for op in OPS}


def raw_arguments(name: str, b: Batch) -> tuple[Any, ...]:
    """Arguments of torch.ops.fastmeta.NAME; what it writes is a copy."""
    scale, label_lr = (torch.tensor(x, dtype=torch.float64) for x in (0.1, 5.0))
    rows, weight = b.table[b.index], b.weight
    return {
        "soft_cross_entropy": (b.logits, b.probs),
        "soft_cross_entropy_backward": (
            b.logits,
            b.probs,
            b.logits.to(b.grad.dtype).logsumexp(-1),
            b.grad,
            True,
            False,
        ),
        "soft_cross_entropy_hvp": (b.logits, b.u, b.probs),
        "soft_cross_entropy_label_grad": (b.logits, b.u),
        "instance_loss": (b.logits, b.table, b.index, weight),
        "instance_label_step_": (b.table.clone(), b.index, b.logits, b.u, scale, label_lr, weight, False),
        "instance_label_step": (rows, b.index, b.logits, b.u, scale, label_lr, weight, False),
        "class_loss": (b.logits, b.alpha, b.targets, weight),
        "class_label_step_": (b.alpha.clone(), b.targets, b.logits, b.u, scale, label_lr, weight),
        "class_label_step": (b.alpha, b.targets, b.logits, b.u, scale, label_lr, weight),
        "row_dot": (b.logits, b.u),
        "load_images": (
            torch.arange(10 * 4 * 5 * 3, device=b.index.device).view(10, 4, 5, 3).byte(),
            b.index % 10,
            *(torch.tensor(x, device=b.index.device) for x in ([100.0, 110.0, 120.0], [0.01, 0.02, 0.03])),
            *(2, True, True, 7, torch.tensor(3), b.logits.dtype),
        ),
        "lookahead_update": ([b.logits, b.u], [b.u, b.logits], [b.logits, b.logits], scale, 1.9, 0.81, 0.01),
    }[name]


def assert_same(got: Tensor, expected: Tensor) -> None:
    """The same results by another way: another layout, dtype of the table, or kernel.

    On the CPU bit for bit. On CUDA the kernel and where a row starts decide which thread sums which columns, so a few
    roundings of the sums, or one of a result of 16 bits.
    """
    if not got.is_cuda:
        assert torch.equal(got, expected)
        return
    few = 32 * torch.finfo(acc(got.dtype)).eps
    torch.testing.assert_close(got, expected, rtol=max(few, torch.finfo(got.dtype).eps), atol=few)


def ulp(x: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """The distance of numbers of `dtype` at |x|."""
    return torch.finfo(dtype).eps * torch.exp2(x.abs().clamp_min(torch.finfo(dtype).tiny).log2().floor())


def budget(op: Op, b: Batch, name: str, truth: torch.Tensor) -> tuple[torch.Tensor, torch.dtype]:
    """One ulp of a result, in its own dtype, at the largest term or partial sum of its row."""
    wide = acc(b.dtype)
    logits, u = double(b.logits), double(b.u)
    pull = u.abs().amax(-1)
    if op.name == "soft_cross_entropy_hvp":
        return ulp(pull.unsqueeze(1).expand_as(truth), b.dtype), b.dtype
    if op.name == "soft_cross_entropy_label_grad":
        return ulp(2 * pull.unsqueeze(1).expand_as(truth), b.dtype), b.dtype
    if op.name == "row_dot":
        # what the partial sums of a random walk reach; a sum in another order than torch's walks as far from its own
        # (of seeds drawn anew on a card one has reached 1.16 of a thirty-second of that at 1,000 columns)
        return max(1, b.num_classes**0.5 / 16) * ulp(2 * (logits * u).norm(dim=-1), wide), wide
    if name == "loss":
        # a moved alpha carries the rounding of its step, and the loss rises with it by up to 2 max |z|
        return ulp(logits.abs().amax(-1).maximum(truth.abs()) * max(1.0, moved(op, b)), wide), wide
    if name == "entropy":
        labels = double(b.table) if op.name.startswith("instance") else double(b.alpha)
        # of moved labels, which carry the rounding of their step; the slope in alpha is up to 1 + log C
        size = labels.abs().amax().clamp_min((1 + math.log(b.num_classes)) * max(1.0, moved(op, b)))
        return ulp(size.expand_as(truth), wide), wide
    if name == "alignment":
        return ulp(2 * pull, wide), wide  # the difference of two means of u
    if name == "v":
        return ulp(1.5 * max(1.0, moved(op, b)) * torch.ones_like(truth), b.dtype), b.dtype  # weights go up to 1.5
    assert name in WRITTEN
    label = b.alpha if op.name.startswith("class") else b.table[b.index] if name == "new_rows" else b.table
    # the partial sums of a class's terms, which reach as far as its step, are rounded in an order of their own
    return ulp(double(label).abs().clamp_min(moved(op, b)), label.dtype), label.dtype


def one_term(b: Batch) -> float:
    """The largest that one gradient term moves a label by."""
    return max(double(b.u).abs().max().item(), 1.0) * SCALE * LABEL_LR * 1.5


def moved(op: Op, b: Batch) -> float:
    """What a step moves a label by: one term of a row, a random walk of the terms of a class."""
    if "step" not in op.name:
        return 0.0
    return one_term(b) * (max(1.0, b.n / b.num_classes) ** 0.5 if op.name.startswith("class") else 1.0)


def check(op: Op, b: Batch) -> None:
    """Over the whole tensor, at most torch's own error in the same dtype and one ulp."""
    truth, fused, plain = op.truth(b), op.fused(b), op.plain(b)
    assert fused.keys() == truth.keys() == plain.keys()
    for name, expected in truth.items():
        got = fused[name]
        assert got.shape == expected.shape, name
        assert got.device.type == torch.device(b.device).type
        if not b.n:
            continue
        one, dtype = budget(op, b, name, expected)
        assert got.dtype == dtype, name
        own = (double(plain[name]) - expected).abs()
        error = (double(got) - expected).abs()
        excess = ((error - own.amax()) / one).amax()
        # in float64 the truth is torch's own result: two sums of C rounded terms then differ by sqrt(C) ulp or so
        allowed = 1 if b.dtype != torch.float64 else 4 + b.num_classes**0.5
        assert excess <= allowed, f"{op.name} {name}: {excess:.3g} ulp above torch's own error ({own.amax():.3g})"
