"""Operations as the benchmark calls them: figures on known work, refusal of wrong results. No timing is judged."""

import json
from dataclasses import replace

import pytest
import torch

from fastmeta import models, reference
from fastmeta import ops as fused_ops
from fastmeta.bench import ops_catalog, ops_run
from fastmeta.bench.ops_row import NAMES, OpsConfig, WrongResult
from fastmeta.cli.bench import main

CPU = torch.device("cpu")


def test_every_operation_with_a_twin_is_measured():
    shared = {name for name in vars(reference) if not name.startswith("_") and hasattr(torch.ops.fastmeta, name)}
    assert shared
    functional = {"instance_label_step", "class_label_step"}  # for graphs: the same kernels as in place
    assert shared - functional <= set(NAMES)


@pytest.mark.parametrize("dtype", ops_catalog.DTYPES)
@pytest.mark.parametrize("name", ops_catalog.OPERATIONS)
def test_an_operation_is_compared_and_measured(name, dtype):
    config = OpsConfig(seconds=1e-3, compile=False)
    row = ops_run.measure(name, 8, 5, dtype, config, copy=1e9)
    assert row.gigabytes_per_second == pytest.approx(row.share_of_copy)
    assert set(row.error) >= {"fused", "eager"}
    assert row.microseconds["fused"] > 0
    assert row.speedup["eager"] > 0
    assert "fused" not in row.speedup


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_lookahead_of_a_resnet18_is_measured(dtype):
    config = OpsConfig(operations=("lookahead_update",), dtypes=(dtype,), seconds=1e-3, compile=False)
    ((_, measure),) = ops_run.cases(config)
    row = measure(1e9)
    assert (row.n, row.C) == (62, sum(p.numel() for p in models.build("resnet18", num_classes=100).parameters()))
    assert row.error["fused"] <= torch.finfo(ops_catalog.DTYPES[dtype]).eps
    assert row.speedup.keys() == {"eager", "foreach"}
    assert row.gigabytes_per_second == pytest.approx(
        3 * row.C * torch.finfo(ops_catalog.DTYPES[dtype]).bits / 8 / row.microseconds["fused"] / 1e3
    )


@pytest.mark.parametrize("dtype", ops_catalog.DTYPES)
def test_a_batch_of_images_is_measured(dtype):
    config = OpsConfig(operations=("load_images",), dtypes=(dtype,), seconds=1e-3, compile=False)
    ((_, measure),) = ops_run.cases(config)
    row = measure(1e9)
    assert (row.n, row.C) == (256, 3072)
    assert row.error == {"fused": 0, "eager": 0}
    assert row.speedup.keys() == {"eager"}
    itemsize = torch.finfo(ops_catalog.DTYPES[dtype]).bits // 8
    assert row.gigabytes_per_second == pytest.approx(256 * 3072 * (1 + itemsize) / row.microseconds["fused"] / 1e3)


def test_bytes_of_the_fused_label_step_are_five_elements_per_label():
    case = ops_run.prepare("instance_label_step_", 8, 5, "float32", OpsConfig(compile=False))
    assert case.moved_bytes == 5 * 8 * 5 * 4


def compare_label_step(inputs):
    operation = "instance_label_step_"
    ops_run.compare(operation, ops_run.variants_of(operation, OpsConfig(compile=False)), inputs)


def test_inputs_survive_the_comparison():
    inputs = ops_catalog.Inputs.random(8, 5, torch.float32, CPU, seed=0)
    before = inputs.clone()
    compare_label_step(inputs)
    assert all(torch.equal(x, getattr(before, k)) for k, x in vars(inputs).items() if isinstance(x, torch.Tensor))


