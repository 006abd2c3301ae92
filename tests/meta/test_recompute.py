"""Models with activation checkpointing: the gradients, labels and buffers of the same model without."""

import copy

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

import fastmeta
from fastmeta import reference
from fastmeta.meta import label_gradient
from tests.meta import cases
from tests.meta.test_label_gradient import F64, FAMILIES, make_labels, reference_gradient, relative


class Recomputed(nn.Module):
    """All of it is run again in the backward and, nested, a part of that once more."""

    def __init__(self, inner, nested):
        super().__init__()
        self.inner, self.nested, self.calls = inner, nested, 0

    def forward(self, x):
        return checkpoint(self.run, x, use_reentrant=False)

    def run(self, x):
        self.calls += 1
        first, rest = self.inner[:3], self.inner[3:]
        return rest(checkpoint(first, x, use_reentrant=False) if self.nested else first(x))


def pair(name, nested):
    case = cases.make(name)
    return case, Recomputed(copy.deepcopy(case.model), nested)


@pytest.mark.parametrize("nested", [False, True])
@pytest.mark.parametrize("tangent", ["auto", "forward", "reverse"])
@pytest.mark.parametrize("name", ["mlp", "resnet"])
def test_the_label_gradient_is_that_without(name, tangent, nested):
    """theta* is far from theta here: a part that is run again on theta would show."""
    case, model = pair(name, nested)
    labels, before = make_labels(fastmeta.InstanceLabels, case), copy.deepcopy(model.state_dict())
    truth = reference_gradient(case, labels, reference.SGDState(2.0)).grad
    out = label_gradient(model, labels, case.train, case.meta, lr=2.0, tangent=tangent)
    assert out.plan.way != "difference"
    assert relative(out.grad, truth) < 1e-10
    assert all(torch.equal(before[k], v) for k, v in model.state_dict().items())
    case.model = model
    assert relative(reference_gradient(case, labels, reference.SGDState(2.0)).grad, truth) < 1e-12
    assert all(torch.equal(before[k], v) for k, v in model.state_dict().items())


@pytest.mark.parametrize("kw", [{}, {"tangent": "reverse"}, {"micro_batch": 12}, {"compile": "trace"}], ids=str)
@pytest.mark.parametrize("family", FAMILIES)
def test_steps_are_those_without(family, kw):
    case, model = pair("resnet", True)
    labels = make_labels(family, case)
    other = copy.deepcopy(labels)
    steps = [
        fastmeta.MetaStep(m, own, torch.optim.SGD(m.parameters(), lr=1.0), label_lr=2.0, **options)
        for m, own, options in ((case.model, other, {}), (model, labels, kw))
    ]
    for _ in range(3):
        for step in steps:
            step(case.train, case.meta)
    assert not steps[1]._untraced
    for a, b in zip(labels.buffers(), other.buffers(), strict=True):
        assert torch.allclose(a, b, rtol=1e-10, atol=1e-12)
    for (key, a), b in zip(model.state_dict().items(), case.model.state_dict().values(), strict=True):
        assert torch.allclose(a, b, rtol=1e-9, atol=1e-11), key
        if key.endswith("num_batches_tracked"):
            assert int(a) == 3


class Again(torch.autograd.Function):
    """A linear layer that reads its weight anew in the backward, as reversible layers do."""

    @staticmethod
    def forward(ctx, x, weight, layer):
        ctx.save_for_backward(x)
        ctx.layer = layer
        return x @ weight.T

    @staticmethod
    def backward(ctx, grad):
        (x,) = ctx.saved_tensors
        return grad @ ctx.layer.weight, grad.T @ x, None


class Reversible(nn.Linear):
    def forward(self, x):
        return Again.apply(x, self.weight, self)


@pytest.mark.parametrize("tangent", ["auto", "reverse", "difference"])
def test_a_backward_that_reads_other_weights_is_refused(tangent):
    """At theta itself all is right, so that no test of the tangent there could see it."""
    case = cases.make("mlp")
    model = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), Reversible(8, 10, bias=False)).to(F64)
    labels, before = make_labels(fastmeta.InstanceLabels, case), copy.deepcopy(model.state_dict())
    addresses = [p.data_ptr() for p in model.parameters()]
    with pytest.raises(RuntimeError, match=r"that it was not run on, and gives 0\.weight another gradient"):
        label_gradient(model, labels, case.train, case.meta, lr=0.3, tangent=tangent)
    assert all(torch.equal(before[k], v) for k, v in model.state_dict().items())
    assert addresses == [p.data_ptr() for p in model.parameters()]


class Headless(nn.Module):
    def __init__(self, model):
        super().__init__()
        self.body, self.head = model[:4], model[4]

    def forward(self, x):
        return self.body(x)


def test_weights_in_logits_of_are_refused():
    case = cases.make("mlp")
    model, labels = Headless(case.model), make_labels(fastmeta.InstanceLabels, case)
    with pytest.raises(RuntimeError, match="other logits in a second call: it reads weights that it was not run on"):
        label_gradient(model, labels, case.train, case.meta, lr=0.3, logits_of=model.head)


def test_it_is_still_run_again():
    """What checkpointing is for: the activations are not kept."""
    case, model = pair("mlp", False)
    case.model = model.to(F64)
    step = fastmeta.MetaStep(
        model, make_labels(fastmeta.InstanceLabels, case), torch.optim.SGD(model.parameters(), lr=0.1), label_lr=1.0
    )
    step(case.train, case.meta)
    model.calls = 0
    step(case.train, case.meta)
    assert model.calls > 2  # the forwards of the step
