"""Momentum of the label step, of the rows of a batch alone: held against plain autograd."""

import copy

import pytest
import torch

import fastmeta
from fastmeta import reference
from fastmeta.losses import MomentumLabels
from tests.support.cases import make
from tests.support.losses import same

LR, ETA, MU = 0.3, 20.0, 0.6


def labels_of(case):
    return MomentumLabels(case.targets, case.num_classes, 0.7, momentum=MU, dtype=torch.float64)


def built(case, **kw):
    model = copy.deepcopy(case.model)
    optimizer = torch.optim.SGD(model.parameters(), lr=LR, momentum=0.9)
    return fastmeta.MetaStep(model, labels_of(case), optimizer, label_lr=ETA, **kw)


def batches(case):
    """Three of them, whose rows overlap."""
    size = len(case.index)
    order = torch.arange(3 * size // 2 + size) % len(case.targets)
    return [order[k * size // 2 : k * size // 2 + size] for k in range(3)]


@pytest.mark.parametrize(
    "variant",
    [{}, {"tangent": "forward"}, {"micro_batch": 5}, pytest.param({"compile": "trace"}, marks=pytest.mark.slow)],
)
def test_whole_iterations(variant):
    case = make("mlp", 5)
    step, model = built(case, **variant), copy.deepcopy(case.model)
    table, velocity, momenta = labels_of(case).label_logits.clone(), torch.zeros(len(case.targets), 5).double(), None
    for index in batches(case):
        sgd = reference.SGDState(LR)
        truth = reference.label_gradient(model, table[index], lambda l: l.softmax(1), case.x, *case.meta, lookahead=sgd)
        rows = index.unique()
        total = torch.zeros_like(table).index_put_((index,), truth.grad, accumulate=True)
        velocity[rows] = MU * velocity[rows] + total[rows]
        table[rows] -= ETA * velocity[rows]
        sgd = reference.SGDState(LR, momentum=0.9, buffers=momenta)
        loss_of = lambda p, z: reference.soft_cross_entropy(z, p["l"].softmax(1), reduction="none")  # noqa: E731
        momenta = reference.plain_step(model, loss_of, {"l": table[index]}, case.x, optimizer=sgd)
        result = step((case.x, index), case.meta)
    assert bool(result.finite)
    assert not step.eager_because
    torch.testing.assert_close(step.labels.label_logits, table, rtol=1e-9, atol=1e-10)
    torch.testing.assert_close(step.labels.velocity, velocity, rtol=1e-9, atol=1e-12)
    same(step.model, model)


@pytest.mark.parametrize("compile", ["off", pytest.param("trace", marks=pytest.mark.slow)])
def test_a_step_that_is_not_finite_changes_no_bit(compile):
    case = make("mlp", 5)
    step = built(case, compile=compile)
    step(case.train, case.meta)
    state = lambda: [*step.model.state_dict().values(), *step.labels.buffers()]  # noqa: E731
    before = copy.deepcopy(state())
    assert not bool(step((case.x * float("nan"), case.index), case.meta).finite)
    assert all(map(torch.equal, before, state()))


def test_without_momentum_it_is_the_step_of_instance_labels_and_a_restart_forgets():
    case = make("mlp", 5)
    labels = MomentumLabels(case.targets, 5, 0.7, momentum=0.0, dtype=torch.float64)
    plain = fastmeta.InstanceLabels(case.targets, 5, 0.7, dtype=torch.float64)
    start = labels.label_logits.clone()
    for own in (labels, plain):
        model = copy.deepcopy(case.model)
        step = fastmeta.MetaStep(model, own, torch.optim.SGD(model.parameters(), lr=LR), label_lr=ETA)
        for _ in range(2):
            step(case.train, case.meta)
    torch.testing.assert_close(labels.label_logits, plain.label_logits, rtol=1e-12, atol=1e-12)
    assert fastmeta.check(case.model, labels, case.train, case.meta, LR, timing=False).ok
    labels.restart_(0.7)
    assert torch.equal(labels.label_logits, start)
    assert not labels.velocity.any()


def test_wrong_arguments_are_named():
    targets = torch.tensor([0, 1])
    with pytest.raises(ValueError, match=r"momentum must lie in \[0, 1\), got 1"):
        MomentumLabels(targets, 2, momentum=1)
    with pytest.raises(ValueError, match=r"dtype must be one of torch\.float32, torch\.float64"):
        MomentumLabels(targets, 2, dtype=torch.bfloat16)
    assert "momentum=0.9" in repr(MomentumLabels(targets, 2))
