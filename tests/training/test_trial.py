"""What a run's end and its resume will need of a model is tried before anything is written, and said in one line."""

import json
import random
import threading
import warnings
from collections import OrderedDict

import pytest
import torch
from torch import nn

from fastmeta import train
from fastmeta.data import InputError
from fastmeta.training import load_run
from fastmeta.training.model_copy import copy_of
from fastmeta.training.module_state import ModuleState, Watch, load_state
from tests.support.methods import CORE
from tests.support.runs import Warnings, config, two_classes


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.Flatten(), nn.Linear(16, 6), nn.Tanh(), nn.Linear(6, 2))

    def forward(self, x):
        return self.net(x)


class Sized(Net):
    """Python takes it for empty, asks it for its items, and cannot ask whether it is true."""

    def __len__(self):
        return 0

    def __iter__(self):
        return iter(())

    def __eq__(self, other):
        raise RuntimeError("no comparison")

    __hash__ = nn.Module.__hash__


class Untrue(Net):
    def __bool__(self):
        raise RuntimeError("ambiguous")


def compiled():
    return torch.compile(Net(), backend="eager")


def weight_normed():
    model = Net()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        nn.utils.weight_norm(model.net[1])
    return model


def spectral():
    model = Net()
    nn.utils.parametrizations.spectral_norm(model.net[1])
    return model


def used():
    """Keeps an activation, which hangs on a graph, from a forward before the run."""
    model = Keeping()
    model(torch.randn(3, 1, 4, 4))
    return model


class Keeping(Net):
    def forward(self, x):
        self.hidden = self.net[:3](x)
        return self.net[3](self.hidden)


class Locked(Net):
    def __init__(self):
        super().__init__()
        self.lock, self.scale = threading.Lock(), lambda z: z * 1.0
        self.inner = {"locks": [threading.RLock()]}

    def forward(self, x):
        with self.lock, self.inner["locks"][0]:
            return self.scale(super().forward(x))


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.flat, self.a, self.b, self.head = nn.Flatten(), nn.Linear(16, 16), nn.Linear(16, 16), nn.Linear(16, 2)
        self.b.weight = self.a.weight

    def forward(self, x):
        return self.head(torch.tanh(self.b(torch.tanh(self.a(self.flat(x))))))


class Odd(Net):
    """Buffers of every kind that torch can save, under any name that a module may have."""

    def __init__(self):
        super().__init__()
        self.register_buffer("empty", torch.zeros(0, 3))
        self.register_buffer("complex", torch.randn(2, 3, dtype=torch.complex64).conj())
        self.register_buffer("short", torch.randn(3).bfloat16())
        self.register_buffer("sparse", torch.eye(4).to_sparse())
        self.register_buffer("flags", torch.tensor([True, False]))
        self.register_buffer('a/b c\n"é', torch.ones(1))
        self.register_buffer("none", None)
        self.register_buffer("expanded", torch.ones(1).expand(4))
        self.net.add_module("späte Schicht", nn.BatchNorm1d(2))

    def forward(self, x):
        return super().forward(x) + self.complex.real.mean() + self.sparse.to_dense().sum()


class Renaming(Net):
    """Its state_dict has other names than its parameters, by hooks both ways."""

    def __init__(self):
        super().__init__()
        self.register_state_dict_post_hook(lambda m, state, prefix, meta: self.rename(state, "net.", "body."))
        self.register_load_state_dict_pre_hook(lambda m, state, prefix, *_: self.rename(state, "body.", "net."))

    @staticmethod
    def rename(state, old, new):
        for key in [k for k in state if k.startswith(old)]:
            state[new + key.removeprefix(old)] = state.pop(key)


class Lazy(nn.Module):
    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.Flatten(), nn.LazyLinear(6), nn.LazyBatchNorm1d(), nn.Tanh(), nn.LazyLinear(2))

    def forward(self, x):
        return self.net(x)


FINE = {
    "sized": Sized,
    "untrue": Untrue,
    "compiled": compiled,
    "weight_norm": weight_normed,
    "spectral_norm": spectral,
    "used": used,
    "locked": Locked,
    "tied": Tied,
    "odd": Odd,
    "renaming": Renaming,
    "lazy": Lazy,
}


@pytest.mark.parametrize("kind", FINE)
def test_whatever_trains_ends_and_is_loaded_again(kind, tmp_path):
    model, listener = FINE[kind](), Warnings()
    method = "instance_labels" if kind not in ("weight_norm", "used", "locked") else "onehot"
    plan = config(tmp_path / "run", model=None, method=method, baselines="noisy", epochs=2)
    run = train(plan, model=model, data=two_classes(), listener=listener)
    assert run.summary["baselines"]["noisy"]["failed"] is None
    assert [t for t in listener.texts if "bitwise" in t] == []
    again = load_run(run.path, model=FINE[kind]()).model
    x = torch.randn(5, 1, 4, 4)
    assert torch.equal(again(x), run.model(x))
    assert not torch.equal(run.model(x), FINE[kind]().eval()(x))
    said = [t for t in listener.texts if "torch.compile" in t]
    assert len(said) == (kind == "compiled")
    if kind == "compiled":
        assert run.summary["model"] == "custom:Net"
        assert not any("_orig_mod" in k for k in run.model.state_dict())
    if kind == "lazy":
        assert nn.parameter.is_lazy(model.net[1].weight)  # the caller's stays as it is


