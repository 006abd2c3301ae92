"""A teacher of labels: held against plain autograd, and against the published program's step."""

import copy

import pytest
import torch
import torch.nn.functional as F

import fastmeta
from tests.support.cases import make
from tests.support.losses import LR, assert_exact, same


def teacher_of(case):
    torch.manual_seed(1)
    network = copy.deepcopy(case.model)
    with torch.no_grad():
        for p in network.parameters():
            p.add_(0.1 * torch.randn_like(p))
    return fastmeta.LabelTeacher(case.targets, case.num_classes, network, embedding=7, hidden=9).double()


@pytest.mark.parametrize("model", ["mlp", "resnet"])
def test_the_gradient_is_that_of_autograd_through_the_look_ahead(model):
    case = make(model, 5)
    assert_exact(teacher_of(case), case)


def published(model, loss, optimizer, sgd, case):
    """The program of Taraday and Baskin for one step, without its clean loss: student, then a tangent, then teacher.

    Forward derivatives of the log-probabilities at the old student, along the gradient at the new one.
    """
    given = case.targets[case.index]
    features = loss.network[:-1](case.x)
    trust = torch.sigmoid(loss.retention.net(torch.cat([features, loss.retention.embedding(given)], 1)))
    p = trust * F.one_hot(given, 5) + (1 - trust) * loss.network[-1](features).softmax(1)
    old = {name: v.detach().clone() for name, v in model.named_parameters()}
    optimizer.zero_grad()
    F.cross_entropy(model(case.x), p.detach()).backward()
    optimizer.step()
    named = dict(model.named_parameters())
    g = torch.autograd.grad(F.cross_entropy(model(case.x_meta), case.y_meta), list(named.values()))
    log_q = lambda params: torch.func.functional_call(model, params, (case.x,)).log_softmax(1)  # noqa: E731
    _, tangent = torch.func.jvp(log_q, (old,), (dict(zip(named, g, strict=True)),))
    sgd.zero_grad()
    (LR * (tangent.detach() * p).sum(1).mean()).backward()
    sgd.step()


def test_whole_iterations_are_those_of_the_published_program():
    case = make("mlp", 5)

    def made():
        model, loss = copy.deepcopy(case.model), teacher_of(case)
        optimizer = torch.optim.SGD(model.parameters(), lr=LR, momentum=0.9, weight_decay=1e-3)
        return model, loss, optimizer, torch.optim.SGD(loss.parameters(), lr=0.5)

    model, loss, optimizer, sgd = made()
    step = fastmeta.MetaStep(model, loss, optimizer, loss_optimizer=sgd, lookahead="optimizer", approx="delayed")
    naive, its_loss, *its_optimizers = made()
    start = copy.deepcopy(its_loss)
    for _ in range(3):
        assert bool(step(case.train, case.meta).finite)
        published(naive, its_loss, *its_optimizers, case)
    same(loss, its_loss)
    same(model, naive)
    assert float((loss.network[0].weight - start.network[0].weight).detach().norm()) > 1e-4


def test_a_label_lies_between_the_given_one_and_the_teachers():
    case = make("mlp", 5)
    loss, logits = teacher_of(case), torch.randn(len(case.index), 5, dtype=torch.float64)
    p, given = loss.probs(case.index, case.x), case.targets[case.index]
    torch.testing.assert_close(p.sum(1), torch.ones(len(p), dtype=torch.float64))
    torch.testing.assert_close(loss(logits, case.index, case.x), -(p * logits.log_softmax(1)).sum(1))
    q = loss.network(case.x).softmax(1)
    for bias, wanted in ((1e3, F.one_hot(given, 5).double()), (-1e3, q)):
        with torch.no_grad():
            loss.retention.net[2].bias.fill_(bias)
        torch.testing.assert_close(loss.probs(case.index, case.x), wanted)
    assert "last=4" in repr(loss)


def test_its_loss_on_clean_rows_teaches_the_network_and_what_to_keep():
    case = make("mlp", 5)
    loss, (x, y) = teacher_of(case), case.meta
    z = loss.network(x)
    torch.testing.assert_close(loss.clean_loss(x, y), F.cross_entropy(z, y))
    ranks = z.argsort(1, descending=True)
    likeliest = torch.where(ranks[:, 0] == y, ranks[:, 1], ranks[:, 0])
    drawn = torch.arange(len(y)) % 5
    for injection, other in (("adversarial", likeliest), ("random", drawn)):
        label = y.clone()
        label[::2] = other[::2]
        seen = torch.cat([loss.network[:-1](x), loss.retention.embedding(label)], 1)
        trust = torch.sigmoid(loss.retention.net(seen))[:, 0]
        wanted = F.cross_entropy(z, y) + F.binary_cross_entropy(trust, (label == y).double())
        torch.testing.assert_close(loss.clean_loss(x, y, injection, drawn), wanted)


def test_wrong_arguments_are_named():
    targets, network = torch.tensor([0, 1]), torch.nn.Linear(3, 2)
    for arguments, message in (
        ({"hidden": 0}, "hidden must be a whole number from 1 on, got 0"),
        ({"embedding": 1.5}, "embedding must be a whole number from 1 on, got 1.5"),
        ({"num_classes": 3}, r"needs a torch.nn.Linear with 3 outputs, whose input are the features; Linear has none"),
    ):
        with pytest.raises(ValueError, match=message):
            fastmeta.LabelTeacher(**{"targets": targets, "num_classes": 2, "network": network, **arguments})
    loss = fastmeta.LabelTeacher(targets, 2, network)
    x = torch.zeros(2, 3)
    with pytest.raises(ValueError, match="injection must be none, adversarial or random, got 'some'"):
        loss.clean_loss(x, targets, "some")
    with pytest.raises(ValueError, match=r"injection=random takes drawn, labels \(m,\)"):
        loss.clean_loss(x, targets, "random")
    pooled = torch.nn.Sequential(torch.nn.Linear(3, 2), torch.nn.AdaptiveAvgPool2d((1, 2)), torch.nn.Flatten())
    with pytest.raises(
        ValueError, match=r"last layer 0 must be given features \(n, d\) once for 2 rows, got \(2, 4, 3\)"
    ):
        fastmeta.LabelTeacher(targets, 2, pooled).see(torch.zeros(2, 4, 3))
