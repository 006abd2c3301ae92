"""Trajectories as a run writes them: what they hold, and that a run that is cut off leaves the same."""

import dataclasses
import os
import shutil
import signal
import subprocess
import sys
import textwrap

import numpy as np
import pytest
import torch

from fastmeta.data import InputError
from fastmeta.training import DataConfig, Interrupted, LabelConfig, TrainConfig, train
from fastmeta.training.listener import Listener
from fastmeta.trajectory import Trajectory
from tests.support.runs import two_classes
from tests.support.stopped import Kill, config
from tests.support.trajectories import EXACT, plan


class Probs(Listener):
    """Labels behind each step and each epoch of the method's own stage."""

    def __init__(self):
        self.steps, self.epochs = [], []

    def stage(self, stage):
        self.epochs.append(stage.method.labels.probs().clone())

    def step(self, stage):
        self.steps.append(1 - stage.method.labels.alpha if hasattr(stage.method.labels, "alpha") else None)

    def epoch(self, stage, record):
        self.epochs.append(stage.method.labels.probs().clone())


def files(run):
    return {p.name: p.read_bytes() for p in (run / "trajectory").iterdir()}


def test_instance_labels_are_those_at_the_end_of_each_epoch(tmp_path):
    seen = Probs()
    run = train(
        plan(tmp_path / "run", "instance_labels", epochs=5, trajectory_every=2), data=two_classes(), listener=seen
    )
    found = Trajectory.read(run.path)
    assert (found.kind, found.epochs, found.class_names) == ("instance", [0, 2, 4, 5], ("dark", "bright"))
    assert found.rows.tolist() == list(range(80))
    assert np.array_equal(found.given, two_classes()["y_train"])
    for epoch in found.epochs:
        mapped = found.snapshot(epoch)
        assert isinstance(mapped, np.memmap)
        assert mapped.dtype == np.float16
        assert np.abs(mapped - seen.epochs[epoch].numpy()).max() <= 2**-12
        assert np.array_equal(found.at(epoch), mapped.astype(np.float32))
    between = 0.5 * (found.at(2).astype(np.float64) + found.at(4))
    np.testing.assert_allclose(found.at(3), between, atol=1e-7)
    np.testing.assert_allclose(found.at(0.6), between, atol=1e-7)
    assert np.array_equal(found.at(1.0), found.at(5))
    assert not np.array_equal(found.at(0), found.at(5))


@pytest.mark.parametrize("steps", [pytest.param(None, marks=pytest.mark.slow), 13])
def test_class_labels_are_those_behind_each_step(steps, tmp_path):
    seen = Probs()
    run = train(plan(tmp_path / "run", "class_labels", max_steps=steps), data=two_classes(), listener=seen)
    found, count = Trajectory.read(run.path), steps or 15
    assert (found.kind, found.epochs, found.about.steps) == ("class", [0, 1, 2, 3], count)
    assert torch.equal(torch.from_numpy(found.class_probs()), torch.stack(seen.steps))
    assert len(np.unique(found.class_probs()[:, 0])) > 5
    assert found.snapshot(0)[0].tolist() == pytest.approx([0.7, 0.7])
    np.testing.assert_allclose(found.at(1.0), seen.epochs[-1], atol=1e-7)
    np.testing.assert_allclose(found.at(2), seen.epochs[2], atol=1e-7)
    given = found.given
    assert np.array_equal(found.at(7 / count)[np.arange(80), given], found.class_probs()[6][given])


def test_canaries_and_held_out_rows_are_left_out(tmp_path):
    data = two_classes(x_meta=None, y_meta=None)
    labels = LabelConfig(update="exact", label_lr=20.0, canaries="20")
    changes = {"labels": labels, "data": DataConfig(batch_size=16, meta_fraction=0.5, val_fraction=0.2), "epochs": 2}
    run = train(config(tmp_path / "run", model="mlp", baselines="none", trajectory_every=1, **changes), data=data)
    found = Trajectory.read(run.path)
    with np.load(run.path / "labels.npz") as table:
        assert np.array_equal(found.rows, table["index"])
        assert np.array_equal(found.given, table["given"])
    assert found.snapshot(2).shape == (32, 2)


def test_no_other_stage_and_no_other_method_writes_one(tmp_path):
    made = plan(tmp_path / "run", "instance_labels", baselines="clean", trajectory_every=3)
    assert Trajectory.read(train(made, data=two_classes()).path).epochs == [0, 3]
    for method in ("onehot", "mlc", "mwnet"):
        with pytest.raises(
            InputError, match=f"trajectory_every=1 is about labels that move, and method={method} takes"
        ):
            TrainConfig(method=method, trajectory_every=1)
    with pytest.raises(InputError, match="trajectory_every must be at least 1, got 0"):
        TrainConfig(trajectory_every=0)


