"""The goals of the main job, `fastmeta train` without arguments, over three seeds."""

import time

import pytest

from fastmeta.training import TrainConfig, train


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_goals_on_the_digits(seed, tmp_path):
    began = time.process_time()
    s = train(TrainConfig(seed=seed, out=str(tmp_path / "run"))).summary
    cpu_seconds = time.process_time() - began
    best_baseline = max(b["test_accuracy_last"] for b in s["baselines"].values())
    assert s["test_accuracy_last"] >= 0.90
    assert s["test_accuracy_last"] - best_baseline >= 0.08
    assert s["label_accuracy_final"] >= 0.83
    # the goal is 60 s of wall time on two cores; the job is one thread, whose CPU time other processes do not stretch
    assert cpu_seconds < 60
    assert s["warnings"] == []
