"""Rows of a table as arrays and as a map-style data set."""

import random

import numpy as np
import torch


def table(count=96, classes=3, features=6, seed=0, offset=5.0):
    """Rows of a table with clusters by class, on scales that an unstandardised network would not learn from."""
    rng = np.random.default_rng(seed)
    y = np.arange(count) % classes
    x = rng.normal(size=(count, features)) + 3 * np.eye(classes, features)[y]
    return (x * 10.0 ** np.arange(features) + offset).astype(np.float32), y


def arrays():
    (x, y), (x_test, y_test) = table(), table(30, seed=1)
    given = np.where(np.arange(len(y)) % 8 == 0, (y + 1) % 3, y)
    x_meta, y_meta = table(12, seed=2)
    parts = {"x_train": x, "y_train": given, "y_true": y, "x_meta": x_meta, "y_meta": y_meta}
    return parts | {"x_test": x_test, "y_test": y_test}


class Pairs(torch.utils.data.Dataset):
    """(x, y) one by one, with noise on each x from all three global generators."""

    def __init__(self, x, y, targets=True, noise=True):
        self.x, self.y, self.noise = torch.from_numpy(x / 10.0 ** np.arange(x.shape[1], dtype=np.float32)), y, noise
        if targets:
            self.targets = list(map(int, y))

    def __len__(self):
        return len(self.y)

    def __getitem__(self, row):
        drawn = torch.rand(()) + random.random() + np.random.random() if self.noise else 0.0  # noqa: NPY002
        return self.x[row] + 0.1 * torch.as_tensor(drawn, dtype=torch.float32), int(self.y[row])


def stream(**options):
    a = arrays()
    parts = {"train": ("x_train", "y_train"), "meta": ("x_meta", "y_meta"), "test": ("x_test", "y_test")}
    return {k: Pairs(a[x], a[y], **options) for k, (x, y) in parts.items()} | {"y_true": a["y_true"]}
