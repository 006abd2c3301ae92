"""What each approximation changes, exactly; eager and as a graph."""

import copy

import pytest
import torch
from torch import nn

import fastmeta
from fastmeta import reference
from fastmeta.meta.approximation import Approximation
from tests.support import cases
from tests.support.flops import graph_flops
from tests.support.meta import FAMILIES, make_labels, reference_gradient, relative
from tests.support.pairs import parametrize_some

MODES = ["off", "trace"]


def run(case, family, compile, steps, **kw):
    case, labels = copy.deepcopy((case, make_labels(family, case)))
    optimizer = torch.optim.SGD(case.model.parameters(), lr=0.2, momentum=0.9)
    step = fastmeta.MetaStep(case.model, labels, optimizer, label_lr=5.0, compile=compile, **kw)
    results = [step(case.train, case.meta) for _ in range(steps)]
    return case.model, labels, results, step


def table(labels):
    return labels.label_logits if labels.family == "instance" else labels.alpha


@parametrize_some(1, family=FAMILIES, compile=MODES)
def test_delayed(family, compile):
    """The labels of the exact step; the model of plain training with the labels of before."""
    case = cases.make("resnet")
    _, exact, _, _ = run(case, family, "off", 1)
    model, labels, _, _ = run(case, family, compile, 1, approx="delayed")
    assert relative(table(labels), table(exact)) < 1e-12
    truth = copy.deepcopy(case.model)
    loss = reference.soft_cross_entropy(truth(case.x), make_labels(family, case).probs(case.index))
    loss.backward()
    torch.optim.SGD(truth.parameters(), lr=0.2, momentum=0.9).step()
    for a, b in zip(model.parameters(), truth.parameters(), strict=True):
        assert torch.allclose(a, b, rtol=1e-10, atol=1e-13)
    for a, b in zip(model.buffers(), truth.buffers(), strict=True):
        assert torch.allclose(a, b, rtol=1e-12)


@parametrize_some(1, family=FAMILIES, compile=MODES)
def test_every(family, compile):
    """An exact step, then plain training with fixed labels, then an exact step again."""
    case = cases.make("resnet")
    model, labels, results, _ = run(case, family, compile, 4, approx="every:3")
    assert [bool(r.meta_loss.isfinite()) for r in results] == [True, False, False, True]
    assert all(bool(r.finite) for r in results)
    truth, own = copy.deepcopy((case, make_labels(family, case)))
    optimizer = torch.optim.SGD(truth.model.parameters(), lr=0.2, momentum=0.9)
    step = fastmeta.MetaStep(truth.model, own, optimizer, label_lr=5.0)
    for i in range(4):
        if i % 3 == 0:
            step(truth.train, truth.meta)
            continue
        optimizer.zero_grad()
        reference.soft_cross_entropy(truth.model(truth.x), own.probs(truth.index)).backward()
        optimizer.step()
    assert relative(table(labels), table(own)) < 1e-10
    for a, b in zip(model.state_dict().values(), truth.model.state_dict().values(), strict=True):
        assert torch.allclose(a, b, rtol=1e-9, atol=1e-12)


@parametrize_some(1, family=FAMILIES, last=[1, 2], compile=MODES)
def test_last_layers(family, last, compile):
    """The label gradient of a model whose trunk is frozen; the update of the whole model."""
    case = cases.make("resnet")
    labels = make_labels(family, case)
    model, moved, _, step = run(case, family, compile, 1, approx=f"last:{last}")
    owners = [m for m in case.model.modules() if list(m.parameters(recurse=False))]
    frozen = copy.deepcopy(case)
    keep = [m for m in frozen.model.modules() if list(m.parameters(recurse=False))][-last:]
    frozen.model.requires_grad_(False)
    for module in keep:
        module.requires_grad_(True)
    truth = reference_gradient(frozen, labels, reference.SGDState(0.2)).grad
    if family is fastmeta.InstanceLabels:
        assert relative(table(moved)[case.index], table(labels)[case.index] - 5.0 * truth) < 1e-12
        assert relative(table(moved)[case.index] - table(labels)[case.index], -5.0 * truth) < 1e-8
    else:
        assert relative(table(moved), (table(labels) - 5.0 * truth).clamp(0, 1)) < 1e-12
    for m, before in zip((m for m in model.modules() if list(m.parameters(recurse=False))), owners, strict=True):
        assert not torch.equal(next(iter(m.parameters())), next(iter(before.parameters())))
    assert step.plan is not None
    names = {1: "8.weight, 8.bias", 2: "5.body.4.weight, 5.body.4.bias, 8.weight, 8.bias"}[last]
    assert f"through the last {last} layers alone: {names}\n" in step.explain()


@pytest.mark.parametrize("compile", MODES)
def test_more_layers_than_there_are(compile):
    """All of them are the exact step; one more is a mistake."""
    case = cases.make("mlp")
    _, exact, _, _ = run(case, fastmeta.InstanceLabels, "off", 2)
    _, labels, _, _ = run(case, fastmeta.InstanceLabels, compile, 2, approx="last:3")
    assert relative(labels.label_logits, exact.label_logits) < 1e-12
    with pytest.raises(ValueError, match=r"asks for more layers than there are: 3 modules .* take last:1 to last:3"):
        run(case, fastmeta.InstanceLabels, compile, 1, approx="last:4")


def test_difference_is_near_the_exact_step():
    case = cases.make("attention")
    start = make_labels(fastmeta.InstanceLabels, case).label_logits
    _, exact, _, _ = run(case, fastmeta.InstanceLabels, "off", 1)
    _, near, _, step = run(case, fastmeta.InstanceLabels, "off", 1, approx="difference")
    assert 0 < relative(near.label_logits - start, exact.label_logits - start) < 1e-5
    assert "inexact" in step.explain()


@pytest.mark.parametrize(("approx", "least", "most"), [("delayed", 10.5, 11.1), ("last:1", 4.9, 5.1)])
def test_flops(approx, least, most):
    way = "reverse" if approx == "last:1" else "forward"
    assert least < graph_flops(cases.convolutions(10), 10, 8, 16, (3, 16, 16), way, approx=approx) < most


def test_names_are_checked():
    for bad in ("delay", "every", "every:0", "last:x", "delayed:2", "last:-1"):
        with pytest.raises(ValueError, match="approx must be None"):
            Approximation.parse(bad)
    case = cases.make("mlp")
    assert isinstance(case.model, nn.Sequential)
    with pytest.raises(ValueError, match="approx must be None"):
        run(case, fastmeta.InstanceLabels, "off", 0, approx="some")
