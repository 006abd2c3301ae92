"""The plain SGD step, the unit of every ratio: as everybody writes it, without its overhead, and as one graph."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn
from torch.func import functional_call
from torch.utils._pytree import tree_flatten, tree_map, tree_unflatten

from fastmeta.bench.step_problem import Problem
from fastmeta.bench.step_variant import Variant, on_fake_tensors
from fastmeta.meta.engines import through_inductor, trace


def eager(problem: Problem) -> Variant:
    model = problem.model()
    optimizer = torch.optim.SGD(model.parameters(), lr=problem.lr)
    targets = problem.targets[problem.index]

    def step() -> None:
        with problem.precision():
            loss = F.cross_entropy(problem.logits(model, problem.x), targets)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    return Variant(step, model)


def capturable(problem: Problem) -> Variant:
    """The eager step in a form that a CUDA graph can hold: gradients as values, one update of all parameters."""
    model = problem.model()
    params = [p for p in model.parameters() if p.requires_grad]
    targets = problem.targets[problem.index]

    def step() -> None:
        with problem.precision():
            loss = F.cross_entropy(problem.logits(model, problem.x), targets)
        grads = torch.autograd.grad(loss, params, allow_unused=True)
        reached = [(p, g) for p, g in zip(params, grads, strict=True) if g is not None]
        with torch.no_grad():
            torch._foreach_add_([p for p, _ in reached], [g for _, g in reached], alpha=-problem.lr)

    return Variant(step, model)


def compiled(problem: Problem) -> Variant:
    """Forward, backward and update in one graph through inductor, which writes the parameters in place.

    The analogue of ``MetaStep(compile="full")``: what ``torch.compile`` of the forward leaves apart, the update and the
    seam between forward and backward, is fused too.
    """
    model = problem.model()
    params = {k: p for k, p in model.named_parameters() if p.requires_grad}
    buffers = dict(model.named_buffers())
    state = [*(p.detach() for p in params.values()), *buffers.values()]
    lr = torch.tensor(problem.lr, dtype=problem.dtype, device=problem.device)
    inputs, spec = tree_flatten((state, problem.x, problem.targets[problem.index], lr))

    def pure(*flat: Tensor) -> list[Tensor]:
        values, x, targets, lr = tree_unflatten(list(flat), spec)
        theta = {k: t.detach().requires_grad_() for k, t in zip(params, values, strict=False)}
        after = {k: t.clone() for k, t in zip(buffers, values[len(params) :], strict=True)}
        x = tree_map(channels_last, x)
        with torch.enable_grad(), problem.precision():
            loss = F.cross_entropy(problem.logits(partial(_functional, model, (theta, after)), x), targets)
        grads = torch.autograd.grad(loss, list(theta.values()), allow_unused=True)
        new = [t.detach() if g is None else t.detach() - lr * g for t, g in zip(theta.values(), grads, strict=True)]
        return [*new, *after.values(), loss.detach()]

    graph = trace(pure, inputs)
    write_back(graph, len(state))
    run = through_inductor(graph, inputs)

    def step() -> None:
        with torch.no_grad():
            run(*inputs)

    return Variant(step, model, visible=lambda: on_fake_tensors(graph))


def _functional(model: nn.Module, state: Any, *args: Any, **kwargs: Any) -> Any:
    return functional_call(model, state, args, kwargs)


def channels_last(t: Tensor) -> Tensor:
    """Images as inductor lays out convolutions, so that it need not mix layouts.

    It moves forward convolutions to channels_last but leaves their backward as it was traced; on a CPU the mixture cost
    a quarter of ResNet-20's step.
    """
    return t.contiguous(memory_format=torch.channels_last) if t.ndim == 4 and t.is_floating_point() else t


def write_back(module: fx.GraphModule, count: int) -> None:
    """Let the first `count` outputs be written into the inputs that they replace, and return the others alone."""
    graph = module.graph
    output = next(n for n in graph.nodes if n.op == "output")
    placeholders = [n for n in graph.nodes if n.op == "placeholder"]
    results = list(output.args[0])
    with graph.inserting_before(output):
        for old, new in zip(placeholders[:count], results[:count], strict=True):
            if new is not old:
                graph.call_function(torch.ops.aten.copy_.default, (old, new))
    output.args = (tuple(results[count:]),)
    module.recompile()
