"""The optimizer's step that may have to be put back without anybody looking at the flag, as on CUDA."""

import copy

import pytest
import torch

from fastmeta.functional.network import Network
from fastmeta.meta.update import update
from tests.support import cases

OPTIMIZERS = {
    "sgd": lambda p: torch.optim.SGD(p, lr=0.1),
    "nesterov": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, nesterov=True, weight_decay=1e-2),
    "adam": lambda p: torch.optim.Adam(p, lr=0.1),
}


def problem(kind):
    model = cases.make("resnet").model
    return model, Network(model), OPTIMIZERS[kind](model.parameters())


def take(network, optimizer, seed, keep, bad=False):
    rng = torch.Generator().manual_seed(seed)
    grads = {k: torch.randn(p.shape, generator=rng, dtype=p.dtype) for k, p in network.params.items()}
    moved = network.state()
    moved.update([(k, b + 1) for k, b in moved.items()])
    if bad:
        for g in grads.values():
            g.view(-1)[0] = torch.nan
    update(network, optimizer, grads, moved, keep)


def state(model, optimizer):
    inner = [t for s in optimizer.state.values() for k, t in s.items() if k != "step"]
    return [*model.state_dict().values(), *inner]


@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_a_step_that_counts_is_the_optimizers(kind):
    (a, network, plain), (b, other, masked) = problem(kind), problem(kind)
    for seed in range(2):
        take(network, plain, seed, None)
        take(other, masked, seed, torch.tensor(True))
    assert all(map(torch.equal, state(a, plain), state(b, masked)))
    assert all(p.grad is None for p in a.parameters())


@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_one_that_does_not_leaves_every_bit(kind):
    model, network, optimizer = problem(kind)
    take(network, optimizer, 0, torch.tensor(True))
    before = copy.deepcopy(state(model, optimizer))
    take(network, optimizer, 1, torch.tensor(False), bad=True)
    assert all(map(torch.equal, state(model, optimizer), before))


@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_what_the_optimizer_makes_in_such_a_step_starts_from_zero(kind):
    model, network, optimizer = problem(kind)
    before = copy.deepcopy(list(model.state_dict().values()))
    take(network, optimizer, 0, torch.tensor(False), bad=True)
    after = state(model, optimizer)
    assert all(map(torch.equal, after, before))
    assert not any(t.any() for t in after[len(before) :])
