"""Which of a stage's state has a row for each training sample: what parts say of themselves."""

import pytest
import torch
from torch import nn

from fastmeta.losses import InstanceLabels, LabelTable, MomentumLabels
from fastmeta.training.parts import Part, Parts

N, C = 6, 3
TARGETS = torch.arange(N) % C


class Table(LabelTable):
    def __init__(self, start):
        super().__init__(start)
        self.register_buffer("held", start.rows(torch.arange(N)))

    def rows(self, index):
        return self.held[index]

    def write_(self, index, rows):
        self.held[index] = rows


class Spread(Table):
    row_state = frozenset({"held"})


class Averages(nn.Module):
    """A method's own, with one inside of it, a buffer beside the state_dict and one that is of no row."""

    row_state = frozenset({"mean", "seen"})

    def __init__(self, inside=None):
        super().__init__()
        self.register_buffer("mean", torch.zeros(N, C))
        self.register_buffer("seen", torch.zeros(N), persistent=False)
        self.register_buffer("count", torch.zeros(N), persistent=False)
        self.inside = inside


class Plain:
    row_state = frozenset({"kept", "of.inner"})

    def state_dict(self):
        return {"kept": torch.zeros(N), "other": torch.ones(N), "of": {"inner": torch.full((N,), 2.0)}, "n": 3}

    def load_state_dict(self, state):
        pass


def found(value):
    """Content of the tensors by row, by name."""
    part = Part("part", value)
    tensors, values = part.save()
    return {name: tensors[name] for name in part.by_row(values) if name in tensors}


def test_state_of_modules_and_of_others():
    assert found(Averages()).keys() == {"state.mean", "beside.1"}
    nested = Averages(Averages())
    nested.seen += 1
    nested.inside.seen += 2
    by_name = found(nested)
    assert {"state.mean", "state.inside.mean"} < by_name.keys()
    assert sorted(t[0].item() for name, t in by_name.items() if name.startswith("beside")) == [1, 2]
    assert sorted(t[0].item() for t in found(Plain()).values()) == [0, 2]
    # an optimizer of a parameter with rows
    rows = nn.Parameter(torch.zeros(N, C))
    optimizer = torch.optim.SGD([rows], lr=0.1, momentum=0.9)
    rows.grad = torch.ones(N, C)
    optimizer.step()
    optimizer.row_state = frozenset({"state.0.momentum_buffer"})
    assert [tuple(t.shape) for t in found(optimizer).values()] == [(N, C)]
    assert found(nn.Linear(2, N)) == {}
    parts = Parts({"a": Averages(), "b": Plain()})
    _, values = parts.save()
    assert {"a/state.mean", "a/beside.1", "b/0", "b/2"} <= parts.by_row(values)


def test_labels_of_every_family():
    assert {tuple(t.shape) for t in found(MomentumLabels(TARGETS, C)).values()} == {(N,), (N, C)}
    assert len(found(MomentumLabels(TARGETS, C))) == 3
    assert found(InstanceLabels(TARGETS, C)).keys() == {"state.targets", "state.label_logits"}
    assert found(InstanceLabels(TARGETS, C, table=Spread)).keys() == {"state.targets", "state.table.held"}


@pytest.mark.parametrize(("table", "says"), [(None, None), (Spread, None), (Table, "a Table of labels")])
def test_a_table_that_does_not_say_what_its_rows_are_stays_with_its_ranks(table, says):
    assert Parts({"model": nn.Linear(2, 2), "labels": InstanceLabels(TARGETS, C, table=table)}).of_few == says
