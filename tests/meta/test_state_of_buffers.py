"""Buffers that grow, are replaced, appear, go, or overlap: as a plain loop's train forwards leave them."""

import copy
from itertools import product

import pytest
import torch
from torch import nn
from torch.ao.quantization import (
    FakeQuantize,
    HistogramObserver,
    MinMaxObserver,
    MovingAverageMinMaxObserver,
    PerChannelMinMaxObserver,
)

import fastmeta
from fastmeta.meta import label_gradient
from tests.support import cases
from tests.support.meta import F64, make_labels
from tests.support.moving import ETA, EXACT, IN_TURN, LR, compare, same, snapshot


class Habit(nn.Module):
    def __init__(self, kind):
        super().__init__()
        self.inner, self.head, self.kind = nn.Linear(6, 8), nn.Linear(8, 10), kind
        self.register_buffer("table", torch.ones(2, 8))
        self.register_buffer("scratch", torch.ones(3), persistent=False)
        self.register_buffer("none", None)
        self.double()
        self.register_buffer("same", self.table if kind == "tied" else None)
        if kind in ("view", "view, plain"):
            self.register_buffer("row", self.table[0])
        if kind in ("of a parameter", "of a parameter, plain"):
            self.register_buffer("bias", self.inner.bias.data[:4])
        if kind == "expanded":
            self.register_buffer("wide", torch.full((1, 8), 0.3, dtype=F64).expand(4, 8))

    def plainest(self):
        """The same without views: the reference gives each buffer memory of its own."""
        if self.kind not in ("view", "of a parameter"):
            return copy.deepcopy(self)
        other = Habit(f"{self.kind}, plain")
        other.load_state_dict(self.state_dict())
        return other

    def __deepcopy__(self, memo):
        """Of torch's own copies of a parameter nothing is a view."""
        other = self.__new__(type(self))
        memo[id(self)] = other
        other.__dict__.update({k: copy.deepcopy(v, memo) for k, v in vars(self).items()})
        if self.kind == "of a parameter":
            other.bias = other.inner.bias.data[:4]
        return other

    def forward(self, x):
        h = torch.tanh(self.inner(x))
        m = h.detach().mean(0)
        kind = self.kind
        if kind in ("grown", "tied"):
            if len(self.table) < 6:
                self.table = torch.cat([self.table, m[None]])
                if kind == "tied":
                    self.same = self.table
        elif kind == "always grows":
            self.table = torch.cat([self.table, m[None]])
        elif kind == "registered anew":
            self.register_buffer("table", torch.cat([self.table, m[None]])[-4:], persistent=False)
        elif kind == "resized":
            with torch.no_grad():
                self.table.resize_(3, 8)
                self.table[2] = m
        elif kind == "set":
            self.table.set_(torch.cat([self.table, m[None]])[-4:])
        elif kind == "dtype":
            self.table = (self.table + m).float() if self.table.dtype == F64 else (self.table + m).double()
        elif kind == "none":
            if self.none is None:
                self.none = m
            else:
                h, self.none = h + self.none, None
        elif kind == "appears":
            if not hasattr(self, "late"):
                self.register_buffer("late", torch.zeros(8, dtype=F64))
            self.late += m
            h = h + self.late
        elif kind == "goes":
            if hasattr(self, "scratch"):
                del self.scratch
        elif kind == "view":
            self.table += m
            h = h + self.row
        elif kind == "view, plain":
            self.table += m
            h = h + self.table[0]
        elif kind in ("of a parameter", "of a parameter, plain"):
            h = h + self.bias.sum()
        elif kind == "expanded":
            h = h + self.wide[0]
            self.scratch += 1
        elif kind == "expanded anew":
            self.scratch = m[:1].expand(3)
        return self.head(h * self.table.mean(0))


