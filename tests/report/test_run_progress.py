"""Runs that are not finished, as `fastmeta show` tells of them: it only looks."""

import json
import os
import signal
import threading
import time

import pytest

from fastmeta import train
from fastmeta.cli import main
from fastmeta.data import InputError
from fastmeta.report.run_folder import entries
from fastmeta.training import Interrupted, LabelConfig, TrainConfig, TrainingError
from fastmeta.training.listener import Listener
from fastmeta.training.rundir import is_held, only_process
from tests.support.runs import Faulty, two_classes
from tests.support.stopped import Kill


@pytest.fixture(autouse=True)
def plain_figures(monkeypatch):
    monkeypatch.setattr("fastmeta.report.write_figures", lambda *_: None)


def config(path, **changes):
    settings = {"epochs": 4, "threads": 1, "model": "mlp", "baselines": "noisy", "checkpoint_seconds": 0}
    return TrainConfig(**{**settings, **changes}, out=str(path))


def stop(path, step):
    listener = Kill(signal.SIGTERM, "instance_labels", step)
    with pytest.raises(Interrupted):
        train(config(path), data=two_classes(), listener=listener)


def files(path):
    return {p: p.stat().st_mtime_ns for p in path.rglob("*")}


class Looking(Listener):
    """Looks at the folder of its run behind each epoch."""

    def __init__(self, folder, capsys):
        self.folder, self.capsys, self.seen = folder, capsys, []

    def epoch(self, stage, record):
        before = files(self.folder)
        self.seen += [entry.as_json() for entry in entries(self.folder)]
        if len(self.seen) == 2:
            assert main(["show", str(self.folder), "--no-page"]) == 0
            self.said = self.capsys.readouterr().out
        assert files(self.folder) == before


def test_a_run_that_goes_on_is_seen_from_outside(tmp_path, capsys):
    looking = Looking(tmp_path / "all", capsys)
    train(config(tmp_path / "all" / "one" / "seed0"), data=two_classes(), listener=looking)
    assert {told["state"] for told in looking.seen} == {"running"}
    assert {told["run"] for told in looking.seen} == {"one/seed0"}
    # of the epoch that has just ended, its line is there already
    assert [(t["stage"], t["epoch"], t["epochs"]) for t in looking.seen] == [
        *(("instance_labels", epoch, 4) for epoch in (1, 2, 3, 4)),
        *(("noisy", epoch, 4) for epoch in (1, 2, 3, 4)),
    ]
    left = [told["seconds_left"] for told in looking.seen]
    assert all(seconds >= 0 for seconds in left)
    assert left[0] > left[-2]
    assert left[-1] == 0
    assert ["one/seed0", "running", "instance_labels", "2/4"] in [t.split()[:4] for t in looking.said.splitlines()]
    (done,) = entries(tmp_path / "all")
    assert done.state == "finished"
    assert done.as_json()["test_accuracy_last"] == done.summary["test_accuracy_last"]


