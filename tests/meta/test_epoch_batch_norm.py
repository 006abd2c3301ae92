"""Clean steps under the statistics of the batch, held against plain torch."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import fastmeta

F64 = torch.float64


class Normed(nn.Module):
    """Two BatchNorms, the second of them frozen in evaluation mode, and a dropout."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(3)
        self.first, self.second = nn.BatchNorm1d(16), nn.BatchNorm1d(16)
        self.a, self.b, self.c = nn.Linear(6, 16), nn.Linear(16, 16), nn.Linear(16, 4)
        self.drop = nn.Dropout(0.5)
        self.to(F64)
        for norm in (self.first, self.second):
            norm.running_mean.uniform_(-1, 1)
            norm.running_var.uniform_(0.5, 2)
        self.second.eval()

    def forward(self, x):
        return self.c(self.drop(torch.tanh(self.second(self.b(torch.tanh(self.first(self.a(x))))))))


def problem(rows):
    torch.manual_seed(4)
    model, x = Normed(), torch.randn(10, 6, dtype=F64)
    labels = fastmeta.InstanceLabels(torch.randint(4, (10,)), 4, 0.7, dtype=F64)
    clean = [(torch.randn(rows, 6, dtype=F64), torch.randint(4, (rows,))) for _ in range(3)]
    return model, labels, x, clean


def naive(model, x, clean, *, by_batch):
    """Change of the logits of x behind SGD steps of a copy."""
    ahead = copy.deepcopy(model).eval()
    optimizer = torch.optim.SGD(ahead.parameters(), lr=0.1, momentum=0.9)
    for x_meta, y_meta in clean:
        ahead.first.train(by_batch)
        loss = F.cross_entropy(ahead(x_meta), y_meta)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    with torch.no_grad():
        return ahead.eval()(x) - copy.deepcopy(model).eval()(x)


@pytest.mark.parametrize(("rows", "by_batch"), [(8, True), (7, False)])
def test_batch_norm_takes_the_statistics_of_clean_batches_of_eight(rows, by_batch):
    model, labels, x, clean = problem(rows)
    before = copy.deepcopy(model.state_dict())
    lookahead = fastmeta.EpochLookahead(model, labels, steps=3, lr=0.1, batch_statistics=True)
    (change,) = lookahead.changes([(x, torch.arange(10))], clean)
    want = naive(model, x, clean, by_batch=by_batch)
    torch.testing.assert_close(change.change, want, rtol=1e-10, atol=1e-12)
    assert not torch.allclose(want, naive(model, x, clean, by_batch=not by_batch), atol=1e-3)
    assert [m.training for m in (model, model.first, model.second, model.drop)] == [True, True, False, True]
    assert all(torch.equal(before[k], v) for k, v in model.state_dict().items())


def test_by_default_running_statistics_serve():
    model, labels, x, clean = problem(8)
    (change,) = fastmeta.EpochLookahead(model, labels, steps=3, lr=0.1).changes([(x, torch.arange(10))], clean)
    torch.testing.assert_close(change.change, naive(model, x, clean, by_batch=False), rtol=1e-10, atol=1e-12)


def test_a_model_in_evaluation_mode_stays_so():
    model, labels, x, clean = problem(8)
    model.eval()
    lookahead = fastmeta.EpochLookahead(model, labels, steps=3, lr=0.1, batch_statistics=True)
    (change,) = lookahead.changes([(x, torch.arange(10))], clean)
    torch.testing.assert_close(change.change, naive(model, x, clean, by_batch=False), rtol=1e-10, atol=1e-12)


def test_a_posterior_steps_by_the_batch():
    model, labels, x, clean = problem(30)
    estimate = fastmeta.LabelPosterior(model, labels, steps=3, lr=0.1).estimate([(x, torch.arange(10))], clean[0])
    frozen = copy.deepcopy(model)
    frozen.first.eval()
    other = fastmeta.LabelPosterior(frozen, labels, steps=3, lr=0.1).estimate([(x, torch.arange(10))], clean[0])
    assert not torch.allclose(estimate.predicted, other.predicted, atol=1e-3)
