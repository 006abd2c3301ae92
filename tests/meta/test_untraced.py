"""Names and questions are no nodes of a trace, and what they are asked for is right."""

import pytest
import torch
from torch import nn
from torch.autograd import forward_ad
from torch.fx.experimental.proxy_tensor import make_fx

from fastmeta.meta.engines.graph import Untraceable, trace
from fastmeta.meta.engines.untraced import UNTRACED

aten = torch.ops.aten
BASE = torch.arange(24.0)
TENSORS = [
    BASE,
    BASE.view(4, 6),
    BASE[:12],
    BASE.view(4, 6).t(),
    BASE.double(),
    BASE[:12].clone(),
    BASE[:12].double(),
    torch.ones(()),
    torch.ones(1).expand(3),
    torch.ones(0),
]


@pytest.mark.parametrize("question", [aten.is_same_size.default, aten._has_same_storage_numel.default])
def test_questions_are_answered_as_torch_does(question):
    answers = [(UNTRACED[question](a, b), question(a, b)) for a in TENSORS for b in TENSORS]
    assert {given for given, _ in answers} == {True, False}
    assert all(given is true for given, true in answers)


def test_a_trace_has_none():
    net = nn.Sequential(nn.Conv2d(2, 3, 3), nn.BatchNorm2d(3), nn.ReLU(inplace=True), nn.Flatten(), nn.Linear(48, 4))

    def function(x, *params):
        params = [p.detach().requires_grad_() for p in params]
        names = [name for name, _ in net.named_parameters()]
        out = torch.func.functional_call(net, dict(zip(names, params, strict=True)), x)
        grads = torch.autograd.grad(out.square().sum(), params)
        with torch.no_grad(), forward_ad.dual_level():
            dual = {k: forward_ad.make_dual(p, g) for k, p, g in zip(names, params, grads, strict=True)}
            tangent = forward_ad.unpack_dual(torch.func.functional_call(net, dual, x)).tangent
        return [tangent.detach(), *grads]

    inputs = [torch.randn(5, 2, 6, 6), *net.parameters()]
    net.eval()
    kinds = {}
    for table in ({}, UNTRACED):
        graph = make_fx(function, decomposition_table=table, tracing_mode="fake", _allow_non_fake_inputs=True)(*inputs)
        kinds[bool(table)] = {n.target for n in graph.graph.nodes if n.op == "call_function"}
        for made, true in zip(graph(*inputs), function(*inputs), strict=True):
            torch.testing.assert_close(made, true)
    assert kinds[False] - kinds[True] == set(UNTRACED)
    assert kinds[True] <= kinds[False]


def test_a_name_knows_the_memory_that_it_names():
    def function(x):
        a = x.clone()
        b = a.detach()
        b.add_(1)
        c = aten.alias(b)
        before = a * 2
        c.view(-1)[:3].mul_(10)
        return [a, b.clone(), c + 0, before]

    x = torch.randn(2, 4)
    for made, true in zip(trace(function, [x])(x), function(x), strict=True):
        assert torch.equal(made, true)


def test_a_tensor_that_the_trace_does_not_know_is_still_seen():
    held = torch.ones(3)
    with pytest.raises(Untraceable, match="not an attribute in sight"):
        trace(lambda x: [x * held.detach()], [torch.ones(3)], known=lambda t: False)


def test_a_number_that_was_made_on_the_way_can_be_read_through_a_name():
    graph = trace(lambda x: [x * torch.tensor(3.0).detach().item()], [torch.ones(3)])
    assert torch.equal(graph(torch.ones(3))[0], torch.full((3,), 3.0))
