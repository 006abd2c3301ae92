"""``fastmeta train --seeds N``: a run for each seed, which goes on by the same command, and their means."""

import json
import signal

import numpy as np
import pytest

from fastmeta.cli import main, several_seeds, train
from fastmeta.training import Interrupted, Listener, TrainConfig, TrainingError
from fastmeta.training.listener import Listeners
from tests.support.runs import two_classes


@pytest.fixture(scope="module")
def npz(tmp_path_factory):
    path = tmp_path_factory.mktemp("seeds") / "two.npz"
    np.savez(path, **two_classes())
    return path


@pytest.fixture(scope="module", autouse=True)
def no_pictures_of_each_run():
    """Which take longer than these runs; those over the seeds are drawn."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("fastmeta.report.write_figures", lambda *run: [])
        yield


def words(npz, folder, *more):
    fixed = ["--model", "mlp", "--epochs", "2", "--threads", "1", "--labels.update", "exact"]
    return ["train", "--dataset", f"npz:{npz}", *fixed, "--out", str(folder), *more]


@pytest.fixture(scope="module")
def three(npz, tmp_path_factory):
    """The run of seed 4 was there before."""
    folder = tmp_path_factory.mktemp("runs") / "all"
    assert main(words(npz, folder / "seed4", "--seed", "4")) == 0
    before = (folder / "seed4" / "summary.json").read_bytes()
    assert main(words(npz, folder, "--seed", "3", "--seeds", "3")) == 0
    assert (folder / "seed4" / "summary.json").read_bytes() == before
    return folder


def test_means_and_deviations_are_those_of_the_runs(three, npz, capsys):
    seeds = ["seed3", "seed4", "seed5"]
    summaries = [json.loads((three / name / "summary.json").read_text()) for name in seeds]
    assert [s["seed"] for s in summaries] == [3, 4, 5]
    assert len({s["digest"] for s in summaries}) == 3
    (group,) = json.loads((three / "seeds.json").read_text())["groups"]
    assert (group["runs"], group["seeds"]) == (seeds, [3, 4, 5])
    figures = group["stages"]["instance_labels"]
    for key in ("nll", "test_accuracy_last", "label_accuracy_final"):
        values = [s[key] for s in summaries]
        assert figures[key]["values"] == values
        assert figures[key]["mean"] == pytest.approx(np.mean(values))
        assert figures[key]["sd"] == pytest.approx(np.std(values, ddof=1))
    for name in ("report.html", "figures/accuracy.svg", "figures/labels.png"):
        assert (three / name).stat().st_size > 1000
    assert main(["show", str(three), "--no-page"]) == 0
    assert "3 seeds (3, 4, 5)" in " ".join(capsys.readouterr().out.split())


def test_the_same_command_again_looks_at_what_is_there(three, npz, capsys):
    before = {path: path.read_bytes() for path in three.glob("seed*/metrics.jsonl")}
    assert main(words(npz, three, "--seed", "3", "--seeds", "3")) == 0
    assert capsys.readouterr().out.count("is finished already") == 3
    assert {path: path.read_bytes() for path in before} == before


def test_another_config_in_the_same_folder_is_refused(three, npz, capsys):
    assert main(words(npz, three, "--seed", "3", "--seeds", "3", "--optim.momentum", "0.5")) == 2
    assert "was begun with another config: optim.momentum was 0.9, is 0.5 now" in capsys.readouterr().err
    assert main(words(npz, three / "seed3", "--seeds", "2")) == 2
    assert "is a run itself, and several seeds want a folder" in capsys.readouterr().err
    assert main(words(npz, three, "--seeds", "0")) == 2
    assert "seeds must be from 1 to 1,000, got 0" in capsys.readouterr().err


def test_one_that_fails_does_not_end_the_others(npz, tmp_path, monkeypatch, capsys):
    def failing(config, **options):
        if config.seed == 0:
            raise TrainingError("it has diverged")
        return real(config, **options)

    real = train.train
    monkeypatch.setattr(train, "train", failing)
    assert main(words(npz, tmp_path / "all", "--seeds", "2")) == 1
    said = capsys.readouterr()
    assert "fastmeta train: seed 0: it has diverged" in said.err
    assert "seed1" in said.out
    assert json.loads((tmp_path / "all" / "seeds.json").read_text())["groups"][0]["seeds"] == [1]


def test_where_it_is_stopped_the_same_command_goes_on(npz, tmp_path, monkeypatch, capsys):
    def stopped(config, **options):
        raise Interrupted(tmp_path / "all" / "seed0", signal.SIGTERM, "at step 3 of 5", config)

    monkeypatch.setattr(train, "train", stopped)
    line = words(npz, tmp_path / "all", "--seeds", "2")
    assert main(line) == 128 + signal.SIGTERM
    assert capsys.readouterr().err.endswith(f"go on with: fastmeta {' '.join(line)}\n")


def test_the_folder_by_default():
    folder, runs = several_seeds.configs(TrainConfig(seed=2), 3)
    assert str(folder) == "runs/digits-instance_labels-seeds2to4"
    assert [run.out for run in runs] == [f"runs/digits-instance_labels-seeds2to4/seed{k}" for k in (2, 3, 4)]


def test_a_dry_run_writes_nothing(npz, tmp_path, capsys):
    assert main(words(npz, tmp_path / "all", "--seeds", "2", "--dry-run")) == 0
    assert "2 seeds: 2 such runs" in capsys.readouterr().out
    assert not (tmp_path / "all").exists()


def test_several_listeners_hear_everything():
    names = [name for name, value in vars(Listener).items() if callable(value) and not name.startswith("_")]
    assert set(names) <= set(vars(Listeners))
    heard = []

    def ear(number):
        one = Listener()
        for name in names:
            setattr(one, name, lambda *told, name=name: heard.append((number, name, told)))
        return one

    both = Listeners(ear(0), ear(1))
    for name in names:
        count = getattr(Listener, name).__code__.co_argcount - 1
        getattr(both, name)(*range(count))
        assert heard[-2:] == [(k, name, tuple(range(count))) for k in (0, 1)]


def test_without_tensorboard_the_way_is_said(npz, tmp_path, monkeypatch, capsys):
    import sys

    monkeypatch.setitem(sys.modules, "tensorboard", None)
    monkeypatch.delitem(sys.modules, "torch.utils.tensorboard", raising=False)
    assert main(words(npz, tmp_path / "run", "--log", "tensorboard")) == 2
    assert "pip install 'fastmeta[tensorboard]'" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_the_log_of_tensorboard(npz, tmp_path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    assert main(words(npz, tmp_path / "run", "--log", "tensorboard", "--baselines", "noisy")) == 0
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    for stage in ("instance_labels", "noisy"):
        events = EventAccumulator(str(tmp_path / "run" / "tensorboard" / stage)).Reload()
        own = [line for line in lines if line["run"] == stage and line["epoch"] > 0]
        written = events.Scalars("test_accuracy")
        assert [event.step for event in written] == [line["epoch"] for line in own]
        assert [event.value for event in written] == pytest.approx([line["test_accuracy"] for line in own])
