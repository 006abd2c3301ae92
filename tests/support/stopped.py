"""Runs that are stopped and go on."""

import json
import os
import signal

import numpy as np
import pytest

from fastmeta import train
from fastmeta.training import DataConfig, Interrupted, LabelConfig, OptimConfig, TrainConfig
from fastmeta.training.listener import Listener
from tests.support.runs import two_classes

CONFIG = {
    "epochs": 3,
    "threads": 1,
    "model": "small_conv",
    "baselines": "union",
    "optim": OptimConfig(lr=0.05, nesterov=True),
    "data": DataConfig(batch_size=16, augment="crop_flip", padding=1),  # 5 steps per epoch
}


def config(path, **changes):
    return TrainConfig(**{**CONFIG, **changes}, checkpoint_seconds=0, out=str(path))


def epoch_config(path, **changes):
    """Labels move behind three of four epochs."""
    labels = LabelConfig(update="epoch", target_prob=0.7, steps=3, eta=0.05, clean_lr=0.05)
    return config(path, **{"labels": labels, "epochs": 4, **changes})


class Kill(Listener):
    """Sends a signal to this process behind a step of a stage."""

    def __init__(self, signum, stage, step):
        self.at, self.signum = (stage, step), signum

    def step(self, stage):
        if (stage.name, stage.step) == self.at:
            os.kill(os.getpid(), self.signum)


def assert_same(path, unbroken):
    for name in ("model.safetensors", "labels.safetensors", "config.toml"):
        assert (path / name).read_bytes() == (unbroken / name).read_bytes(), name
    with np.load(path / "labels.npz") as a, np.load(unbroken / "labels.npz") as b:
        assert a.files == b.files
        assert all(np.array_equal(a[k], b[k]) for k in a.files)

    def lines(p):
        records = [json.loads(line) for line in (p / "metrics.jsonl").read_text().splitlines()]
        return [{k: v for k, v in r.items() if k != "seconds"} for r in records]

    assert lines(path) == lines(unbroken)

    def figures(p):
        drop = lambda d: {k: drop(v) if isinstance(v, dict) else v for k, v in d.items() if k != "seconds"}  # noqa: E731
        return drop(json.loads((p / "summary.json").read_text()))

    assert figures(path) == figures(unbroken)


def interrupted(path):
    with pytest.raises(Interrupted):
        train(config(path), data=two_classes(), listener=Kill(signal.SIGTERM, "instance_labels", 7))
    return path
