"""benchmarks/goals.py: which goals a run speaks to, and whether it meets them."""

import importlib.util
import json
import sys
from dataclasses import asdict
from pathlib import Path

import pytest
import torch

from fastmeta.bench.ops_row import OpsRow
from fastmeta.bench.step_problem import StepConfig
from fastmeta.bench.step_row import StepRow

SCRIPT = Path(__file__).parents[1] / "benchmarks" / "goals.py"


@pytest.fixture(scope="module")
def goals():
    spec = importlib.util.spec_from_file_location("goals_of_the_project", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look there for what annotations mean
    threads = torch.get_num_threads()
    spec.loader.exec_module(module)
    yield module
    torch.set_num_threads(threads)
    del sys.modules[spec.name]


def ops_row(name, n, C, dtype="float32", fused=1.0, share=0.95, **speedup):
    row = OpsRow(name, n, C, dtype, {"fused": fused}, speedup, 1.0, share, {}, {})
    return asdict(row)


@pytest.mark.parametrize(
    ("row", "device", "wanted"),
    [
        (ops_row("lookahead_update", 62, 11_000_000, eager=3.0, share=0.84), "cuda", [(0.85, False)]),
        (ops_row("lookahead_update", 62, 11_000_000, eager=3.0), "cpu", []),
        (ops_row("instance_label_step_", 4096, 1000, eager=5.1), "cpu", [(5.0, True)]),
        (ops_row("instance_label_step_", 128, 100, eager=2.4), "cpu", [(2.5, False)]),
        (ops_row("instance_label_step_", 128, 100, dtype="bfloat16", eager=2.4), "cpu", []),
        (ops_row("class_loss", 128, 100, eager=9.0), "cuda", []),
        (ops_row("instance_loss", 67109, 1000, eager=9.0), "cuda", [(0.9, True), (8.0, True)]),
        (ops_row("instance_loss", 671089, 100, eager=7.0, share=0.7), "cuda", [(0.75, False), (8.0, False)]),
        (
            ops_row("instance_loss", 128, 1000, fused=2.6, eager=9.0, compiled=1.6, liger=0.9),
            "cuda",
            [(2.5, False), (8.0, True), (1.5, True), (1.0, False)],
        ),
    ],
)
def test_goals_of_operations(goals, row, device, wanted):
    document = {"kind": "ops", "config": {"device": device}, "rows": [row]}
    assert [(v.goal, v.met) for v in goals.verdicts(document)] == wanted


def step_row(name, **figures):
    return asdict(StepRow(name, **figures))


MLP = StepConfig(model="mlp", batch=128, meta_batch=256, classes=10, threads=1)
CARD = StepConfig(model="resnet18", batch=128, meta_batch=256, dtype="bfloat16", device="cuda")


@pytest.mark.parametrize(
    ("config", "rows", "wanted"),
    [
        (MLP, [step_row("fastmeta", ratios={"sgd": 4.1})], [(4.2, True)]),
        (
            MLP,
            [
                step_row("fastmeta:full", ratios={"sgd:compiled": 4.2}),
                step_row("reference", ratios={"fastmeta:full": 1.5}),
                step_row("higher", skipped="why"),
                step_row("torchopt", ratios={"fastmeta:full": 1.3}),
            ],
            [(4.1, False), (1.4, True), (1.4, False)],
        ),
        (
            StepConfig(threads=1),
            [step_row("fastmeta", ratios={"sgd": 5.4}, peak_bytes=74), step_row("reference", peak_bytes=100)],
            [(0.75, True), (5.3, False)],
        ),
        (
            StepConfig(threads=1),
            [
                step_row("fastmeta:full", ratios={"sgd:compiled": 3.9}),
                step_row("higher", ratios={"fastmeta:full": 1.6}),
            ],
            [(4.0, True), (1.65, False)],
        ),
        (StepConfig(threads=2), [step_row("fastmeta", ratios={"sgd": 5.4})], []),
        (
            StepConfig(model="resnet18", batch=128, meta_batch=256, threads=2),
            [step_row("fastmeta", peak_bytes=61), step_row("reference", peak_bytes=100)],
            [(0.6, False)],
        ),
        (StepConfig(threads=1), [step_row("fastmeta", skipped="why")], []),
        (
            CARD,
            [
                step_row("sgd:captured", milliseconds=2.0, share_of_matrix_rate=0.3),
                step_row("sgd:compiled-captured", milliseconds=1.0, share_of_matrix_rate=0.4),
                step_row("fastmeta:full", ratios={"sgd:captured": 2.3, "sgd:compiled-captured": 4.6}),
                step_row("fastmeta:last:1-full", ratios={"sgd:captured": 0.8, "sgd:compiled-captured": 1.7}),
                step_row("reference", ratios={"fastmeta:full": 6.0}),
                step_row("reference:captured", ratios={"fastmeta:full": 1.5}),
            ],
            [(4.5, False), (1.8, True), (5.0, True), (1.6, False), (0.35, True)],
        ),
    ],
)
def test_goals_of_steps(goals, config, rows, wanted):
    def judged(gpu):
        document = {"kind": "step", "config": asdict(config), "rows": rows, "environment": {"gpu": gpu}}
        return [(v.goal, v.met) for v in goals.verdicts(document)]

    assert judged({"name": "NVIDIA H200"}) == wanted
    if config is CARD:
        assert judged({"name": "NVIDIA H100"}) == judged(None) == []


def test_what_is_measured_is_judged_and_written(goals, tmp_path, capsys, monkeypatch):
    path = tmp_path / "ops.json"
    words = ["ops", "--ops", "row_dot", "--sizes", "8x5", "--dtype", "float32", "--no-compile", "--seconds", "0.001"]
    assert goals.main(words) == 2  # no file: said, and nothing judged
    assert "--json" in capsys.readouterr().err
    assert goals.main([*words, "--json", str(path)]) == 0
    assert json.loads(path.read_text())["goals"] == []
    monkeypatch.setattr(goals, "verdicts", lambda document: [goals.Verdict("planted", ">=", 5, 4.9)])
    assert goals.main([*words, f"--json={path}"]) == 0
    assert goals.main([*words, f"--json={path}", "--strict"]) == 1
    assert capsys.readouterr().out.splitlines()[-1].split() == ["planted", ">=", "5", "4.9", "NO"]
    written = {"what": "planted", "sense": ">=", "goal": 5, "measured": 4.9, "met": False}
    assert json.loads(path.read_text())["goals"] == [written]
    monkeypatch.undo()
    assert goals.main([str(path), "--strict"]) == 1  # nothing was held against anything
    assert "no goal speaks" in capsys.readouterr().err
    (tmp_path / "other.json").write_text("[]")
    assert goals.main([str(tmp_path / "other.json")]) == 2


def test_recorded_results_are_judged_as_they_were(goals):
    """The goals that the files in results/ hold are those that their figures give."""
    judged = 0
    for path in sorted((SCRIPT.parent / "results").glob("*.json")):
        document = json.loads(path.read_text())
        found = [verdict.as_json() for verdict in goals.verdicts(document)]
        assert found == document.get("goals", []), path.name
        judged += len(found)
    assert judged
