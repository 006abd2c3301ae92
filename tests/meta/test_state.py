"""What a model moves in its forward beside trained parameters moves once per step, as in a plain loop."""

import copy
from collections import deque
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

import fastmeta
from fastmeta import reference
from fastmeta.functional import inventory
from fastmeta.meta import label_gradient
from tests.support import cases
from tests.support.meta import F64, make_labels, relative
from tests.support.moving import ETA, EXACT, IN_TURN, LR, Average, compare, plainest, same, snapshot


class Momentum(nn.Module):
    """An encoder that follows another: its parameters require no gradient, and move in the forward."""

    def __init__(self, how):
        super().__init__()
        self.q, self.k, self.head = nn.Linear(6, 8), nn.Linear(6, 8), nn.Linear(8, 10)
        self.k.requires_grad_(False)
        self.double()
        self.how, self.start, self.calls = how, 0, 0
        if how == "pairs":
            self.pairs = list(zip(self.k.parameters(), self.q.parameters(), strict=True))
        if how == "hidden":
            self.hidden = [self.k]
            del self.k
        if how == "helper":
            self.average = Average(self.k, self.q)

    def plainest(self):
        """The same with the copies that the reference can follow."""
        other = Momentum("copy")
        other.start, other.calls = self.start, self.calls
        other.load_state_dict({**self.state_dict(), **{f"k.{n}": t for n, t in self.key().state_dict().items()}})
        return other

    def key(self):
        return self.hidden[0] if self.how == "hidden" else self.k

    def follow(self):
        k = self.key()
        if self.how == "pairs":
            for mine, theirs in self.pairs:
                mine.data.mul_(0.9).add_(theirs.data, alpha=0.1)
            return k
        if self.how == "helper":
            self.average.move()
            return k
        for name, theirs in self.q.named_parameters():
            mine = getattr(k, name)
            new = mine.detach() * 0.9 + theirs.detach() * 0.1
            if self.how in ("in place", "hidden"):
                mine.data.mul_(0.9).add_(theirs.data, alpha=0.1)
            elif self.how == "data":
                mine.data = new
            elif self.how == "copy":
                with torch.no_grad():
                    mine.copy_(new)
            elif self.how == "set":
                with torch.no_grad():
                    mine.set_(new)
            elif self.how == "parameter":
                setattr(k, name, nn.Parameter(new, requires_grad=False))
            elif self.how == "registry":
                k._parameters[name] = new
            elif self.how == "foreach":
                torch._foreach_mul_([mine.data], 0.9)
                torch._foreach_add_([mine.data], [theirs.data], alpha=0.1)
        if self.how == "load":
            new = {n: 0.9 * k.state_dict()[n] + 0.1 * t for n, t in self.q.state_dict().items()}
            k.load_state_dict(new)
        if self.how == "module":
            new = nn.Linear(6, 8, dtype=F64).requires_grad_(False)
            with torch.no_grad():
                for n, t in self.q.named_parameters():
                    getattr(new, n).copy_(0.9 * getattr(k, n) + 0.1 * t.detach())
            self.k = k = new
        return k

    def forward(self, x):
        if self.start:
            self.calls += 1
        k = self.follow() if self.calls >= self.start else self.key()
        return self.head(torch.tanh(self.q(x)) + torch.tanh(k(x)) ** 2)


HOWS = ["in place", "data", "copy", "set", "parameter", "registry", "foreach", "pairs", "hidden", "helper"]
HOWS += ["load", "module"]
#: the others are slow tests
SOME = [how if how in ("data", "pairs", "module") else pytest.param(how, marks=pytest.mark.slow) for how in HOWS]


WAYS = [{"tangent": "reverse"}, {"tangent": "forward"}, *(pytest.param(kw, marks=pytest.mark.slow) for kw in IN_TURN)]


@pytest.mark.parametrize("kw", WAYS, ids=str)
@pytest.mark.parametrize("how", HOWS)
def test_a_momentum_encoder_moves_once_per_step(how, kw):
    compare(Momentum(how), **kw)


@pytest.mark.parametrize("kw", IN_TURN, ids=str)
@pytest.mark.parametrize("kind", ["data", "module", "list"])
def test_what_moves_where_the_graphs_are_held_in_turn(kind, kw):
    compare(Bank(kind).double() if kind == "list" else Momentum(kind), **kw)


@pytest.mark.parametrize("how", SOME)
def test_one_too_large_to_be_copied_moves_once_per_step(how, monkeypatch):
    monkeypatch.setattr(inventory, "COPIED_BYTES", 100)
    for kw in EXACT:
        compare(Momentum(how), **kw)


