"""Labels that are estimated every few epochs, in the trainer."""

import json
import signal
from pathlib import Path

import numpy as np
import pytest
import torch

from fastmeta import LabelPosterior, train
from fastmeta.data import InputError
from fastmeta.methods.label_updates import PosteriorUpdates
from fastmeta.training import Interrupted, LabelConfig, TrainConfig
from tests.support.runs import Warnings, two_classes
from tests.support.stopped import Kill, assert_same, config

LABELS = LabelConfig(update="posterior", steps=5, every=2, warmup_epochs=1)


def posterior_config(path, **changes):
    """Estimated behind epochs 1, 3, 5 and 6 of six."""
    return config(path, **{"labels": LABELS, "epochs": 6, **changes})


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory):
    path = tmp_path_factory.mktemp("posterior") / "run"
    return train(posterior_config(path), data=two_classes(), listener=Warnings())


def lines_of(run):
    records = [json.loads(line) for line in (Path(run.path) / "metrics.jsonl").read_text().splitlines()]
    return [r for r in records if r["run"] == "instance_labels"][1:]  # the first one stands before training


def test_labels_move_behind_the_epochs_that_were_said(unbroken):
    lines = lines_of(unbroken)
    told = [(r.get("method_figures") or {}).get("given_right_estimated") for r in lines]
    assert [t is not None for t in told] == [True, False, True, False, True, True]
    entropy = [r["label_entropy_all"] for r in lines]
    assert entropy[0] == entropy[1]
    assert len({round(e, 9) for e in entropy}) == 4
    assert unbroken.summary["label_update"] == "posterior"
    assert "meta_loss" not in lines[1]


def test_labels_are_the_mean_of_the_estimates_so_far(tmp_path, monkeypatch):
    estimates, held = [], []
    estimate, move = LabelPosterior.estimate, PosteriorUpdates.move

    def noted(self, *args):
        found = estimate(self, *args)
        estimates.append(found.mixed(0.3))
        return found

    def seen(self, samples):
        move(self, samples)
        if samples is not None:
            held.append(self.labels.probs(torch.arange(len(self.labels))).clone())

    monkeypatch.setattr(LabelPosterior, "estimate", noted)
    monkeypatch.setattr(PosteriorUpdates, "move", seen)
    train(posterior_config(tmp_path / "run"), data=two_classes(), listener=Warnings())
    assert len(held) == len(estimates) == 4
    for count, labels in enumerate(held, 1):
        torch.testing.assert_close(labels, torch.stack(estimates[:count]).mean(0), rtol=1e-4, atol=1e-6)
    assert not torch.allclose(held[-1], estimates[-1], atol=1e-3)


def test_labels_are_read_with_the_margin(unbroken):
    with np.load(unbroken.path / "labels.npz") as file:
        changed = file["learned"] != file["given"]
        assert (file["probability"] >= 2 * file["given_probability"])[changed].all()


@pytest.mark.parametrize("at", [3, 10, 17, 29])
def test_a_run_that_was_stopped_goes_on_bitwise(at, tmp_path, unbroken):
    path = tmp_path / "run"
    with pytest.raises(Interrupted):
        train(posterior_config(path), data=two_classes(), listener=Kill(signal.SIGTERM, "instance_labels", at))
    train(resume=path, data=two_classes(), listener=Warnings())
    assert_same(path, unbroken.path)


def test_defaults(tmp_path):
    """An estimate every tenth of a run; clean rows in all steps are at most 0.8 of what training sees."""
    labels = LabelConfig(update="posterior")
    run = train(config(tmp_path / "run", epochs=20, labels=labels, baselines="none"), data=two_classes())
    text = (run.path / "config.toml").read_text()
    assert "warmup_epochs = 2" in text
    assert "every = 2" in text
    assert "mix = 0.3" in text
    assert "margin = 2.0" in text
    told = [(r.get("method_figures") or {}).get("clean_accuracy") is not None for r in lines_of(run)]
    assert sum(told) == 10


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"method": "class_labels", "labels": LABELS}, "a label of its own, and class_labels hold one value per class"),
        ({"compile": "trace", "labels": LABELS}, "labels.update=posterior takes plain ones"),
        (
            {"labels": LabelConfig(update="posterior", eta=0.1)},
            "about labels.update=epoch, and labels.update is post",
        ),
        ({"labels": LabelConfig(update="posterior", label_lr=0.1)}, "is about labels.update=exact"),
        (
            {"labels": LabelConfig(update="exact", mix=0.5)},
            "mix=0.5 is about labels.update=posterior, and labels.update is exact",
        ),
        ({"labels": LabelConfig(update="exact", steps=3)}, "labels.steps=3 is about labels.update=epoch and posterior"),
        ({"method": "onehot", "labels": LabelConfig(update="posterior")}, "about methods whose labels move"),
        ({"method": "onehot", "labels": LabelConfig(warmup_epochs=2)}, "labels.warmup_epochs=2 is about methods whose"),
    ],
)
def test_refusals(change, message):
    with pytest.raises(InputError, match=message):
        TrainConfig(**change)


def test_instance_labels_are_estimated_where_nothing_else_is_asked_for():
    assert TrainConfig().label_update == "posterior"
    assert TrainConfig(labels=LabelConfig(mix=0.5)).label_update == "posterior"
    assert TrainConfig(labels=LabelConfig(warmup_epochs=2)).label_update == "posterior"  # which exact steps have too
    assert TrainConfig(labels=LabelConfig(label_step=0.1)).label_update == "exact"
    assert TrainConfig(method="class_labels").label_update == "exact"
    assert TrainConfig(approx="delayed").label_update == "exact"
    assert TrainConfig(compile="trace").label_update == "exact"
    assert TrainConfig(labels=LabelConfig(target_prob=0.8)).label_update == "exact"
    assert TrainConfig(labels=LabelConfig(update="epoch")).label_update == "epoch"


@pytest.mark.parametrize(("key", "value"), [("mix", 1.5), ("margin", 0.5), ("trust", -1.0), ("every", 0)])
def test_values_out_of_range(key, value):
    with pytest.raises(InputError, match=f"labels.{key}"):
        LabelConfig(update="posterior", **{key: value})
