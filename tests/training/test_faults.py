"""Whichever write fails, wherever the process dies: one line says what to do, and doing it ends bitwise the same."""

import errno
import os
import signal
import time
import traceback

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from fastmeta import train
from fastmeta.data import InputError
from fastmeta.training import TrainingError
from fastmeta.training.rundir import files
from fastmeta.training.rundir.checkpoint import unpack
from tests.support.disk import Disk
from tests.support.runs import Warnings, config, two_classes
from tests.support.stopped import assert_same

ERRORS = (errno.ENOSPC, errno.EIO, errno.EROFS, errno.EACCES)
BEGINNING = 13  # calls that a run makes before it has begun, and some more


@pytest.fixture(autouse=True)
def plain_figures(monkeypatch):
    """matplotlib's take half a second."""

    def write_figures(path, summary, samples):
        files.write_atomically(path / "figures" / "accuracy.png", b"\x89PNG")

    monkeypatch.setattr("fastmeta.report.write_figures", write_figures)


def run(path, way="begin", **changes):
    listener = Warnings()
    if way == "resume":
        return train(resume=path, data=two_classes(), listener=listener)
    changes = {"epochs": 1, "checkpoint_seconds": 0, **changes}
    return train(config(path, **changes), data=two_classes(), auto_resume=way == "auto", listener=listener)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """Directories of unbroken runs by method, and how many calls each made."""
    made = {}

    def of(method):
        if method not in made:
            with pytest.MonkeyPatch.context() as patch:
                path = tmp_path_factory.mktemp("whole") / "run"
                disk = Disk(patch, path)
                run(path, method=method)
            made[method] = path, disk.count
        return made[method]

    return of


def same(path, unbroken):
    """As assert_same, for methods without a table of labels too."""
    names = {p.relative_to(unbroken) for p in unbroken.rglob("*") if p.is_file()}
    assert {p.relative_to(path) for p in path.rglob("*") if p.is_file()} == names
    if (unbroken / "labels.safetensors").exists():
        assert_same(path, unbroken)
    for name in ("model.safetensors", "labels.npz", "config.toml"):
        assert (path / name).read_bytes() == (unbroken / name).read_bytes(), name


def go_on(path, **changes):
    """What a scheduler does that knows no more than whether a run has begun."""
    return run(path, "resume") if (path / "config.toml").exists() else run(path, **changes)


def whole_files(path):
    """No file under its own name is half written."""
    for name in ("model.safetensors", "labels.safetensors", "checkpoint/state.safetensors"):
        if (path / name).exists():
            unpack(path / name)
    if (path / "summary.json").exists():
        files.parse_json((path / "summary.json").read_bytes())


def break_and_mend(method, at, error, folder, whole, own_folder):
    """One failure. `own_folder`: the user has made the directory before."""
    unbroken, _ = whole(method)
    path = folder / f"{method}-{at}-{error}" / "run"
    if own_folder:
        path.mkdir(parents=True)
    beside = folder / "beside.txt"
    beside.write_text("the user's")
    with pytest.MonkeyPatch.context() as patch:
        disk = Disk(patch, folder, at, error)
        with pytest.raises((InputError, TrainingError)) as said:
            run(path, method=method)
        assert disk.failed
    text = str(said.value)
    assert "\n" not in text
    assert os.strerror(error) in text
    begun = (path / "config.toml").exists()
    assert not begun or f"fastmeta train --resume {path}" in text or said.type is InputError
    if not begun and error != errno.EROFS:  # which lets nothing be taken away
        assert not path.exists() if not own_folder else list(path.iterdir()) == []
    assert beside.read_text() == "the user's"
    whole_files(path)
    go_on(path, method=method)
    same(path, unbroken)
    assert path.exists()


def test_a_write_that_fails(whole, tmp_path):
    _, count = whole("onehot")
    for at in (*range(1, BEGINNING), *range(BEGINNING, count + 1, 8)):
        error = ERRORS[at % len(ERRORS)]
        break_and_mend("onehot", at, error, tmp_path, whole, own_folder=at % 2)