@pytest.fixture(scope="module", params=list(EXACT))
def whole(request, tmp_path_factory):
    """A method, and what a run of it leaves that is never stopped."""
    path = tmp_path_factory.mktemp("whole") / "run"
    return request.param, files(train(plan(path, request.param, trajectory_every=2), data=two_classes()).path)


@pytest.mark.parametrize("step", [7, *(pytest.param(k, marks=pytest.mark.slow) for k in (1, 5, 12))])
def test_a_stopped_run_leaves_the_same_folder(step, whole, tmp_path):
    (method, wanted), path = whole, tmp_path / "run"
    with pytest.raises(Interrupted):
        train(plan(path, method, trajectory_every=2), data=two_classes(), listener=Kill(signal.SIGTERM, method, step))
    train(resume=path, data=two_classes())
    assert files(path) == wanted


class Crash(Listener):
    """Nothing is saved on the way out, as in a process that is killed."""

    def step(self, stage):
        if stage.step == 12:
            raise RuntimeError("crashed")


def left_behind(path):
    """What a killed process may leave: snapshots behind its checkpoint, half a file, one of another time."""
    assert Trajectory.read(path).epochs[-1] == 2  # the checkpoint is at step 0
    (path / "trajectory" / ".epoch-00003.npy.part").write_bytes(b"cut off")
    (path / "trajectory" / "epoch-00009.npy").write_bytes(b"of another time")


def test_a_crashed_run_leaves_the_same_folder(whole, tmp_path):
    (method, wanted), path = whole, tmp_path / "run"
    made = dataclasses.replace(plan(path, method, trajectory_every=2), checkpoint_seconds=1000.0)
    with pytest.raises(RuntimeError, match="crashed"):
        train(made, data=two_classes(), listener=Crash())
    left_behind(path)
    train(resume=path, data=two_classes())
    assert files(path) == wanted


@pytest.mark.slow
def test_a_killed_process_leaves_the_same_folder(whole, tmp_path):
    (method, wanted), path = whole, tmp_path / "run"
    program = """
    import dataclasses, sys
    from fastmeta.training import train
    from tests.support.runs import two_classes
    from tests.support.stopped import Kill
    from tests.support.trajectories import plan
    config = dataclasses.replace(plan(sys.argv[1], sys.argv[2], trajectory_every=2), checkpoint_seconds=1000.0)
    train(config, data=two_classes(), listener=Kill(9, sys.argv[2], 12), auto_resume=True)
    """
    command = [sys.executable, "-c", textwrap.dedent(program), str(path), method]
    done = subprocess.run(command, env=dict(os.environ), capture_output=True, check=False)
    assert done.returncode == -signal.SIGKILL, done.stderr[-2000:]
    left_behind(path)
    train(resume=path, data=two_classes())
    assert files(path) == wanted


def test_snapshots_before_the_checkpoint_are_looked_at(tmp_path):
    path = tmp_path / "run"
    with pytest.raises(Interrupted):
        train(plan(path, "instance_labels"), data=two_classes(), listener=Kill(signal.SIGTERM, "instance_labels", 12))
    file = path / "trajectory" / "epoch-00001.npy"
    content = file.read_bytes()
    file.write_bytes(content[:-1] + b"x")
    with pytest.raises(InputError, match=r"epoch-00001\.npy has changed since the run wrote it; bring it back"):
        train(resume=path, data=two_classes())
    file.unlink()
    with pytest.raises(InputError, match=r"epoch-00001\.npy is gone, which the run had written"):
        train(resume=path, data=two_classes())
    file.write_bytes(content)
    train(resume=path, data=two_classes())
    Trajectory.read(path).check_finished()


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    made = plan(tmp_path_factory.mktemp("finished") / "run", "instance_labels", epochs=1)
    return train(made, data=two_classes()).path


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("about.json", b"{}", r"about\.json and its digest in sums\.json differ"),
        ("about.json", None, "has no trajectory of labels"),
        ("sums.json", None, r"it has no sums\.json; go on with what was writing it"),
        ("sums.json", b"[1]", "it is no table of digests"),
        ("sums.json", b"{", "is damaged"),
        ("epoch-00001.npy", None, r"epoch-00001\.npy is gone, which sums\.json beside it names"),
        ("epoch-00001.npy", b"\x93NUMPY", r"epoch-00001\.npy is damaged"),
        ("given.npy", b"", r"given\.npy is damaged"),
    ],
)
def test_a_damaged_folder_is_refused(name, content, message, finished, tmp_path):
    run = shutil.copytree(finished, tmp_path / "run")
    file = run / "trajectory" / name
    file.unlink()
    if content is not None:
        file.write_bytes(content)

    def read_all():
        found = Trajectory.read(run)
        return found.given, [found.snapshot(epoch) for epoch in found.epochs]

    with pytest.raises(InputError, match=message):
        read_all()
