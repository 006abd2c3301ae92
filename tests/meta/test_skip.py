"""Skip or step, by one rule: loss, gradients and the buffers that would be written are finite, or nothing changes."""

import copy

import pytest
import torch
from torch import nn

import fastmeta
from tests.support.capture import Recorder

ROWS, META = 8, 12


class Normed(nn.Module):
    """Scores that BatchNorm divides by their size: huge ones have a finite loss and an infinite variance."""

    def __init__(self):
        super().__init__()
        self.body, self.norm, self.head = nn.Linear(6, 5), nn.BatchNorm1d(5), nn.Linear(5, 3)
        self.register_buffer("mask", torch.full((3, 3), -torch.inf).triu(1))  # what is infinite from the start may stay

    def forward(self, x):
        return self.head(torch.tanh(self.norm(self.body(x))))


class Rooted(nn.Module):
    """A root, whose slope is infinite at zero: logits are finite where the gradient is not."""

    def __init__(self):
        super().__init__()
        self.body, self.head = nn.Linear(6, 5), nn.Linear(5, 3)

    def forward(self, x):
        return self.head(self.body(x).clamp(min=0.1).sqrt() + (self.body.weight.sum() * x[:, :1]).abs().sqrt())


WAYS = {
    "exact": {},
    "forward": {"tangent": "forward"},
    "reverse": {"tangent": "reverse"},
    "difference": {"approx": "difference"},
    "delayed": {"approx": "delayed"},
    "between": {"approx": "every:3"},
    "last": {"approx": "last:1"},
    "no look-ahead": {"lookahead": 0.0},
    "pieces": {"micro_batch": 5},
    "pieces, difference": {"micro_batch": 5, "approx": "difference"},
    "pieces, last": {"micro_batch": 5, "approx": "last:1"},
    "pieces, between": {"micro_batch": 5, "approx": "every:3"},
}
CASES = (
    [(way, "off") for way in WAYS] + [(way, "trace") for way in ("exact", "between", "last")] + [("exact", "captured")]
)


def everything(step):
    inner = [t for s in step.optimizer.state.values() for t in s.values() if isinstance(t, torch.Tensor)]
    return [t.clone() for t in (*step.model.state_dict().values(), *step.labels.state_dict().values(), *inner)]


def start(model, way, compile, family=fastmeta.InstanceLabels, **kw):
    """A step that has been taken once, with its batches."""
    torch.manual_seed(0)
    model = model().double()
    labels = family(torch.randint(3, (ROWS,)), 3, 0.8, dtype=torch.float64)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=0.01)
    graph = "off" if compile == "off" else "trace"
    step = fastmeta.MetaStep(model, labels, optimizer, label_lr=3.0, compile=graph, **(WAYS[way] | kw))
    train = torch.randn(ROWS, 6).double(), torch.arange(ROWS)
    meta = torch.randn(META, 6).double(), torch.randint(3, (META,))
    assert bool(step(train, meta).finite)
    if compile == "captured":
        step._graphs.record = Recorder()
    return step, train, meta


@pytest.mark.filterwarnings("ignore:micro_batch. the model has BatchNorm")
@pytest.mark.filterwarnings("ignore:compile=.trace.. the step runs eagerly")
@pytest.mark.parametrize(("way", "compile"), CASES)
@pytest.mark.parametrize("what", ["variance", "gradient"])
def test_nothing_changes(what, way, compile):
    family = fastmeta.ClassLabels if what == "variance" else fastmeta.InstanceLabels
    step, (x, index), meta = start(Normed if what == "variance" else Rooted, way, compile, family)
    bad = x * 1e200 if what == "variance" else x.index_fill(1, torch.tensor(0), 0.0)
    before = everything(step)
    result = step((bad, index), meta)
    assert bool(result.train_loss.isfinite())
    assert bool(result.logits.isfinite().all())
    assert not bool(result.finite)
    for old, new in zip(before, everything(step), strict=True):
        assert torch.equal(old, new)
    assert int(step.nonfinite_steps) == 1
    assert bool(step((x, index), meta).finite)
    assert step.steps == 3
    assert not all(map(torch.equal, before, everything(step)))


def test_the_counter_of_rounding_stays_too():
    for compile in ("off", "trace"):
        torch.manual_seed(0)
        model = Rooted()
        labels = fastmeta.InstanceLabels(torch.randint(3, (ROWS,)), 3, dtype=torch.bfloat16)
        step = fastmeta.MetaStep(
            model, labels, torch.optim.SGD(model.parameters(), lr=0.1), label_lr=3.0, lookahead=0.0, compile=compile
        )
        meta = torch.randn(META, 6), torch.randint(3, (META,))
        assert not bool(
            step((torch.randn(ROWS, 6).index_fill(1, torch.tensor(0), 0.0), torch.arange(ROWS)), meta).finite
        )
        assert int(labels.label_step) == 0


def test_gradients_count_as_they_are_applied():
    """on_grad may mend them, and may break them."""
    mend = {"on_grad": lambda grads: [g.nan_to_num_(0, 0, 0) for g in grads.values()]}
    step, (x, index), meta = start(Rooted, "between", "off", **mend)
    assert bool(step((x.index_fill(1, torch.tensor(0), 0.0), index), meta).finite)
    calls = []

    def spoil(grads):
        calls.append(len(grads))
        if len(calls) > 1:
            grads["head.bias"].fill_(torch.nan)

    step, train, meta = start(Normed, "exact", "off", on_grad=spoil)
    before = everything(step)
    assert not bool(step(train, meta).finite)
    assert all(map(torch.equal, before, everything(step)))


def test_labels_are_put_back_where_a_flag_on_the_device_says_so():
    targets, index = torch.tensor([0, 1, 2, 1]), torch.tensor([2, 0, 2])
    for labels in (
        fastmeta.InstanceLabels(targets, 3, dtype=torch.bfloat16),
        fastmeta.InstanceLabels(targets, 3),
        fastmeta.ClassLabels(targets, 3),
    ):
        old = copy.deepcopy(labels.state_dict())
        for keep in (True, False):
            undo = labels.undo(index)
            labels.step_(torch.randn(3, 3), torch.randn(3, 3), index, scale=0.1, label_lr=20.0)
            new = copy.deepcopy(labels.state_dict())
            assert any(not torch.equal(old[k], v) for k, v in new.items())
            undo(torch.tensor(keep))
            assert all(torch.equal((new if keep else old)[k], v) for k, v in labels.state_dict().items())
            undo()
            assert all(torch.equal(old[k], v) for k, v in labels.state_dict().items())