@pytest.mark.slow
@pytest.mark.parametrize("error", ERRORS, ids=lambda e: errno.errorcode[e])
@pytest.mark.parametrize("own_folder", [False, True])
def test_every_write_fails_once(error, own_folder, whole, tmp_path):
    _, count = whole("instance_labels")
    # the folder itself is made and synced where it is not there
    for at in range(1, count + 1 - 2 * own_folder):
        break_and_mend("instance_labels", at, error, tmp_path, whole, own_folder)


def killed(at, path, **changes):
    """Whether a child of this process was killed at call number `at` of its run; else it ended by itself."""
    child = os.fork()
    if not child:
        code = 3
        try:
            with pytest.MonkeyPatch.context() as patch:
                Disk(patch, path, at)
                run(path, **changes)
            code = 0
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(code)
    _, status = os.waitpid(child, 0)
    assert os.WIFSIGNALED(status) or os.WEXITSTATUS(status) == 0
    return os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL


def test_a_child_can_differentiate_whatever_this_process_did_before():
    """See tests/conftest.py: its own first backward must come before any fake tensor."""
    with FakeTensorMode():
        torch.ones(2)
    torch.ones((), requires_grad=True).backward()
    child = os.fork()
    if not child:
        code = 3
        try:
            torch.ones((), requires_grad=True).backward()
            code = 0
        finally:
            os._exit(code)
    assert os.waitpid(child, 0)[1] == 0


def die_and_go_on(method, at, way, folder, whole):
    unbroken, _ = whole(method)
    path = folder / f"{method}-{at}-{way}"
    assert killed(at, path, method=method)
    whole_files(path)
    if way == "resume" and not (path / "config.toml").exists():
        with pytest.raises(InputError, match=r"is no run directory: it has no config.toml") as said:
            run(path, "resume")
        assert not path.exists() or "begin" in str(said.value)
    if way == "resume":
        go_on(path, method=method)
    else:
        run(path, "auto", method=method)
    same(path, unbroken)


def test_a_process_that_dies(whole, tmp_path):
    """At each call until the run has begun, and at some later ones; then one of both ways to go on."""
    _, count = whole("onehot")
    for at in (*range(1, BEGINNING), *range(BEGINNING, count + 1, 12)):
        die_and_go_on("onehot", at, ("resume", "auto")[at % 2], tmp_path, whole)


@pytest.mark.slow
@pytest.mark.parametrize("way", ["resume", "auto"])
def test_a_process_that_dies_anywhere(way, whole, tmp_path):
    _, count = whole("instance_labels")
    for at in range(1, count + 1):
        die_and_go_on("instance_labels", at, way, tmp_path, whole)


@pytest.mark.slow
def test_one_line_that_is_killed_again_and_again_comes_to_its_end(whole, tmp_path):
    """Each time a few calls later than the time before, as a scheduler with a short limit does."""
    unbroken, count = whole("instance_labels")
    path, times = tmp_path / "run", 0
    while killed(10 + times, path, way="auto", method="instance_labels"):
        times += 5
        assert times < count
    assert times
    same(path, unbroken)


def test_short_writes_are_gone_on_with(tmp_path, monkeypatch):
    """As a disk or a signal may have it."""
    real = os.write
    monkeypatch.setattr(os, "write", lambda file, content: real(file, bytes(content)[:3]))
    files.write_atomically(tmp_path / "a", b"0123456789")
    files.append(tmp_path / "a", b"abcdefg")
    assert (tmp_path / "a").read_bytes() == b"0123456789abcdefg"


def test_a_clock_that_jumps_changes_nothing(whole, tmp_path, monkeypatch):
    hours = iter(range(10**6, 0, -1))
    monkeypatch.setattr(time, "time", lambda: 3600.0 * next(hours))
    run(tmp_path / "run", method="onehot")
    same(tmp_path / "run", whole("onehot")[0])
