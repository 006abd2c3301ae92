"""Layers that are dropped by the toss of a coin, whoever tosses it, and from the second step on only."""

import copy
import os
import random

import numpy as np
import pytest
import torch
from torch import nn

import fastmeta
from fastmeta import reference
from fastmeta.meta import label_gradient
from fastmeta.meta.doubts import Unrepeatable
from tests.support import cases
from tests.support.meta import F64, make_labels, reference_gradient, relative
from tests.support.pairs import parametrize_some

SHARED = np.random.default_rng(5)  # of this module, as scripts have it


class Holder:
    """Holds a generator, as a config object would."""

    def __init__(self):
        self.inner = {"generators": [random.Random(7)]}


class Drops(nn.Module):
    """Residual layers, each skipped with probability `rate`."""

    def __init__(self, coin, layer):
        super().__init__()
        self.layers = nn.ModuleList(layer() for _ in range(6))
        self.head, self.coin, self.rate = nn.Linear(32, 10), coin, 0.0
        self.generator, self.random = np.random.default_rng(1), random.Random(2)
        self.legacy, self.held = np.random.RandomState(3), Holder()
        self.torch = {"mine": torch.Generator()}
        hidden = random.Random(4)
        self.closure = lambda: hidden.random()
        self.late = None

    def toss(self):
        if self.coin == "lazy" and self.late is None:
            self.late = random.Random(6)
        return {
            "python": random.random,
            "numpy": np.random.rand,
            "generator": self.generator.random,
            "Random": self.random.random,
            "RandomState": self.legacy.rand,
            "held": self.held.inner["generators"][0].random,
            "own": lambda: float(torch.rand((), generator=self.torch["mine"])),
            "torch": lambda: float(torch.rand(())),
            "closure": self.closure,
            "module": lambda: SHARED.random(),
            "late": lambda: self.late.random(),
            "lazy": lambda: self.late.random(),
            "urandom": lambda: os.urandom(1)[0] / 256,
            "system": random.SystemRandom().random,
        }[self.coin]()

    def forward(self, x):
        for layer in self.layers:
            if self.rate == 0 or self.toss() >= self.rate:
                x = x + torch.tanh(layer(x))
        return self.head(x.flatten(1))

    def seed(self, number):
        random.seed(number)
        np.random.seed(number)  # noqa: NPY002
        torch.manual_seed(number)
        for g in (self.generator, SHARED):
            g.bit_generator.state = np.random.default_rng(number).bit_generator.state
        self.legacy.seed(number)
        for g in (self.random, self.held.inner["generators"][0], self.closure.__closure__[0].cell_contents):
            g.seed(number)
        if self.coin == "late":  # a new one
            self.late = random.Random(number)
        self.torch["mine"].manual_seed(number)


COINS = ("python", "numpy", "generator", "Random", "RandomState", "held", "own", "torch", "closure", "module", "late")


def conv():
    return nn.Conv2d(2, 2, 3, padding=1)


def problem(coin, layer=conv):
    case = cases.make("groupnorm")
    case.model = Drops(coin, layer).to(F64)
    return case, make_labels(fastmeta.InstanceLabels, case)


def expected(case, labels, rate=0.3, label_lr=5.0):
    """Label rows and parameters after one step, by plain autograd, all forwards with the same seed."""
    model = case.model
    rows = labels.rows(case.index)
    sgd = reference.SGDState(rate)
    grad = reference.label_gradient(model, rows, reference.instance_probs, case.x, *case.meta, lookahead=sgd).grad
    rows = rows - label_lr * grad
    return rows


def parameters(case, rows, rate=0.3):
    params = dict(case.model.named_parameters())
    loss = reference.soft_cross_entropy(case.model(case.x), reference.instance_probs(rows))
    grads = torch.autograd.grad(loss, list(params.values()), allow_unused=True)
    return {k: p if g is None else p - rate * g for (k, p), g in zip(params.items(), grads, strict=True)}


WAYS = {
    "forward": {"tangent": "forward"},
    "reverse": {"tangent": "reverse"},
    "difference": {"tangent": "difference"},
    "in-turn": {"tangent": "reverse", "micro_batch": 12},
    "auto": {},
    "trace": {"compile": "trace"},
}


