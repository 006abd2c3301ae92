"""label_lr=None: eta lambda / n is the same at every step, whatever the schedule."""

import copy
import warnings

import pytest
import torch

import fastmeta
from tests.support import cases
from tests.support.meta import FAMILIES, make_labels, relative


def build(optimizer=None, family=fastmeta.InstanceLabels, **kw):
    case = cases.make("mlp")
    labels = make_labels(family, case)
    optimizer = (optimizer or (lambda p: torch.optim.SGD(p, lr=0.5)))(case.model.parameters())
    return case, labels, fastmeta.MetaStep(case.model, labels, optimizer, **kw)


@pytest.mark.parametrize("compile", ["off", "trace"])
def test_it_follows_a_warm_up(compile):
    """Fixed at the first step's rate, it would be 10,000 times too large at the end."""
    case, labels, step = build(compile=compile)
    twin, own, explicit = build(compile=compile, label_lr=1.0)
    for lr in (0.5e-4, 0.5e-2, 0.5, 0.0):
        for s in (step, explicit):
            s.optimizer.param_groups[0]["lr"] = lr
        explicit.label_lr = labels.default_label_lr(lr, 8) if lr else 0.0
        before = labels.label_logits.clone()
        step(case.train, case.meta)
        explicit(twin.train, twin.meta)
        assert step.label_lr == pytest.approx(explicit.label_lr, rel=1e-14)
        assert torch.equal(labels.label_logits, own.label_logits)
        assert torch.equal(labels.label_logits, before) == (lr == 0)
        assert float((labels.label_logits - before).abs().max()) < 1
    assert step.label_lr == 0
    assert "label_lr 0 now, set in each step from lambda and n" in step.explain()


@pytest.mark.parametrize("family", FAMILIES)
def test_it_follows_onecycle_and_the_size_of_the_batch(family):
    case, labels, step = build(family=family)
    schedule = torch.optim.lr_scheduler.OneCycleLR(step.optimizer, 0.5, total_steps=6, cycle_momentum=False)
    for k in range(5):
        n = 8 if k % 2 else 5
        lr = step.optimizer.param_groups[0]["lr"]
        step((case.x[:n], case.index[:n]), case.meta)
        assert step.label_lr * lr / n == pytest.approx(labels.default_label_lr(1.0, 1), rel=1e-12)
        schedule.step()


@pytest.mark.parametrize("compile", ["off", "trace"])
def test_a_rate_that_is_a_tensor(compile):
    rate = torch.tensor(0.25, dtype=torch.float64)
    case, labels, step = build(lambda p: torch.optim.SGD(p, lr=rate, foreach=False), compile=compile)
    for value in (0.25, 0.125, 0.0):
        rate.fill_(value)
        step(case.train, case.meta)
        assert step.label_lr == (labels.default_label_lr(value, 8) if value else 0.0)


def test_a_rate_on_a_device_is_not_read(monkeypatch):
    """As a stand-in for CUDA: the rate stays a tensor all the way to the kernels."""
    case, labels, step = build(label_lr=None)
    twin, own, explicit = build(label_lr=labels.default_label_lr(0.5, 8))
    monkeypatch.setattr(step._lookahead, "largest_rate", lambda params: torch.tensor(0.5, dtype=torch.float64))
    step(case.train, case.meta)
    explicit(twin.train, twin.meta)
    assert isinstance(step._rate.taken, torch.Tensor)
    assert relative(labels.label_logits, own.label_logits) < 1e-14


def two_groups(params, rates=(1e-5, 0.1)):
    params = list(params)
    groups = [{"params": part, "lr": lr} for part, lr in zip((params[:4], params[4:]), rates, strict=True)]
    return torch.optim.SGD(groups, lr=1.0)


@pytest.mark.parametrize("compile", ["off", "trace"])
def test_groups_that_disagree_are_named_and_the_largest_rate_counts(compile):
    case, labels, step = build(two_groups, compile=compile)
    with pytest.warns(UserWarning, match=r"have different rates \(1e-05, 0\.1\); label_lr goes by the largest"):
        step(case.train, case.meta)
    assert step.label_lr == labels.default_label_lr(0.1, 8)
    start = make_labels(fastmeta.InstanceLabels, case).label_logits
    assert 1e-6 < float((labels.label_logits - start).abs().max()) < 1
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        step(case.train, case.meta)


def test_what_the_look_ahead_does_not_move_has_no_say():
    """last:1 takes the head's rate; a fixed look-ahead its own, whatever the optimizer's are."""
    case, labels, step = build(lambda p: two_groups(p, (0.1, 1e-3)), approx="last:1")
    with pytest.warns(UserWarning, match="different rates"):
        step(case.train, case.meta)
    assert step.label_lr == labels.default_label_lr(1e-3, 8)
    case, labels, step = build(lambda p: torch.optim.Adam(p, lr=1e-3), lookahead=0.2)
    step(case.train, case.meta)
    step.optimizer.param_groups[0]["lr"] = 1e-6
    step(case.train, case.meta)
    assert step.label_lr == labels.default_label_lr(0.2, 8)
    momentum = lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, nesterov=True)  # noqa: E731
    case, labels, step = build(momentum, lookahead="optimizer")
    step(case.train, case.meta)
    assert step.label_lr == pytest.approx(labels.default_label_lr(0.19, 8))


def test_a_resumed_step_follows_too():
    case, labels, step = build()
    step(case.train, case.meta)
    parts = case.model, labels, step.optimizer, step
    state = copy.deepcopy([part.state_dict() for part in parts])
    twin, own, resumed = build()
    for part, saved in zip((twin.model, own, resumed.optimizer, resumed), state, strict=True):
        part.load_state_dict(saved)
    for s, c in ((step, case), (resumed, twin)):
        s.optimizer.param_groups[0]["lr"] = 0.01
        s(c.train, c.meta)
        assert s.label_lr == labels.default_label_lr(0.01, 8)
    assert torch.equal(labels.label_logits, own.label_logits)
    # the state of an older version holds the number that its first step took, which then stays
    resumed.load_state_dict(state[3] | {"label_lr": 4.0})
    resumed(twin.train, twin.meta)
    assert resumed.label_lr == resumed.state_dict()["label_lr"] == 4.0
    resumed.label_lr = None
    assert resumed.label_lr is None
