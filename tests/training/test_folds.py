"""train_folds: labels learned in folds, their average, a final run on all rows."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import textwrap
import time

import numpy as np
import pytest

import fastmeta
from fastmeta.cli import main
from fastmeta.data import InputError
from fastmeta.report.run_folder import entries, groups
from fastmeta.training import DataConfig, LabelConfig, TrainConfig, train_folds
from fastmeta.training.listener import Listener
from fastmeta.trajectory import Trajectory
from tests.support.plugs import files
from tests.support.runs import two_classes
from tests.support.trajectories import plan

METHODS = ["instance_labels", pytest.param("class_labels", marks=pytest.mark.slow)]


def data(**changes):
    return two_classes(x_meta=None, y_meta=None, **changes)


def learned(path, method="instance_labels", listener=None, folds=3):
    config = plan(None, method, trajectory_every=None, epochs=2)
    return train_folds(config, folds=folds, out=path, data=data(), listener=listener)


def content(path):
    """All that must be the same, however often it was stopped."""
    runs = {p.name: files(p) for p in path.iterdir() if (p / "config.toml").exists()}
    for of_files, _, _ in runs.values():  # config.toml of the final run names the labels by their path
        of_files["config.toml"] = re.sub(b'trajectory = ".*"', b"", of_files["config.toml"])
    kept = {str(p.relative_to(path)): p.read_bytes() for p in path.glob("**/*.npy")}
    return runs, kept, {p.name: p.read_bytes() for p in (path / "labels").iterdir()}


@pytest.fixture(scope="module", params=METHODS)
def whole(request, tmp_path_factory):
    path = tmp_path_factory.mktemp("folds") / "out"
    return request.param, path, learned(path, request.param)


def test_labels_of_all_rows_are_averaged_and_trained_on(whole):
    method, path, run = whole
    assert run.path == path / "final"
    assert (run.config.method, run.config.options.play) == ("replay", "dynamic")
    assert (run.summary["train_size"], run.summary["meta_size"]) == (80, 0)
    parts = [Trajectory.read(path / f"fold{k}") for k in range(3)]
    assert [(p.about.fold, p.about.folds) for p in parts] == [(0, 3), (1, 3), (2, 3)]
    assert np.array_equal(np.sort(np.concatenate([p.rows for p in parts])), np.repeat(np.arange(80), 2))
    labels = Trajectory.read(path / "labels")
    assert labels.rows.tolist() == list(range(80))
    assert np.array_equal(labels.given, data()["y_train"])
    assert (labels.kind, labels.epochs) == (method.removesuffix("_labels"), [0, 1, 2])


class Crash(Listener):
    """As if the process were killed: nothing is saved on the way out."""

    def __init__(self, name, step):
        self.at, self.path = (name, step), None

    def begin(self, path, *_):
        self.path = path

    def step(self, stage):
        if (self.path.name, stage.step) == self.at:
            raise RuntimeError("crashed")


def test_a_call_that_was_cut_off_goes_on_with_the_same_result(whole, tmp_path):
    method, unbroken, _ = whole
    path = tmp_path / "out"
    for name, step in (("fold1", 5), ("final", 6)):
        with pytest.raises(RuntimeError, match="crashed"):
            learned(path, method, Crash(name, step))
    learned(path, method)
    assert content(path) == content(unbroken)
    before = {p: p.stat().st_mtime_ns for p in path.glob("**/*") if p.is_file()}
    learned(path, method)  # nothing is left to do
    assert {p: p.stat().st_mtime_ns for p in path.glob("**/*") if p.is_file()} == before


@pytest.mark.parametrize(
    "cut", ["epoch-00001.npy", *(pytest.param(n, marks=pytest.mark.slow) for n in ("sums.json", "about.json"))]
)
def test_an_average_that_was_cut_off_or_damaged_is_made_again(cut, whole, tmp_path):
    method, unbroken, _ = whole
    path = tmp_path / "out"
    shutil.copytree(unbroken, path)
    (path / "labels" / cut).write_bytes(b"cut")
    learned(path, method)
    assert content(path) == content(unbroken)


def test_a_missing_fold_is_trained(whole, tmp_path):
    method, unbroken, _ = whole
    path = tmp_path / "elsewhere"
    shutil.copytree(unbroken, path)
    shutil.rmtree(path / "fold1")
    learned(path, method)
    assert content(path) == content(unbroken)


@pytest.fixture
def one(whole, tmp_path):
    method, unbroken, _ = whole
    if method != "instance_labels":
        pytest.skip("one kind of labels shows it")
    path = tmp_path / "out"
    shutil.copytree(unbroken, path)
    return path


def test_folds_that_are_not_of_this_call_are_refused(one):
    def refused(message, data=data(), folds=3, epochs=2):  # noqa: B008
        before = {p: p.read_bytes() for p in one.glob("**/*") if p.is_file()}
        config = plan(None, "instance_labels", trajectory_every=None, epochs=epochs)
        with pytest.raises(InputError, match=message):
            train_folds(config, out=one, data=data, folds=folds)
        assert {p: p.read_bytes() for p in one.glob("**/*") if p.is_file()} == before

    refused("fold0 is of another fold, 0 of 3 and not 0 of 4; take it away", folds=4)
    refused("epochs was 2, is 3 now", epochs=3)
    refused("classes in another order: class 0 is 'dark' there and 'bright'", data(class_names=["bright", "dark"]))
    refused("fold0 is of another data set", two_classes(seed=1, x_meta=None, y_meta=None))
    shutil.rmtree(one / "fold1" / "trajectory")
    shutil.copytree(one / "fold0" / "trajectory", one / "fold1" / "trajectory")
    refused("fold1 is of another fold, 0 of 3 and not 1 of 3")
    file = one / "fold0" / "trajectory" / "rows.npy"
    file.write_bytes(file.read_bytes()[:-8] + bytes(8))
    refused(r"rows\.npy is damaged")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"method": "onehot", "labels": LabelConfig()}, "method=onehot has none; take instance_labels"),
        ({"data": DataConfig(meta_count=8)}, r"data\.meta_count=8 says what is held out, and folds say it"),
        ({"data": DataConfig(val_fraction=0.1)}, r"data\.val_fraction=0\.1 says what is held out"),
        ({"labels": LabelConfig(label_lr="search")}, r"labels\.label_lr=search searches in each run"),
        ({"finetune_steps": 5}, "finetune_steps=5 takes clean rows"),
        ({"baselines": "all"}, "baselines=all has union, which trains on clean rows"),
        ({"noise": "uniform:0.4"}, "noise uniform:0.4 is drawn for the rows of each fold"),
        ({"dataset": "digits"}, "noise uniform:0.8 is drawn for the rows of each fold"),
    ],
)
def test_what_cannot_be_learned_in_folds_is_refused(changes, message, tmp_path):
    with pytest.raises(InputError, match=message):
        train_folds(TrainConfig(**{"dataset": "npz:x.npz", "model": "mlp", **changes}), out=tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_folds_are_a_number_and_want_a_folder(tmp_path):
    for folds in (1, 2.5, "five"):
        with pytest.raises(InputError, match="folds must be a whole number from 2 to"):
            learned(tmp_path / "out", folds=folds)
    with pytest.raises(InputError, match="replay must be dynamic or static, got 'both'"):
        train_folds(TrainConfig(dataset="npz:x.npz"), replay="both")
    config = plan(None, "instance_labels", trajectory_every=None)
    with pytest.raises(InputError, match="brings its own"):
        train_folds(config, folds=3, out=tmp_path / "out", data=two_classes())
    assert not (tmp_path / "out").exists()


def test_replay_is_about_folds(capsys):
    assert main(["train", "--replay", "static"]) == 2
    assert "replay=static is about the final run of --folds" in capsys.readouterr().err


@pytest.mark.slow
def test_the_command_learns_in_folds_for_each_seed_and_tells_the_cost(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    np.savez("my.npz", **data())
    words = ["train", "--dataset", "npz:my.npz", "--model", "mlp", "--epochs", "2", "--threads", "1", "--folds", "2"]
    words += ["--labels.update", "exact", "--replay", "static", "--out", "out"]
    assert main([*words, "--dry-run"]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "2 in out, then final on all rows; fold0: to do; fold1: to do; final: to do" in said
    assert "2 folds of about" in said
    assert not os.path.exists("out")
    assert main([*words, "--seeds", "2"]) == 0
    for seed in range(2):
        summary = json.loads((tmp_path / "out" / f"seed{seed}" / "final" / "summary.json").read_text())
        assert (summary["method"], summary["seed"], summary["train_size"]) == ("replay", seed, 80)
    assert 'play = "static"' in (tmp_path / "out" / "seed0" / "final" / "config.toml").read_text()
    capsys.readouterr()
    assert main(["show", "out", "--no-page"]) == 0
    shown = capsys.readouterr().out
    assert "seed0/fold0" in shown
    # means are over both seeds, whose labels lie in folders of their own
    assert [len(group.entries) for group in groups(entries(tmp_path / "out"))] == [2, 2, 2]


@pytest.mark.slow
@pytest.mark.parametrize("at", [("instance_labels", 1), ("instance_labels", 5), ("replay", 7)])
def test_a_killed_process_goes_on_with_the_same_result(at, tmp_path):
    program = """
    import sys
    from tests.support.runs import two_classes
    from tests.support.stopped import Kill
    from tests.support.trajectories import plan
    from fastmeta.training import train_folds
    config = plan(None, "instance_labels", trajectory_every=None, epochs=2)
    data, listener = two_classes(x_meta=None, y_meta=None), Kill(9, sys.argv[2], int(sys.argv[3]))
    train_folds(config, folds=3, out=sys.argv[1], data=data, listener=listener)
    """
    path, unbroken = tmp_path / "out", tmp_path / "unbroken"
    command = [sys.executable, "-c", textwrap.dedent(program), str(path), *map(str, at)]
    done = subprocess.run(command, env=dict(os.environ), capture_output=True, check=False)
    assert done.returncode == -signal.SIGKILL, done.stderr[-2000:]
    learned(path)
    learned(unbroken)
    assert content(path) == content(unbroken)


WORDS = [
    *("--dataset", "npz:two.npz", "--noise", "none", "--model", "mlp", "--epochs", "2", "--threads", "1"),
    *("--labels.update", "exact", "--folds", "2"),
]


@pytest.fixture
def in_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(sys.path))
    np.savez("two.npz", **data())
    return tmp_path


def test_folds_at_once_give_what_one_after_the_other_gives(in_folder, capsys):
    assert main(["train", *WORDS, "--out", "one"]) == 0
    assert main(["train", *WORDS, "--out", "two", "--folds-at-once", "2"]) == 0
    assert content(in_folder / "one") == content(in_folder / "two")
    told = capsys.readouterr().out
    assert "fold0: done" in told
    assert "fold1: done" in told
    assert not list((in_folder / "two").glob("*.log"))
    before = {p: p.stat().st_mtime_ns for p in (in_folder / "two").rglob("*.safetensors")}
    assert main(["train", *WORDS, "--out", "two", "--folds-at-once", "2"]) == 0  # nothing is trained again
    assert before == {p: p.stat().st_mtime_ns for p in (in_folder / "two").rglob("*.safetensors")}


def test_a_fold_that_fails_is_named_with_its_reason(in_folder, capsys):
    assert main(["train", *WORDS, "--out", "out", "--folds-at-once", "2", "--optim.lr", "1e30", "--epochs", "40"]) == 1
    err = capsys.readouterr().err
    assert "fastmeta train: fold0: " in err
    assert "diverged" in err
    assert err.count("\n") == 1


def test_folds_at_once_are_about_folds(capsys):
    assert main(["train", "--folds-at-once", "2"]) == 2
    assert main(["train", "--folds", "2", "--folds-at-once", "0", "--noise", "none"]) == 2
    err = capsys.readouterr().err
    assert "is about --folds" in err
    assert "folds_at_once must be at least 1" in err


@pytest.mark.slow
@pytest.mark.parametrize("by", [signal.SIGINT, signal.SIGKILL])
def test_folds_at_once_go_on_where_they_were_stopped(by, in_folder):
    words = ["train", *WORDS, "--epochs", "60", "--folds-at-once", "2"]
    assert main([*words, "--out", "whole"]) == 0
    begun = subprocess.Popen([sys.executable, "-m", "fastmeta", *words, "--out", "cut"])
    metrics = [in_folder / "cut" / f"fold{k}" / "metrics.jsonl" for k in range(2)]
    until = time.monotonic() + 120
    while not all(file.is_file() and len(file.read_text().splitlines()) > 3 for file in metrics):
        assert begun.poll() is None
        assert time.monotonic() < until
        time.sleep(0.02)
    begun.send_signal(by)
    assert begun.wait(60) == (128 + by if by == signal.SIGINT else -by)
    assert not all((in_folder / "cut" / f"fold{k}" / "summary.json").is_file() for k in range(2))
    assert main([*words, "--out", "cut"]) == 0  # folds that kill -9 has left behind save their state first
    assert content(in_folder / "whole") == content(in_folder / "cut")


def test_it_is_a_public_function():
    assert fastmeta.train_folds.__doc__ == train_folds.__doc__
