"""The naive step, create_graph through the look-ahead, as one graph through inductor.

``torch.compile`` of the model does not serve: AOTAutograd makes a forward and a backward of what it compiles, and that
backward has no derivative ("torch.compile with aot_autograd does not currently support double backward"). So make_fx
traces the whole step, derivatives and updates included, to one graph of plain operations that needs no autograd any
more, and inductor compiles that graph. The trace is the engine's own, with its merging and pruning: the naive formula
gets all that a compiler can do for it.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_map, tree_unflatten

from fastmeta.bench.peers.autograd import label_gradient
from fastmeta.bench.peers.by_hand import gradient, logits_at, look_ahead, soft_loss, twice_differentiable
from fastmeta.bench.step_plain import channels_last, write_back
from fastmeta.bench.step_problem import Problem
from fastmeta.bench.step_variant import Variant, on_fake_tensors
from fastmeta.meta.engines import through_inductor, trace


def build(problem: Problem) -> Variant:
    """RuntimeError where the step has no graph, with the reason."""
    model, table = problem.model(), problem.labels().label_logits
    params = {k: p for k, p in model.named_parameters() if p.requires_grad}
    fixed = {k: p for k, p in model.named_parameters() if not p.requires_grad}
    buffers = dict(model.named_buffers())
    rows = table[problem.index].clone()
    state = [*(p.detach() for p in params.values()), *buffers.values(), rows]
    inputs, spec = tree_flatten((state, list(fixed.values()), problem.x, problem.x_meta))

    def pure(*flat: Tensor) -> list[Tensor]:
        values, constant, x, x_meta = tree_unflatten(list(flat), spec)
        theta = {k: t.detach().requires_grad_() for k, t in zip(params, values, strict=False)}
        weights = theta | dict(zip(fixed, constant, strict=True))
        start = dict(zip(buffers, values[len(params) : -1], strict=True))
        label = values[-1].detach().requires_grad_()
        x, x_meta = (tree_map(channels_last, t) for t in (x, x_meta))
        with torch.enable_grad(), problem.precision(), twice_differentiable():
            ahead = {k: t.clone() for k, t in start.items()}
            grad = label_gradient(problem, model, weights, ahead, label, x, x_meta)
            new_rows = label.detach() - problem.label_lr * grad
            after = {k: t.clone() for k, t in start.items()}
            loss = soft_loss(logits_at(problem, model, weights, after, x), new_rows)
            new = look_ahead(theta, gradient(loss, theta), problem.lr)
        return [*(t.detach() for t in new.values()), *after.values(), new_rows, loss.detach()]

    graph = trace(pure, inputs, known=lambda t: t is problem.y_meta)
    write_back(graph, len(state))
    run = through_inductor(graph, inputs)

    def step() -> None:
        with torch.no_grad():
            rows.copy_(table[problem.index])
            run(*inputs)
            table[problem.index] = rows

    return Variant(step, model, table, visible=lambda: on_fake_tensors(graph))