def test_a_wrong_operation_is_not_timed(monkeypatch, capsys, tmp_path):
    right = fused_ops.row_dot
    monkeypatch.setattr(fused_ops, "row_dot", lambda a, b: right(a, b) * 1.001)
    path = tmp_path / "ops.json"
    flags = ["ops", "--ops", "row_dot", "soft_cross_entropy_hvp", "--sizes", "8x5", "--dtype", "float32"]
    assert main([*flags, "--no-compile", "--seconds", "0.001", "--json", str(path)]) == 1
    expected = "row_dot at n=8, C=5, torch.float32: output 0 is off by 1.00e-03"
    assert expected in capsys.readouterr().err
    content = json.loads(path.read_text())
    assert [row["operation"] for row in content["rows"]] == ["soft_cross_entropy_hvp"]
    (failure,) = content["failures"]
    assert expected in failure


def test_a_case_that_cannot_run_leaves_the_others(monkeypatch):
    def out_of_memory(a, b):
        raise torch.OutOfMemoryError("CUDA out of memory.")

    monkeypatch.setattr(fused_ops, "row_dot", out_of_memory)
    config = OpsConfig(operations=("row_dot", "soft_cross_entropy_hvp"), sizes=((8, 5),), dtypes=("float32",))
    content = ops_run.run(replace(config, compile=False, seconds=1e-3), lambda text: None)
    assert len(content["rows"]) == 1
    assert content["failures"] == ["row_dot 8x5 float32: CUDA out of memory."]


def test_no_case_is_begun_after_the_limit():
    said = []
    config = OpsConfig(operations=("row_dot",), sizes=((8, 5), (8, 6)), dtypes=("float32",), compile=False)
    content = ops_run.run(replace(config, seconds=1e-3, limit=1e-9), said.append)
    assert content["left_out"] == ["row_dot 8x5 float32", "row_dot 8x6 float32"]
    assert said[-1] == "not begun within --limit 1e-09: row_dot 8x5 float32, row_dot 8x6 float32"


def test_what_was_measured_before_ctrl_c_is_kept(monkeypatch, capsys, tmp_path):
    def stop(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(fused_ops, "soft_cross_entropy_hvp", stop)
    path = tmp_path / "ops.json"
    flags = ["--sizes", "8x5", "8x6", "--dtype", "float32", "--no-compile", "--seconds", "0.001"]
    assert main(["ops", "--ops", "row_dot", "soft_cross_entropy_hvp", *flags, "--json", str(path)]) == 130
    content = json.loads(path.read_text())
    assert [row["operation"] for row in content["rows"]] == ["row_dot", "row_dot"]
    assert content["left_out"] == [f"soft_cross_entropy_hvp 8x{C} float32" for C in (5, 6)]
    assert content["stopped"] is True
    assert capsys.readouterr().err == "fastmeta bench: stopped; the figures so far are above\n"
    with pytest.raises(KeyboardInterrupt):  # nothing to keep
        main(["ops", "--ops", "soft_cross_entropy_hvp", *flags])


def test_a_table_that_is_not_written_is_noticed(monkeypatch):
    right = fused_ops.instance_label_step_

    def forgets(table, *args, **kwargs):
        return right(table.clone(), *args, **kwargs)

    inputs = ops_catalog.Inputs.random(8, 5, torch.float64, CPU, seed=0)
    inputs.scale, inputs.label_lr = 1.0, 1.0
    monkeypatch.setattr(fused_ops, "instance_label_step_", forgets)
    with pytest.raises(WrongResult, match="output 4 is off"):
        compare_label_step(inputs)


def test_a_twin_that_does_not_compile_is_left_out(monkeypatch):
    def refuse(function, **_):
        def call(*_):
            raise AssertionError("no such tile")

        return call

    monkeypatch.setattr(torch, "compile", refuse)
    row = ops_run.measure("row_dot", 8, 5, "float32", OpsConfig(seconds=1e-3), copy=1e9)
    assert row.speedup.keys() == {"eager"}
    assert row.notes == {"compiled": "skipped, AssertionError: no such tile"}


@pytest.mark.slow
def test_compiled_twins_take_part():
    row = ops_run.measure("row_dot", 8, 5, "float32", OpsConfig(seconds=1e-3), copy=1e9)
    assert row.speedup["compiled"] > 0