@pytest.mark.parametrize("large", [False, True])
@pytest.mark.parametrize("how", SOME)
def test_the_label_gradient_leaves_it(how, large, monkeypatch):
    if large:
        monkeypatch.setattr(inventory, "COPIED_BYTES", 100)
    case = cases.make("mlp")
    model = Momentum(how)
    labels, before = make_labels(fastmeta.InstanceLabels, case), snapshot(model)
    truth = reference.label_gradient(
        plainest(model),
        labels.rows(case.index),
        reference.instance_probs,
        case.x,
        *case.meta,
        lookahead=reference.SGDState(LR),
    )
    for tangent in ("auto", "forward", "reverse", "difference"):
        out = label_gradient(model, labels, case.train, case.meta, lr=LR, tangent=tangent)
        if tangent != "difference":  # which differentiates what the model detaches
            assert relative(out.grad, truth.grad) < 1e-10
        same(snapshot(model), before)
    report = fastmeta.check(model, labels, case.train, case.meta, LR, timing=False)
    assert report.rows[0].tangent == "auto (reverse)"
    same(snapshot(model), before)


@pytest.mark.parametrize("large", [False, True])
@pytest.mark.parametrize("kw", WAYS, ids=str)
@pytest.mark.parametrize("how", ["in place", "data", "parameter"])
def test_an_encoder_that_starts_to_move_in_a_later_step(how, kw, large, monkeypatch):
    if large:
        monkeypatch.setattr(inventory, "COPIED_BYTES", 100)
    model = Momentum(how)
    model.start = 3
    compare(model, steps=5, **kw)
    assert model.calls == 5


@pytest.mark.parametrize(
    "kw", [{"approx": "delayed"}, {"approx": "every:2"}, {"approx": "last:1"}, {"approx": "difference"}], ids=str
)
@pytest.mark.parametrize("large", [False, True])
@pytest.mark.parametrize("how", SOME)
def test_cheaper_steps_move_it_once_too(how, large, kw, monkeypatch):
    if large:
        monkeypatch.setattr(inventory, "COPIED_BYTES", 100)
    case, model = cases.make("mlp"), Momentum(how)
    labels = make_labels(fastmeta.InstanceLabels, case)
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=LR)
    step = fastmeta.MetaStep(model, labels, optimizer, label_lr=ETA, **kw)
    for _ in range(3):
        twin = copy.deepcopy(model)
        twin(case.x)
        step(case.train, case.meta)
        same(snapshot(model.key()), snapshot(twin.key()))


@pytest.mark.parametrize("large", [False, True])
@pytest.mark.parametrize("kw", [*WAYS, {"compile": "trace"}, {"approx": "every:2"}], ids=str)
@pytest.mark.parametrize("how", SOME[1:])
def test_a_step_that_is_not_finite_leaves_it(how, kw, large, monkeypatch):
    if large:
        monkeypatch.setattr(inventory, "COPIED_BYTES", 100)
    case, model = cases.make("mlp"), Momentum(how)
    labels = make_labels(fastmeta.InstanceLabels, case)
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=LR)
    step = fastmeta.MetaStep(model, labels, optimizer, label_lr=ETA, **kw)
    for _ in range(2):
        step(case.train, case.meta)
    before = snapshot(model)
    case.x[0, 0] = torch.inf
    assert not bool(step(case.train, case.meta).finite)
    same(snapshot(model), before)


@pytest.mark.filterwarnings("ignore:compile='trace'. the step runs eagerly")
@pytest.mark.parametrize("large", [False, True])
@pytest.mark.parametrize("how", SOME)
def test_a_graph_moves_it_or_there_is_none(how, large, monkeypatch):
    if large:
        monkeypatch.setattr(inventory, "COPIED_BYTES", 100)
    step = compare(Momentum(how), compile="trace")
    if how in ("in place", "copy", "pairs", "hidden", "foreach", "load"):
        assert not step._untraced


class Codebook(nn.Module):
    """Vector quantisation: each code follows the mean of the vectors that are nearest to it."""

    def __init__(self):
        super().__init__()
        self.encoder, self.head = nn.Linear(6, 4), nn.Linear(4, 10)
        self.codes = nn.Parameter(torch.randn(5, 4), requires_grad=False)
        self.sizes = nn.Parameter(torch.ones(5), requires_grad=False)

    def forward(self, x):
        z = self.encoder(x)
        nearest = torch.cdist(z.detach(), self.codes).argmin(1)
        chosen = nn.functional.one_hot(nearest, 5).to(z.dtype)
        with torch.no_grad():
            self.sizes.mul_(0.9).add_(chosen.sum(0), alpha=0.1)
            self.codes.lerp_(chosen.T @ z.detach() / self.sizes[:, None], 0.1)
        return self.head(torch.tanh(z + (self.codes[nearest] - z).detach()) + z)