def test_runs_that_were_stopped_or_have_failed_and_folders_that_cannot_be_read(tmp_path, capsys, monkeypatch):
    folder = tmp_path / "all"
    stop(folder / "fold1", 3)
    with open(folder / "fold1" / "metrics.jsonl", "a") as file:
        file.write('{"run": "instance_labels", "epoch": 3, "sec')  # being written
    faulty = Faulty("loss")
    faulty.bad = True
    many = config(folder / "final", method="onehot", baselines="none", epochs=20, model=None)
    with pytest.raises(TrainingError) as said:
        train(many, data=two_classes(), model=faulty)
    (folder / "deep" / "er" / "labels").mkdir(parents=True)
    (folder / "deep" / "er" / "damaged").mkdir()
    (folder / "deep" / "er" / "damaged" / "config.toml").write_text("what")
    (folder / "shut").mkdir()
    listdir = os.listdir

    def listing(path):
        if str(path).endswith("shut"):
            raise PermissionError(13, "Permission denied", str(path))
        return listdir(path)

    monkeypatch.setattr(os, "listdir", listing)
    before = files(folder)
    assert main(["show", str(folder), "--json"]) == 0
    told = {run["run"]: run for run in json.loads(capsys.readouterr().out)}
    assert files(folder) == before
    states = {"fold1": "stopped", "final": "failed", "deep/er/damaged": "damaged", "shut": "damaged"}
    assert {name: run["state"] for name, run in told.items()} == states
    assert told["final"]["why"] == str(said.value)
    assert told["fold1"]["epoch"] == 3
    assert told["fold1"]["seconds_left"] > 0
    assert "Permission denied" in told["shut"]["why"]
    assert main(["show", str(folder / "fold1")]) == 0  # of one run as of a folder, and no page
    assert "stopped" in capsys.readouterr().out
    assert files(folder) == before
    assert main(["show", str(folder)]) == 0
    said = capsys.readouterr().out
    assert "final: failed: onehot: " in said
    assert "shut: damaged: cannot be read: Permission denied" in said
    # once it goes on it has not failed
    faulty.bad = False
    train(resume=folder / "final", data=two_classes(), model=faulty)
    assert not (folder / "final" / "failed.json").exists()
    assert {e.name: e.state for e in entries(folder)}["final"] == "finished"


@pytest.mark.parametrize("width", [80, pytest.param(120, marks=pytest.mark.slow)])
def test_tables_fit_the_terminal(width, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", str(width))
    name = "runs/cifar10-wide_network-instance_labels-uniform-0.4-of-a-long-name"
    for seed in (0, 1):
        stop(tmp_path / name / f"seed{seed}", 1)
    train(config(tmp_path / name / "seed2", epochs=1, baselines="none"), data=two_classes())
    assert main(["show", str(tmp_path), "--no-page"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= width
    assert not any(line.rstrip().endswith("…") for line in lines)
    for seed in (0, 1, 2):  # names keep the end that tells them apart
        assert any(f"/seed{seed} " in line for line in lines)


def test_labels_that_are_withheld_are_said(tmp_path, capsys):
    from tests.support.finished import changed

    run = train(config(tmp_path / "run", epochs=1, baselines="none"), data=two_classes())
    changed(run.path, tmp_path / "all" / "run", {"labels_withheld": True})
    assert main(["show", str(tmp_path / "all"), "--no-page"]) == 0
    assert "run: labels withheld" in capsys.readouterr().out
    assert [e.state for e in entries(tmp_path / "all")] == ["withheld"]


def test_whoever_looks_is_in_nobodys_way(tmp_path):
    fcntl = pytest.importorskip("fcntl")
    assert not is_held(tmp_path)
    with only_process(tmp_path):
        assert is_held(tmp_path)
        with pytest.raises(InputError, match="is in use by another process"), only_process(tmp_path):
            pass
    looked = os.open(tmp_path, os.O_RDONLY)
    fcntl.flock(looked, fcntl.LOCK_SH)
    threading.Thread(target=lambda: (time.sleep(0.05), os.close(looked))).start()
    with only_process(tmp_path):
        pass


def test_what_is_left_goes_by_what_a_plain_epoch_costs(tmp_path):
    from fastmeta.report.run_progress import progress

    exact = LabelConfig(update="exact", warmup_epochs=0)
    asked = config(tmp_path, labels=exact, baselines="noisy,union", epochs=10)
    lines = [{"run": "instance_labels", "epoch": e, "seconds": 14.0 * e} for e in range(1, 5)]
    write = lambda: (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))  # noqa: E731
    write()
    assert progress(tmp_path, asked).left == pytest.approx(6 * 14 + 2 * 10 * 3)
    lines += [{"run": "noisy", "epoch": e, "seconds": 2.0 * e} for e in range(1, 5)]
    write()
    assert progress(tmp_path, asked).left == pytest.approx(6 * 2 + 10 * 2)
    for bad in ("", "\0\n", '{"run": 3}\n', '{"run": "noisy", "epoch": -1}\n', '{"run": "x", "epoch": 1e400}\n'):
        (tmp_path / "metrics.jsonl").write_text(bad)
        assert progress(tmp_path, asked).stage is None
