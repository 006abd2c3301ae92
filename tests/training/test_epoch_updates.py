"""Labels that move at the ends of epochs, in the trainer: what moves, when, and bitwise again after a stop."""

import json
import math
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import fastmeta
from fastmeta import train
from fastmeta.data import InputError
from fastmeta.training import DataConfig, Interrupted, LabelConfig, OptimConfig, TrainConfig, load_run
from fastmeta.training.listener import Listener
from tests.support.runs import Warnings, two_classes
from tests.support.stopped import Kill, assert_same
from tests.support.stopped import epoch_config as config

METHODS = ["instance_labels", "class_labels"]


def records(path):
    return [json.loads(line) for line in (Path(path) / "metrics.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module", params=METHODS)
def unbroken(request, tmp_path_factory):
    path = tmp_path_factory.mktemp("epoch") / "run"
    return train(config(path, method=request.param), data=two_classes(), listener=Warnings())


def test_labels_move_behind_the_first_epochs_and_not_behind_the_last(unbroken):
    lines = [r for r in records(unbroken.path) if r["run"] == unbroken.summary["method"]]
    changes = [(r.get("method_figures") or {}).get("label_change") for r in lines]
    assert [c is not None for c in changes] == [False, True, True, True, False]
    assert all(c > 0 for c in changes[1:4])
    entropy = [r["label_entropy_all"] for r in lines]
    assert len({round(e, 9) for e in entropy[:4]}) == 4
    assert entropy[3] == entropy[4]
    assert "meta_loss" not in lines[1]
    assert lines[1]["label_grad_norm"] is None
    assert unbroken.summary["label_update"] == "epoch"
    assert unbroken.summary["label_lr"] is None
    assert unbroken.summary["lookahead"] is None


@pytest.mark.parametrize("warmup", [0, 1])
def test_the_first_epochs_are_plain_training(warmup, tmp_path, unbroken):
    """On the start as it is, or on the given labels, smoothed; the clean set plays no part in either."""
    method, options = unbroken.summary["method"], {"update": "epoch", "target_prob": 0.7}
    made = {"baselines": "none", "method": method, "epochs": 2, "model": "mlp"}
    labels = LabelConfig(**options, warmup_epochs=warmup)
    run = train(config(tmp_path / "run", labels=labels, **made), data=two_classes(), listener=Warnings())
    if warmup:  # two classes share 0.1
        still = {"labels": LabelConfig(target_prob=0.95, label_lr=1e-30)}
    else:
        still = {"labels": LabelConfig(target_prob=0.7, label_lr=1e-30)}
    other = train(config(tmp_path / "other", **made, **still), data=two_classes(), listener=Warnings())
    keys = ("train_loss", "train_fit", "test_accuracy", "nll")
    mine, theirs = records(run.path)[1], records(other.path)[1]
    assert [mine[k] for k in keys] == pytest.approx([theirs[k] for k in keys], rel=1e-4)
    assert mine["label_entropy"] == pytest.approx(-0.7 * math.log(0.7) - 0.3 * math.log(0.3), rel=1e-4)


@pytest.mark.parametrize("at", [3, 10, 15, 19])
def test_a_run_that_was_stopped_goes_on_bitwise(at, tmp_path, unbroken):
    path, method = tmp_path / "run", unbroken.summary["method"]
    with pytest.raises(Interrupted):
        train(config(path, method=method), data=two_classes(), listener=Kill(signal.SIGTERM, method, at))
    train(resume=path, data=two_classes(), listener=Warnings())
    assert_same(path, unbroken.path)


KILLED = """
import os, signal, sys
from fastmeta import train
from fastmeta.meta import EpochLookahead
from tests.support.runs import two_classes
from tests.support.stopped import epoch_config

calls = []

real = EpochLookahead._changes


def killing(self, path, train):
    calls.append(1)
    for change in real(self, path, train):
        yield change
        if len(calls) == 2:
            os.kill(os.getpid(), signal.SIGKILL)


EpochLookahead._changes = killing
train(epoch_config(sys.argv[1]), data=two_classes())
"""


def test_a_run_that_was_killed_while_labels_move_goes_on_bitwise(tmp_path):
    root, path = Path(__file__).parents[2], tmp_path / "run"
    environment = {**os.environ, "PYTHONPATH": str(root), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-c", KILLED, str(path)], cwd=root, env=environment, capture_output=True, check=False
    )
    assert done.returncode == -signal.SIGKILL, done.stderr.decode()
    train(resume=path, data=two_classes(), listener=Warnings())
    whole = train(config(tmp_path / "whole"), data=two_classes(), listener=Warnings())
    assert_same(path, whole.path)


def test_defaults(tmp_path):
    """Clean rows in all steps are at most 0.8 of the training rows; labels wait for a tenth of the run."""
    run = train(
        TrainConfig(epochs=20, threads=1, model="mlp", labels=LabelConfig(update="epoch"), out=str(tmp_path / "run")),
        data=two_classes(),
        listener=Warnings(),
    )
    of_labels = TrainConfig.read(run.path / "config.toml").labels
    assert (of_labels.steps, of_labels.clean_lr, of_labels.eta, of_labels.warmup_epochs) == (8, 0.02, 0.3, 2)
    assert (of_labels.label_lr, of_labels.lookahead) == (None, None)


def test_warm_up(tmp_path):
    labels = LabelConfig(update="epoch", steps=1, warmup_epochs=3)
    run = train(config(tmp_path / "run", labels=labels, baselines="none"), data=two_classes(), listener=Warnings())
    moved = [(r.get("method_figures") or {}).get("label_change") is not None for r in records(run.path)]
    assert moved == [False, False, False, True, False]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"labels": {"label_lr": 3.0}}, "labels.label_lr=3.0 is about labels.update=exact, and labels.update is epoch"),
        ({"labels": {"lookahead": "sgd"}}, "labels.lookahead=sgd is about labels.update=exact"),
        ({"labels": {"tangent": "forward"}}, "labels.tangent=forward is about labels.update=exact"),
        ({"approx": "last:1"}, "approx=last:1 is about meta steps, and labels.update=epoch takes plain ones"),
        ({"compile": "trace"}, "compile=trace is about meta steps"),
        ({"method": "onehot"}, "labels.update=epoch is about methods whose labels move, and method=onehot has none"),
    ],
)
def test_options_of_exact_steps_are_refused(changes, message):
    changes = dict(changes)
    labels = LabelConfig(update="epoch", **changes.pop("labels", {}))
    with pytest.raises(InputError, match=message):
        TrainConfig(labels=labels, **changes)


