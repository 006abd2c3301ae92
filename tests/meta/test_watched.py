"""What a model reads as Python changes after a trace: the old graph does not run on."""

import collections
import contextvars
import copy
import dataclasses
import enum
import functools
import os
import sys
import time
import types
import warnings

import numpy as np
import pytest
import torch
from torch import nn

import fastmeta
from fastmeta import reference
from fastmeta.functional.watch import Unwatchable, Watch
from tests.support import cases
from tests.support.meta import F64, make_labels, relative

RATE = 1.0  # of this module
TABLE = {"rates": [1.0, 2.0]}
SCHEDULE = types.ModuleType("tests_schedule")  # another module's
SCHEDULE.RATE = 1.0


CONTEXT = contextvars.ContextVar("CONTEXT", default=1.0)


class Registry(dict):
    """Reads in ways of its own, as those of Hugging Face's transformers: from classes it makes objects."""

    def get(self, key):
        return super().get(key)

    def __getitem__(self, key):
        return super().__getitem__(key)()


class Point(collections.namedtuple("Coordinates", "rate")):
    kinds = int | None, list[int]


class Kind(enum.Enum):
    ONE = 1.0
    THREE = 3.0


@dataclasses.dataclass
class Config:
    rate: float = 1.0
    inner: object = None


class Slotted:
    __slots__ = ("rate",)

    def __init__(self, rate):
        self.rate = rate


class Base:
    level = 1.0

    def value(self):
        return self.level


class Helper(Base):
    pass


class Space:
    """A class as a name space."""

    rate = 1.0


