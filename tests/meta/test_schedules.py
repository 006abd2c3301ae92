"""Schedules of momentum and weight decay: numbers of the one graph, as the rates are."""

import copy

import pytest
import torch

import fastmeta
from fastmeta.functional.optimizers import sgd
from fastmeta.meta.lookahead import PreparedLookAhead, Rule, _fused_ahead
from tests.support import cases
from tests.support.capture import Recorder
from tests.support.meta import make_labels, relative


def onecycle(optimizer, steps):
    rates = [group["lr"] for group in optimizer.param_groups]
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rates, total_steps=steps + 1, cycle_momentum=True)
    return lambda k: schedule.step()


def decaying(optimizer, steps):
    start = [group["weight_decay"] for group in optimizer.param_groups]

    def at(k):
        for group, decay in zip(optimizer.param_groups, start, strict=True):
            group["weight_decay"] = decay * (1 - (k + 1) / (2 * steps))

    return at


def groups(model, kind):
    params = list(model.parameters())
    base = {"momentum": 0.9, "nesterov": kind == "nesterov", "weight_decay": 0.02}
    if kind == "two groups":
        two = [{"params": params[:2]}, {"params": params[2:], "lr": 0.05, "weight_decay": 0.01, "momentum": 0.5}]
        return torch.optim.SGD(two, lr=0.2, **base)
    return torch.optim.SGD(params, lr=0.2, **base)


@pytest.mark.parametrize("schedule", [onecycle, decaying])
@pytest.mark.parametrize(
    ("kind", "lookahead", "captured"),
    [("heavy", "sgd", False), ("nesterov", "optimizer", True), ("two groups", "optimizer", False)],
)
def test_a_schedule_is_one_graph(schedule, kind, lookahead, captured):
    """30 steps against eager ones, whose update is torch.optim.SGD itself."""
    steps, ends = 30, []
    for compile in ("off", "trace"):
        case = cases.make("mlp")
        labels = make_labels(fastmeta.InstanceLabels, case)
        optimizer = groups(case.model, kind)
        step = fastmeta.MetaStep(case.model, labels, optimizer, label_lr=3.0, lookahead=lookahead, compile=compile)
        move = schedule(optimizer, steps)
        for k in range(steps):
            step(case.train, case.meta)
            move(k)
            if k == 0 and captured and compile == "trace":
                step._graphs.record = Recorder()
        momenta = [state["momentum_buffer"] for state in optimizer.state.values()]
        ends.append((*case.model.parameters(), labels.label_logits, *momenta))
    assert step._graphs.compilations == 1
    assert step._graphs.captures == captured
    for a, b in zip(*ends, strict=True):
        assert relative(a, b) < 1e-12


def test_a_term_that_comes_or_goes_is_another_graph():
    case = cases.make("mlp")
    optimizer = torch.optim.SGD(case.model.parameters(), lr=0.1, momentum=0.9)
    step = fastmeta.MetaStep(
        case.model, make_labels(fastmeta.InstanceLabels, case), optimizer, label_lr=3.0, compile="trace"
    )
    for decay, graphs in ((0.0, 1), (0.1, 2), (0.01, 2), (0.0, 2)):
        optimizer.param_groups[0]["weight_decay"] = decay
        step(case.train, case.meta)
        assert step._graphs.compilations == graphs


@pytest.mark.parametrize("nesterov", [False, True])
@pytest.mark.parametrize("buffered", [False, True])
@pytest.mark.parametrize("decay", [0.0, 0.03])
def test_theta_star_of_numbers_in_a_graph(decay, buffered, nesterov):
    """The fused form for a GPU, the plain one for a CPU, and the one with floats."""
    torch.manual_seed(0)
    theta, grad, held = (torch.randn(4, 3, dtype=torch.float64) for _ in range(3))
    lr, mu, wd = (torch.tensor(x, dtype=torch.float64) for x in (0.1, 0.9, decay or 1.0))
    buffer = held if buffered else None
    floats = Rule(0.1, 0.9, 0.0, nesterov, decay, buffer)
    tensors = Rule(lr, mu, 0.0, nesterov, wd if decay else 0.0, buffer)
    (truth,) = _fused_ahead(floats, [theta], [grad], [held] if buffered else [])
    for got in (
        _fused_ahead(tensors, [theta], [grad], [held] if buffered else [])[0],
        sgd(tensors, [theta], [grad], [held] if buffered else [])[0][0],
    ):
        assert relative(got, truth) < 1e-14
    assert float(tensors.slope) == pytest.approx(floats.slope, rel=1e-14)
    assert PreparedLookAhead({"a": tensors, "b": copy.copy(tensors)}).uniform
    other = PreparedLookAhead({"a": tensors, "b": Rule(lr, mu.clone(), 0.0, nesterov, decay, buffer)})
    assert other.uniform == (not nesterov)  # two tensors may come to differ, where the slope hangs on them
