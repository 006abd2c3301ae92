"""Runs on several ranks that are stopped and go on: bitwise on as many, with the same labels on others."""

import os
import shutil
import signal
from pathlib import Path

import numpy as np
import pytest
import torch

from fastmeta import load_run, train
from fastmeta.training import DataConfig, Interrupted
from fastmeta.training.rundir import rank_files, run_labels
from fastmeta.training.rundir.layout import STATE
from fastmeta.training.stage import Stage
from fastmeta.trajectory import Trajectory
from tests.support.ranks import run_ranks
from tests.support.runs import Warnings, two_classes
from tests.support.stopped import Kill, assert_same
from tests.support.stopped import config as stopped_config

#: of a batch that two and three ranks can divide: 6 steps an epoch on either
DATA = DataConfig(batch_size=12, meta_batch_size=6, augment="crop_flip", padding=1)
LABELS = "parts/labels/state.label_logits"


def config(path, **changes):
    return stopped_config(path, **{"baselines": "none", "data": DATA, "trajectory_every": 1, "epochs": 2, **changes})


def stop(path, step, **changes):
    """In the middle of the second epoch, by a signal that one rank alone hears."""
    with pytest.raises(Interrupted, match="saved in"):
        train(config(path, **changes), data=two_classes(), listener=Kill(signal.SIGTERM, "instance_labels", step))


def went_on(path, into):
    """Go on to the end, and write down what the ranks had when they had loaded the state."""
    load = Stage.load

    def watched(stage, *args, **how):
        load(stage, *args, **how)
        labels = stage.method.labels
        seen = {"labels": labels.label_logits, "given": labels.targets, "step": stage.step}
        torch.save(seen | {"weights": dict(stage.model.state_dict())}, f"{into}-{stage.ranks.rank}.pt")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Stage, "load", watched)
        heard = Warnings()
        train(resume=path, data=two_classes(), listener=heard)
    return heard.texts


def check_went_on(state, into, ranks):
    """The ranks had the rows and weights of `state`."""
    tensors, values, saved_by = rank_files.load(state)
    seen = [torch.load(f"{into}-{rank}.pt") for rank in range(ranks)]
    assert torch.equal(torch.cat([s["labels"] for s in seen]), tensors[LABELS])
    assert torch.equal(torch.cat([s["given"] for s in seen]), torch.from_numpy(two_classes()["y_train"]))
    for s in seen:
        assert s["step"] == values["stage"]["step"]
        for name, t in s["weights"].items():
            if "running" not in name or saved_by != ranks:  # each had its own; read by one process, their mean
                assert torch.equal(t, tensors[f"parts/model/state.{name}"]), name


def check_whole(path):
    """A finished run is read as any other."""
    run, given = load_run(path), two_classes()
    assert len(run.labels) == 80
    assert np.array_equal(run.labels.targets, given["y_train"])
    table = run_labels(path)
    assert np.array_equal(table.row, np.arange(80))
    assert np.array_equal(table.given, given["y_train"])
    assert np.array_equal(table.true, given["y_true"])
    assert np.array_equal(table.learned, run.labels.probs().argmax(1))
    assert run.summary["labels_changed"] == int((table.learned != table.given).sum())
    last = Trajectory.read(path)
    assert len(last.about.class_names) == 2
    shots = sorted((path / "trajectory").glob("epoch-*.npy"))
    assert np.load(shots[-1]).shape == (80, 2)
    assert np.abs(np.load(shots[-1]) - run.labels.probs().numpy()).max() < 1e-3


def two(rank, size, folder):
    folder = Path(folder)
    train(config(folder / "unbroken"), data=two_classes())
    stop(folder / "stopped", 8)
    copied_by_first(rank, folder / "stopped", folder / "copy")
    assert went_on(folder / "stopped", folder / "same") == []
    texts = went_on(folder / "one", folder / "grown")
    assert rank or any("another order" in t for t in texts)


def copied_by_first(rank, path, copy):
    import torch.distributed as dist

    if rank == 0:
        shutil.copytree(path, copy)
    dist.barrier()


def stopped_two(rank, size, folder):
    stop(Path(folder, "three"), 8)
    copied_by_first(rank, Path(folder, "three"), Path(folder, "copy"))


def three(rank, size, folder):
    folder = Path(folder)
    texts = went_on(folder / "three", folder / "more")
    assert rank or any("another order" in t for t in texts)


def test_two_ranks_go_on_bitwise_and_one_process_with_the_same_labels(tmp_path, monkeypatch):
    monkeypatch.setattr("fastmeta.report.write_figures", lambda *_: None)
    off = {"labels": stopped_config(tmp_path).labels}
    stop(tmp_path / "one", 8, **off)
    shutil.copytree(tmp_path / "one", tmp_path / "begun by one")
    run_ranks(two, 2, tmp_path, str(tmp_path), seconds=200)
    assert_same(tmp_path / "stopped", tmp_path / "unbroken")
    check_whole(tmp_path / "unbroken")
    check_went_on(tmp_path / "copy" / STATE, tmp_path / "same", 2)
    check_went_on(tmp_path / "begun by one" / STATE, tmp_path / "grown", 2)
    check_whole(tmp_path / "one")

    shutil.copytree(tmp_path / "copy", tmp_path / "alone")
    with pytest.warns(UserWarning, match="another order"):
        train(resume=tmp_path / "alone", data=two_classes())
    check_whole(tmp_path / "alone")
    assert os.listdir(tmp_path / "alone" / STATE.parent) == [STATE.name]
    assert any("another order" in text for text in load_run(tmp_path / "alone").summary["warnings"])


@pytest.mark.slow
def test_three_ranks_go_on_with_the_labels_of_two(tmp_path):
    run_ranks(stopped_two, 2, tmp_path, str(tmp_path), seconds=200)
    run_ranks(three, 3, tmp_path, str(tmp_path), seconds=200)
    check_went_on(tmp_path / "copy" / STATE, tmp_path / "more", 3)
    check_whole(tmp_path / "three")
