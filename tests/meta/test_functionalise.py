"""Writes taken out of a traced graph: what it computes stays, and its inputs are left alone."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, fx
from torch.fx.experimental.proxy_tensor import make_fx

from fastmeta.meta.engines.functionalise import functionalise

Function = Callable[..., Any]


def traced(function: Function, *inputs: Tensor) -> fx.GraphModule:
    return make_fx(function, tracing_mode="fake")(*inputs)


def check(function: Function, *inputs: Tensor) -> bool:
    """Whether all writes were understood; the graph computes the same either way, and on a copy of the inputs."""
    graph = traced(function, *inputs)
    understood = functionalise(graph.graph)
    graph.graph.lint()
    graph.recompile()
    if understood:
        assert not [n for n in graph.graph.nodes if getattr(getattr(n.target, "_schema", None), "is_mutable", False)]
    given, own = [t.clone() for t in inputs], [t.clone() for t in inputs]
    made, expected = graph(*given), function(*own)
    for a, b in zip(*((t if isinstance(t, tuple) else (t,)) for t in (made, expected)), strict=True):
        assert (a.dtype, a.stride()) == (b.dtype, b.stride())
        assert torch.equal(a, b)
    assert all(map(torch.equal, given, own))
    return understood


def write_into_result(x: Tensor) -> Tensor:
    return (x * 2).relu_().add_(x).div_(3)


def write_then_view(x: Tensor) -> Tensor:
    y = (x + 1).mul_(x)
    return y.view(-1)[1:] + y.t().reshape(-1)[1:]


def last_look_at_a_view(x: Tensor) -> Tensor:
    y = x * 2
    z = y.view(-1) + 1
    return y.neg_() + z.view_as(y)


def dead_view(x: Tensor) -> Tensor:
    y = x * 2
    y.view(-1)
    return y.neg_()


def through_a_view(x: Tensor) -> Tensor:
    y = x * 2
    y[0].neg_()
    return y


def view_made_before(x: Tensor) -> Tensor:
    y = x * 2
    z = y[1]
    y.neg_()
    return z


def both_returned(x: Tensor) -> tuple[Tensor, Tensor]:
    y = x * 2
    z = y.view(-1)
    z.exp_()
    return y, z


def into_the_input(x: Tensor) -> Tensor:
    return x.add_(1)


def into_a_view_of_the_input(x: Tensor) -> Tensor:
    return x.view(-1).add_(1)


def into_a_constant(x: Tensor) -> Tensor:
    return torch.tensor([1.0, 2.0, 3.0]).add_(x[0])


def several_at_once(x: Tensor) -> Tensor:
    y, z = x * 2, x * 3
    torch._foreach_add_([y, z], 1.0)
    return y + z


def narrower(x: Tensor) -> Tensor:
    return (x > 0).float().half().copy_(x).add_(x)  # float16 stays, where a sum would be float32


def other_strides(x: Tensor) -> Tensor:
    return x.new_empty_strided((3, 3), (4, 1)).copy_(x).add_(x)  # a sum would have no gaps


def turned(x: Tensor) -> Tensor:
    return (x + 1).t_()


def filled(x: Tensor) -> Tensor:
    y = torch.empty_like(x).fill_(2.0).masked_fill_(x > 0, 1.0)
    return y.index_put_((torch.tensor([0]),), x[1:2]).clamp_(max=1.5).zero_() + y


def part_of_a_result(x: Tensor) -> Tensor:
    values, places = x.sort()
    values.neg_()
    return values + places


def part_of_what_was_split(x: Tensor) -> Tensor:
    a, b = (x * 2).split([1, x.shape[0] - 1])
    a.neg_()
    return b.sum() + a


def batch_norm(x: Tensor, mean: Tensor, var: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    mean, var = mean.clone(), var.clone()
    first = torch.ops.aten._native_batch_norm_legit.default(x, None, None, mean, var, True, 0.1, 1e-5)[0]
    again = torch.ops.aten._native_batch_norm_legit.default(first.exp(), None, None, mean, var, True, 0.1, 1e-5)[0]
    return again, mean, var


def batch_norm_of_one_memory(x: Tensor) -> tuple[Tensor, Tensor]:
    both = x[:2].clone()
    mean, var = both[0], both[1]
    return torch.ops.aten._native_batch_norm_legit.default(x, None, None, mean, var, True, 0.1, 1e-5)[0], both


@pytest.mark.parametrize(
    ("function", "understood"),
    [
        (write_into_result, True),
        (write_then_view, True),
        (last_look_at_a_view, True),
        (dead_view, True),
        (narrower, False),
        (other_strides, False),
        (turned, False),
        (through_a_view, False),
        (view_made_before, False),
        (both_returned, False),
        (into_the_input, False),
        (into_a_view_of_the_input, False),
        (into_a_constant, True),
        (several_at_once, False),
        (filled, True),
        (part_of_a_result, True),
        (part_of_what_was_split, False),
        (batch_norm_of_one_memory, False),
    ],
)
def test_same_results(function: Function, understood: bool) -> None:
    torch.manual_seed(0)
    assert check(function, torch.randn(3, 3)) == understood


def batch_norm_of_one_vector(x: Tensor, mean: Tensor) -> Tensor:
    mean = mean.clone()
    return torch.ops.aten._native_batch_norm_legit.default(x, None, None, mean, mean, True, 0.1, 1e-5)[0]


def test_running_statistics() -> None:
    torch.manual_seed(0)
    assert check(batch_norm, torch.randn(8, 3), torch.randn(3), torch.rand(3))
    assert not check(batch_norm_of_one_vector, torch.randn(8, 3), torch.zeros(3))


def program(seed: int) -> Function:
    """Some thirty operations on what was made before: new tensors, views, writes."""
    draw = random.Random(seed)
    makes = [lambda t, o: t + o, lambda t, o: t * 0.5, lambda t, o: t.clone(), lambda t, o: (t - o).tanh()]
    views = [lambda t, o: t.t(), lambda t, o: t.view(t.shape), lambda t, o: t[:, :], lambda t, o: t[:2].t()[:2].t()]
    writes = [lambda t, o: t.mul_(0.5), lambda t, o: t.tanh_(), lambda t, o: t.copy_(o), lambda t, o: t.sub_(o)]
    steps: list[tuple[Function, int, int]] = []
    for k in range(30):
        kind = draw.choices([makes, views, writes], [6, 1 + seed % 3, 3])[0]
        steps.append((draw.choice(kind), draw.randrange(k + 1), draw.randrange(k + 1)))
    kept = draw.sample(range(1, 31), 4)

    def run(x: Tensor) -> tuple[Tensor, ...]:
        made = [x + 0]
        for step, a, b in steps:
            t, o = made[a], made[b]
            o = o if o.shape == t.shape else o[:1, :1].expand(t.shape)
            together = (
                o.untyped_storage()._cdata == t.untyped_storage()._cdata
            )  # torch refuses to write over what is read
            made.append(step(t, o.clone() if together else o))
        return tuple(made[k] for k in kept)

    return run


def test_programs() -> None:
    torch.manual_seed(0)
    x = torch.randn(3, 3, dtype=torch.float64)
    understood = [check(program(seed), x) for seed in range(100)]
    assert 10 < sum(understood) < 90  # both are tried
