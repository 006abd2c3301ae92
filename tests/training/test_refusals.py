"""What is wrong is said in one line before anything is written; a disk that fills up does no harm."""

import errno
import os

import numpy as np
import pytest
import torch
from torch import nn

from fastmeta import train
from fastmeta.data import InputError
from fastmeta.training import LabelConfig, TrainingError, load_run
from tests.support.runs import Warnings, config, two_classes


def test_nothing_is_written_where_something_is_wrong(tmp_path):
    out = tmp_path / "run"
    for changes, data in (
        ({"model": "resnet99"}, two_classes()),
        ({"model": "vgg16_bn"}, two_classes()),
        ({"device": "cuda:99"}, two_classes()),
        ({}, two_classes(y_train=np.zeros(80, int))),
        ({}, two_classes(x_meta=two_classes()["x_train"][:8])),
        ({"dataset": "npz:/nowhere.npz"}, None),
    ):
        with pytest.raises(InputError):
            train(config(out, **changes), data=data)
    with pytest.raises(
        InputError, match=r"must return logits \(batch, 2\), got \(2, 3\) .* there are 2 classes, and its last layer"
    ):
        train(config(out), model=nn.Sequential(nn.Flatten(), nn.Linear(16, 3)), data=two_classes())
    with pytest.raises(InputError, match=r"model custom:Sequential fails on 2 images of shape \(4, 4, 1\) in training"):
        train(config(out), model=nn.Sequential(nn.Flatten(), nn.Linear(5, 2)), data=two_classes())
    with pytest.raises(InputError, match=r"fails on 2 images .* in evaluation mode: KeyError: 'mean'"):
        train(config(out), model=FailsInEvaluation(), data=two_classes())
    with pytest.raises(InputError, match="no parameter to train: none requires a gradient"):
        train(
            config(out), model=nn.Sequential(nn.Flatten(), nn.Linear(16, 2)).requires_grad_(False), data=two_classes()
        )
    with pytest.raises(InputError, match=r"model must be a torch.nn.Module, got the class Linear"):
        train(config(out), model=nn.Linear, data=two_classes())
    with pytest.raises(InputError, match=r"data must be a .* got list"):
        train(config(out), data=[1])
    with pytest.raises(InputError, match="config must be a TrainConfig, got str"):
        train("digits")
    with pytest.raises(InputError, match=r"labels.target_prob must be above 1/C = 0.5, got 0.4"):
        train(config(out, labels=LabelConfig(target_prob=0.4)), data=two_classes())
    assert not out.exists()


class FailsInEvaluation(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = nn.Linear(16, 2)

    def forward(self, x):
        if not self.training:
            raise KeyError("mean")
        return self.inner(x.flatten(1))


def fill_the_disk(monkeypatch, after):
    """`after` more writes succeed."""
    real, calls = os.fsync, []

    def full(fd):
        calls.append(fd)
        if len(calls) > after:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        real(fd)

    monkeypatch.setattr(os, "fsync", full)


@pytest.mark.parametrize("after", [0, 1, 2])
def test_a_directory_that_cannot_be_written_is_not_begun(after, tmp_path, monkeypatch):
    fill_the_disk(monkeypatch, after)
    with pytest.raises(InputError, match=r"cannot write the run directory .*: No space left on device"):
        train(config(tmp_path / "run"), data=two_classes())
    assert list(tmp_path.iterdir()) == []


def test_a_disk_that_fills_up_ends_the_run_in_one_line_and_it_can_go_on(tmp_path, monkeypatch):
    whole = train(config(tmp_path / "whole"), data=two_classes(), listener=Warnings())
    # metrics.jsonl, checkpoint, config.toml, two lines of metrics; the third is torn
    for after in (5, 9):  # 9: the labels of the finished stage
        path = tmp_path / str(after)
        with monkeypatch.context() as patch:
            fill_the_disk(patch, after)
            with pytest.raises(
                TrainingError, match=r"cannot write .*No space left on device; mend that .*; the last good state"
            ) as e:
                train(config(path), data=two_classes(), listener=Warnings())
            assert "\n" not in str(e.value)
            assert f"go on with: fastmeta train --resume {path};" in str(e.value)
        run = train(resume=path, data=two_classes(), listener=Warnings())
        assert torch.equal(run.labels.label_logits, whole.labels.label_logits)


def test_a_run_on_a_disk_that_became_read_only_is_not_gone_on_with(tmp_path, monkeypatch):
    path = tmp_path / "run"
    with monkeypatch.context() as patch:
        fill_the_disk(patch, 5)
        with pytest.raises(TrainingError):
            train(config(path), data=two_classes(), listener=Warnings())

    def refuse(name, _):
        raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(name))

    monkeypatch.setattr(os, "truncate", refuse)
    with pytest.raises(TrainingError, match=r"cannot write .*metrics.jsonl: Read-only file system; mend that"):
        train(resume=path, data=two_classes(), listener=Warnings())


def test_a_directory_that_is_taken(tmp_path):
    (tmp_path / "file").write_text("")
    for out in (tmp_path, tmp_path / "file"):
        with pytest.raises(InputError, match=r"is not empty; choose another --out$"):
            train(config(out), data=two_classes())
    assert [p.name for p in tmp_path.iterdir()] == ["file"]
    with pytest.raises(InputError, match="is no run directory"):
        load_run(tmp_path)


def test_more_layers_than_there_are_is_said_before_anything_is_written(tmp_path):
    with pytest.raises(InputError, match=r"approx='last:9' asks for more layers than there are: .* take last:1"):
        train(config(tmp_path / "run", approx="last:9"), data=two_classes())
    assert not (tmp_path / "run").exists()