class Bank(nn.Module):
    """Keeps things of its last forwards in containers of Python, and means of them in plain attributes."""

    def __init__(self, kind):
        super().__init__()
        self.inner, self.head = nn.Linear(6, 8), nn.Linear(8, 10)
        self.kind, self.queue, self.count, self.mean = kind, [], 0, 0.5
        self.average, self.table, self.store = torch.zeros(8, dtype=F64), {}, deque(maxlen=3)
        self.ring, self.place = torch.zeros(4, 8, dtype=F64), 0
        self.nested = SimpleNamespace(seen=set(), parts=[torch.zeros(8, dtype=F64), (torch.zeros(8, dtype=F64), 1)])
        self.array = np.zeros(3)
        self.before = None

    def forward(self, x):
        h = torch.tanh(self.inner(x))
        m = h.detach().mean(0)
        shift = 0
        if self.kind == "list":
            shift = sum(self.queue) if self.queue else 0
            self.queue.append(m)
            if len(self.queue) > 2:
                self.queue.pop(0)
        elif self.kind == "new list":
            self.queue = [*self.queue, m][-2:]
            shift = sum(self.queue)
        elif self.kind == "deque":
            self.store.append(m)
            shift = sum(self.store)
        elif self.kind == "dict":
            self.table["mean"] = 0.5 * self.table.get("mean", m) + m
            self.table.setdefault("all", []).append(len(x))
            shift = self.table["mean"] * len(self.table["all"])
        elif self.kind == "number":
            self.mean = 0.9 * self.mean + 0.1 * float(m.mean())
            self.count += 1
            shift = self.mean * self.count
        elif self.kind == "replaced":
            self.average = 0.9 * self.average + 0.1 * m
            shift = self.average
        elif self.kind == "in place":
            self.average.mul_(0.9).add_(m, alpha=0.1)
            self.average.data.mul_(0.9)
            shift = self.average
        elif self.kind == "ring":
            self.ring[self.place] = m
            self.place = (self.place + 1) % 4
            shift = self.ring.sum(0)
        elif self.kind == "nested":
            self.nested.seen.add(len(self.nested.seen))
            self.nested.parts[0] += m
            self.nested.parts[1][0].add_(m)
            self.nested.parts[1] = (self.nested.parts[1][0], self.nested.parts[1][1] + 1)
            shift = self.nested.parts[0] * len(self.nested.seen) - self.nested.parts[1][0] * self.nested.parts[1][1]
        elif self.kind == "array":
            self.array += m[:3].numpy()
            shift = float(self.array.sum())
        elif self.kind == "before":
            shift = m if self.before is None else self.before
            self.before = m
        return self.head(h + shift)


BANKS = ["list", "new list", "deque", "dict", "number", "replaced", "in place", "ring", "nested", "array", "before"]


@pytest.mark.filterwarnings("ignore:compile='trace'. the step runs eagerly")
@pytest.mark.parametrize("kw", [*WAYS, {"compile": "trace"}], ids=str)
@pytest.mark.parametrize("kind", ["codes", *BANKS])
def test_what_hangs_on_the_model_moves_once_per_step(kind, kw):
    step = compare(Codebook().to(F64) if kind == "codes" else Bank(kind).to(F64), steps=5, **kw)
    if "compile" in kw:
        assert bool(step._untraced) == (kind not in ("codes", "replaced", "in place", "before"))


@pytest.mark.parametrize("large", [False, True])
@pytest.mark.parametrize("kind", ["codes", *BANKS])
def test_it_is_left_by_what_changes_nothing(kind, large, monkeypatch):
    if large:
        monkeypatch.setattr(inventory, "COPIED_BYTES", 8)
        compare(Codebook().to(F64) if kind == "codes" else Bank(kind).to(F64), steps=4)
    case = cases.make("mlp")
    model = Codebook().to(F64) if kind == "codes" else Bank(kind).to(F64)
    labels = make_labels(fastmeta.InstanceLabels, case)
    model(case.x)
    before = snapshot(model)
    for tangent in ("forward", "reverse", "difference"):
        label_gradient(model, labels, case.train, case.meta, lr=LR, tangent=tangent)
        same(snapshot(model), before)
    fastmeta.check(model, labels, case.train, case.meta, LR, timing=False)
    same(snapshot(model), before)
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=LR)
    step = fastmeta.MetaStep(model, labels, optimizer, label_lr=ETA)
    case.x_meta[0, 0] = torch.nan
    assert not bool(step(case.train, case.meta).finite)
    same(snapshot(model), before)
