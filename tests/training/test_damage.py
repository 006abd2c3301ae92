"""Files of a run that are cut, changed, lost or another's: one line that says which, and how to go on."""

import os
import shutil
import signal

import pytest
import safetensors.torch
import torch

from fastmeta.data import InputError
from fastmeta.training import Interrupted, checkpoint, load_run, train
from tests.training.test_resume import Kill, config, interrupted
from tests.training.test_run import two_classes


def flip_a_bit(path, position):
    content = bytearray(path.read_bytes())
    content[position] ^= 4
    path.write_bytes(content)


def test_a_flipped_bit_of_a_checkpoint_is_said(tmp_path):
    """Anywhere: in the last tensor's bytes, where safetensors sees nothing, in the values, in the digest."""
    path = interrupted(tmp_path / "run run")
    state = path / "checkpoint" / "state.safetensors"
    whole = state.read_bytes()
    for position in (-1, -2000, whole.index(b"metrics_bytes") + 18, whole.index(b"digest") + 12):
        state.write_bytes(whole)
        flip_a_bit(state, position)
        with pytest.raises(InputError) as said:
            train(resume=path, data=two_classes())
        assert str(said.value) == (
            f"{state} is no checkpoint that can be read (its content and its digest differ: it has changed since it "
            f"was written); begin the run anew: fastmeta train --config '{path / 'config.toml'}'"
        )
    state.write_bytes(whole)
    assert train(resume=path, data=two_classes()).summary


def test_damaged_metrics_are_said(tmp_path):
    path = interrupted(tmp_path / "run")
    flip_a_bit(path / "metrics.jsonl", 0)
    with pytest.raises(InputError, match=r"metrics.jsonl is damaged in line 1 \(.*bring it back, or start a new run"):
        train(resume=path, data=two_classes())


@pytest.mark.parametrize("name", ["model.safetensors", "labels.npz", "labels.safetensors"])
def test_a_lost_result_of_a_finished_stage_is_said(name, tmp_path):
    path = tmp_path / "run"
    with pytest.raises(Interrupted):
        train(config(path), data=two_classes(), listener=Kill(signal.SIGTERM, "union", 5))
    (path / name).unlink()
    with pytest.raises(InputError, match=f"{name} is gone, which the run had written"):
        train(resume=path, data=two_classes())


def damaged(name, how):
    def damage(path):
        file = path / name
        if how == "cut":
            file.write_bytes(file.read_bytes()[:50])
        elif how == "bit":
            flip_a_bit(file, -1)
        elif how == "gone":
            file.unlink()
        elif how.startswith("copy "):
            shutil.copy(path / how.removeprefix("copy "), file)
        else:
            file.write_text(how)

    return damage


HEAD = '"schema": "fastmeta.run", "schema_version"'


@pytest.mark.parametrize(
    ("name", "how", "message"),
    [
        ("summary.json", "cut", "summary.json cannot be read .* damaged"),
        ("summary.json", "[]", "schema None None, this fastmeta reads fastmeta.run 1"),
        ("summary.json", f"{{{HEAD}: 99}}", "schema fastmeta.run 99, this fastmeta reads fastmeta.run 1"),
        ("summary.json", f"{{{HEAD}: 1}}", "num_classes is missing"),
        ("model.safetensors", "cut", "model.safetensors cannot be read .* damaged"),
        ("model.safetensors", "bit", "its content and its digest differ"),
        ("model.safetensors", "gone", "model.safetensors cannot be read .*No such file"),
        ("model.safetensors", "copy labels.safetensors", "does not fit the ConvNet .* the run is damaged"),
        ("labels.safetensors", "cut", "labels.safetensors cannot be read .* damaged"),
        ("labels.safetensors", "bit", "its content and its digest differ"),
        ("labels.safetensors", "gone", "labels.safetensors cannot be read .*No such file"),
        ("labels.safetensors", "copy model.safetensors", "it holds no labels"),
        ("config.toml", "", "config.toml names no model"),
        ("config.toml", "[tool]", "unknown key 'tool'"),
    ],
)
def test_a_damaged_finished_run_is_said(name, how, message, unbroken, tmp_path):
    path = tmp_path / "run"
    shutil.copytree(unbroken, path)
    damaged(name, how)(path)
    for read in (load_run, lambda p: train(resume=p)):
        with pytest.raises(InputError, match=message) as said:
            read(path)
        assert "\n" not in str(said.value)


def test_a_file_without_a_digest_is_not_taken(unbroken, tmp_path):
    path = tmp_path / "run"
    shutil.copytree(unbroken, path)
    weights = safetensors.torch.load_file(path / "model.safetensors")
    safetensors.torch.save_file(weights, path / "model.safetensors")
    with pytest.raises(InputError, match="it has no digest: another program wrote it, or another version"):
        load_run(path)


def test_another_module_than_the_runs_is_said(unbroken):
    with pytest.raises(InputError, match=r"does not fit the Linear .*: pass one built as that was"):
        load_run(unbroken, model=torch.nn.Linear(16, 2))
    with pytest.raises(InputError, match=r"model must be a torch.nn.Module, got the class Linear"):
        load_run(unbroken, model=torch.nn.Linear)


def test_lost_metrics_are_said(tmp_path):
    path = interrupted(tmp_path / "run")
    for lose in (lambda p: p.write_bytes(p.read_bytes()[:-5]), lambda p: p.unlink()):
        lose(path / "metrics.jsonl")
        with pytest.raises(InputError, match="has lost lines"):
            train(resume=path, data=two_classes())


def test_a_failing_write_leaves_what_was_there(tmp_path, monkeypatch):
    path = tmp_path / "file"
    checkpoint.write_atomically(path, b"old")

    def full(*_):
        raise OSError("no space left")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="no space left"):
        checkpoint.write_atomically(path, b"new")
    assert path.read_bytes() == b"old"
    assert [p.name for p in tmp_path.iterdir()] == ["file"]
