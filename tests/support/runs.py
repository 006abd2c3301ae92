"""Small runs."""

import numpy as np
import torch
from torch import nn

from fastmeta.training import TrainConfig
from fastmeta.training.listener import Listener


def two_classes(seed=0, **changes):
    """Bright and dark 4x4 images, a tenth of the given labels wrong."""
    rng = np.random.default_rng(seed)

    def part(count):
        y = np.arange(count) % 2
        return (rng.integers(0, 120, (count, 4, 4, 1)) + 130 * y[:, None, None, None]).astype(np.uint8), y

    x_train, y_true = part(80)
    x_meta, y_meta = part(8)
    x_test, y_test = part(20)
    y_train = np.where(np.arange(80) % 10 == 0, 1 - y_true, y_true)
    arrays = {
        "x_train": x_train,
        "y_train": y_train,
        "y_true": y_true,
        "x_meta": x_meta,
        "y_meta": y_meta,
        "x_test": x_test,
        "y_test": y_test,
        "class_names": ["dark", "bright"],
    }
    return {k: v for k, v in {**arrays, **changes}.items() if v is not None}


class Warnings(Listener):
    def __init__(self):
        self.texts = []

    def warning(self, text):
        self.texts.append(text)


def config(path, **changes):
    return TrainConfig(**{"epochs": 3, "threads": 1, "model": "mlp", "out": str(path), **changes})


class Faulty(nn.Module):
    """While `bad`, what `how` says goes wrong in training."""

    def __init__(self, how="none"):
        super().__init__()
        self.how = how
        self.flat, self.norm, self.head = nn.Flatten(), nn.BatchNorm1d(16), nn.Linear(16, 2)
        self.register_buffer("mask", torch.tensor([0.0, -torch.inf]))  # as attention has them: no fault
        self.register_buffer("mean", torch.zeros(()))
        self.register_buffer("calls", torch.zeros((), dtype=torch.int64))
        self.bad = False

    def forward(self, x):
        if self.training:
            self.calls.add_(1)
        z = self.head(self.norm(self.flat(x)))
        if self.bad and self.training:
            if self.how == "loss":
                z = z * torch.nan
            elif self.how == "gradient":  # the loss is finite: sqrt has no slope at zero
                z = z + (z * 0).sqrt() * 0
            elif self.how == "buffer":
                self.mean.fill_(torch.nan)
            elif self.how == "variance":
                self.norm.running_var.data.fill_(torch.inf)
        return z
