"""Runs whose directory, data and teachers are carried elsewhere between two commits: they go on bitwise."""

import shutil
import signal
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from fastmeta import train
from fastmeta.data import InputError
from fastmeta.training import DataConfig, Interrupted, TrainConfig
from fastmeta.training.listener import Listener
from fastmeta.training.rundir import load_run
from tests.support.runs import two_classes
from tests.support.stopped import Kill, assert_same

SETTINGS = {"epochs": 3, "threads": 1, "model": "mlp", "baselines": "none", "checkpoint_seconds": 0}


@pytest.fixture(autouse=True)
def plain_figures(monkeypatch):
    monkeypatch.setattr("fastmeta.report.write_figures", lambda *_: None)


def config(path, method="instance_labels", **changes):
    data = DataConfig(batch_size=16)
    return TrainConfig(**{**SETTINGS, "method": method, "data": data, "out": str(path), **changes})


class Copying(Listener):
    """Copies a run's directory while the run stands between two of its steps."""

    def __init__(self, source, target, step):
        self.source, self.target, self.at = source, target, step

    def step(self, stage):
        if stage.step == self.at:
            shutil.copytree(self.source, self.target)


@pytest.mark.parametrize("shards", [pytest.param(None, marks=pytest.mark.slow), 0.1])
def test_a_copy_of_a_run_that_goes_on_itself_goes_on_too(shards, tmp_path):
    run = config(tmp_path / "here" / "run", max_shard_mb=shards)
    copy = tmp_path / "there" / "another name"
    train(run, data=two_classes(), listener=Copying(Path(run.out), copy, 7))
    train(resume=copy, data=two_classes())
    assert_same(copy, Path(run.out))


def project(root):
    """Data, two teachers and a student's config, all of them below one folder."""
    root.mkdir()
    np.savez(root / "data.npz", **two_classes())
    y = two_classes()["y_train"]
    np.save(root / "noise.npy", y)
    given = {"dataset": f"npz:{root / 'data.npz'}", "noise": f"file:{root / 'noise.npy'}"}
    for name, method in (("teacher", "onehot"), ("labels", "instance_labels")):
        train(config(root / name, method, **given, epochs=1))
    return given


@pytest.mark.parametrize(
    ("source", "relative"), [("teacher", False), pytest.param("labels", True, marks=pytest.mark.slow)]
)
def test_a_folder_with_data_and_teacher_is_moved(source, relative, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    old, new = tmp_path / "old", tmp_path / "deep" / "new"
    given = project(Path("old") if relative else old)
    options = {source: f"old/{source}" if relative else str(old / source)}
    student = config(old / "student", "distill", options=options, **given)
    whole = train(replace(student, out=str(tmp_path / "whole"))).path
    with pytest.raises(Interrupted):
        train(student, listener=Kill(signal.SIGTERM, "distill", 7))
    new.parent.mkdir()
    old.rename(new)
    monkeypatch.chdir(tmp_path.parent)
    run = train(resume=new / "student")
    for name in ("model.safetensors", "labels.npz"):
        assert (run.path / name).read_bytes() == (whole / name).read_bytes()
    # the same line with paths of now looks at the finished run
    here = {"dataset": f"npz:{new / 'data.npz'}", "noise": f"file:{new / 'noise.npy'}"}
    again = replace(student, out=str(new / "student"), options={source: str(new / source)}, **here)
    assert train(again, auto_resume=True).summary == run.summary


def test_what_is_elsewhere_is_named_in_the_config_and_checked(tmp_path):
    old, new = tmp_path / "old", tmp_path / "new"
    given = project(old)
    student = config(old / "student", "distill", options={"teacher": str(old / "teacher")}, **given)
    with pytest.raises(Interrupted):
        train(student, listener=Kill(signal.SIGTERM, "distill", 7))
    run = (old / "student").rename(tmp_path / "student")
    old.rename(new)
    with pytest.raises(InputError, match=r"config.toml names dataset .*data.npz, which is not here") as said:
        train(resume=run)
    assert "\n" not in str(said.value)
    file = run / "config.toml"
    moved = file.read_text().replace(str(old), str(new))
    file.write_text(moved.replace(str(new / "teacher"), str(new / "labels")))
    with pytest.raises(InputError, match=r"teacher .*labels is not the one that the run began with"):
        train(resume=run)
    file.write_text(moved.replace(str(new / "data.npz"), str(new / "other.npz")))
    np.savez(new / "other.npz", **two_classes(1))
    with pytest.raises(InputError, match="the data are not those that"):
        train(resume=run)
    file.write_text(moved)
    done = train(resume=run)
    # a line that names other data or another teacher does not get this run
    here = {"dataset": f"npz:{new / 'data.npz'}", "noise": f"file:{new / 'noise.npy'}"}
    again = replace(student, out=str(run), options={"teacher": str(new / "teacher")}, **here)
    assert train(again, auto_resume=True).summary == done.summary
    for other in ({"options": {"teacher": str(new / "labels")}}, {"dataset": f"npz:{new / 'other.npz'}"}):
        with pytest.raises(InputError, match=r"begun with another config: (method.teacher|dataset) was"):
            train(replace(again, **other), auto_resume=True)
    shutil.rmtree(run / "checkpoint")
    assert load_run(run).summary == done.summary