class Dropping(Net):
    """A state_dict without the first layer."""

    def state_dict(self, *args, **kwargs):
        return OrderedDict((k, v) for k, v in super().state_dict(*args, **kwargs).items() if "net.1" not in k)

    def load_state_dict(self, state, **_):
        return super().load_state_dict(state, strict=False)


class Strict(Net):
    """Adds a key that nothing takes."""

    def state_dict(self, *args, **kwargs):
        return OrderedDict(super().state_dict(*args, **kwargs), version=torch.ones(()))


class Custom:
    pass


class Unsaved(Net):
    def get_extra_state(self):
        return {"meter": Custom()}

    def set_extra_state(self, state):
        pass


class Closed(Net):
    def __init__(self):
        super().__init__()
        self.stream = (k for k in range(3))  # a generator of Python's cannot be copied


class Two(Net):
    def forward(self, x):
        return super().forward(x), x


class Dict(Net):
    def forward(self, x):
        return {"z": super().forward(x)}


class Named(Net):
    def forward(self, x):
        return {"loss": None, "logits": super().forward(x)}


class Whole(Net):
    def forward(self, x):
        return super().forward(x).argmax(1, keepdim=True).expand(-1, 2)


class Detached(Net):
    def forward(self, x):
        return super().forward(x).detach()


class NoBackward(torch.autograd.Function):
    @staticmethod
    def forward(ctx, z):
        return z.clone()

    @staticmethod
    def backward(ctx, g):
        raise ArithmeticError("no way back")


class Stuck(Net):
    def forward(self, x):
        return NoBackward.apply(super().forward(x))


class Unreached(Lazy):
    def __init__(self):
        super().__init__()
        self.spare = nn.LazyLinear(3)


class WrongLazy(Lazy):
    def forward(self, x):
        return self.net(x[:, 0, 0, 0])


def quantised():
    model = Net()
    model.register_buffer("table", torch.quantize_per_tensor(torch.ones(2), 0.1, 0, torch.qint8))
    return model


def surrogate():
    model = Net()
    model.register_buffer("\ud800", torch.ones(1))
    return model


REFUSED = {
    Dropping: "would be lost with the run: a fresh one that is loaded with its state_dict gives other logits",
    Strict: "cannot be loaded again: its state_dict does not fit a fresh copy .*Unexpected key.* .version",
    Unsaved: "cannot be saved: its state_dict holds '_extra_state', of type .*Custom, and the files of a run take",
    Closed: "cannot be copied, and each stage of a run trains a copy: attribute stream of the model refuses",
    Two: "must return logits as a tensor, as .logits or as \\['logits'\\], got tuple in training mode",
    Dict: "as .logits or as .*, got dict",
    Whole: "must return floating-point logits on cpu, got torch.int64",
    Detached: "trains nothing: no gradient of its logits reaches a parameter",
    Stuck: "fails in its backward: ArithmeticError: no way back",
    Unreached: "has a lazy layer that its forward never reaches: spare.weight has no shape",
    WrongLazy: "has lazy layers, whose weights a forward makes, and it fails on 2 images",
    quantised: "cannot be saved: its state_dict holds 'table', a tensor of torch.qint8",
    surrogate: "cannot be saved: ",
    lambda: nn.DataParallel(Net()): "DataParallel cannot; pass model.module",
    lambda: torch.jit.script(Net()): "RecursiveScriptModule cannot; pass the module it is made of",
}


@pytest.mark.parametrize("kind", REFUSED, ids=lambda k: getattr(k, "__name__", "?"))
def test_what_would_fail_later_is_said_at_the_start(kind, tmp_path):
    for method in ("onehot", "instance_labels"):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            model = kind()
        with pytest.raises(InputError, match=REFUSED[kind]) as said:
            train(config(tmp_path / "run", model=None, method=method), model=model, data=two_classes())
        assert "\n" not in str(said.value)
        assert len(str(said.value)) < 600
        assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("method", CORE)
def test_the_trial_leaves_no_trace(method, tmp_path):
    """Neither on the caller's module nor in what is trained: the same with a module that nobody has tried."""

    class Counting(Net):
        def __init__(self):
            super().__init__()
            self.norm, self.calls = nn.BatchNorm1d(2), 0

        def forward(self, x):
            self.calls += 1
            return self.norm(super().forward(x)) * (1 + 0.1 * random.random() * self.training)

    torch.manual_seed(0)
    model = Counting()
    before = copy_of(model).state_dict()
    seen = []

    class First(Warnings):
        def stage(self, stage):
            seen.append((stage.model.calls, int(stage.model.norm.num_batches_tracked)))

    train(
        config(tmp_path / "run", model=None, method=method, epochs=1), model=model, data=two_classes(), listener=First()
    )
    assert seen == [(0, 0)]
    assert model.calls == 0
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())


