"""Hooks that clamp gradients: those that never clip in training change nothing, those that do are named or followed."""

import pytest
import torch
from torch import nn

import fastmeta
from fastmeta import reference
from fastmeta.meta import label_gradient
from tests.support import cases
from tests.support.meta import F64, make_labels, reference_gradient, relative


class Clamped(nn.Module):
    """Clamps the gradient of its hidden layer; remembers the largest one that it saw."""

    def __init__(self, convolutional):
        super().__init__()
        self.body = nn.Conv1d(1, 2, 3, padding=1) if convolutional else nn.Linear(6, 12)
        self.head, self.most, self.seen = nn.Linear(12, 10), float("inf"), [0.0]

    def forward(self, x):
        h = torch.tanh(self.body(x[:, None]).flatten(1) if isinstance(self.body, nn.Conv1d) else self.body(x))
        if h.requires_grad:
            h.register_hook(self.clamp)
        return self.head(h)

    def clamp(self, g):
        self.seen[0] = max(self.seen[0], float(g.detach().abs().max()))
        return g.clamp(-self.most, self.most)


def problem(convolutional=False):
    case = cases.make("mlp")
    torch.manual_seed(1)
    case.model = Clamped(convolutional).to(F64)
    return case, make_labels(fastmeta.InstanceLabels, case)


def of_training(case, labels):
    """The label gradient without a clamp, and the largest gradient on the way."""
    truth = reference_gradient(case, labels, reference.SGDState(0.3)).grad
    case.model.seen[0] = 0.0
    probs = reference.instance_probs(labels.rows(case.index))
    reference.soft_cross_entropy(case.model(case.x), probs).backward()
    case.model.zero_grad()
    return truth, case.model.seen[0]


@pytest.mark.parametrize("tangent", ["auto", "forward", "reverse"])
@pytest.mark.parametrize("convolutional", [False, True])
def test_a_clamp_that_never_clips_changes_nothing(convolutional, tangent):
    case, labels = problem(convolutional)
    truth, most = of_training(case, labels)
    case.model.most = 1.5 * most
    out = label_gradient(case.model, labels, case.train, case.meta, lr=0.3, tangent=tangent)
    assert relative(out.grad, truth) < 1e-10
    assert out.plan.kind != "difference"


@pytest.mark.parametrize("where", ["parameter", "module"])
def test_wherever_the_hook_hangs(where):
    case, labels = problem()
    truth, _ = of_training(case, labels)
    if where == "parameter":
        for p in case.model.parameters():
            p.register_hook(lambda g: g.clamp(-0.2, 0.2))
    else:
        case.model.head.register_full_backward_hook(lambda m, into, out: (into[0].clamp(-0.2, 0.2),))
    out = label_gradient(case.model, labels, case.train, case.meta, lr=0.3)
    assert relative(out.grad, truth) < 1e-10


@pytest.mark.parametrize("hook", [lambda g: g.clamp(-1e-5, 1e-5), lambda g: g / (1e-12 + g.norm()), torch.sign])
@pytest.mark.parametrize("tangent", ["auto", "reverse", "forward"])
def test_a_backward_that_bends_is_refused_and_hooks_are_named(tangent, hook):
    case, labels = problem()
    case.model.clamp = hook
    with pytest.raises(RuntimeError, match=r"the backward is not linear in its covector .* hook that clamps or norm"):
        label_gradient(case.model, labels, case.train, case.meta, lr=0.3, tangent=tangent)


def test_a_wrong_rule_is_still_one():
    from tests.support.layers import Activation, SilentZero

    case, labels = problem()
    model = nn.Sequential(nn.Linear(6, 12), Activation(SilentZero), nn.Linear(12, 10)).to(F64)
    with pytest.raises(RuntimeError, match=r"is not the adjoint of the gradient .*: a layer's rule for it is wrong"):
        label_gradient(model, labels, case.train, case.meta, lr=0.3, tangent="forward")


@pytest.mark.parametrize("convolutional", [False, True])
def test_a_clamp_that_clips_is_followed_in_reverse(convolutional):
    """Double-vjp takes the derivative of the hook where it is, as autograd through the look-ahead does."""
    case, labels = problem(convolutional)
    _, most = of_training(case, labels)
    case.model.most = 0.4 * most
    truth = reference_gradient(case, labels, reference.SGDState(0.3)).grad
    out = label_gradient(case.model, labels, case.train, case.meta, lr=0.3)
    assert out.plan.kind == "reverse"
    assert relative(out.grad, truth) < 1e-10
    with pytest.raises(RuntimeError, match="or a hook clamps gradients by now"):
        label_gradient(case.model, labels, case.train, case.meta, lr=0.3, tangent="forward")


@pytest.mark.parametrize("convolutional", [False, True])
def test_a_clamp_that_clips_later_is_followed_in_reverse(convolutional):
    case, labels = problem(convolutional)
    _, most = of_training(case, labels)
    optimizer = torch.optim.SGD(case.model.parameters(), lr=0.3)
    step = fastmeta.MetaStep(case.model, labels, optimizer, label_lr=5.0)
    case.model.most = 1.5 * most
    step(case.train, case.meta)
    case.model.most = 0.4 * most  # clips, but not what the plan is tried with
    for _ in range(2):
        rows = labels.rows(case.index)
        grad = reference_gradient(case, labels, reference.SGDState(0.3)).grad
        step(case.train, case.meta)
        assert relative(labels.rows(case.index), rows - 5.0 * grad) < 1e-10


@pytest.mark.parametrize("kw", [{"tangent": "forward"}, {"tangent": "reverse", "micro_batch": 4}])
def test_where_the_way_takes_the_backward_for_linear_it_is_refused(kw):
    case, labels = problem()
    _, most = of_training(case, labels)
    optimizer = torch.optim.SGD(case.model.parameters(), lr=0.3)
    step = fastmeta.MetaStep(case.model, labels, optimizer, label_lr=5.0, **kw)
    case.model.most = 1.5 * most
    step(case.train, case.meta)
    case.model.most = 0.4 * most
    before = [t.clone() for t in (*case.model.parameters(), labels.label_logits)]
    with pytest.raises(RuntimeError, match="or a hook clamps gradients by now"):
        step(case.train, case.meta)
    assert all(map(torch.equal, before, (*case.model.parameters(), labels.label_logits)))
