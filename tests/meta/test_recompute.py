"""Models with activation checkpointing: the gradients, labels and buffers of the same model without."""

import copy
import warnings
from functools import partial

import pytest
import torch
from torch import nn
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper
from torch.nn.utils import parametrizations
from torch.utils.checkpoint import (
    CheckpointPolicy,
    checkpoint,
    checkpoint_sequential,
    create_selective_checkpoint_contexts,
    set_checkpoint_early_stop,
)

import fastmeta
from fastmeta import reference
from fastmeta.meta import label_gradient
from tests.support import cases
from tests.support.meta import F64, FAMILIES, make_labels, reference_gradient, relative


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
    assert out.plan.kind != "difference"
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


@pytest.mark.parametrize("tangent", ["auto", "reverse"])
def test_a_backward_that_reads_its_weights_anew_reads_the_right_ones(tangent):
    """At theta itself all is right anyway, so that no test of the tangent there could see it."""
    case = cases.make("mlp")
    model = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), Reversible(8, 10, bias=False)).to(F64)
    plain = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 10, bias=False)).to(F64)
    plain.load_state_dict(model.state_dict())
    labels, before = make_labels(fastmeta.InstanceLabels, case), copy.deepcopy(model.state_dict())
    own = [(id(p), p.data_ptr()) for p in model.parameters()]
    out = label_gradient(model, labels, case.train, case.meta, lr=0.3, tangent=tangent)
    assert out.plan.kind == "reverse"
    case.model = plain
    assert relative(out.grad, reference_gradient(case, labels, reference.SGDState(0.3)).grad) < 1e-10
    assert all(torch.equal(before[k], v) for k, v in model.state_dict().items())
    assert own == [(id(p), p.data_ptr()) for p in model.parameters()]


class Headless(nn.Module):
    def __init__(self, model):
        super().__init__()
        self.body, self.head = model[:4], model[4]

    def forward(self, x):
        return self.body(x)


def test_weights_in_logits_of_are_the_given_ones():
    case = cases.make("mlp")
    labels = make_labels(fastmeta.InstanceLabels, case)
    truth = reference_gradient(case, labels, reference.SGDState(0.3)).grad
    model = Headless(case.model)
    out = label_gradient(model, labels, case.train, case.meta, lr=0.3, logits_of=model.head)
    assert relative(out.grad, truth) < 1e-10


class Hidden(nn.Module):
    """Reads its weight through a closure, where no function of given weights finds it, or through a list."""

    def __init__(self, where="closure"):
        super().__init__()
        self.a, self.head = nn.Linear(6, 8), nn.Linear(8, 10)
        self.double()
        weights = [self.head.weight]
        self.weight = lambda: weights[0]
        if where == "list":
            self.weights = weights
            self.weight = lambda: self.weights[0]

    def forward(self, x):
        return torch.tanh(self.a(x)) @ self.weight().T + self.head.bias


def test_weights_in_a_list_are_the_given_ones():
    case, model = cases.make("mlp"), Hidden("list")
    labels = make_labels(fastmeta.InstanceLabels, case)
    case.model = nn.Sequential(model.a, nn.Tanh(), model.head)
    truth = reference_gradient(case, labels, reference.SGDState(0.3)).grad
    for tangent in ("forward", "reverse"):
        out = label_gradient(model, labels, case.train, case.meta, lr=0.3, tangent=tangent)
        assert relative(out.grad, truth) < 1e-10


@pytest.mark.parametrize("tangent", ["auto", "difference"])
def test_weights_that_cannot_be_given_are_refused(tangent):
    case = cases.make("mlp")
    labels = make_labels(fastmeta.InstanceLabels, case)
    with pytest.raises(RuntimeError, match="other logits in a second call: it reads weights that it was not run on"):
        label_gradient(Hidden(), labels, case.train, case.meta, lr=0.3, tangent=tangent)


class Attention(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.TransformerEncoderLayer(6, 2, 8, dropout=0.0, batch_first=True)

    def forward(self, x):
        return self.layer(x.unsqueeze(1) + torch.linspace(0, 1, 3, dtype=x.dtype)[:, None]).mean(1)


BODIES = {
    "mlp": lambda: nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 6), nn.Tanh()),
    "batch norm": lambda: nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Tanh(), nn.Linear(8, 6)),
    "attention": lambda: nn.Sequential(Attention(), Attention()),
    "spectral": lambda: nn.Sequential(parametrizations.spectral_norm(nn.Linear(6, 8)), nn.Tanh(), nn.Linear(8, 6)),
}


def saved_products(_context, operation, *_args, **_kwargs):
    """A policy of selective checkpointing."""
    keep = operation in (torch.ops.aten.mm.default, torch.ops.aten.addmm.default)
    return CheckpointPolicy.MUST_SAVE if keep else CheckpointPolicy.PREFER_RECOMPUTE


