"""kill -9 of one rank of ``torchrun -m fastmeta train`` at random moments, again and again."""

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from fastmeta.training.rundir.layout import SUMMARY
from tests.support.torchrun import ROOT, assert_same

FLAGS = ["--epochs", "100", "--baselines", "none", "--device", "cpu", "--checkpoint-seconds", "0"]
FLAGS += ["--labels.update", "exact"]
KILLS = 20
#: seconds of one start, at most
LIMIT = 200


def start(path, log):
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "fastmeta"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join([str(ROOT), *sys.path])}
    return subprocess.Popen(
        [*command, "train", *FLAGS, "--out", str(path), "--auto-resume"],
        stdout=log,
        stderr=subprocess.STDOUT,
        env=environment,
        cwd=ROOT,
    )


def ranks_of(torchrun):
    """Numbers of its children, in the order of their start; none before there are two."""
    try:
        children = Path(f"/proc/{torchrun.pid}/task/{torchrun.pid}/children").read_text().split()
    except OSError:
        return []
    return [int(child) for child in children] if len(children) == 2 else []


def step_lines(path):
    try:
        return (path / "metrics.jsonl").read_text().count("\n")
    except OSError:
        return 0


@pytest.mark.slow
def test_a_run_whose_ranks_are_killed_twenty_times_is_the_unbroken_one(tmp_path):
    draw, log_path = random.Random(0), tmp_path / "log"
    with open(log_path, "wb") as log:
        unbroken = tmp_path / "unbroken"
        assert start(unbroken, log).wait(LIMIT) == 0, log_path.read_text()
        path, kills, waits = tmp_path / "run", 0, []
        while kills < KILLS:
            torchrun, began, before = start(path, log), time.monotonic(), step_lines(path)
            try:
                # half of the kills fall into the start, half into steps and saves
                if draw.random() < 0.5:
                    while step_lines(path) <= before and torchrun.poll() is None:
                        assert time.monotonic() - began < LIMIT, log_path.read_text()
                        time.sleep(0.01)
                while torchrun.poll() is None and not ranks_of(torchrun):
                    time.sleep(0.01)
                time.sleep(draw.uniform(0, 4))
                if torchrun.poll() is not None:
                    break
                victim = draw.choice(ranks_of(torchrun) or [0])
                if victim:
                    os.kill(victim, signal.SIGKILL)
                    kills += 1
                assert torchrun.wait(LIMIT) != 0
                waits.append(step_lines(path))
            finally:
                torchrun.kill()
                torchrun.wait()
        assert kills == KILLS, (
            f"the run was done after {kills} kills, at lines {waits} of its metrics: take more epochs"
        )
        if not (path / SUMMARY).exists():
            assert start(path, log).wait(LIMIT) == 0, log_path.read_text()
    assert_same(path, unbroken)
