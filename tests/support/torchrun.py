"""``torchrun -m fastmeta train`` on this machine, with a method that fails or is stopped where it is told to."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np

ROOT = Path(__file__).parents[2]
FLAGS = ["--method", "tests.support.failing_rank:Failing", "--epochs", "1", "--baselines", "none", "--device", "cpu"]
FLAGS += ["--data.batch_size", "128"]  # 10 steps


def run(path, *flags, does="nothing", step=6, size=2, seconds=120, torchrun=(), command="train", **environment):
    """(exit code, output of torchrun and of all ranks); a size of None is a process without torchrun."""
    words = [sys.executable]
    if size is not None:
        words += ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(size), *torchrun]
    if command == "train" and "--resume" not in flags:
        flags = [*FLAGS, "--out", str(path), *flags]
    own = {"OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join([str(ROOT), *sys.path])}
    own |= {"RANK_DOES": does, "RANK_STEP": str(step), **environment}
    done = subprocess.run(
        [*words, "-m", "fastmeta", command, *flags],
        env={**os.environ, **own},
        capture_output=True,
        text=True,
        timeout=seconds,
        cwd=ROOT,
    )
    return done.returncode, done.stdout + done.stderr


def labels(path):
    with np.load(path / "labels.npz") as file:
        return {name: file[name] for name in file.files}


def assert_same(path, unbroken):
    assert (path / "model.safetensors").read_bytes() == (unbroken / "model.safetensors").read_bytes()
    assert (path / "labels.safetensors").read_bytes() == (unbroken / "labels.safetensors").read_bytes()
    a, b = labels(path), labels(unbroken)
    assert a.keys() == b.keys()
    assert all(np.array_equal(a[k], b[k]) for k in a)