class Passed(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x * RATE

    @staticmethod
    def backward(ctx, g):
        return g * RATE


def scaled(x, rate=1.0):
    return x * rate


def through_a_global():
    return RATE


class Model(nn.Module):
    """Its factor is what `factor(model)` says."""

    level = 1.0

    def __init__(self, factor):
        super().__init__()
        self.inner, self.factor = nn.Linear(6, 10), factor
        self.act = nn.Identity()
        self.config, self.slotted, self.helper = Config(inner=Config()), Slotted(1.0), Helper()
        self.value, self.values, self.named = np.float32(1), [1.0, [1.0]], {"a": {"b": 1.0}}
        self.array, self.tensor, self.big = np.ones(2), torch.ones(2, dtype=F64), torch.ones(9000, 1, dtype=F64)
        self.many, self.pair, self.order = {1.0}, (1.0, [1.0]), collections.OrderedDict(a=1.0)
        self.queue, self.kind, self.none, self.dtype = collections.deque([1.0]), Kind.ONE, None, torch.float64
        self.partial, self.cls, self.space = functools.partial(scaled, rate=1.0), Space, types.SimpleNamespace(rate=1.0)
        self.logger = sys.stderr  # read by nobody
        self.complex, self.bytes = 1 + 0j, b"1"
        self.registry, self.point = Registry(rate=float, one=lambda: 1.0), Point(1.0)

    def __deepcopy__(self, memo):
        return Model(self.factor)

    def forward(self, x):
        factor = self.factor(self)
        return self.act(self.inner(x)) * factor


def put(name, value):
    return lambda m: setattr(m, name, value)


def hook(m):
    m.inner.register_forward_hook(lambda module, args, out: 3 * out)


def write(m):
    m.tensor.data[0] = 3.0  # no version says so


def add_attribute(m):
    m.extra = 3.0


class Other(nn.Module):
    def forward(self, x):
        return 3 * x


def globally(name, value):
    def change(m):
        setattr(sys.modules[__name__], name, value)

    return change


KINDS = {
    "numpy-float32": (lambda m: float(m.value), put("value", np.float32(3))),
    "numpy-float64": (lambda m: float(m.value), put("value", np.float64(3))),
    "list": (lambda m: m.values[0], put("values", [3.0])),
    "list-inside": (lambda m: m.values[1][0], lambda m: m.values[1].__setitem__(0, 3.0)),
    "dict": (lambda m: m.named["a"]["b"], lambda m: m.named["a"].update(b=3.0)),
    "dict-grows": (lambda m: float(len(m.named)), lambda m: m.named.update(c=1)),
    "set": (lambda m: max(m.many), lambda m: m.many.add(3.0)),
    "tuple": (lambda m: m.pair[1][0], lambda m: m.pair[1].__setitem__(0, 3.0)),
    "ordered": (lambda m: m.order["a"], lambda m: m.order.update(a=3.0)),
    "deque": (lambda m: m.queue[-1], lambda m: m.queue.append(3.0)),
    "array": (lambda m: float(m.array[0]), lambda m: m.array.__setitem__(0, 3.0)),
    "tensor": (lambda m: m.tensor[0], put("tensor", torch.full((2,), 3.0, dtype=F64))),
    "tensor-in-place": (lambda m: m.tensor[0], lambda m: m.tensor.mul_(3)),
    "tensor-behind": (lambda m: m.tensor[0], write),
    "tensor-item": (lambda m: m.tensor.tolist()[0], write),
    "tensor-big": (lambda m: m.big[5], lambda m: m.big.mul_(3)),
    "dataclass": (lambda m: m.config.rate, lambda m: setattr(m.config, "rate", 3.0)),
    "dataclass-inside": (lambda m: m.config.inner.rate, lambda m: setattr(m.config.inner, "rate", 3.0)),
    "dict-of-its-own-ways": (lambda m: m.registry["one"], lambda m: m.registry.update(one=lambda: 3.0)),
    "named-tuple": (lambda m: m.point.rate if m.point.kinds else 1.0, put("point", Point(3.0))),
    "context": (lambda m: CONTEXT.get(), lambda m: CONTEXT.set(3.0)),
    "slots": (lambda m: m.slotted.rate, lambda m: setattr(m.slotted, "rate", 3.0)),
    "namespace": (lambda m: m.space.rate, lambda m: setattr(m.space, "rate", 3.0)),
    "enum": (lambda m: m.kind.value, put("kind", Kind.THREE)),
    "partial": (lambda m: m.partial(1.0), put("partial", functools.partial(scaled, rate=3.0))),
    "partial-inside": (lambda m: m.partial(1.0), lambda m: m.partial.keywords.update(rate=3.0)),
    "none": (lambda m: 1.0 if m.none is None else m.none, put("none", 3.0)),
    "complex": (lambda m: m.complex.real, put("complex", 3 + 0j)),
    "bytes": (lambda m: float(m.bytes), put("bytes", b"3")),
    "dtype": (lambda m: 1.0 if m.dtype == torch.float64 else 3.0, put("dtype", torch.float32)),
    "class-attribute": (lambda m: m.level, lambda m: setattr(Model, "level", 3.0)),
    "class-shadowed": (lambda m: m.level, put("level", 3.0)),
    "class-of-helper": (lambda m: m.helper.value(), lambda m: setattr(Base, "level", 3.0)),
    "class-of-helper-shadowed": (lambda m: m.helper.value(), lambda m: setattr(Helper, "level", 3.0)),
    "method-of-helper": (lambda m: m.helper.value(), lambda m: setattr(Base, "value", lambda self: 3.0)),
    "class-as-namespace": (lambda m: m.cls.rate, lambda m: setattr(Space, "rate", 3.0)),
    "global": (lambda m: RATE, globally("RATE", 3.0)),
    "global-inside": (lambda m: TABLE["rates"][0], lambda m: TABLE["rates"].__setitem__(0, 3.0)),
    "global-of-a-function": (lambda m: through_a_global(), globally("RATE", 3.0)),
    "global-of-a-module": (lambda m: SCHEDULE.RATE, lambda m: setattr(SCHEDULE, "RATE", 3.0)),
    "global-of-a-function-of-autograd": (lambda m: Passed.apply(m.tensor)[0], globally("RATE", 3.0)),
    "default": (lambda m: scaled(1.0), lambda m: setattr(scaled, "__defaults__", (3.0,))),
    "code": (lambda m: through_a_global(), lambda m: setattr(through_a_global, "__code__", (lambda: 3.0).__code__)),
    "submodule": (lambda m: 1.0, put("act", Other())),
    "submodules-forward": (lambda m: 1.0, lambda m: setattr(m.act, "forward", lambda x: 3 * x)),
    "class-forward": (lambda m: 1.0, lambda m: setattr(m.act, "__class__", Other)),
    "hook": (lambda m: 1.0, hook),
    "getattr": (lambda m: getattr(m, "extra", 1.0), add_attribute),
    "computed-name": (lambda m: getattr(m, "ex" + "tra"[:3], 1.0), add_attribute),
    "vars": (lambda m: vars(m.act).get("extra", 1.0), lambda m: setattr(m.act, "extra", 3.0)),
    "environment": (lambda m: float(os.environ.get("X_RATE", "1")), lambda m: os.environ.update(X_RATE="3")),
}


@pytest.fixture
def restored():
    """This module, its classes and functions as they were."""
    here = sys.modules[__name__]
    before = {k: v for k, v in vars(here).items() if isinstance(v, float)}
    classes = {c: dict(vars(c)) for c in (Model, Base, Helper, Space)}
    code = through_a_global.__code__
    yield
    vars(here).update(before)
    for c, attributes in classes.items():
        for k in set(vars(c)) - set(attributes):
            delattr(c, k)
        for k in ("level", "rate", "value"):
            if k in attributes:
                setattr(c, k, attributes[k])
    through_a_global.__code__, scaled.__defaults__ = code, (1.0,)
    TABLE["rates"][0], SCHEDULE.RATE = 1.0, 1.0
    os.environ.pop("X_RATE", None)
    CONTEXT.set(1.0)


def build(model, compile):
    case = cases.make("mlp")
    labels = make_labels(fastmeta.InstanceLabels, case)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.3)
    return case, labels, fastmeta.MetaStep(model, labels, optimizer, label_lr=5.0, compile=compile)