def without_early_stop(body, x):
    with set_checkpoint_early_stop(False):
        return checkpoint(body, x, use_reentrant=False)


def beside_offloading(body, x):
    with torch.autograd.graph.save_on_cpu():
        return checkpoint(body, x, use_reentrant=False)


SELECTIVE = partial(create_selective_checkpoint_contexts, saved_products)
WAYS = {
    "plain": lambda body, x: checkpoint(body, x, use_reentrant=False),
    "sequential": lambda body, x: checkpoint_sequential(body, 2, x, use_reentrant=False),
    "unchecked": lambda body, x: checkpoint(body, x, use_reentrant=False, determinism_check="none"),
    "no random state": lambda body, x: checkpoint(body, x, use_reentrant=False, preserve_rng_state=False),
    "no early stop": without_early_stop,
    "offloading": beside_offloading,
    "wrapper": lambda body, x: checkpoint_wrapper(body)(x),
    "selective": lambda body, x: checkpoint(body, x, use_reentrant=False, context_fn=SELECTIVE),
}


class Run(nn.Module):
    def __init__(self, body, head, way):
        super().__init__()
        self.body, self.head, self.way = body, head, way

    def forward(self, x):
        return self.head(self.way(self.body, x))


@pytest.mark.parametrize(
    ("body", "way"),
    # without one pair that raises in plain training too: buffers that the forward moves, under selective checkpointing
    [(body, way) for body in BODIES for way in WAYS if (body, way) != ("spectral", "selective")],
)
def test_every_kind_of_checkpointing(body, way):
    """Two steps at a large rate, each by both exact ways that the layers bear, are those without checkpointing."""
    case = cases.make("mlp")
    torch.manual_seed(0)
    start = Run(BODIES[body](), nn.Linear(6, 10), lambda inner, x: inner(x)).to(F64)
    ends = []
    for model, tangents in ((start, ["auto"]), (Run(start.body, start.head, WAYS[way]), ["auto", "reverse"])):
        for tangent in tangents:
            own = copy.deepcopy(model)
            labels = make_labels(fastmeta.InstanceLabels, case)
            sgd = torch.optim.SGD(own.parameters(), lr=1.0)
            step = fastmeta.MetaStep(own, labels, sgd, label_lr=5.0, tangent=tangent)
            for _ in range(2):
                result = step(case.train, case.meta)
                assert bool(result.finite)
            assert step.plan.kind != "difference"
            ends.append([*labels.buffers(), *own.state_dict().values()])
    for end in ends[1:]:
        for a, b in zip(end, ends[0], strict=True):
            assert torch.allclose(a, b, rtol=1e-9, atol=1e-11)


def test_dropout_in_a_part_that_runs_again():
    """One mask for the forward, its repetition and the tangent; the global generator moves as without."""
    case = cases.make("mlp")
    body = nn.Sequential(nn.Linear(6, 8), nn.Dropout(0.5), nn.Tanh(), nn.Linear(8, 6))
    model = Run(body, nn.Linear(6, 10), lambda inner, x: inner(x)).to(F64)
    ends = []
    for way in (model.way, WAYS["plain"]):
        own, labels = copy.deepcopy(model), make_labels(fastmeta.InstanceLabels, case)
        own.way = way
        step = fastmeta.MetaStep(own, labels, torch.optim.SGD(own.parameters(), lr=1.0), label_lr=5.0)
        torch.manual_seed(3)
        for _ in range(3):
            step(case.train, case.meta)
        ends.append([*labels.buffers(), *own.parameters(), torch.rand(1)])
    for a, b in zip(*ends, strict=True):
        assert torch.allclose(a, b, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("tangent", ["auto", "forward", "reverse", "difference"])
def test_reentrant_checkpointing_of_the_first_layers_is_refused(tangent):
    """torch leaves these without a gradient and without a node in the graph, since their input requires none."""
    case = cases.make("mlp")
    model = Run(BODIES["mlp"](), nn.Linear(6, 10), lambda body, x: checkpoint(body, x, use_reentrant=True)).to(F64)
    labels = make_labels(fastmeta.InstanceLabels, case)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's, of that
        with pytest.raises(RuntimeError, match="use_reentrant=False"):
            label_gradient(model, labels, case.train, case.meta, lr=0.3, tangent=tangent)


def test_it_is_still_run_again():
    """What checkpointing is for: the activations are not kept."""
    case, model = pair("mlp", False)
    case.model = model.to(F64)
    step = fastmeta.MetaStep(
        model, make_labels(fastmeta.InstanceLabels, case), torch.optim.SGD(model.parameters(), lr=0.1), label_lr=1.0
    )
    step(case.train, case.meta)
    seen = []
    model.inner[0].register_forward_hook(lambda *_: seen.append(1))
    step(case.train, case.meta)
    assert len(seen) > 2  # the forwards of the step
    assert model.calls == 2  # of which one counts
