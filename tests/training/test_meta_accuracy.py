"""Accuracy on the clean rows by class, in runs that keep how labels move."""

import json

import numpy as np
import pytest
import torch
from torch import nn

from fastmeta import train
from tests.support.runs import Warnings, two_classes
from tests.support.trajectories import plan


class Drawing(nn.Module):
    """Draws in evaluation mode too, and counts what it is asked."""

    def __init__(self):
        super().__init__()
        self.flat, self.norm, self.head = nn.Flatten(), nn.BatchNorm1d(16), nn.Linear(16, 2)
        self.register_buffer("calls", torch.zeros((), dtype=torch.int64))

    def forward(self, x):
        self.calls.add_(1)
        return self.head(self.norm(self.flat(x))) * (1 + 0.1 * torch.rand(()))


def lines(path, run):
    found = [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]
    return [record for record in found if record["run"] == run]


@pytest.mark.parametrize("method", ["instance_labels", "class_labels"])
def test_the_last_line_is_what_the_model_answers(method, tmp_path):
    data = two_classes(x_test=None, y_test=None)
    run = train(plan(tmp_path / "run", method), data=data, listener=Warnings())
    told = lines(run.path, method)
    assert [record["epoch"] for record in told] == [0, 1, 2, 3]
    last = told[-1]
    pixels = torch.from_numpy(data["x_meta"]).permute(0, 3, 1, 2).double()
    train_pixels = torch.from_numpy(data["x_train"]).double()
    x = (pixels - train_pixels.mean()) / train_pixels.std()
    right = (run.model(x.float()).argmax(1) == torch.from_numpy(data["y_meta"])).double().numpy()
    assert last["meta_accuracy"] == pytest.approx(right.mean())
    assert last["meta_accuracy_by_class"] == pytest.approx([right[data["y_meta"] == c].mean() for c in (0, 1)])


def test_a_class_without_clean_rows_has_none(tmp_path):
    data = two_classes()
    some = data["y_meta"] == 1
    run = train(
        plan(tmp_path / "run", "instance_labels"),
        data={**data, "x_meta": data["x_meta"][some], "y_meta": data["y_meta"][some]},
        listener=Warnings(),
    )
    assert [record["meta_accuracy_by_class"][0] for record in lines(run.path, "instance_labels")] == [None] * 4


@pytest.mark.parametrize("method", ["instance_labels", "class_labels"])
def test_a_run_is_bitwise_the_one_without(method, tmp_path):
    """Even of a model that draws and counts in evaluation mode: nobody has looked."""

    def ran(name, **changes):
        torch.manual_seed(0)
        changes = {"model": None, "baselines": "noisy", **changes}
        return train(plan(tmp_path / name, method, **changes), model=Drawing(), data=two_classes(), listener=Warnings())

    kept, without = ran("kept"), ran("without", trajectory_every=None)
    assert (kept.path / "model.safetensors").read_bytes() == (without.path / "model.safetensors").read_bytes()
    with np.load(kept.path / "labels.npz") as a, np.load(without.path / "labels.npz") as b:
        assert all(np.array_equal(a[name], b[name]) for name in b.files)
    own = {"meta_accuracy", "meta_accuracy_by_class", "seconds"}
    for stage in (method, "noisy"):
        told, plain = lines(kept.path, stage), lines(without.path, stage)
        assert [{k: v for k, v in r.items() if k not in own} for r in told] == [
            {k: v for k, v in r.items() if k != "seconds"} for r in plain
        ]
        assert all(("meta_accuracy" in r) == (stage == method) for r in told)