@pytest.mark.parametrize("kind", KINDS)
def test_a_change_after_the_trace_is_seen(kind, restored):
    factor, change = KINDS[kind]
    torch.manual_seed(0)
    model = Model(factor).to(F64)
    case, labels, step = build(model, "trace")
    eager = [copy.deepcopy(model.inner.state_dict()), labels.label_logits.clone()]
    step(case.train, case.meta)
    assert not step._untraced
    step(case.train, case.meta)
    assert step._graphs.compilations == 1
    before = copy.deepcopy(model.inner.state_dict()), labels.label_logits.clone()
    assert not torch.equal(before[1], eager[1])
    change(model)
    step(case.train, case.meta)
    compiled = labels.label_logits.clone()
    assert not step._untraced
    # the same step by hand: from the same state, eagerly
    model.inner.load_state_dict(before[0])
    labels.label_logits.copy_(before[1])
    step.compile = "off"
    step(case.train, case.meta)
    assert relative(compiled - before[1], labels.label_logits - before[1]) < 1e-9


@pytest.mark.parametrize("compile", ["off", "trace"])
def test_a_layer_that_is_replaced_takes_the_place_of_the_old(compile):
    model = Model(lambda m: 1.0).to(F64)
    case, labels, step = build(model, compile)
    step(case.train, case.meta)
    model.inner = nn.Linear(6, 10).to(F64)
    step.optimizer.param_groups[0]["params"] = list(model.inner.parameters())
    rows = labels.rows(case.index)
    truth = reference.label_gradient(
        model, rows, reference.instance_probs, case.x, *case.meta, lookahead=reference.SGDState(0.3)
    )
    step(case.train, case.meta)
    assert relative(labels.rows(case.index), rows - 5.0 * truth.grad) < 1e-10
    model.inner.bias = nn.Parameter(torch.ones(10, dtype=F64))  # of no optimizer
    with pytest.raises(ValueError, match="the optimizer holds 1 parameters that are not the model's"):
        step(case.train, case.meta)


UNWATCHABLE = {
    "iterator": (lambda m: next(m.values), put("values", iter([1.0] * 99)), "model.values: list_iterator has a state"),
    "generator": (lambda m: next(m.values), put("values", (1.0 for _ in range(99))), "model.values: generator has"),
    "file": (lambda m: float(m.logger.fileno() > 0), lambda m: None, "model.logger: "),
    "clock": (lambda m: float(time.time() > 0), lambda m: None, "time.time says another thing in every call"),
    "urandom": (lambda m: float(len(os.urandom(1))), lambda m: None, "os.urandom says another thing"),
}


@pytest.mark.parametrize("kind", UNWATCHABLE)
def test_what_cannot_be_watched_runs_eagerly_and_is_named(kind):
    factor, change, words = UNWATCHABLE[kind]
    model = Model(factor).to(F64)
    change(model)
    case, _, step = build(model, "trace")
    with pytest.warns(UserWarning, match="the step runs eagerly"):
        step(case.train, case.meta)
    assert words in step._untraced
    step(case.train, case.meta)


