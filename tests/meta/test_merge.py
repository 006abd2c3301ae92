"""One call for all that compute the same of the same, in a traced graph."""

import pytest
import torch

from fastmeta.meta.engines.graph import trace

X = torch.tensor([1.5, -2.0, 0.0])


def calls(function, *inputs):
    graph = trace(function, inputs)
    out = function(*inputs)
    for made, true in zip(graph(*inputs), out, strict=True):
        assert made.dtype == true.dtype
        assert torch.equal(made, true)
    return sum(n.op == "call_function" for n in graph.graph.nodes)


def test_equal_calls_are_one():
    assert calls(lambda x: [x.sin().exp(), x.sin().exp() + 1], X) == 3


def test_what_a_write_separates_is_not_equal():
    def written(x):
        a = x.clone()
        before = a.sin()
        a.mul_(2)
        return [before, a.sin()]

    assert calls(written, X) == 3


def test_a_write_through_a_name_is_a_write_into_the_tensor():
    def written(x):
        a = x * 3
        a.detach().view(3).mul_(2)
        torch.ops.aten.alias(a.detach()).add_(1)
        return [a, a.detach() + 0.5]

    calls(written, X)  # and the same comes of it


@pytest.mark.parametrize(("one", "other"), [(1, 1.0), (True, 1), (0.0, -0.0)])
def test_numbers_that_python_calls_equal_differ(one, other):
    """In their dtype, or as 1 / 0.0 and 1 / -0.0 do."""
    graph = trace(lambda x: [torch.full((3,), one), torch.full((3,), other), x + 1], [X])
    a, b, _ = graph(X)
    assert a.dtype == torch.full((), one).dtype
    assert b.dtype == torch.full((), other).dtype
    assert a.dtype != b.dtype or not torch.equal(1 / a, 1 / b)


def test_draws_stay_apart():
    graph = trace(lambda x: [torch.rand_like(x), torch.rand_like(x)], [X])
    assert sum("rand" in str(n.target) for n in graph.graph.nodes) == 2
    first, second = graph(X)
    assert not torch.equal(first, second)