def test_logits_under_their_name_are_found(tmp_path):
    run = train(config(tmp_path / "run", model=None, epochs=1), model=Named(), data=two_classes())
    assert run.summary["test_accuracy_last"] is not None


@pytest.mark.parametrize(("last", "told"), [(nn.Softmax(1), 1), (nn.LogSoftmax(1), 0), (nn.Sigmoid(), 0)])
def test_a_softmax_before_that_of_the_loss_is_told(last, told, tmp_path):
    model, seen = nn.Sequential(nn.Flatten(), nn.Linear(16, 2), last), Warnings()
    train(config(tmp_path / "run", model=None, epochs=1), model=model, data=two_classes(), listener=seen)
    assert sum("as a softmax does; the loss has a softmax of its own" in text for text in seen.texts) == told


def test_a_module_that_does_not_fit_is_named_in_one_line_and_stays(tmp_path):
    """13,000 characters of torch's do not name a layer that a reader could find."""
    wide = nn.Sequential(nn.Flatten(), *(nn.Linear(16, 16) for _ in range(60)), nn.Linear(16, 2))
    path = train(config(tmp_path / "run", model=None, method="onehot", epochs=1), model=wide, data=two_classes()).path
    other = Net()
    before = {k: v.clone() for k, v in other.state_dict().items()}
    with pytest.raises(InputError) as said:
        load_run(path, model=other)
    text = str(said.value)
    assert "\n" not in text
    assert len(text) < 600
    assert "it lacks net.1.weight, net.1.bias, net.3.weight and 1 more" in text
    assert "it has too many: 1.bias, 1.weight, 10.bias and 119 more" in text
    shapes = nn.Sequential(nn.Flatten(), *(nn.Linear(16, 16) for _ in range(60)), nn.Linear(16, 3))
    with pytest.raises(InputError, match=r"of another shape: 61.weight is \(2, 16\) and not \(3, 16\), 61.bias is"):
        load_run(path, model=shapes)
    assert all(torch.equal(v, before[k]) for k, v in other.state_dict().items())
    assert shapes[-1].weight.shape == (3, 16)


def test_state_goes_through_json_and_back():
    model = Odd()
    model.note = {"a": [1.5, float("inf"), None, {2, 1}], (1, 2): b"x"}
    watch = Watch(model)
    model.note["a"].append(complex(1, 2))
    model.fresh = torch.arange(3)
    del model.net.training  # not ours to look at
    model.net.training = True
    saved = watch.state()
    assert watch.unsaved == []
    other = Odd()
    load_state(other, ModuleState(saved.state, saved.beside, json.loads(json.dumps(saved.values))))
    assert other.note == model.note
    assert torch.equal(other.fresh, model.fresh)
    for name, b in model.named_buffers():
        mine = other.get_buffer(name)
        assert torch.equal(mine.to_dense(), b.to_dense()), name
        assert mine.dtype == b.dtype


PLACES = [
    ["", ["attribute", "forward"]],
    ["", ["attribute", "__class__"], ["attribute", "rename"]],
    ["", ["attribute", "scale"], ["attribute", "__globals__"], ["item", "torch"]],
    ["", ["attribute", "training"]],
    ["", ["attribute", "_modules"], ["item", "net"]],
    ["", ["buffer", "_parameters"]],
    ["net.9", ["attribute", "x"]],
    ["", ["item", 0]],
    ["", ["attribute", 3]],
    [],
    7,
    ["", "x"],
]


@pytest.mark.parametrize("place", PLACES, ids=str)
def test_a_file_of_others_reaches_nothing_but_what_modules_hold(place):
    model = Locked()
    before = {**vars(model)}, model.forward, torch.nn, type(model)
    plain = dict(model.state_dict())
    with pytest.raises(ValueError, match="cannot be put back") as said:
        load_state(model, ModuleState(plain, {}, {"moved": [[place, 1]]}))
    assert "\n" not in str(said.value)
    assert ({**vars(model)}, torch.nn, type(model)) == (before[0], before[2], before[3])
    for form in (
        {"what": 1},
        {"tensor": ["9", False, False]},
        {"array": ["0", "O", [1], False]},
        {"deque": [[], -1]},
        {},
    ):
        with pytest.raises(ValueError, match="cannot be put back"):
            load_state(model, ModuleState(plain, {"0": torch.zeros(8)}, {"moved": [[["", ["attribute", "x"]], form]]}))
    with pytest.raises(ValueError, match="is damaged"):
        load_state(model, ModuleState(plain, {}, {"others": 3}))