class Counting(Model):
    """Counts its forwards, here and there; keeps what it last saw."""

    def __deepcopy__(self, memo):
        raise NotImplementedError

    def __init__(self, factor):
        super().__init__(factor)
        self.calls, self.mean, self.stats, self.counts, self.last = 0, 0.0, {"calls": 0}, [0], None
        self.counter = types.SimpleNamespace(calls=0)

    def forward(self, x):
        self.calls += 1
        self.mean = 0.9 * self.mean + 0.1 * len(x)
        self.stats["calls"] += 1
        self.counts[0] += 1
        self.counter.calls += 1
        self.last = x.detach()
        return super().forward(x)


def test_counters_and_kept_results_keep_one_graph():
    model = Counting(lambda m: 1.0).to(F64)
    case, _, step = build(model, "trace")
    calls = model.calls
    for _ in range(3):
        step(case.train, case.meta)
        model(case.x[:3])  # an evaluation, which moves them all
        assert type(model.last) is torch.Tensor
    assert not step._untraced
    assert step._graphs.compilations == 1
    assert type(model.calls) is int
    assert model.calls > calls
    assert {type(model.stats["calls"]), type(model.counts[0]), type(model.counter.calls)} == {int}


@pytest.mark.parametrize(
    "factor",
    [
        lambda m: 1.0 + m.calls,
        lambda m: min(0.5, m.calls / 100) + 1,
        lambda m: 2.0 if m.calls > 1000 else 1.0,
        lambda m: [1.0, 2.0][m.calls // 1000],
        lambda m: 1.0 + (m.stats["calls"] > 1000),
        lambda m: m.tensor[0] * max(1, m.counter.calls - 1000),
    ],
)
def test_a_counter_that_decides_is_no_counter(factor):
    """It would never get there, for a graph does not count."""
    model = Counting(factor).to(F64)
    case, _, step = build(model, "trace")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        try:
            step(case.train, case.meta)
        except RuntimeError as error:  # another result in a second forward
            assert "keeps a state" in str(error)  # noqa: PT017
            return
    assert "moves in every forward, and decides what the model does" in step._untraced
    assert type(model.calls) is int


def test_equal_values_are_no_change():
    model = Model(lambda m: float(m.value) * m.values[0] * m.tensor[0]).to(F64)
    case, _, step = build(model, "trace")
    for _ in range(3):
        step(case.train, case.meta)
        model.value, model.values, model.tensor = np.float32(1), [1.0, [1.0]], torch.ones(2, dtype=F64)
        model.none = object()  # read by nobody
    assert step._graphs.compilations == 1


def test_a_tensor_out_of_sight_is_refused(monkeypatch):
    monkeypatch.setattr(functools, "hidden", [torch.full((10,), 2.0, dtype=F64)], raising=False)
    model = Model(lambda m: functools.hidden[0]).to(F64)
    case, _, step = build(model, "trace")
    with pytest.warns(UserWarning, match=r"a tensor of shape \(10,\) that is not an attribute in sight"):
        step(case.train, case.meta)


def test_every_global_hook_has_its_place():
    """A tripwire: the names of torch by which hooks of all modules are watched."""
    model = Model(lambda m: 1.0).to(F64)
    own, reads = {id(p) for p in model.parameters()}, {id(m): set() for m in model.modules()}
    watch = Watch(list(model.named_modules()), [], own, reads)
    assert watch.holds()
    for register in (
        nn.modules.module.register_module_forward_hook,
        nn.modules.module.register_module_forward_pre_hook,
        nn.modules.module.register_module_full_backward_hook,
        nn.modules.module.register_module_full_backward_pre_hook,
    ):
        handle = register(lambda *args: None)
        try:
            assert not watch.holds(), register
        finally:
            handle.remove()
        assert watch.holds()


def test_the_walk_names_what_it_cannot_see():
    model = Model(lambda m: 1.0).to(F64)
    model.logger = sys.__stderr__
    with pytest.raises(Unwatchable, match=r"model.logger: _io.TextIOWrapper has a state that cannot be watched"):
        Watch(list(model.named_modules()), [], {id(p) for p in model.parameters()}, {})
