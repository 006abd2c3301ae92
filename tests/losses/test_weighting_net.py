"""A weighting net: held against the paper's algorithm in plain autograd."""

import copy

import pytest
import torch
import torch.nn.functional as F

import fastmeta
from tests.support.cases import make
from tests.support.losses import LR, assert_exact, same


def net_of(case, normalise):
    torch.manual_seed(1)
    return fastmeta.WeightingNet(case.targets, case.num_classes, hidden=20, normalise=normalise).double()


def optimizers(model, loss):
    own = torch.optim.SGD(model.parameters(), lr=LR, momentum=0.9, weight_decay=1e-3)
    return own, torch.optim.Adam(loss.parameters(), lr=0.05, weight_decay=1e-3)


@pytest.mark.parametrize("normalise", ["n", "sum"])
@pytest.mark.parametrize("model", ["mlp", "resnet"])
def test_the_gradient_is_that_of_autograd_through_the_look_ahead(model, normalise):
    case = make(model, 5)
    assert_exact(net_of(case, normalise), case)


def published(model, loss, optimizer, adam, case, normalise):
    """The algorithm of Shu et al. as it is written: a virtual step, the net's step, then the weights anew."""
    losses_of = lambda: F.cross_entropy(model(case.x), case.targets[case.index], reduction="none")  # noqa: E731

    def weights_of(losses):
        w = loss.net(losses.detach()[:, None])[:, 0]
        return w / (len(w) if normalise == "n" else w.sum())

    losses = losses_of()
    grads = torch.autograd.grad((weights_of(losses) * losses).sum(), list(model.parameters()), create_graph=True)
    ahead = {k: p - LR * g for (k, p), g in zip(model.named_parameters(), grads, strict=True)}
    adam.zero_grad()
    F.cross_entropy(torch.func.functional_call(model, ahead, (case.x_meta,)), case.y_meta).backward()
    adam.step()
    losses = losses_of()
    optimizer.zero_grad()
    (weights_of(losses).detach() * losses).sum().backward()
    optimizer.step()


@pytest.mark.parametrize(
    ("variant", "normalise"),
    [
        ({}, "n"),
        ({}, "sum"),
        ({"micro_batch": 5}, "sum"),
        pytest.param({"compile": "trace"}, "sum", marks=pytest.mark.slow),
    ],
)
def test_whole_iterations_are_those_of_the_paper(variant, normalise):
    case = make("mlp", 5)
    model, loss = copy.deepcopy(case.model), net_of(case, normalise)
    optimizer, adam = optimizers(model, loss)
    step = fastmeta.MetaStep(model, loss, optimizer, loss_optimizer=adam, **variant)
    naive, its_loss = copy.deepcopy(case.model), net_of(case, normalise)
    its_optimizers = optimizers(naive, its_loss)
    for _ in range(3):
        result = step(case.train, case.meta)
        published(naive, its_loss, *its_optimizers, case, normalise)
    assert bool(result.finite)
    assert not step.eager_because
    same(loss, its_loss)
    same(model, naive)


@pytest.mark.parametrize("normalise", ["n", "sum"])
def test_weights_that_all_underflow_are_zero_and_the_step_is_finite(normalise):
    case = make("mlp", 5)
    model, loss = copy.deepcopy(case.model), net_of(case, normalise)
    with torch.no_grad():
        loss.net[2].bias.fill_(-1e4)
    optimizer, adam = optimizers(model, loss)
    result = fastmeta.MetaStep(model, loss, optimizer, loss_optimizer=adam)(case.train, case.meta)
    assert bool(result.finite)
    assert float(result.train_loss) == 0


def test_a_pull_that_all_rows_share_raises_weights_that_are_divided_by_n_alone():
    case = make("mlp", 5)
    logits = torch.randn(len(case.index), 5, dtype=torch.float64)
    v = logits.softmax(1) - F.one_hot(case.targets[case.index], 5)
    u = v / v.square().sum(1, keepdim=True)  # <v_i, u_i> = 1
    slopes = {}
    for normalise in ("n", "sum"):
        head = net_of(case, normalise).head(case.index, case.x, None)
        head.loss(logits)
        slopes[normalise] = max(float(g.abs().max()) for g in head.gradient(logits, u, 1.0).values())
    assert slopes["n"] > 1e-2
    assert slopes["sum"] < 1e-12


def test_a_float32_net_takes_float64_logits():
    case = make("mlp", 5)
    loss = fastmeta.WeightingNet(case.targets, 5)
    made = loss(torch.randn(len(case.index), 5, dtype=torch.float64), case.index)
    assert made.dtype == torch.float64
    assert loss.weight(torch.tensor([0.0, 1.0])).shape == (2,)
    assert "normalise=n" in repr(loss)


def test_wrong_arguments_are_named():
    targets = torch.tensor([0, 1])
    for arguments, message in (
        ({"hidden": 0}, "hidden must be a whole number from 1 on, got 0"),
        ({"normalise": "mean"}, "normalise must be n or sum, got 'mean'"),
        ({"num_classes": 1}, "num_classes must be a whole number of at least 2"),
        ({"targets": targets.float()}, "targets must be a vector of class numbers"),
    ):
        with pytest.raises(ValueError, match=message):
            fastmeta.WeightingNet(**{"targets": targets, "num_classes": 2, **arguments})
