"""A step of torch's SGD by its fused kernel is that step, and is taken only where nobody can tell."""

import copy

import pytest
import torch
from torch import nn

from fastmeta.functional.optimizers import take_step
from tests.support.pairs import parametrize_some


def start(dtype=torch.float64, **options):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 4), nn.Linear(4, 3, bias=False)).to(dtype)
    return model, torch.optim.SGD(model.parameters(), **{"lr": 0.1, **options})


def give_grads(model, seed, skip=()):
    rng = torch.Generator().manual_seed(seed)
    for k, p in enumerate(model.parameters()):
        p.grad = None if k in skip else torch.randn(p.shape, generator=rng, dtype=torch.float64).to(p.dtype)


@pytest.fixture
def kernel(monkeypatch):
    """How often the fused kernel was called."""
    calls, own = [], torch._fused_sgd_

    def counted(*args, **kwargs):
        calls.append(1)
        return own(*args, **kwargs)

    monkeypatch.setattr(torch, "_fused_sgd_", counted)
    return calls


@parametrize_some(
    2,
    momentum=[0.0, 0.9],
    dampening=[0.0, 0.3],
    nesterov=[False, True],
    weight_decay=[0.0, 0.01],
    maximize=[False, True],
    dtype=[torch.float64, torch.float32],
)
def test_it_is_torchs_step(kernel, momentum, dampening, nesterov, weight_decay, maximize, dtype):
    nesterov = nesterov and momentum > 0 and dampening == 0
    model, optimizer = start(
        dtype,
        momentum=momentum,
        dampening=dampening,
        nesterov=nesterov,
        weight_decay=weight_decay,
        maximize=maximize,
    )
    twin = copy.deepcopy(model)
    theirs = torch.optim.SGD(twin.parameters(), **{k: v for k, v in optimizer.defaults.items()})
    for seed in range(4):
        give_grads(model, seed)
        give_grads(twin, seed)
        take_step(optimizer)
        before = len(kernel)
        theirs.step()
        assert len(kernel) == before
    assert len(kernel) == 4
    tolerance = 1e-14 if dtype == torch.float64 else 1e-6
    torch.testing.assert_close(model.state_dict(), twin.state_dict(), rtol=tolerance, atol=tolerance)
    mine, its = optimizer.state_dict(), theirs.state_dict()
    assert mine["param_groups"] == its["param_groups"]
    torch.testing.assert_close(mine["state"], its["state"], rtol=tolerance, atol=tolerance)


def test_a_parameter_without_a_gradient_stays(kernel):
    model, optimizer = start(momentum=0.9)
    give_grads(model, 0, skip=(1,))
    bias = model[0].bias.detach().clone()
    take_step(optimizer)
    assert torch.equal(bias, model[0].bias)
    assert len(kernel) == 1
    give_grads(model, 1)  # one buffer starts now, beside others that are there: the kernel starts all or none
    take_step(optimizer)
    assert len(kernel) == 1


def transposed(model, optimizer):
    model[0].weight.grad = model[0].weight.grad.t().contiguous().t()


def scheduled(model, optimizer):
    torch.optim.lr_scheduler.StepLR(optimizer, 10)


def pre_hook(model, optimizer):
    optimizer.register_step_pre_hook(lambda *args: None)


def post_hook(model, optimizer):
    optimizer.register_step_post_hook(lambda *args: None)


def asked_for_loops(model, optimizer):
    optimizer.param_groups[0]["foreach"] = False


def rate_as_tensor(model, optimizer):
    optimizer.param_groups[0]["lr"] = torch.tensor(0.1, dtype=torch.float64)


@pytest.mark.parametrize("change", [transposed, scheduled, pre_hook, post_hook, asked_for_loops, rate_as_tensor])
def test_everything_else_is_left_to_torch(kernel, change):
    model, optimizer = start(momentum=0.9)
    give_grads(model, 0)
    twin, theirs = start(momentum=0.9)
    give_grads(twin, 0)
    change(model, optimizer)
    take_step(optimizer)
    theirs.step()
    assert not kernel
    torch.testing.assert_close(model.state_dict(), twin.state_dict(), rtol=1e-14, atol=1e-14)


def test_a_step_of_ones_own(kernel):
    class Own(torch.optim.SGD):
        def step(self, closure=None):
            calls.append(1)

    calls = []
    model, _ = start()
    give_grads(model, 0)
    take_step(Own(model.parameters(), lr=0.1))
    assert calls == [1]
    assert not kernel
