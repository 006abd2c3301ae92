"""fastmeta bench scale, on tables that are small."""

import json

import pytest
import torch

from fastmeta.bench import scale_data, scale_ranks, scale_rows, scale_run, scale_stores
from fastmeta.cli import bench


def test_parts_of_tables(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(scale_stores, "SIZES", ((5, 640),))
    monkeypatch.setattr(scale_rows, "ROWS", (300, 900))
    monkeypatch.setattr(scale_rows, "CLASSES", 5)
    file = tmp_path / "scale.json"
    assert bench.main(["scale", "--part", "stores,rows", "--seconds", "0.05", "--out", str(file)]) == 0
    made = json.loads(file.read_text())
    assert made["kind"] == "scale"
    assert made["environment"]["command"].startswith("fastmeta bench scale")
    stores = made["parts"]["stores"]["sizes"][0]["stores"]
    assert set(stores) == {"device", "host", "mmap"}
    assert stores["mmap"]["over_device_by_phase"]["journaled"] is not None
    assert stores["device"]["over_device"] == 0
    rows = made["parts"]["rows"]["sizes"]
    assert [size["rows"] for size in rows] == [300, 900]
    assert all(size["disk_bytes"] > 0 and size["restore_seconds"] > 0 for size in rows)
    assert "journaled %" in capsys.readouterr().out


@pytest.mark.slow
def test_part_of_data(tmp_path, monkeypatch, capsys):
    for name, value in {"TRAIN": 40, "CLEAN": 20, "SIDE": 8, "BLOCK": 6, "SETTLE": 0.0}.items():
        monkeypatch.setattr(scale_data, name, value)
    monkeypatch.setattr(scale_data, "NETWORKS", (("mlp", 8),))
    threads, file = torch.get_num_threads(), tmp_path / "scale.json"
    assert bench.main(["scale", "--part", "data", "--seconds", "0.05", "--json", str(file)]) == 0
    data = json.loads(file.read_text())["parts"]["data"]["networks"][0]
    assert set(data["step_seconds"]) == {"memory", "npy", "npy without workers", "folder"}
    assert set(data["share_of_throughput"]) == set(data["step_seconds"]) - {"memory"}
    assert min(data["steps_timed"].values()) >= 1
    assert "npy without workers: " in capsys.readouterr().out
    assert torch.get_num_threads() == threads


@pytest.mark.parametrize("each", [pytest.param(True, marks=pytest.mark.slow), False])
def test_part_of_ranks(each, tmp_path, monkeypatch, capsys):
    """Each of three measurements begins processes of its own, or all of them are one of two ranks."""
    monkeypatch.setattr(scale_ranks, "NETWORKS", {"mlp": ((3, 4, 4), 8)})
    if not each:
        pair = scale_ranks._run(scale_ranks.Job("mlp", (3, 4, 4), 8, 2, 0.05))
        monkeypatch.setattr(scale_ranks, "_run", lambda job: dict(pair))
    file = tmp_path / "scale.json"
    assert bench.main(["scale", "--part", "ranks", "--seconds", "0.1", "--json", str(file)]) == 0
    found = json.loads(file.read_text())["parts"]["ranks"]["networks"]["mlp"]
    assert found["weak"]["bytes"] > 0 < found["weak"]["collectives"]
    assert 0 < found["strong"]["reduction"] < 1
    assert found["one_process"]["steps"] >= scale_ranks.LEAST
    assert "in collectives" in capsys.readouterr().out


def begun_processes(monkeypatch):
    begun, begin = [], scale_ranks.subprocess.Popen

    def noted(*args, **options):
        begun.append(begin(*args, **options))
        return begun[-1]

    monkeypatch.setattr(scale_ranks.subprocess, "Popen", noted)
    return begun


def test_ranks_that_are_too_slow_leave_nothing_behind(monkeypatch):
    begun = begun_processes(monkeypatch)
    monkeypatch.setattr(scale_ranks, "PATIENCE", 0.2)
    with pytest.raises(RuntimeError, match="a rank is too slow"):
        scale_ranks._run(scale_ranks.Job("mlp", (3, 4, 4), 8, 2, 0.1))
    assert len(begun) == 2
    assert all(process.returncode is not None for process in begun)


@pytest.mark.slow
def test_a_rank_that_fails_says_why_and_one_whose_parent_is_gone_ends(monkeypatch):
    begun = begun_processes(monkeypatch)
    with pytest.raises(RuntimeError, match=r"(?s)a rank failed.*no_such_network"):
        scale_ranks._run(scale_ranks.Job("no_such_network", (3, 4, 4), 8, 2, 0.1))
    assert all(process.returncode is not None for process in begun)
    begun.clear()

    def leave(_seconds):
        for process in begun:
            process.stdin.close()  # as the system does it where the parent is killed
            assert process.wait() == 1  # with a limit it would sleep
        raise KeyboardInterrupt

    monkeypatch.setattr(scale_ranks.time, "sleep", leave)
    with pytest.raises(KeyboardInterrupt):
        scale_ranks._run(scale_ranks.Job("mlp", (3, 4, 4), 8, 2, 50.0))
    assert len(begun) == 2


def test_a_part_that_is_none(capsys):
    assert bench.main(["scale", "--part", "stores,speed"]) == 2
    assert "--part must be some of stores, rows" in capsys.readouterr().err
    assert scale_run.here("stores")
    assert not scale_run.here("nothing")


@pytest.mark.slow
def test_fourteen_million_rows():
    found = scale_run.run(scale_run.ScaleConfig(("rows",), 5.0), print)
    last = found["parts"]["rows"]["sizes"][-1]
    assert last["rows"] == 14_000_000
    assert last["disk_bytes"] < 1e9 < 1e12 < last["file_bytes"]
    assert last["over_fewest_rows"] < 0.5
