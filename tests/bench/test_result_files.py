"""What stands beside the figures: the environment, rates of the device, counts of launches, the file."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import fastmeta
from fastmeta.bench import environment, result_files
from fastmeta.bench.rates import copy_bandwidth, matrix_rate
from fastmeta.bench.step_launches import launches

CPU = torch.device("cpu")


def test_environment_record():
    record = environment.record(CPU, "fastmeta bench ops")
    assert json.loads(json.dumps(record)) == record
    assert record["torch"] == torch.__version__
    assert record["command"] == "fastmeta bench ops"
    assert record["cpu"]["threads"] == torch.get_num_threads()
    assert record["gpu"] is None
    root = Path(fastmeta.__file__).parent.parent
    if (root / ".git").exists():
        head = subprocess.run(["git", "-C", root, "rev-parse", "HEAD"], capture_output=True, text=True, check=True)
        assert record["commit"] == head.stdout.strip()
    else:
        assert record["commit"] is None


def test_results_are_written_whole(tmp_path):
    result_files.write(tmp_path / "new" / "a.json", "ops", {"rows": [1]})
    assert json.loads((tmp_path / "new" / "a.json").read_text()) == {"schema": 1, "kind": "ops", "rows": [1]}
    assert [p.name for p in (tmp_path / "new").iterdir()] == ["a.json"]


def test_rates_of_the_device():
    assert 1e8 < copy_bandwidth(CPU, seconds=0.01) < 1e13
    assert 1e8 < matrix_rate(CPU, torch.float32, seconds=0.01) < 1e15


def test_launches_are_what_computes():
    a = torch.ones(4, 4, requires_grad=True)

    def body():
        empty = torch.empty(4, 4)
        loss = (a @ a.t()).relu().sum()  # t() is a view
        torch.autograd.grad(loss, a)  # ones_like; expand is a view; threshold; two products and their sum
        return empty

    assert launches(body, CPU) == 3 + 5
    assert launches(lambda: None, CPU) == 0
    sys.setprofile(lambda *event: None)
    try:
        with pytest.raises(RuntimeError, match="another profiler"):
            launches(body, CPU)
    finally:
        sys.setprofile(None)
