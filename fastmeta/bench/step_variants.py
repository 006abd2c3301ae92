"""One whole iteration of Algorithm 1 in all the ways that a user could write it; plain SGD steps are the unit."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.attention import SDPBackend, sdpa_kernel

from fastmeta import reference
from fastmeta.bench import peers, step_plain
from fastmeta.bench.step_problem import Problem
from fastmeta.bench.step_variant import Builder, Variant, captured, on_fake_tensors
from fastmeta.meta import MetaStep
from fastmeta.meta.engines import CompileMode

PLAIN, REFERENCE = "sgd", "reference"


def fastmeta_variant(
    problem: Problem,
    tangent: Any = "auto",
    compile: CompileMode = "off",
    approx: str | None = None,
    one_graph: bool = False,
) -> Variant:
    model, labels = problem.model(), problem.labels()
    optimizer = torch.optim.SGD(model.parameters(), lr=problem.lr)
    # batches of the trainer's samplers hold no row twice, and neither does this one
    meta_step = MetaStep(
        model,
        labels,
        optimizer,
        label_lr=problem.label_lr,
        tangent=tangent,
        unique_index=True,
        compile=compile,
        approx=approx,
        micro_batch=max(len(problem.index), len(problem.y_meta)) if one_graph else None,
    )

    def step() -> None:
        with problem.precision():
            meta_step((problem.x, problem.index), (problem.x_meta, problem.y_meta))
        if meta_step.eager_because:
            raise RuntimeError(f"has no graph: {meta_step.eager_because}")

    period = meta_step.approx.number if meta_step.approx.kind == "every" else 1

    def graphs() -> None:
        of_shape = meta_step.graphs  # "every:k" has a second, for the steps between
        for i in range(period):
            on_fake_tensors(of_shape[min(i, len(of_shape) - 1)])

    return Variant(
        step,
        model,
        labels.label_logits,
        exact=tangent != "difference" and approx is None,
        period=period,
        note=lambda: "" if meta_step.plan is None else meta_step.plan.kind,
        finite=lambda: int(meta_step.nonfinite_steps) == 0,
        visible=None if compile == "off" else graphs,
    )


def _reference(problem: Problem) -> Variant:
    model, table = problem.model(), problem.labels().label_logits
    sgd = reference.SGDState(lr=problem.lr)

    def step() -> None:
        with problem.precision():
            rows, _ = reference.meta_step(
                model,
                table[problem.index],
                reference.instance_probs,
                problem.x,
                problem.x_meta,
                problem.y_meta,
                label_lr=problem.label_lr,
                optimizer=sgd,
            )
        table[problem.index] = rows

    return Variant(step, model, table)


def _soft_loss(logits: Tensor, label: Tensor) -> Tensor:
    return -(label.softmax(-1) * logits.log_softmax(-1)).sum(-1).mean()


def _finish(
    problem: Problem, model: nn.Module, optimizer: torch.optim.Optimizer, label: Tensor, grad: Tensor
) -> Tensor:
    """Eqs. (5) and (6) as everybody writes them: the new label rows, and a fresh forward with them."""
    rows = label.detach() - problem.label_lr * grad
    _soft_loss(problem.logits(model, problem.x), rows).backward()
    optimizer.step()
    optimizer.zero_grad()
    return rows


def _twice_differentiable() -> AbstractContextManager[Any]:
    """Fused attention has no double backward; whoever uses it and differentiates twice enters this."""
    return sdpa_kernel(SDPBackend.MATH)


def _naive(problem: Problem) -> Variant:
    """A script of twenty lines: create_graph through the look-ahead, functional_call at theta*."""
    model, table = problem.model(), problem.labels().label_logits
    optimizer = torch.optim.SGD(model.parameters(), lr=problem.lr)

    def step() -> None:
        label = table[problem.index].requires_grad_()
        params: dict[str, Tensor] = dict(model.named_parameters())
        buffers = {k: b.clone() for k, b in model.named_buffers()}

        def at(weights: dict[str, Tensor], x: Any) -> Tensor:
            return problem.logits(lambda *a, **k: functional_call(model, (weights, buffers), a, k), x)

        with problem.precision(), _twice_differentiable():
            loss = _soft_loss(at(params, problem.x), label)
            grads = torch.autograd.grad(loss, list(params.values()), create_graph=True, allow_unused=True)
            star = {k: p if g is None else p - problem.lr * g for (k, p), g in zip(params.items(), grads, strict=True)}
            meta_loss = F.cross_entropy(at(star, problem.x_meta), problem.y_meta)
            (grad,) = torch.autograd.grad(meta_loss, label)
            del loss, grads, star, meta_loss
            table[problem.index] = _finish(problem, model, optimizer, label, grad)

    return Variant(step, model, table)


def _higher(problem: Problem) -> Variant | str:
    higher: Any = peers.load("higher")
    if isinstance(higher, str):
        return higher
    model, table = problem.model(), problem.labels().label_logits
    optimizer = torch.optim.SGD(model.parameters(), lr=problem.lr)

    def step() -> None:
        label = table[problem.index].requires_grad_()
        with problem.precision(), _twice_differentiable():
            with higher.innerloop_ctx(model, optimizer) as (functional, differentiable):
                differentiable.step(_soft_loss(problem.logits(functional, problem.x), label))
                meta_loss = F.cross_entropy(problem.logits(functional, problem.x_meta), problem.y_meta)
                (grad,) = torch.autograd.grad(meta_loss, label)
            table[problem.index] = _finish(problem, model, optimizer, label, grad)

    return Variant(step, model, table)


def _torchopt(problem: Problem) -> Variant | str:
    torchopt: Any = peers.load("torchopt")
    if isinstance(torchopt, str):
        return torchopt
    model, table = problem.model(), problem.labels().label_logits
    optimizer = torch.optim.SGD(model.parameters(), lr=problem.lr)
    differentiable = torchopt.MetaSGD(model, lr=problem.lr)

    def step() -> None:
        label = table[problem.index].requires_grad_()
        before = torchopt.extract_state_dict(model, by="reference")
        before_optimizer = torchopt.extract_state_dict(differentiable, by="reference")
        with problem.precision(), _twice_differentiable():
            differentiable.step(_soft_loss(problem.logits(model, problem.x), label))
            meta_loss = F.cross_entropy(problem.logits(model, problem.x_meta), problem.y_meta)
            (grad,) = torch.autograd.grad(meta_loss, label)
            torchopt.recover_state_dict(model, before)
            torchopt.recover_state_dict(differentiable, before_optimizer)
            table[problem.index] = _finish(problem, model, optimizer, label, grad)

    return Variant(step, model, table)


#: name -> builder; a builder returns the variant or one line that says why it is skipped
VARIANTS: dict[str, Builder] = {
    PLAIN: step_plain.eager,
    "sgd:compiled": step_plain.compiled,
    "sgd:captured": partial(captured, step_plain.capturable),
    "sgd:compiled-captured": partial(captured, step_plain.compiled),
    "fastmeta": fastmeta_variant,
    "fastmeta:reverse": partial(fastmeta_variant, tangent="reverse"),
    "fastmeta:forward": partial(fastmeta_variant, tangent="forward"),
    "fastmeta:one-graph": partial(fastmeta_variant, one_graph=True),
    "fastmeta:trace": partial(fastmeta_variant, compile="trace"),
    "fastmeta:full": partial(fastmeta_variant, compile="full"),
    "fastmeta:difference": partial(fastmeta_variant, tangent="difference"),
    "fastmeta:delayed": partial(fastmeta_variant, approx="delayed"),
    "fastmeta:delayed-full": partial(fastmeta_variant, approx="delayed", compile="full"),
    "fastmeta:last:1": partial(fastmeta_variant, approx="last:1"),
    "fastmeta:last:1-full": partial(fastmeta_variant, approx="last:1", compile="full"),
    "fastmeta:every:4": partial(fastmeta_variant, approx="every:4"),
    "fastmeta:every:4-full": partial(fastmeta_variant, approx="every:4", compile="full"),
    REFERENCE: _reference,
    "reference:captured": partial(captured, _reference),
    "autograd": _naive,
    "higher": _higher,
    "torchopt": _torchopt,
}


def is_compiled(name: str) -> bool:
    """Whether inductor takes seconds to minutes for it."""
    return "compiled" in name or name.endswith("full")


def is_captured(name: str) -> bool:
    return name.endswith("captured")


def is_plain(name: str) -> bool:
    """Whether it is a plain SGD step, of which the fastest is the unit."""
    return name.startswith(PLAIN)


_MAIN = (
    PLAIN,
    "sgd:compiled",
    "fastmeta",
    "fastmeta:trace",
    "fastmeta:full",
    REFERENCE,
    "higher",
    "torchopt",
)
_MAIN_CUDA = (
    *(name for name in VARIANTS if is_captured(name)),
    "fastmeta:delayed-full",
    "fastmeta:last:1-full",
    "fastmeta:every:4-full",
)
#: names that stand for several variants
PRESETS = {
    "default": "all that need no compiler",
    "main": "the plain step, ours and others, compiled too",
    "all": "every one",
}


def chosen(names: Sequence[str], device: str) -> list[str]:
    """Variants by name or preset, each once. ValueError for an unknown one."""
    out: list[str] = []
    for name in names:
        if name == "default":
            out += [k for k in VARIANTS if not is_compiled(k) and (device == "cuda" or not is_captured(k))]
        elif name == "main":
            out += _MAIN + (_MAIN_CUDA if device == "cuda" else ())
        elif name == "all":
            out += VARIANTS
        elif name in VARIANTS:
            out.append(name)
        else:
            raise ValueError(f"unknown variant {name!r}: expected some of {', '.join((*PRESETS, *VARIANTS))}")
    return list(dict.fromkeys(out))
