"""A resumed run is bitwise the unbroken one, whatever a model's forward draws from and moves beside its state_dict."""

import collections
import itertools
import os
import random
import signal
import subprocess
import sys
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from fastmeta.training import Interrupted, load_run, train
from tests.training.test_resume import Kill, assert_same, config
from tests.training.test_run import Warnings, two_classes

legacy: Any = np.random


class Base(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.net = nn.Sequential(nn.Flatten(), nn.Linear(16, 8), nn.Tanh(), nn.Linear(8, 2))

    def forward(self, x):
        return self.net(x) * (1 + self.scale() if self.training else 1 + self.rest())

    def rest(self):
        return 0


class OwnGenerator(Base):
    def __init__(self):
        super().__init__()
        self.generator = torch.Generator().manual_seed(5)

    def scale(self):
        return 0.1 * torch.rand((), generator=self.generator)


class PythonDraws(Base):
    def scale(self):
        return 0.1 * random.random()


class NumpyDraws(Base):
    def scale(self):
        return 0.1 * float(legacy.rand() + legacy.standard_normal())


class HostGenerators(Base):
    """In a list and in an object, and each of another kind."""

    def __init__(self):
        super().__init__()
        self.rng = [random.Random(1), np.random.default_rng(2), np.random.Generator(np.random.MT19937(3))]
        self.legacy = legacy.RandomState(4)

    def scale(self):
        a, b, c = self.rng
        return 0.03 * (a.gauss(0, 1) + b.standard_normal() + c.random() + float(self.legacy.standard_normal()))


class HiddenBuffer(Base):
    def __init__(self):
        super().__init__()
        self.register_buffer("mean", torch.zeros(()), persistent=False)

    def forward(self, x):
        if self.training:
            self.mean.mul_(0.9).add_(x.detach().mean(), alpha=0.1)
        return super().forward(x - self.mean)

    def scale(self):
        return 0


class Attributes(Base):
    """A count, a moving average as a tensor that is replaced, an array, a dict, and an object of its own."""

    def __init__(self):
        super().__init__()
        self.steps, self.average, self.array = 0, torch.zeros(16), np.zeros(2, np.float32)
        self.log = {"seen": [], "by": {3: 1.5}}
        self.meter = Meter()
        self.last = collections.deque(maxlen=2)

    def forward(self, x):
        if self.training:
            self.steps += 1
            self.average = 0.9 * self.average + 0.1 * x.detach().flatten(1).mean(0)
            self.array[0] += 1
            self.log["seen"] = [*self.log["seen"], self.steps][-3:]
            self.log["by"][3] *= 1.01
            self.meter.add(float(x.detach().mean()))
            self.last.append(self.steps)
        return super().forward(x - self.average.view(1, 4, 4) * 0.1)

    def scale(self):
        return (
            1e-3 * (self.steps + float(self.array[0]) + sum(self.log["seen"]) + self.log["by"][3] + sum(self.last))
            + 0.01 * self.meter.mean
        )

    def rest(self):
        return self.scale()


class Meter:
    def __init__(self):
        self.mean, self.what = 0.0, len  # what has no form is no matter where it stays

    def add(self, value):
        self.mean = 0.9 * self.mean + 0.1 * value


class Extra(Base):
    """State that state_dict takes from get_extra_state, and is no tensor."""

    def __init__(self):
        super().__init__()
        self.net.register_module("count", Counting())

    def scale(self):
        return 1e-3 * self.net.count.inner["steps"]


class Counting(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = {"steps": 0}

    def forward(self, x):
        self.inner["steps"] += self.training
        return x

    def get_extra_state(self):
        return {"steps": self.inner["steps"], "bytes": b"\x00\xff", "none": None}

    def set_extra_state(self, state):
        assert state["bytes"] == b"\x00\xff"
        self.inner["steps"] = state["steps"]


class Momentum(Base):
    """A frozen part that follows the trained one in forward."""

    def __init__(self):
        super().__init__()
        self.slow = nn.Linear(8, 2).requires_grad_(False)

    def forward(self, x):
        h = self.net[:3](x)
        if self.training:
            with torch.no_grad():
                self.slow.weight.lerp_(self.net[3].weight, 0.1)
        return self.net[3](h) + 0.1 * self.slow(h)


class Growing(Base):
    """A buffer that is another from step to step, and one that is none at first."""

    def __init__(self):
        super().__init__()
        self.register_buffer("seen", torch.zeros(0))
        self.register_buffer("first", None)

    def forward(self, x):
        if self.training and len(self.seen) < 5:
            self.seen = torch.cat([self.seen, x.detach().mean().view(1)])
        if self.first is None:
            self.first = x.detach().mean()
        return super().forward(x - 0.1 * self.seen.sum() - 0.1 * self.first)

    def scale(self):
        return 0


MODELS = [OwnGenerator, PythonDraws, NumpyDraws, HostGenerators, HiddenBuffer, Attributes, Extra, Momentum, Growing]

RESUMED = """
import sys
from fastmeta.training import train
from tests.training import test_hidden_state as models
from tests.training.test_run import Warnings, two_classes
listener = Warnings()
train(resume=sys.argv[1], model=getattr(models, sys.argv[2])(), data=two_classes(), listener=listener)
print("\\n".join(t for t in listener.texts if "bitwise" in t))
"""


def options(method):
    return {"model": None, "baselines": "noisy", "method": method}


def broken(tmp_path, model, method, at):
    """An unbroken run, and one that was stopped; both with one module, as they stand beside each other."""
    listener = Warnings()
    unbroken = train(
        config(tmp_path / "unbroken", **options(method)), model=model, data=two_classes(), listener=listener
    )
    with pytest.raises(Interrupted):
        train(
            config(tmp_path / "run", **options(method)),
            model=model,
            data=two_classes(),
            listener=Kill(signal.SIGTERM, *at),
        )
    return unbroken, tmp_path / "run", [t for t in listener.texts if "bitwise" in t]


@pytest.mark.parametrize("kind", MODELS, ids=lambda k: k.__name__)
def test_fixed_labels_go_on_bitwise_with_a_module_made_anew(kind, tmp_path):
    unbroken, path, warned = broken(tmp_path, kind(), "onehot", ("onehot", 7))
    assert warned == []
    train(resume=path, model=kind(), data=two_classes(), listener=Warnings())
    for name in ("model.safetensors", "config.toml"):
        assert (path / name).read_bytes() == (unbroken.path / name).read_bytes()
    # and what is loaded is what was trained, with all that forward uses
    x = torch.randn(3, 1, 4, 4)
    again = load_run(path, model=kind()).model
    assert torch.equal(again(x), unbroken.model(x))
    if kind is Attributes:
        assert again.steps == unbroken.model.steps > 10
        assert (again.log, again.last) == (unbroken.model.log, unbroken.model.last)


@pytest.mark.parametrize("kind", MODELS, ids=lambda k: k.__name__)
def test_learned_labels_go_on_bitwise(kind, tmp_path):
    unbroken, path, warned = broken(tmp_path, kind(), "instance_labels", ("instance_labels", 8))
    assert warned == []
    train(resume=path, model=kind(), data=two_classes(), listener=Warnings())
    assert_same(path, unbroken.path)


@pytest.mark.slow
@pytest.mark.parametrize("at", [("instance_labels", 3), ("noisy", 6)])
@pytest.mark.parametrize("kind", MODELS, ids=lambda k: k.__name__)
def test_in_another_process(kind, at, tmp_path):
    unbroken, path, _ = broken(tmp_path, kind(), "instance_labels", at)
    root = Path(__file__).parents[2]
    script = [sys.executable, "-c", RESUMED, str(path), kind.__name__]
    environment = {**os.environ, "PYTHONPATH": str(root), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(script, cwd=root, env=environment, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == ""
    assert_same(path, unbroken.path)


@pytest.mark.parametrize("kind", [PythonDraws, NumpyDraws])
def test_a_run_is_a_function_of_its_seed_and_the_callers_generators_stay(kind, tmp_path):
    paths = []
    for k in range(2):
        random.seed(k)
        legacy.seed(k)
        torch.manual_seed(k)
        before = random.getstate(), legacy.get_state()[1].tolist(), torch.get_rng_state()
        paths.append(
            train(
                config(tmp_path / str(k), **options("onehot")), model=kind(), data=two_classes(), listener=Warnings()
            ).path
        )
        kind()  # draws no more than torch's
        torch.manual_seed(k)
        after = random.getstate(), legacy.get_state()[1].tolist(), torch.get_rng_state()
        assert before[:2] == after[:2]
        assert torch.equal(before[2], after[2])
    assert (paths[0] / "model.safetensors").read_bytes() == (paths[1] / "model.safetensors").read_bytes()


class Cycling(Base):
    def __init__(self):
        super().__init__()
        self.cycle = itertools.cycle([0.0, 0.1, 0.2])

    def scale(self):
        return next(self.cycle)


class SlotMeter:
    __slots__ = ("inner",)

    def __init__(self):
        self.inner = Decimal(0)


class Opaque(Base):
    def __init__(self):
        super().__init__()
        self.meter = SlotMeter()

    def scale(self):
        self.meter.inner += 1
        return 0.01 * float(self.meter.inner)


COUNT = [0]


class Global(Base):
    def scale(self):
        COUNT[0] += 1
        return 0.001 * COUNT[0]


@pytest.mark.parametrize(
    ("kind", "why"),
    [
        (Cycling, "attribute cycle of the model"),
        (Opaque, "attribute meter.inner of the model"),
        (Global, "forward uses what is outside of the module"),
    ],
)
def test_what_cannot_be_saved_is_said_at_the_start(kind, why, tmp_path):
    listener = Warnings()
    train(config(tmp_path / "run", **options("onehot")), model=kind(), data=two_classes(), listener=listener)
    (text,) = [t for t in listener.texts if "will not be bitwise" in t]
    assert why in text
    assert "\n" not in text
