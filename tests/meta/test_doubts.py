"""A layer that is switched on after the plan was made: another way, found by the step itself."""

import pytest
import torch
from torch import nn

import fastmeta
from fastmeta import reference
from fastmeta.meta.doubts import Unfit, adjoint, gap_of
from fastmeta.meta.tangents import plan_tangent
from tests.support import cases
from tests.support.layers import SilentOnce, SilentZero
from tests.support.meta import F64, make_labels, relative


class Without(torch.autograd.Function):
    """tanh without a derivative of dual numbers."""

    @staticmethod
    def forward(ctx, x):
        y = torch.tanh(x)
        ctx.save_for_backward(y)
        return y

    @staticmethod
    def backward(ctx, g):
        (y,) = ctx.saved_tensors
        return g * (1 - y * y)


class Switched(nn.Module):
    """A branch that is off at first; its function `kind` has one wrong or missing rule."""

    def __init__(self, kind, convolutional):
        super().__init__()
        self.body = nn.Conv1d(1, 2, 3, padding=1) if convolutional else nn.Linear(6, 12)
        self.branch, self.head = nn.Linear(12, 12), nn.Linear(12, 10)
        self.kind, self.rate, self.calls = kind, 0.0, 0

    def forward(self, x):
        self.calls += 1
        h = torch.tanh(self.body(x[:, None]).flatten(1) if isinstance(self.body, nn.Conv1d) else self.body(x))
        if self.rate:
            h = h + self.rate * self.kind.apply(self.branch(h))
        return self.head(h)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize(
    ("kind", "convolutional", "ways"),
    [
        (Without, True, ("forward", "reverse")),  # raises
        (SilentZero, True, ("forward", "reverse")),  # zeros
        (SilentOnce, False, ("reverse", "difference")),  # zeros, and no other way
    ],
)
def test_the_step_finds_another_way(kind, convolutional, ways, dtype):
    case = cases.make("mlp", dtype=dtype)
    torch.manual_seed(1)
    case.model = Switched(kind, convolutional).to(dtype)
    labels = fastmeta.InstanceLabels(case.targets, case.num_classes, 0.8, dtype=dtype)
    optimizer = torch.optim.SGD(case.model.parameters(), lr=0.3)
    step, made = fastmeta.MetaStep(case.model, labels, optimizer, label_lr=5.0), []
    for number in range(5):
        case.model.rate = 0.5 if number > 1 else 0.0
        rows = labels.rows(case.index)
        truth_of = reference.SGDState(0.3)
        grad = None
        if ways[1] != "difference" or not case.model.rate:  # autograd's own double backward is silent there
            grad = reference.label_gradient(
                case.model, rows, reference.instance_probs, case.x, *case.meta, lookahead=truth_of
            ).grad
        step(case.train, case.meta)
        made.append(step.plan.kind)
        if grad is not None:
            assert relative(labels.rows(case.index), rows - 5.0 * grad) < (1e-10 if dtype == F64 else 1e-5)
    assert made == [ways[0]] * 2 + [ways[1]] * 3


def test_a_way_named_by_hand_is_refused_and_nothing_moves():
    case = cases.make("mlp")
    case.model = Switched(SilentZero, False).to(F64)
    labels = make_labels(fastmeta.InstanceLabels, case)
    optimizer = torch.optim.SGD(case.model.parameters(), lr=0.3)
    step = fastmeta.MetaStep(case.model, labels, optimizer, label_lr=5.0, tangent="forward")
    step(case.train, case.meta)
    case.model.rate = 0.5
    before = [t.clone() for t in (*case.model.parameters(), labels.label_logits)]
    for _ in range(2):
        with pytest.raises(RuntimeError, match="does not work on this model: forward is not the adjoint"):
            step(case.train, case.meta)
    assert all(map(torch.equal, before, (*case.model.parameters(), labels.label_logits)))


def test_a_model_that_counts_is_tried_once(monkeypatch):
    case, tried = cases.make("mlp"), []
    case.model = Switched(Without, False).to(F64)
    labels = make_labels(fastmeta.InstanceLabels, case)

    def counted(*args):
        tried.append(args)
        return plan_tangent(*args)

    monkeypatch.setattr("fastmeta.meta.step.plan_tangent", counted)
    step = fastmeta.MetaStep(case.model, labels, torch.optim.SGD(case.model.parameters(), lr=0.3), label_lr=5.0)
    for _ in range(4):
        step(case.train, case.meta)
    assert len(tried) == 1


def test_rounding_is_no_reason_to_refuse(monkeypatch):
    """A gap between the two bounds: tried again, found right, and looked at less closely."""
    case = cases.make("resnet")
    labels = make_labels(fastmeta.InstanceLabels, case)
    step = fastmeta.MetaStep(case.model, labels, torch.optim.SGD(case.model.parameters(), lr=0.1), label_lr=5.0)
    step(case.train, case.meta)
    gap = [3e-8]
    monkeypatch.setattr("fastmeta.meta.doubts.gap_of", lambda found: gap[0])
    step(case.train, case.meta)
    assert step.steps == 2
    gap[0] = 1e-3
    with pytest.raises(Unfit, match="is not the adjoint of the gradient of the same step"):
        step(case.train, case.meta)


def test_the_gap():
    zero, one = torch.zeros(3, 2), torch.ones(3, 2)
    assert gap_of(adjoint(zero, zero, {}, {})) == 0
    assert gap_of(adjoint(one, one, {}, {})) == pytest.approx(1)
    assert gap_of(adjoint(one, one, {"w": one.double()}, {"w": one})) == pytest.approx(0, abs=1e-6)
    assert not gap_of(adjoint(one, one / 0, {}, {})) > 1  # NaN: what is not finite is skipped