KINDS = ["grown", "tied", "always grows", "registered anew", "resized", "set", "dtype", "none", "appears", "goes"]
KINDS += ["view", "of a parameter", "expanded", "expanded anew"]
TRACE = {"compile": "trace"}
QUICK = ("always grows", "view", "set", "appears")
TRACED = [(k, TRACE) if k in QUICK else pytest.param(k, TRACE, marks=pytest.mark.slow) for k in KINDS]


@pytest.mark.filterwarnings("ignore:compile='trace'. the step runs eagerly")
@pytest.mark.parametrize(("kind", "kw"), [*product(KINDS, EXACT), *(("grown", kw) for kw in IN_TURN), *TRACED], ids=str)
def test_buffers_are_those_of_a_plain_loop(kind, kw):
    model = Habit(kind)
    step = compare(model, steps=6, tolerance=1e-6 if kind == "dtype" else 1e-10, **kw)
    if kind == "tied":
        assert model.same is model.table
    if kind == "view":
        assert model.row.data_ptr() == model.table.data_ptr()
    if kind == "of a parameter":
        assert model.bias.data_ptr() == model.inner.bias.data_ptr()
    if "compile" in kw:
        eager = ("grown", "tied", "always grows", "dtype", "none", "view")  # no two steps in a row are alike
        assert bool(step._untraced) == (kind in eager)


@pytest.mark.parametrize("kind", KINDS)
def test_they_are_left_by_what_changes_nothing(kind):
    case, model = cases.make("mlp"), Habit(kind)
    labels, before = make_labels(fastmeta.InstanceLabels, case), snapshot(model)
    names = list(model.state_dict())
    for tangent in ("forward", "reverse", "difference"):
        label_gradient(model, labels, case.train, case.meta, lr=LR, tangent=tangent)
        same(snapshot(model), before)
    fastmeta.check(model, labels, case.train, case.meta, LR, timing=False)
    step = fastmeta.MetaStep(model, labels, torch.optim.SGD(model.parameters(), lr=LR), label_lr=ETA)
    case.x_meta[0, 0] = torch.nan
    assert not bool(step(case.train, case.meta).finite)
    same(snapshot(model), before)
    assert list(model.state_dict()) == names


OBSERVERS = {
    "min max": MinMaxObserver,
    "moving": MovingAverageMinMaxObserver,
    "per channel": lambda: PerChannelMinMaxObserver(ch_axis=1),
    "histogram": lambda: HistogramObserver(bins=64),
    "fake": lambda: FakeQuantize(MovingAverageMinMaxObserver, quant_min=0, quant_max=255),
    "fake per channel": lambda: FakeQuantize(
        PerChannelMinMaxObserver, quant_min=0, quant_max=255, ch_axis=1, qscheme=torch.per_channel_affine
    ),
}


class Observed(nn.Module):
    def __init__(self, kind):
        super().__init__()
        self.inner, self.observer, self.head = nn.Linear(6, 8), OBSERVERS[kind](), nn.Linear(8, 10)

    def forward(self, x):
        return self.head(self.observer(torch.tanh(self.inner(x))))


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("compile", ["off", pytest.param("trace", marks=pytest.mark.slow)])
@pytest.mark.parametrize("kind", OBSERVERS)
def test_observers_of_ranges_see_what_they_would_in_a_plain_loop(kind, compile):
    case = cases.make("mlp", dtype=torch.float32)
    torch.manual_seed(0)
    model, labels = Observed(kind), fastmeta.InstanceLabels(case.targets, 10, 0.8)
    step = fastmeta.MetaStep(model, labels, torch.optim.SGD(model.parameters(), lr=LR), label_lr=ETA, compile=compile)
    for _ in range(4):
        twin = copy.deepcopy(model)
        twin(case.x)
        assert bool(step(case.train, case.meta).finite)
        for (name, a), b in zip(model.named_buffers(), twin.buffers(), strict=True):
            assert torch.allclose(a, b, rtol=1e-5), name
    other = Observed(kind)
    other.load_state_dict(model.state_dict())