@pytest.mark.filterwarnings("ignore:compile='trace'. the step runs eagerly")
@parametrize_some(1, coin=COINS, way=WAYS)
def test_a_layer_drop_that_begins_later_is_replayed(coin, way):
    case, labels = problem(coin)
    model, losses = case.model, set()
    step = fastmeta.MetaStep(model, labels, torch.optim.SGD(model.parameters(), lr=0.3), label_lr=5.0, **WAYS[way])
    bound = 1e-4 if way == "difference" else 1e-10
    for number in range(4):
        model.rate = 0.5 if number else 0.0
        model.seed(number)
        rows = expected(case, labels)
        model.seed(number)
        after = {k: p.detach().clone() for k, p in parameters(case, rows).items()}
        model.seed(number)
        losses.add(float(step(case.train, case.meta).train_loss))
        assert relative(labels.rows(case.index), rows) < bound, number
        for k, p in model.named_parameters():
            assert torch.allclose(p, after[k], rtol=1e-9, atol=1e-5 if way == "difference" else 1e-12), (number, k)
    assert len(losses) == 4


@parametrize_some(
    1,
    coin=["python", "numpy", "generator", "Random", "closure", "lazy"],
    tangent=["forward", "reverse", "difference"],
)
def test_pieces_are_replayed_each_from_its_own_draws(coin, tangent):
    """A second forward of a piece with other draws would raise."""
    case, labels = problem(coin)
    model = case.model
    optimizer = torch.optim.SGD(model.parameters(), lr=0.3)
    step = fastmeta.MetaStep(model, labels, optimizer, label_lr=5.0, tangent=tangent, micro_batch=3)
    losses = set()
    for number in range(3):
        model.rate = 0.5 if number else 0.0
        losses.add(float(step(case.train, case.meta).train_loss))
    assert len(losses) == 3
    assert step.steps == 3


@pytest.mark.parametrize("coin", ["urandom", "system"])
@pytest.mark.parametrize(
    "kw",
    [{"tangent": "forward"}, {"tangent": "difference"}, {"tangent": "reverse", "micro_batch": 3}],
    ids=["forward", "difference", "pieces"],
)
def test_what_cannot_be_replayed_is_found_out(coin, kw):
    case, labels = problem(coin)
    model = case.model
    step = fastmeta.MetaStep(model, labels, torch.optim.SGD(model.parameters(), lr=0.3), label_lr=5.0, **kw)
    step(case.train, case.meta)
    model.rate, raised = 0.5, 0
    for _ in range(6):
        before = copy.deepcopy((model.state_dict(), labels.state_dict()))
        try:
            step(case.train, case.meta)
        except Unrepeatable:
            raised += 1
            for old, new in zip(before, (model.state_dict(), labels.state_dict()), strict=True):
                assert all(torch.equal(t, new[k]) for k, t in old.items())
    assert raised > 2  # a step tries twice, and six coins may fall alike


def test_what_cannot_be_replayed_is_said():
    case, labels = problem("urandom")
    case.model.rate = 0.5
    said = ""
    for _ in range(6):  # the coins of two calls may fall alike
        try:
            label_gradient(case.model, labels, case.train, case.meta, lr=0.3)
        except RuntimeError as error:
            said += str(error)
    assert "gives one batch other logits in a second call" in said
    assert "draws random numbers that cannot be replayed (os.urandom" in str(Unrepeatable())


@pytest.mark.parametrize("coin", ["urandom", "system"])
def test_the_reverse_way_looks_at_the_forward_itself(coin):
    case, labels = problem(coin)
    step = fastmeta.MetaStep(
        case.model, labels, torch.optim.SGD(case.model.parameters(), lr=0.3), label_lr=5.0, tangent="reverse"
    )
    for number in range(4):
        case.model.rate = 0.5 if number else 0.0
        assert bool(step(case.train, case.meta).finite)


@pytest.mark.parametrize("coin", COINS)
def test_label_gradient_and_check_replay_whatever_draws(coin):
    case, labels = problem(coin)
    case.model.rate = 0.5
    for tangent in ("forward", "reverse"):
        case.model.seed(11)
        truth = reference_gradient(case, labels, reference.SGDState(0.3))
        case.model.seed(11)
        out = label_gradient(case.model, labels, case.train, case.meta, lr=0.3, tangent=tangent)
        assert relative(out.grad, truth.grad) < 1e-10
    assert fastmeta.check(case.model, labels, case.train, case.meta, 0.3, timing=False).ok
