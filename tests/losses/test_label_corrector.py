"""A label corrector: held against plain autograd, and against the published program's step."""

import copy

import pytest
import torch
import torch.nn.functional as F

import fastmeta
from tests.support.cases import make
from tests.support.losses import LR, assert_exact, same


def corrector_of(case, features="logits"):
    torch.manual_seed(1)
    size = case.x.flatten(1).shape[1] if features == "input" else None
    made = fastmeta.LabelCorrector(
        case.targets, case.num_classes, features=features, input_size=size, embedding=7, hidden=9
    )
    return made.double()


def optimizers(model, loss):
    own = torch.optim.SGD(model.parameters(), lr=LR, momentum=0.9, weight_decay=1e-3)
    return own, torch.optim.Adam(loss.parameters(), lr=0.05)


@pytest.mark.parametrize("features", ["logits", "input"])
@pytest.mark.parametrize("model", ["mlp", "resnet"])
def test_the_gradient_is_that_of_autograd_through_the_look_ahead(model, features):
    case = make(model, 5)
    assert_exact(corrector_of(case, features), case)


def published(model, loss, optimizer, adam, case, *, before):
    """The program of Zheng et al. for one look-ahead step; `before`: the model moves by the labels of before, as there.

    Else it moves by those of after, on the same batch.
    """
    features = lambda z: z.detach().softmax(1) if loss.features == "logits" else case.x.flatten(1)  # noqa: E731
    given = case.targets[case.index]

    def mean_loss():
        z = model(case.x)
        p = loss.net(torch.cat([features(z), loss.embedding(given)], 1)).softmax(1)
        return -(p * z.log_softmax(1)).sum(1).mean()

    named = dict(model.named_parameters())
    grads = torch.autograd.grad(mean_loss(), list(named.values()), create_graph=True)
    ahead = {}
    for (name, p), g in zip(named.items(), grads, strict=True):
        if before:  # the look-ahead is the optimizer's own step
            buffer = optimizer.state[p].get("momentum_buffer", torch.zeros_like(p)).clone()
            ahead[name] = p - LR * (0.9 * buffer + g + 1e-3 * p)
        else:
            ahead[name] = p - LR * g
    adam.zero_grad()
    F.cross_entropy(torch.func.functional_call(model, ahead, (case.x_meta,)), case.y_meta).backward()
    adam.step()
    optimizer.zero_grad()
    if before:
        for p, g in zip(named.values(), grads, strict=True):
            p.grad = g.detach().clone()
    else:
        mean_loss().backward()
    optimizer.step()


@pytest.mark.parametrize(
    ("variant", "features", "before"),
    [
        ({}, "logits", False),
        ({"micro_batch": 5}, "input", False),
        ({"approx": "delayed", "lookahead": "optimizer"}, "logits", True),
        pytest.param({"compile": "trace"}, "logits", False, marks=pytest.mark.slow),
        pytest.param({"compile": "trace"}, "input", False, marks=pytest.mark.slow),
    ],
)
def test_whole_iterations_and_those_of_the_published_program(variant, features, before):
    case = make("mlp", 5)
    model, loss = copy.deepcopy(case.model), corrector_of(case, features)
    optimizer, adam = optimizers(model, loss)
    step = fastmeta.MetaStep(model, loss, optimizer, loss_optimizer=adam, **variant)
    naive, its_loss = copy.deepcopy(case.model), corrector_of(case, features)
    its_optimizers = optimizers(naive, its_loss)
    for _ in range(3):
        result = step(case.train, case.meta)
        published(naive, its_loss, *its_optimizers, case, before=before)
    assert bool(result.finite)
    assert not step.eager_because
    same(loss, its_loss)
    same(model, naive)


def test_a_corrected_label_is_a_distribution():
    case = make("mlp", 5)
    loss = fastmeta.LabelCorrector(case.targets, 5)
    logits = torch.randn(len(case.index), 5, dtype=torch.float64)
    p = loss.probs(logits, case.index)
    assert p.dtype == torch.float64
    torch.testing.assert_close(p.sum(1), torch.ones(len(p), dtype=torch.float64), rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(loss(logits, case.index), -(p * logits.log_softmax(1)).sum(1))
    assert "features=logits" in repr(loss)


def test_wrong_arguments_are_named():
    targets = torch.tensor([0, 1])
    for arguments, message in (
        ({"hidden": 0}, "hidden must be a whole number from 1 on, got 0"),
        ({"embedding": 1.5}, "embedding must be a whole number from 1 on, got 1.5"),
        ({"features": "hidden"}, "features must be logits or input, got 'hidden'"),
        ({"features": "input"}, "input_size is the numbers in one x for features=input, got features=input and .*None"),
        ({"input_size": 3}, "input_size is the numbers in one x for features=input, got features=logits"),
        ({"features": "input", "input_size": 0}, "input_size must be a whole number from 1 on, got 0"),
    ):
        with pytest.raises(ValueError, match=message):
            fastmeta.LabelCorrector(targets, 2, **arguments)
    loss = fastmeta.LabelCorrector(targets, 2, features="input", input_size=3)
    with pytest.raises(ValueError, match=r"features=input take an x that is one tensor \(n, ...\), got dict"):
        loss(torch.zeros(2, 2), torch.arange(2), {"x": torch.zeros(2, 3)})