@pytest.mark.parametrize("options", [{"steps": 3}, {"eta": 0.1}, {"clean_lr": 0.1}])
def test_options_of_epochs_are_refused_with_exact_steps(options):
    (name,) = options
    with pytest.raises(
        InputError, match=f"labels.{name}=.* is about labels.update=epoch.*, and labels.update is exact"
    ):
        TrainConfig(labels=LabelConfig(update="exact", **options))


@pytest.mark.parametrize("options", [{"steps": 0}, {"eta": 0.0}, {"clean_lr": -1.0}, {"warmup_epochs": -1}])
def test_values_out_of_range(options):
    (name,) = options
    with pytest.raises(InputError, match=f"labels.{name} must be"):
        LabelConfig(update="epoch", **options)


@pytest.mark.parametrize(("epochs", "warmup"), [(1, None), (3, 3)])
def test_a_run_in_which_labels_could_not_move_is_refused(epochs, warmup, tmp_path):
    labels = LabelConfig(update="epoch", warmup_epochs=warmup)
    with pytest.raises(InputError, match=f"epochs={epochs} leaves none; train longer"):
        train(config(tmp_path / "run", labels=labels, epochs=epochs), data=two_classes())


@pytest.mark.parametrize("how", ["adamw", "bf16", "bfloat16 labels", "micro_batch"])
def test_other_runs(how, tmp_path):
    changes = {
        "adamw": {"optim": OptimConfig(name="adamw")},
        "bf16": {"precision": "bf16"},
        "bfloat16 labels": {"labels": LabelConfig(update="epoch", dtype="bfloat16", steps=2)},
        "micro_batch": {"micro_batch": 5, "model": "mlp"},
    }[how]
    path = tmp_path / "run"
    whole = train(config(tmp_path / "whole", **changes), data=two_classes(), listener=Warnings())
    assert whole.summary["labels_changed"] is not None
    with pytest.raises(Interrupted):
        train(config(path, **changes), data=two_classes(), listener=Kill(signal.SIGTERM, "instance_labels", 12))
    train(resume=path, data=two_classes(), listener=Warnings())
    assert_same(path, whole.path)


def test_clean_steps_that_diverge_move_nothing_and_are_told(tmp_path):
    heard = Warnings()
    labels = LabelConfig(update="epoch", steps=40, clean_lr=1e30, warmup_epochs=1)
    data = DataConfig(batch_size=16, meta_batch_size=2)
    run = train(
        config(tmp_path / "run", labels=labels, data=data, baselines="none", epochs=2),
        data=two_classes(),
        listener=heard,
    )
    assert run.summary["labels_changed"] == 0
    assert any("clean steps at the end of an epoch were not finite, and no label moved" in t for t in heard.texts)


class Step(Listener):
    def __init__(self):
        self.labels = []

    def epoch(self, stage, record):
        if stage.method.labels is not None:
            self.labels.append(stage.method.labels.probs().clone())


def test_labels_are_those_of_the_library(tmp_path):
    """The trainer's move is the library's on the same rows and clean batches."""
    heard = Step()
    seen = []
    real = fastmeta.EpochLookahead.update

    def update(self, train, meta):
        train, meta = list(train), list(meta)
        seen.append((torch.cat([index for _, index in train]), [len(y) for _, y in meta], self.lr))
        return real(self, train, meta)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fastmeta.EpochLookahead, "update", update)
        train(config(tmp_path / "run", baselines="none"), data=two_classes(), listener=heard)
    assert len(seen) == 3
    for rows, clean, _ in seen:
        assert torch.equal(rows, torch.arange(80))
        assert clean == [8, 8, 8]
    rates = [rate for *_, rate in seen]
    assert rates == sorted(rates, reverse=True)
    assert rates[0] < 0.05


def test_the_command_line(tmp_path, capsys):
    from fastmeta.cli.train import main

    path = tmp_path / "run"
    flags = ["--labels.update", "epoch", "--labels.steps", "2", "--labels.eta", "0.5", "--labels.warmup-epochs", "1"]
    assert main(["--epochs", "2", "--model", "mlp", "--baselines", "none", "--out", str(path), *flags]) == 0
    assert load_run(path).summary["label_update"] == "epoch"
    assert main(["--epochs", "2", "--labels.label-lr", "3", "--labels.update", "epoch"]) == 2
    assert "labels.label_lr=3.0 is about labels.update=exact" in capsys.readouterr().err


def test_a_dry_run_counts_the_moves(capsys):
    from fastmeta.cli.train import main

    assert main(["--epochs", "20", "--model", "mlp", "--labels.update", "epoch", "--dry-run"]) == 0
    told = " ".join(capsys.readouterr().out.split())
    assert "10 clean steps of SGD at rate 0.02" in told
    assert "at the end of epochs 2 to 19 of 20; first 2 on the given labels, smoothed by 0.1" in told
    assert "18 moves of the labels" in told
