"""Models whose forward draws from, or moves, what their state_dict does not hold."""

import collections
import random
from typing import Any

import numpy as np
import torch
from torch import nn

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
