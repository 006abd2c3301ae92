"""LabelPosterior: what it finds, what it leaves alone, what it refuses."""

import pytest
import torch
from torch import nn

import fastmeta
from fastmeta.posterior import LabelPosterior


def problem(seed=0, rows=600, clean=30, rate=0.4, dim=8):
    """Three clouds; the given labels of each class go over to the next at `rate`."""
    g = torch.Generator().manual_seed(seed)
    centres = 2 * torch.randn(3, dim, generator=g)

    def draw(count):
        y = torch.arange(count) % 3
        return centres[y] + torch.randn(count, dim, generator=g), y

    (x, true), (x_meta, y_meta) = draw(rows), draw(clean)
    given = torch.where(torch.rand(rows, generator=g) < rate, (true + 1) % 3, true)
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(dim, 32), nn.BatchNorm1d(32), nn.ReLU(), nn.Dropout(0.1), nn.Linear(32, 3))
    labels = fastmeta.InstanceLabels(given, 3, 0.9)
    optimizer = torch.optim.SGD(model.parameters(), 0.1, 0.9)
    for _ in range(3):
        for index in torch.randperm(rows, generator=g).split(50):
            optimizer.zero_grad()
            labels(model(x[index]), index).mean().backward()
            optimizer.step()
    return model, labels, x, true, (x_meta, y_meta)


def batches(x, size=256):
    return [(x[i], i) for i in torch.arange(len(x)).split(size)]


def test_labels_get_better_and_the_noise_is_told():
    model, labels, x, true, clean = problem()
    estimate = LabelPosterior(model, labels).estimate(batches(x), clean)
    given = labels.targets
    before, after = (given == true).double().mean(), (estimate.labels(given) == true).double().mean()
    assert before < 0.65
    assert after > 0.93
    assert estimate.right == pytest.approx(float(before), abs=0.05)
    assert torch.allclose(estimate.transition.diagonal(), torch.full((3,), 0.6).double(), atol=0.12)
    assert torch.allclose(estimate.probs.sum(1), torch.ones(len(x)))
    assert torch.allclose(estimate.mixed(0.3), 0.7 * estimate.probs + 0.3 * estimate.predicted)
    assert estimate.clean_accuracy > 0.9


def test_nothing_else_moves():
    model, labels, x, _, clean = problem()
    model.train()
    before = {k: v.clone() for k, v in (*model.state_dict().items(), *labels.state_dict().items())}
    state = torch.get_rng_state()
    first = LabelPosterior(model, labels).estimate(batches(x), clean)
    assert model.training
    assert torch.equal(torch.get_rng_state(), state)
    after = {**model.state_dict(), **labels.state_dict()}
    assert all(torch.equal(after[k], v) for k, v in before.items())
    again = LabelPosterior(model, labels).estimate(batches(x), clean)
    assert torch.equal(first.probs, again.probs)


def test_held_out_rows_are_not_the_copys():
    """A network that can learn its clean rows by heart is no surer for it: pure noise gives an accuracy of chance."""
    g = torch.Generator().manual_seed(0)
    x, x_meta = torch.randn(300, 4, generator=g), torch.randn(90, 50, generator=g)[:, :4]
    y, y_meta = torch.randint(3, (300,), generator=g), torch.randint(3, (90,), generator=g)
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 256), nn.ReLU(), nn.Linear(256, 3))
    labels = fastmeta.InstanceLabels(y, 3, 0.9)
    estimate = LabelPosterior(model, labels, steps=300, lr=0.1).estimate(batches(x), (x_meta, y_meta))
    assert estimate.clean_accuracy < 0.5
    assert estimate.predicted.max() < 0.7
    assert (estimate.labels(y) == y).double().mean() > 0.9


def test_assigned_labels_are_what_was_assigned():
    _, labels, x, _, _ = problem()
    p = torch.rand(len(x), 3).softmax(1)
    rows = torch.arange(len(x))
    labels.assign_(rows, p)
    assert torch.allclose(labels.probs(), p, atol=1e-6)
    labels.assign_(rows[:1], torch.tensor([[1.0, 0.0, 0.0]]))
    assert labels.probs(rows[:1])[0, 0] > 0.999
    assert labels.label_logits.isfinite().all()


def test_inputs_of_any_kind():
    class Named(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = nn.Linear(8, 3)

        def forward(self, features):
            return self.net(features)

    _, labels, x, _, (x_meta, y_meta) = problem()
    train = [({"features": part}, index) for part, index in batches(x)]
    estimate = LabelPosterior(Named(), labels).estimate(train, (lambda rows: {"features": x_meta[rows]}, y_meta))
    assert estimate.probs.shape == (len(x), 3)
    clean = (lambda rows: {"features": x_meta[rows]}, y_meta)
    by_function = LabelPosterior(Named(), labels).estimate(lambda: iter(train), clean)
    assert by_function.probs.shape == (len(x), 3)


def test_refusals():
    model, labels, x, _, clean = problem()
    posterior = LabelPosterior(model, labels)
    with pytest.raises(ValueError, match="each of the 600 rows once, got 88 of them never and 0 more than once"):
        posterior.estimate(batches(x)[:2], clean)
    with pytest.raises(ValueError, match="0 of them never and 256 more than once"):
        posterior.estimate([*batches(x), batches(x)[0]], clean)
    with pytest.raises(ValueError, match="at least 2 clean rows"):
        posterior.estimate(batches(x), (clean[0][:1], clean[1][:1]))
    with pytest.raises(TypeError, match="hold given labels, got Linear"):
        LabelPosterior(model, nn.Linear(2, 2))
    with pytest.raises(ValueError, match="folds must be a whole number from 2 on, got 1"):
        LabelPosterior(model, labels, folds=1)
    with pytest.raises(ValueError, match="trust must be None, or finite"):
        LabelPosterior(model, labels, trust=-1)
    x[5] = torch.nan
    with pytest.raises(FloatingPointError, match="1 training rows"):
        posterior.estimate(batches(x), clean)


def test_a_clean_row_that_is_not_finite_is_told():
    """Also where the copies' steps have not met it."""
    model, labels, x, _, (x_meta, y_meta) = problem()
    look = LabelPosterior(model, labels)
    ahead, few = look.lookahead.ahead, (x_meta[:9], y_meta[:9])
    look.lookahead.ahead = lambda meta: ahead(few)
    x_meta = x_meta.clone()
    x_meta[20] = torch.nan
    with pytest.raises(FloatingPointError, match="1 clean rows"):
        look.estimate(batches(x), (x_meta, y_meta))
