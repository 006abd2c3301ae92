"""When a run will end, and what would be shorter where that is far off on a CPU."""

import io
import re
import time
import types

import pytest

pytest.importorskip("rich")
from rich.console import Console

from fastmeta.cli import progress
from fastmeta.cli.progress import ConsoleListener
from fastmeta.training import LabelConfig, TrainConfig, estimate
from fastmeta.training.estimate import dry_run
from fastmeta.training.outlook import Way, approximations, by_arithmetic, by_forwards, end_at, forwards, ways_out

NOON = time.mktime((2026, 3, 4, 12, 0, 0, 0, 0, -1))


def test_the_end_is_a_time_of_day_and_a_day_where_it_is_another():
    assert end_at(90 * 60, NOON) == "13:30"
    assert end_at(13 * 3600, NOON) == f"{time.strftime('%a', time.localtime(NOON + 13 * 3600))} 01:00"
    assert end_at(10 * 86400, NOON) == "2026-03-14 12:00"


def test_costs_of_approximations_are_those_counted():
    assert (forwards("none"), forwards("last:1"), forwards("last:3")) == (14, 5, 7)
    assert forwards("every:4") == pytest.approx(5.75)


def test_the_three_shortest_ways_are_told_with_their_factors():
    ways = [
        *by_arithmetic(4000, 1000, 10),
        *by_forwards(4000, 1000, TrainConfig(labels=LabelConfig(update="exact"))),
        Way("--threads 1", 3990, "nothing"),
    ]
    lines = ways_out(4000, ways, "timed here")
    assert [re.split("  +", line)[0] for line in lines[1:]] == ["--epochs 5", "--approx last:1", "--approx every:4"]
    assert lines[:2] == [
        "long for a CPU; cheaper, timed here:",
        "--epochs 5        2.0x faster, 33 min 20 s: fewer passes",
    ]
    assert ways_out(4000, [Way("--threads 1", 3990, "nothing")], "timed here") == []  # no way out


def test_only_what_a_method_takes_is_offered():
    offered = {method: list(approximations(TrainConfig(method=method))) for method in ("l2rw", "mlc", "emlc", "onehot")}
    assert offered == {"l2rw": ["last:1"], "mlc": ["last:1", "every:4"], "emlc": [], "onehot": []}
    assert not approximations(TrainConfig(method="mlc", approx="delayed"))


@pytest.mark.parametrize("method", ["l2rw", "emlc"])
def test_a_dry_run_of_a_method_that_takes_not_all_approximations(method, monkeypatch, tmp_path):
    monkeypatch.setattr(estimate, "LONG", 0.0)
    monkeypatch.setattr(estimate, "_seconds_per_step", lambda stage: 1.0)
    text = dry_run(TrainConfig(method=method, epochs=100, threads=1, baselines="none", out=str(tmp_path / "run")))
    assert "--epochs 50" in text
    assert "every:4" not in text


def test_a_dry_run_times_what_would_be_shorter(monkeypatch, tmp_path):
    costs = {"none": 2.0, "last:1": 0.5, "every:4": 0.8}
    monkeypatch.setattr(
        estimate,
        "_seconds_per_step",
        lambda stage: costs[stage.config.approx] if stage.name == "instance_labels" else 0.1,
    )
    exact = LabelConfig(update="exact")
    base = {"epochs": 100, "threads": 1, "out": str(tmp_path / "run"), "labels": exact}
    text = dry_run(TrainConfig(**base))
    found = re.findall(r"(--\S+ \S+) +([\d.]+)x faster", text)
    # 2,100 steps of 2 s, and thrice as many of 0.1 s
    assert [way for way, _ in found] == ["--approx last:1", "--approx every:4", "--epochs 50"]
    # evaluations are timed in truth, and take longer on a busy machine
    assert [float(times) for _, times in found] == pytest.approx([2.9, 2.1, 2.0], abs=0.3)
    assert "long for a CPU; cheaper, timed here:" in text
    assert re.search(r"end +after about 1 h 20 min; begun now, at ", text)
    text = dry_run(TrainConfig(**base, approx="last:1"))  # 28 minutes
    assert "cheaper" not in text
    assert not (tmp_path / "run").exists()


