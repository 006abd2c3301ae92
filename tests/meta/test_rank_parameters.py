"""A loss of the user's whose parameters are by row, on ranks that have rows of their own."""

import pytest
import torch
from torch.nn.functional import cross_entropy

import fastmeta
from fastmeta.distributed import ALONE, Ranks
from fastmeta.meta.demands import check_own_rows

ROWS = 6
TARGETS = torch.arange(ROWS) % 3


class SampleWeights(fastmeta.LearnableLoss):
    def __init__(self, count=ROWS):
        super().__init__()
        self.register_buffer("targets", TARGETS)
        self.weight = torch.nn.Parameter(torch.ones(count))

    def forward(self, logits, index, x=None):
        return self.weight[index % len(self.weight)] * cross_entropy(logits, self.targets[index], reduction="none")


class SaysSo(SampleWeights):
    row_state = frozenset({"targets", "weight"})


class SaysNot(SampleWeights):
    row_state = frozenset({"targets"})


@pytest.fixture
def two():
    ranks = Ranks(None)
    ranks.size = 2
    return ranks


@pytest.mark.parametrize("loss", [SampleWeights(), SaysSo()])
def test_parameters_by_row_are_not_averaged_over_ranks(loss, two):
    says = rf"{type(loss).__name__}\.weight has a number for each of the 6 rows .* one process .*row_state"
    with pytest.raises(ValueError, match=says):
        check_own_rows(loss, two, True)


def test_other_parameters_and_rows_that_all_have_are_as_ever(two):
    check_own_rows(SampleWeights(), two, False)
    check_own_rows(SampleWeights(), ALONE, True)
    check_own_rows(SampleWeights(3), two, True)
    check_own_rows(SaysNot(), two, True)
    check_own_rows(fastmeta.WeightingNet(TARGETS, 3, hidden=ROWS), two, True)  # as many hidden units as rows
    check_own_rows(fastmeta.InstanceLabels(TARGETS, 3, 0.7), two, True)


@pytest.mark.parametrize("make", ["step_arguments", "epoch"])
def test_a_step_and_an_epoch_ask(make, monkeypatch):
    asked = []
    monkeypatch.setattr(f"fastmeta.meta.{make}.check_own_rows", lambda *a: asked.append(a[2]))
    model, loss = torch.nn.Linear(2, 3), SampleWeights()
    own = torch.optim.SGD(loss.parameters(), lr=0.1)
    if make == "step_arguments":
        fastmeta.MetaStep(model, loss, torch.optim.SGD(model.parameters(), 0.1), loss_optimizer=own, own_rows=True)
    else:
        fastmeta.EpochLookahead(model, loss, loss_optimizer=own, own_rows=True)
    assert asked == [True]
