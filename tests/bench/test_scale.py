"""fastmeta bench scale, on tables that are small."""

import json

import pytest

from fastmeta.bench import scale_rows, scale_run, scale_stores
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