def test_a_smaller_model_is_timed_itself(monkeypatch, tmp_path):
    monkeypatch.setattr(estimate, "LONG", 0.0)
    text = dry_run(TrainConfig(model="resnet20", epochs=1, threads=1, baselines="none", out=str(tmp_path / "run")))
    assert re.search(r"--model small_conv +[\d.]+x faster, .*: another network", text)


@pytest.fixture
def clock(monkeypatch):
    ticking = types.SimpleNamespace(now=0.0)
    monkeypatch.setattr(progress.time, "monotonic", lambda: ticking.now)
    return ticking


def told(clock, seconds_per_step, total, device="cpu", steps=60, **config):
    """What a run in the terminal says at its beginning."""
    out = io.StringIO()
    listener = ConsoleListener(Console(file=out, width=200, force_terminal=False))
    splits = types.SimpleNamespace(
        noise_rate=None,
        noise_told=None,
        overlap_told="",
        val=None,
        test=None,
        train=range(10),
        meta=range(5),
        num_classes=2,
        class_names=["a", "b"],
    )
    settings = TrainConfig(
        model="mlp", **{"epochs": 10, "baselines": "noisy", "labels": LabelConfig(update="exact"), **config}
    )
    listener.begin("run", settings, splits, device)
    stage = types.SimpleNamespace(
        name=settings.method,
        step=0,
        total=total,
        steps_per_epoch=total // 10,
        config=settings,
        data=types.SimpleNamespace(train_size=0),  # so that nothing is read off the network
        sampler=types.SimpleNamespace(batch_size=10),
    )
    listener.stage(stage)
    clock.first = None
    for _ in range(steps):
        clock.now += seconds_per_step
        stage.step += 1
        listener.step(stage)
        if "expected end" in out.getvalue() and clock.first is None:
            clock.first = clock.now
    return out.getvalue().split("run\n", 1)[1]


def test_a_run_says_its_end_in_its_first_minute(clock):
    text = told(clock, 1.0, total=600)
    assert clock.first <= 60
    # 589 steps left of 1 s; as many as 600 plain ones of 3/14 s
    assert re.search(r"expected end: .*, in about 11 min 58 s\n", text)
    assert "cheaper" not in text


def test_plain_steps_of_a_warm_up_are_not_taken_for_those_that_follow(clock):
    text = told(clock, 1.0, total=600, labels=LabelConfig(update="exact", warmup_epochs=5))
    # 289 plain steps left of 1 s, 300 of 14/3 s, and as many as 600 plain ones
    assert re.search(r"expected end: .*, in about 38 min 09 s\n", text)


def test_a_slow_run_says_so_too_and_the_ways_out(clock):
    text = told(clock, 25.0, total=600, steps=4)
    assert clock.first <= 60
    assert "long for a CPU; cheaper, by ResNet-20's costs (--dry-run times yours):" in text
    assert len(re.findall(r"x faster", text)) == 3
    assert text.count("expected end") == 1
    assert "cheaper" not in told(clock, 25.0, total=600, steps=4, device="cuda:0")


def test_fixed_labels_have_no_meta_step_to_approximate(clock):
    text = told(clock, 25.0, total=600, steps=4, method="onehot")
    assert "--epochs 5" in text
    assert "--approx" not in text
    assert "in about 8 h 19 min" in text  # 598 steps, and 600 of the baseline, as long


def test_moves_of_labels_between_the_first_steps_are_not_counted_again(clock, monkeypatch):
    """An epoch of one step and a move that costs nine: each tenth second is a step and a move."""
    monkeypatch.setattr(progress, "steps_per_move", lambda config, data: 9.0)
    labels = LabelConfig(update="posterior", warmup_epochs=1, every=1)
    text = told(clock, 10.0, total=10, steps=5, labels=labels, epochs=10, baselines="none")
    # two in 20 s, and seven left with eight moves, the last of which is behind the last step
    assert re.search(r"expected end: .*, in about 1 min 19 s\n", text)


def test_a_short_run_says_nothing(clock):
    assert "expected" not in told(clock, 0.3, total=60)
