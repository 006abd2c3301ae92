"""Files of a run that are cut, changed, lost or another's: one line that says which, and how to go on."""

import os
import shutil
import signal

import numpy as np
import pytest
import safetensors.torch
import torch

from fastmeta import train
from fastmeta.data import InputError
from fastmeta.training import Interrupted, load_run
from fastmeta.training.rundir import checkpoint
from tests.support.runs import two_classes
from tests.support.stopped import Kill, assert_same, config, interrupted


def flip_a_bit(path, position):
    content = bytearray(path.read_bytes())
    content[position] ^= 4
    path.write_bytes(content)


def test_a_flipped_bit_of_a_checkpoint_is_said(tmp_path):
    """Anywhere: in the last tensor's bytes, where safetensors sees nothing, in the values, in the digest."""
    path = interrupted(tmp_path / "run run")
    state = path / "checkpoint" / "state.safetensors"
    whole = state.read_bytes()
    for position in (-1, -2000, whole.index(b"instance_labels") + 1, whole.index(b"digest") + 12):
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
        ("summary.json", "[]", "schema None None, this fastmeta reads fastmeta.run 2"),
        ("summary.json", f"{{{HEAD}: 99}}", "schema fastmeta.run 99, this fastmeta reads fastmeta.run 2"),
        ("summary.json", f"{{{HEAD}: 2}}", "num_classes is missing"),
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


@pytest.mark.parametrize("name", ["model.safetensors", "labels.npz", "labels.safetensors"])
def test_a_changed_result_is_found_before_anything_is_trained(name, tmp_path):
    path = tmp_path / "run"
    with pytest.raises(Interrupted):
        train(config(path), data=two_classes(), listener=Kill(signal.SIGTERM, "union", 5))
    before = (path / "metrics.jsonl").read_bytes()
    for damage in (lambda p: flip_a_bit(p, -1), lambda p: flip_a_bit(p, 0), lambda p: p.write_bytes(b"")):
        whole = (path / name).read_bytes()
        damage(path / name)
        with pytest.raises(InputError, match=f"{name} has changed since the run wrote it; bring it back"):
            train(resume=path, data=two_classes())
        (path / name).write_bytes(whole)
    assert (path / "metrics.jsonl").read_bytes() == before
    assert train(resume=path, data=two_classes()).summary


@pytest.mark.parametrize("tail", [b"x" * 10**6, b"\xff\xfe\0", b'{"run": "union"}\n', b"\n\n", b'{"a":' * 1000])
def test_a_longer_tail_of_metrics_is_cut(tail, unbroken, tmp_path):
    path = interrupted(tmp_path / "run")
    with open(path / "metrics.jsonl", "ab") as file:
        file.write(tail)
    train(resume=path, data=two_classes())
    assert_same(path, unbroken)


def test_a_changed_figure_of_metrics_is_said(tmp_path):
    path = interrupted(tmp_path / "run")
    text = (path / "metrics.jsonl").read_text()
    (path / "metrics.jsonl").write_text(text.replace('"epoch": 0', '"epoch": 7', 1))
    with pytest.raises(InputError, match="is damaged in a figure: its content and its digest differ"):
        train(resume=path, data=two_classes())


def test_what_is_in_the_way_of_a_later_file_is_said_now(tmp_path):
    path = interrupted(tmp_path / "run")
    for name in ("summary.json", "model.safetensors", ".labels.npz.part"):
        (path / name).mkdir()
        with pytest.raises(InputError, match=f"{name} is a folder, and the run will write a file there"):
            train(resume=path, data=two_classes())
        (path / name).rmdir()
    (tmp_path / "other").mkdir()
    (path / "figures").symlink_to(tmp_path / "other")
    with pytest.raises(InputError, match="figures is no folder of the run's own"):
        train(resume=path, data=two_classes())
    (path / "figures").unlink()
    (path / "checkpoint").rename(tmp_path / "other" / "checkpoint")
    (path / "checkpoint").symlink_to(tmp_path / "other" / "checkpoint")
    state = (path / "checkpoint" / "state.safetensors").read_bytes()
    with pytest.raises(InputError, match="checkpoint is no folder of the run's own"):
        train(resume=path, data=two_classes())
    assert (path / "checkpoint" / "state.safetensors").read_bytes() == state


def test_metrics_that_are_a_link_are_not_cut(tmp_path):
    """A received run may have nothing in them yet, and its link lead to a file of the reader's."""
    path = interrupted(tmp_path / "run")
    (path / "metrics.jsonl").rename(tmp_path / "precious")
    with open(tmp_path / "precious", "a") as file:
        file.write("of the user's")
    (path / "metrics.jsonl").symlink_to(tmp_path / "precious")
    with pytest.raises(InputError, match="is a link, and the run would write through it"):
        train(resume=path, data=two_classes())
    assert (tmp_path / "precious").read_text().endswith("of the user's")


def test_files_of_two_runs_are_not_one(unbroken, tmp_path):
    path = tmp_path / "run"
    shutil.copytree(unbroken, path)
    train(config(tmp_path / "other", seed=1), data=two_classes(y_train=np.arange(80) % 2))
    for name, message in (
        ("model.safetensors", "model.safetensors has changed since the run wrote it"),
        ("labels.npz", "labels.npz has changed since the run wrote it"),
        ("config.toml", "holds files of two runs: seed is 1 in config.toml and 0 in summary.json"),
    ):
        whole = (path / name).read_bytes()
        shutil.copy(tmp_path / "other" / name, path / name)
        with pytest.raises(InputError, match=message):
            load_run(path)
        (path / name).write_bytes(whole)
    (path / "labels.npz").unlink()  # which nobody needs to read the run
    assert load_run(path).summary


def test_reading_a_run_leaves_the_callers_draws_alone(unbroken):
    state = torch.get_rng_state()
    load_run(unbroken)
    assert torch.equal(torch.get_rng_state(), state)


def test_figures_that_cannot_be_drawn_lose_no_run(tmp_path, monkeypatch):
    def broken(path, summary, samples):
        raise KeyError("of matplotlib")

    monkeypatch.setattr("fastmeta.report.write_figures", broken)
    with pytest.warns(UserWarning, match="the figures are not drawn: KeyError"):
        run = train(config(tmp_path / "run", baselines="none"), data=two_classes())
    assert "the figures are not drawn: KeyError: 'of matplotlib'" in load_run(run.path).summary["warnings"]
