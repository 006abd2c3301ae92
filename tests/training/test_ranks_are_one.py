"""Two ranks of the trainer are one process that is given the rows of both: labels, weights, figures, in float64."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from fastmeta import train
from fastmeta.data import EpochSampler
from fastmeta.distributed import Ranks
from fastmeta.methods.class_labels import ClassLabelMethod
from fastmeta.methods.instance_labels import InstanceLabelMethod
from fastmeta.training import DataConfig, LabelConfig, OptimConfig, TrainConfig
from fastmeta.training.batches import Batches
from tests.support.ranks import run_ranks
from tests.support.runs import two_classes

RANKS, BATCH, CLOSE = 2, 16, 1e-10
#: some of them by approximate steps, whose distances from exact ones are figures too
METHODS = ("DoubleInstance", "DoubleClass", "onehot", "DoubleInstance last:1", "DoubleClass every:2")


class DoubleInstance(InstanceLabelMethod):
    def make_labels(self, context):
        return super().make_labels(context).double()


class DoubleClass(ClassLabelMethod):
    def make_labels(self, context):
        return super().make_labels(context).double()


class Smooth(nn.Module):
    """In float64, whatever its input has."""

    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.Flatten(), nn.Linear(16, 12), nn.Tanh(), nn.Linear(12, 2)).double()

    def forward(self, x):
        return self.body(x.double())


def run(path, method):
    method, _, approx = method.partition(" ")
    learns = method != "onehot"
    step = 3.0 if method == "DoubleInstance" else None  # far enough to change labels
    labels = LabelConfig(update="exact", target_prob=0.8, canaries="off", label_step=step) if learns else LabelConfig()
    torch.manual_seed(3)
    train(
        TrainConfig(
            method=f"{__name__}:{method}" if learns else method,
            labels=labels,
            approx=approx or "none",
            watch_every=1 if approx else None,
            epochs=2,
            threads=1,
            baselines="none",
            optim=OptimConfig(lr=0.3, momentum=0.9, nesterov=True),
            data=DataConfig(batch_size=BATCH, meta_batch_size=6, augment="none", mean=(0.5,), std=(0.25,)),
            out=str(path),
        ),
        model=Smooth(),
        # 81 rows: one rank has 41 of them
        data=two_classes(x_train=odd("x_train"), y_train=odd("y_train"), y_true=odd("y_true")),
    )


def odd(name):
    whole = two_classes()[name]
    return np.concatenate([whole, whole[3:4]])


def on_ranks(rank, size, folder):
    for method in METHODS:
        run(Path(folder, "two", method), method)


class OfAllRanks:
    """What each of two ranks draws from its rows, one behind the other, as rows of one process."""

    def __init__(self, size, batch_size, seed, device):
        ranks = [Ranks(None) for _ in range(RANKS)]
        for rank, own in enumerate(ranks):
            own.size, own.rank = RANKS, rank
        self.shares = [own.share(size) for own in ranks]
        self.batch_size, each = batch_size, batch_size // RANKS
        self.batches = ranks[0].least_share(size) // each
        self.samplers = [
            EpochSampler(
                b - a,
                each,
                stream=f"train-order of rank {rank} of {RANKS}",
                batches=self.batches,
                seed=seed,
                device=device,
            )
            for rank, (a, b) in enumerate(self.shares)
        ]

    def __call__(self, step):
        return torch.cat([sampler(step) + a for sampler, (a, _) in zip(self.samplers, self.shares, strict=True)])


def samplers(batches):
    _, meta = SAMPLERS(batches)
    return OfAllRanks(batches.size, BATCH, batches.config.seed, torch.device("cpu")), meta


SAMPLERS = Batches._samplers


def close(two, one, where):
    """Numbers within CLOSE, all else alike."""
    assert type(two) is type(one), where
    if isinstance(one, dict):
        assert two.keys() == one.keys(), where
        for key in one:
            close(two[key], one[key], f"{where} {key}")
    elif isinstance(one, float):
        assert two == pytest.approx(one, abs=CLOSE, rel=CLOSE), where
    elif isinstance(one, torch.Tensor | np.ndarray) and "float" in str(one.dtype):
        assert two.shape == one.shape, where
        assert float(abs(two - one).max()) < CLOSE, where
    elif isinstance(one, torch.Tensor | np.ndarray):
        assert (two == one).all(), where
    else:
        assert two == one, where


def records(path):
    found = [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in record.items() if key != "seconds"} for record in found]


def test_two_ranks_of_the_trainer_are_one_process_with_the_rows_of_both(tmp_path, monkeypatch):
    monkeypatch.setattr("fastmeta.report.write_figures", lambda *_: None)
    run_ranks(on_ranks, RANKS, tmp_path, str(tmp_path), seconds=200)
    monkeypatch.setattr(Batches, "_samplers", samplers)
    for method in METHODS:
        two, one = tmp_path / "two" / method, tmp_path / "one" / method
        run(one, method)
        weights = load_file(one / "model.safetensors")
        assert all(t.dtype == torch.float64 for t in weights.values())
        close(load_file(two / "model.safetensors"), weights, f"{method} weights")
        for a, b in zip(records(two), records(one), strict=True):
            close(a, b, f"{method} epoch {b['epoch']}")
        with np.load(two / "labels.npz") as a, np.load(one / "labels.npz") as b:
            close(dict(a), dict(b), f"{method} labels.npz")
            assert len(b["given"]) == 81
        if method != "onehot":
            close(load_file(two / "labels.safetensors"), load_file(one / "labels.safetensors"), f"{method} labels")
            assert {"label_accuracy"} <= records(one)[-1].keys()
            assert (records(one)[-1].get("looks_at_exact", 0) > 1) == (":" in method)
        assert {"test_accuracy", "nll", "ece", "train_loss"} <= records(one)[-1].keys()
