"""Products of products in the cheaper order: the same numbers, fewer operations, and only where it pays."""

import copy

import pytest
import torch
from torch import nn
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils.flop_counter import FlopCounterMode

import fastmeta
from fastmeta import models
from fastmeta.meta.engines.reassociate import reassociate
from tests.support.flops import graph_flops
from tests.support.meta import F64, relative

THIN, WIDE = 3, 20


def normal(*shape):
    return torch.randn(*shape, dtype=F64, generator=torch.Generator().manual_seed(sum(shape)))


def flops(function, inputs):
    with FlopCounterMode(display=False) as counter:
        function(*inputs)
    return counter.get_total_flops()


def reordered(function, inputs):
    graph = make_fx(function, tracing_mode="fake")(*inputs)
    reassociate(graph)
    return graph


#: every place and orientation in which the inner product (WIDE, WIDE) of thin factors may stand
USES = {
    "right": lambda a, p, q: a @ (p @ q),
    "right transposed": lambda a, p, q: a @ (p @ q).t(),
    "left": lambda a, p, q: (p @ q) @ a.t(),
    "left transposed": lambda a, p, q: (p @ q).t() @ a.t(),
    "twice and summed": lambda a, p, q: a @ (p @ q) + a @ (p @ q).t() + (p @ q).sum(),
    "summed transposed": lambda a, p, q: a @ (p @ q) + (p @ q).t().sum(),
}


@pytest.mark.parametrize("use", USES)
def test_same_values_for_fewer_operations(use):
    inputs = normal(THIN + 1, WIDE), normal(WIDE, THIN), normal(THIN, WIDE)
    graph = reordered(USES[use], inputs)
    assert relative(graph(*inputs), USES[use](*inputs)) < 1e-13
    assert flops(graph, inputs) < 0.6 * flops(USES[use], inputs)


@pytest.mark.parametrize(
    "function",
    [lambda a, g: (a @ g, g), lambda a, g: a @ g.relu(), lambda a, g: g @ g, lambda a, g: g.t() @ g, lambda a, g: g],
    ids=["returned", "changed", "with itself", "with its transpose", "alone"],
)
def test_a_product_that_is_needed_stays(function):
    inputs = normal(THIN + 1, WIDE), normal(WIDE, THIN), normal(THIN, WIDE)

    def whole(a, p, q):
        return function(a, p @ q)

    graph = reordered(whole, inputs)
    assert flops(graph, inputs) == flops(whole, inputs)
    for got, want in zip(graph(*inputs), whole(*inputs), strict=True):
        assert torch.equal(got, want)


def test_many_rows_keep_their_order():
    inputs = normal(WIDE, THIN), normal(THIN, WIDE), normal(WIDE, THIN)
    function = USES["right"]
    assert flops(reordered(function, inputs), inputs) == flops(function, inputs)


def test_a_linear_network_costs_less_than_the_general_count():
    """13 F in general; the first layer has no input gradient, so 10.0 F for this network without the reordering."""
    model = models.build("mlp", num_classes=10, input_shape=(1, 28, 28))
    assert graph_flops(model, 10, 128, 256, (1, 28, 28), "reverse") < 8.0


def linear_step(compile):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(24, 24), nn.Tanh(), nn.Linear(24, 4)).to(F64)
    labels = fastmeta.InstanceLabels(torch.arange(20) % 4, 4, dtype=F64)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    return fastmeta.MetaStep(model, labels, optimizer, label_lr=40.0, compile=compile)


def test_the_step_is_the_same_and_sees_what_is_not_finite():
    train, meta = (normal(4, 24), torch.arange(4)), (normal(5, 24), torch.arange(5) % 4)
    eager, traced = linear_step("off"), linear_step("trace")
    for _ in range(3):
        eager(train, meta)
        traced(train, meta)
    (graph,) = traced._graphs.graphs
    weights = [n.meta["val"].shape for n in graph.graph.nodes if n.target is torch.ops.aten.mm.default]
    assert weights.count((24, 24)) == 2  # the gradients of look-ahead and update; that of the meta loss is not formed
    assert relative(traced.labels.label_logits, eager.labels.label_logits) < 1e-12
    before = copy.deepcopy((traced.model.state_dict(), traced.labels.state_dict()))
    for bad in (torch.nan, torch.inf):
        x_meta = meta[0].clone()
        x_meta[1, 2] = bad
        assert not bool(traced(train, (x_meta, meta[1])).finite)
    for now, then in zip((traced.model.state_dict(), traced.labels.state_dict()), before, strict=True):
        assert all(torch.equal(now[k], then[k]) for k in then)
