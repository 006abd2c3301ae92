"""The benchmarks themselves: figures on known work, refusal of wrong results, one-line errors. No timing is judged."""

import json
import re
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import fastmeta.cli
from fastmeta import models, reference
from fastmeta import ops as fused_ops
from fastmeta.bench import environment, goals, ops, peers, plain, results, step, variants
from fastmeta.bench.launches import launches
from fastmeta.bench.memory import peak_bytes
from fastmeta.bench.problem import Problem, StepConfig, sizes
from fastmeta.bench.row import NAMES
from fastmeta.bench.timing import MAX_ROUNDS, MIN_ROUNDS, Timing, copy_bandwidth, interleave, matrix_rate
from fastmeta.bench.variant import captured
from fastmeta.cli.bench import main

CPU = torch.device("cpu")
TINY = {"model": "mlp", "batch": 4, "meta_batch": 6, "classes": 3, "samples": 10, "input_shape": (2,), "rounds": 2}
TINY_FLAGS = [f"--{k.replace('_', '-')}={v}" for k, v in TINY.items() if k != "input_shape"] + ["--input-shape=2"]


@pytest.fixture(autouse=True)
def _same_threads():
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


# Timing and memory -----------------------------------------------------------------------------------------


def test_interleave_tells_long_from_short():
    timings = interleave(
        {"short": [lambda: time.sleep(0.001)], "long": [lambda: time.sleep(0.005)]}, CPU, seconds=1, rounds=7
    )
    assert len(timings["long"].seconds) == 7
    assert timings["long"].median >= 0.005
    assert timings["long"].ratio_to(timings["short"]) > 1
    low, high = timings["long"].quartiles
    assert low <= timings["long"].median <= high


def test_bodies_of_a_variant_rotate():
    calls = [0, 0, 0]

    def body(i):
        calls[i] += 1

    interleave({"a": [lambda i=i: body(i) for i in range(3)]}, CPU, seconds=1, rounds=2)
    assert calls[0] == calls[1] == calls[2] > 0


@pytest.mark.parametrize(("seconds", "rounds"), [(1e-6, MIN_ROUNDS), (1e3, MAX_ROUNDS)])
def test_rounds_are_bounded(seconds, rounds):
    assert len(interleave({"a": [lambda: None]}, CPU, seconds=seconds)["a"].seconds) == rounds


def test_ratio_is_paired():
    drifting, twice = Timing((1.0, 2.0, 10.0)), Timing((2.0, 4.0, 20.0))
    assert twice.ratio_to(drifting) == 2
    assert Timing((1.0, 5.0, 3.0)).median == 3


def test_peak_bytes_counts_what_is_alive_at_once():
    def body():
        a = torch.empty(1 << 20)
        b = a + 1  # two at once
        del a
        c = b * 2
        return c.sum()

    assert peak_bytes(body, CPU) == pytest.approx(2 * 4 * (1 << 20), rel=1e-3)
    assert peak_bytes(lambda: None, CPU) == 0


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


# Environment and results -----------------------------------------------------------------------------------


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


def test_verdicts_and_tables(tmp_path):
    met, missed = results.Verdict("ratio", "<=", 4.2, 4.0), results.Verdict("speed", ">=", 5, 4.9)
    assert (met.met, missed.met) == (True, False)
    lines = results.verdict_table([met, missed]).splitlines()
    assert lines[1].split() == ["ratio", "<=", "4.2", "4", "yes"]
    assert lines[2].split() == ["speed", ">=", "5", "4.9", "NO"]
    results.write(tmp_path / "new" / "a.json", "ops", {"rows": [1]}, [met])
    content = json.loads((tmp_path / "new" / "a.json").read_text())
    assert content["kind"] == "ops"
    assert content["rows"] == [1]
    assert content["goals"] == [{"what": "ratio", "sense": "<=", "goal": 4.2, "measured": 4.0, "met": True}]
    assert [p.name for p in (tmp_path / "new").iterdir()] == ["a.json"]


# Operations ------------------------------------------------------------------------------------------------


def test_every_operation_with_a_twin_is_measured():
    shared = {name for name in vars(reference) if not name.startswith("_") and hasattr(torch.ops.fastmeta, name)}
    assert shared
    functional = {"instance_label_step", "class_label_step"}  # for graphs: the same kernels as in place
    assert shared - functional <= set(NAMES)


@pytest.mark.parametrize("dtype", ops.DTYPES)
@pytest.mark.parametrize("name", ops.OPERATIONS)
def test_an_operation_is_compared_and_measured(name, dtype):
    config = ops.OpsConfig(seconds=1e-3, compile=False)
    row = ops.measure(name, 8, 5, dtype, config, copy=1e9)
    assert row.gigabytes_per_second == pytest.approx(row.share_of_copy)
    assert set(row.error) >= {"fused", "eager"}
    assert row.microseconds["fused"] > 0
    assert row.speedup["eager"] > 0
    assert "fused" not in row.speedup


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_lookahead_of_a_resnet18_is_measured(dtype):
    config = ops.OpsConfig(operations=("lookahead_update",), dtypes=(dtype,), seconds=1e-3, compile=False)
    ((_, measure),) = ops.cases(config)
    row = measure(1e9)
    assert (row.n, row.C) == (62, sum(p.numel() for p in models.build("resnet18", num_classes=100).parameters()))
    assert row.error["fused"] <= torch.finfo(ops.DTYPES[dtype]).eps
    assert row.speedup.keys() == {"eager", "foreach"}
    assert row.gigabytes_per_second == pytest.approx(
        3 * row.C * torch.finfo(ops.DTYPES[dtype]).bits / 8 / row.microseconds["fused"] / 1e3
    )
    (goal,) = ops.verdicts(row, "cuda")
    assert (goal.goal, goal.met) == (0.85, row.share_of_copy >= 0.85)
    assert ops.verdicts(row, "cpu") == []


@pytest.mark.parametrize("dtype", ops.DTYPES)
def test_a_batch_of_images_is_measured(dtype):
    config = ops.OpsConfig(operations=("load_images",), dtypes=(dtype,), seconds=1e-3, compile=False)
    ((_, measure),) = ops.cases(config)
    row = measure(1e9)
    assert (row.n, row.C) == (256, 3072)
    assert row.error == {"fused": 0, "eager": 0}
    assert row.speedup.keys() == {"eager"}
    itemsize = torch.finfo(ops.DTYPES[dtype]).bits // 8
    assert row.gigabytes_per_second == pytest.approx(256 * 3072 * (1 + itemsize) / row.microseconds["fused"] / 1e3)


def test_bytes_of_the_fused_label_step_are_five_elements_per_label():
    case = ops.prepare("instance_label_step_", 8, 5, "float32", ops.OpsConfig(compile=False))
    assert case.moved_bytes == 5 * 8 * 5 * 4


def test_inputs_survive_the_comparison():
    inputs = ops.Inputs.random(8, 5, torch.float32, CPU, seed=0)
    before = inputs.clone()
    ops.compare("instance_label_step_", ops._variants("instance_label_step_", ops.OpsConfig(compile=False)), inputs)
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
    config = ops.OpsConfig(operations=("row_dot", "soft_cross_entropy_hvp"), sizes=((8, 5),), dtypes=("float32",))
    content, _ = ops.run(replace(config, compile=False, seconds=1e-3), lambda text: None)
    assert len(content["rows"]) == 1
    assert content["failures"] == ["row_dot 8x5 float32: CUDA out of memory."]


def test_no_case_is_begun_after_the_limit():
    said = []
    config = ops.OpsConfig(operations=("row_dot",), sizes=((8, 5), (8, 6)), dtypes=("float32",), compile=False)
    content, _ = ops.run(replace(config, seconds=1e-3, limit=1e-9), said.append)
    assert content["left_out"] == ["row_dot 8x5 float32", "row_dot 8x6 float32"]
    assert said[-1] == "not begun within --limit 1e-09: row_dot 8x5 float32, row_dot 8x6 float32"


def test_a_table_that_is_not_written_is_noticed(monkeypatch):
    right = fused_ops.instance_label_step_

    def forgets(table, *args, **kwargs):
        return right(table.clone(), *args, **kwargs)

    inputs = ops.Inputs.random(8, 5, torch.float64, CPU, seed=0)
    inputs.scale, inputs.label_lr = 1.0, 1.0
    monkeypatch.setattr(fused_ops, "instance_label_step_", forgets)
    with pytest.raises(ops.WrongResult, match="output 4 is off"):
        ops.compare("instance_label_step_", ops._variants("instance_label_step_", ops.OpsConfig(compile=False)), inputs)


def test_a_twin_that_does_not_compile_is_left_out(monkeypatch):
    def refuse(function, **_):
        def call(*_):
            raise AssertionError("no such tile")

        return call

    monkeypatch.setattr(torch, "compile", refuse)
    row = ops.measure("row_dot", 8, 5, "float32", ops.OpsConfig(seconds=1e-3), copy=1e9)
    assert row.speedup.keys() == {"eager"}
    assert row.notes == {"compiled": "skipped, AssertionError: no such tile"}


@pytest.mark.slow
def test_compiled_twins_take_part():
    row = ops.measure("row_dot", 8, 5, "float32", ops.OpsConfig(seconds=1e-3), copy=1e9)
    assert row.speedup["compiled"] > 0


def ops_row(name, n, C, dtype="float32", fused=1.0, share=0.95, **speedup):
    return ops.OpsRow(name, n, C, dtype, {"fused": fused}, speedup, 1.0, share, {}, {})


@pytest.mark.parametrize(
    ("row", "device", "goals"),
    [
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
def test_goals_of_operations(row, device, goals):
    assert [(v.goal, v.met) for v in ops.verdicts(row, device)] == goals


# Steps -----------------------------------------------------------------------------------------------------


def test_sizes_are_counted_without_computing():
    counted = sizes(StepConfig(model="resnet18", batch=128, meta_batch=256, classes=10))
    assert counted.parameters == 11_173_962
    assert counted.parameter_bytes == 4 * 11_173_962
    assert counted.label_table_bytes == 50_000 * 10 * 4
    assert round(counted.forward_flops / 1e9) == 142
    assert counted.floor == pytest.approx(13 / 3)
    # the input, the output of the stem's convolution and that of its norm are among what is kept
    assert counted.saved_bytes > 4 * 128 * 32 * 32 * (3 + 64 + 64)


class NotOnMeta(torch.nn.Linear):
    def forward(self, x):
        return super().forward(x * float(x.abs().max() > 0))


def not_on_meta(num_classes):
    return NotOnMeta(2, num_classes)


def tokens(batch):
    return torch.arange(batch * 7).reshape(batch, 7) % 5


def token_model(num_classes):
    return torch.nn.Sequential(torch.nn.Embedding(5, 4), torch.nn.Flatten(), torch.nn.Linear(28, num_classes))


def test_a_model_that_does_not_run_on_meta_tensors_is_timed_without_its_flops():
    config = StepConfig(**{**TINY, "model": f"{__name__}:not_on_meta"}, variants=("sgd", "fastmeta"), memory=False)
    said = []
    content, _ = step.run(config, said.append)
    assert content["sizes"]["forward_flops"] is None
    assert "not counted (the model does not run on meta tensors)" in said[0]
    assert all(row["milliseconds"] > 0 and row["forwards"] is None for row in content["rows"])


def test_every_variant_takes_the_same_step():
    said = []
    content, verdicts = step.run(StepConfig(**TINY), said.append)
    rows = {row["variant"]: row for row in content["rows"]}
    assert list(rows) == variants.chosen(["default"], "cpu")
    assert content["best_plain"] == "sgd"
    for name, row in rows.items():
        if name in ("higher", "torchopt") and row["skipped"]:
            assert "pip install" in row["skipped"] or "does not import" in row["skipped"]
            continue
        assert row["skipped"] is None, row
        assert row["milliseconds"] > 0
        assert row["peak_bytes"] > 0
        assert row["forwards"] > 0
        assert 0 < row["share_of_matrix_rate"] < 1
        assert row["launches"] > 10
        assert set(row["ratios"]) == {k for k, r in rows.items() if r["skipped"] is None}
        if name not in ("sgd", "fastmeta:difference", "fastmeta:last:1"):
            assert row["error"] <= 1e-12
    assert rows["sgd"]["error"] is None
    assert rows["sgd"]["ratios"]["sgd"] == rows["reference"]["ratios"]["reference"] == 1
    assert rows["fastmeta:forward"]["note"] == "forward"
    assert 0 < rows["fastmeta:trace"]["forwards"] <= rows["fastmeta:reverse"]["forwards"]
    # three of four steps are plain ones, which cost 3 of 13 F at 2 n = m
    assert rows["fastmeta:every:4"]["forwards"] < 0.6 * rows["fastmeta"]["forwards"]
    assert verdicts == []


def test_flops_of_the_exact_ways():
    config = StepConfig(model="resnet20", batch=2, meta_batch=4, classes=3, samples=2, input_shape=(3, 8, 8))
    problem, forward = Problem(config, torch.float32), sizes(config).forward_flops
    counted = {k: step.flops_of(variants.VARIANTS[f"fastmeta:{k}"](problem)) / forward for k in ("forward", "reverse")}
    # 13 F and what eager torch cannot leave out: a second primal forward; 2 F of gradients that nobody asked for.
    # The first layer needs no gradient for its input, hence a little less.
    assert counted == {"forward": pytest.approx(14, abs=0.15), "reverse": pytest.approx(15, abs=0.15)}


@pytest.mark.slow
def test_compiled_steps_are_checked_and_counted():
    names = ("sgd", "sgd:compiled", "fastmeta:trace", "fastmeta:full", "fastmeta:every:4-full")
    content, _ = step.run(StepConfig(**TINY, variants=names), lambda text: None)
    rows = {row["variant"]: row for row in content["rows"]}
    assert all(row["skipped"] is None for row in rows.values())
    assert all(rows[name]["error"] <= 1e-3 for name in names if name != "sgd")
    assert rows["sgd:compiled"]["forwards"] == pytest.approx(rows["sgd"]["forwards"], rel=1e-3)
    assert rows["fastmeta:full"]["forwards"] == rows["fastmeta:trace"]["forwards"]
    assert rows["fastmeta:every:4-full"]["forwards"] < 0.6 * rows["fastmeta:full"]["forwards"]
    # fusion is what they are compiled for; some work is left to loops of inductor's, which must be seen
    assert 6 < rows["sgd:compiled"]["launches"] < rows["sgd"]["launches"]
    assert 20 < rows["fastmeta:full"]["launches"] < rows["fastmeta:trace"]["launches"]


def test_the_graph_of_the_plain_step_updates_parameters_and_running_statistics(monkeypatch):
    monkeypatch.setattr(torch._inductor, "compile", lambda graph, inputs: graph)
    config = StepConfig(model="small_conv", batch=4, meta_batch=4, classes=3, samples=4, lr=0.1)
    problem = Problem(config, torch.float64)
    steps = [build(problem) for build in (plain.eager, plain.capturable, plain.compiled)]
    for _ in range(3):
        for variant in steps:
            variant.step()
    truth = steps[0].model.state_dict()
    for variant in steps[1:]:
        for name, tensor in variant.model.state_dict().items():
            torch.testing.assert_close(tensor, truth[name], rtol=1e-12, atol=1e-12, msg=name)


def test_captured_steps_ask_for_a_device():
    assert captured(plain.capturable, Problem(StepConfig(**TINY), torch.float32)).startswith("needs a CUDA device")
    content, _ = step.run(StepConfig(**TINY, variants=("sgd:captured",), check=False), lambda text: None)
    assert content["rows"][0]["skipped"] == "needs a CUDA device (--device cuda)"


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("name", ["sgd:captured", "reference:captured"])
def test_a_captured_step_is_the_eager_one(name):
    config = StepConfig(**TINY, device="cuda", dtype="float64", variants=(name,))
    content, _ = step.run(config, lambda text: None)
    assert content["rows"][0]["skipped"] is None
    assert content["rows"][0]["error"] <= 1e-8


def test_a_variant_without_a_graph_is_skipped_with_the_reason():
    config = StepConfig(
        **{**TINY, "model": f"{__name__}:not_on_meta"}, variants=("fastmeta:trace",), check=False, memory=False
    )
    with pytest.warns(UserWarning, match="runs eagerly"):
        content, _ = step.run(config, lambda text: None)
    assert content["rows"][0]["skipped"].startswith("RuntimeError: has no graph: ")


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_presets(device):
    everything = variants.chosen(["all"], device)
    assert everything == list(variants.VARIANTS)
    quick, wanted = variants.chosen(["default"], device), variants.chosen(["goals"], device)
    assert {"sgd", "fastmeta", "fastmeta:trace", "reference"} <= set(quick)
    assert not any("full" in name or "compiled" in name for name in quick)
    assert ("sgd:captured" in quick) == ("sgd:captured" in wanted) == (device == "cuda")
    assert {"sgd:compiled", "fastmeta:full", "torchopt"} <= set(wanted)
    assert variants.chosen(["sgd", "default"], device) == quick


@pytest.mark.parametrize("dtype", ["bfloat16", "float64", "tf32"])
def test_other_precisions(dtype):
    said = []
    config = StepConfig(**TINY, dtype=dtype, variants=("sgd", "fastmeta", "reference"), memory=False)
    content, _ = step.run(config, said.append)
    assert ("tf32 is about CUDA: on a CPU it is float32" in said) == (dtype == "tf32")
    assert all(row["skipped"] is None and row["forwards"] > 0 for row in content["rows"])


def test_own_factory_and_inputs():
    config = StepConfig(
        **{**TINY, "model": f"{__name__}:token_model"}, inputs=f"{__name__}:tokens", variants=("fastmeta", "reference")
    )
    content, _ = step.run(config, lambda text: None)
    assert [row["error"] <= 1e-12 for row in content["rows"]] == [True, True]


def test_a_wrong_step_is_not_timed(monkeypatch):
    right = variants.VARIANTS["autograd"]

    def wrong(problem):
        variant = right(problem)

        def take():
            before = variant.table.clone()
            inner()
            variant.table.copy_(before + 1.001 * (variant.table - before))

        inner, variant.step = variant.step, take
        return variant

    monkeypatch.setitem(variants.VARIANTS, "autograd", wrong)
    content, _ = step.run(StepConfig(**TINY, variants=("autograd", "fastmeta")), lambda text: None)
    assert [row["skipped"] is None for row in content["rows"]] == [False, True]  # the right one has its figures
    (failure,) = content["failures"]
    assert re.search(r"autograd differs from the reference in float64: .*labels by 1.0e-03", failure)
    # what is compiled is judged in the precision that is timed, by the reference's own rounding there
    monkeypatch.setattr("fastmeta.bench.check.is_compiled", lambda name: True)
    content, _ = step.run(StepConfig(**TINY, variants=("autograd",), label_lr=1e5), lambda text: None)
    assert re.search(r"autograd differs .*labels by 1.0e-03 \(allowed .e-0[4-9]\)", content["failures"][0])


def test_a_step_that_is_not_finite_gives_no_figure():
    config = StepConfig(**TINY, lr=1e38, variants=("fastmeta",), check=False, memory=False)
    content, _ = step.run(config, lambda text: None)
    (failure,) = content["failures"]
    assert failure.startswith("fastmeta: a timed step was not finite")
    assert content["rows"][0]["milliseconds"] is None


@pytest.mark.parametrize("when", ["build", "step"])
def test_a_variant_that_breaks_leaves_the_others(monkeypatch, when):
    """As code that a compiler has made may, which raises more than RuntimeErrors."""
    right = variants.VARIANTS["fastmeta"]

    def broken(problem):
        assert when == "step", "wrong stride"
        variant = right(problem)

        def take():
            raise AssertionError("wrong stride")

        variant.step = take
        return variant

    monkeypatch.setitem(variants.VARIANTS, "fastmeta:forward", broken)
    config = StepConfig(**TINY, variants=("fastmeta:forward", "fastmeta"), memory=False, check=when == "build")
    content, _ = step.run(config, lambda text: None)
    (failure,) = content["failures"]
    assert failure.startswith("fastmeta:forward: AssertionError: wrong stride")
    assert [row["skipped"] is None for row in content["rows"]] == [False, True]


def test_where_the_reference_does_not_fit_steps_are_timed_unchecked(monkeypatch):
    def big(problem):
        raise torch.OutOfMemoryError("CUDA out of memory.")

    monkeypatch.setitem(variants.VARIANTS, "reference", big)
    said = []
    content, _ = step.run(StepConfig(**TINY, variants=("fastmeta", "reference"), memory=False), said.append)
    rows = {row["variant"]: row for row in content["rows"]}
    assert rows["fastmeta"]["milliseconds"] > 0
    assert rows["fastmeta"]["error"] is None
    assert rows["reference"]["skipped"] == "OutOfMemoryError: CUDA out of memory."
    assert "not checked     reference in torch.float64: OutOfMemoryError: CUDA out of memory." in said
    assert content["failures"] == []


def test_no_variant_is_begun_after_the_limit():
    content, _ = step.run(StepConfig(**TINY, variants=("sgd", "fastmeta"), limit=1e-9), lambda text: None)
    assert [row["skipped"][:9] for row in content["rows"]] == ["not begun", "not begun"]


def test_absent_libraries_are_skipped_by_name(monkeypatch):
    monkeypatch.setattr(peers.importlib.util, "find_spec", lambda name: None)
    config = StepConfig(**TINY, variants=("sgd", "higher", "torchopt"), check=False, memory=False)
    said = []
    content, _ = step.run(config, said.append)
    assert [row["skipped"] for row in content["rows"]] == [
        None,
        "higher is not installed (pip install higher)",
        "torchopt is not installed (pip install torchopt)",
    ]
    assert "skipped higher: higher is not installed (pip install higher)" in said


def test_libraries_that_fail_to_import_are_skipped_with_the_reason(monkeypatch, tmp_path):
    (tmp_path / "broken_peer.py").write_text("raise AttributeError('module torch has no attribute old')\n")
    monkeypatch.syspath_prepend(tmp_path)
    expected = f"broken_peer does not import with torch {torch.__version__}: module torch has no attribute old"
    assert peers.load("broken_peer") == expected


def step_row(name, **figures):
    return goals.StepRow(name, **figures)


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
def test_goals_of_steps(config, rows, wanted):
    assert [(v.goal, v.met) for v in goals.verdicts(config, rows, "NVIDIA H200")] == wanted
    if config is CARD:
        assert goals.verdicts(config, rows, "NVIDIA H100") == []


# Command line ----------------------------------------------------------------------------------------------


def test_step_writes_json(tmp_path, capsys):
    path = tmp_path / "step.json"
    flags = ["step", *TINY_FLAGS, "--variants", "sgd", "fastmeta", "--threads", "1", "--json", str(path)]
    assert main(flags) == 0
    out = capsys.readouterr().out
    assert out.index("forward F") < out.index("x reference")
    content = json.loads(path.read_text())
    assert content["kind"] == "step"
    assert content["environment"]["cpu"]["threads"] == content["config"]["threads"] == 1
    assert content["environment"]["command"].startswith("fastmeta bench step --model=mlp")
    assert [row["variant"] for row in content["rows"]] == ["sgd", "fastmeta"]
    assert content["rounds"] == 2


def test_ops_prints_a_table_and_strict_fails_on_a_missed_goal(monkeypatch, capsys):
    flags = ["ops", "--ops", "row_dot", "--sizes", "8x5", "--dtype", "float32", "--no-compile", "--seconds", "0.001"]
    assert main(flags) == 0
    assert "row_dot" in capsys.readouterr().out
    monkeypatch.setattr(ops, "verdicts", lambda row, device: [results.Verdict("planted", ">=", 1e9, 1.0)])
    assert main([*flags]) == 0
    assert main([*flags, "--strict"]) == 1
    assert "planted" in capsys.readouterr().out


def test_a_factory_beside_the_caller_is_found(tmp_path, monkeypatch, capsys):
    (tmp_path / "my_net.py").write_text("import torch\ndef make(num_classes): return torch.nn.Linear(2, num_classes)\n")
    monkeypatch.chdir(tmp_path)
    flags = [*TINY_FLAGS, "--model", "my_net:make", "--variants", "sgd", "--no-memory"]
    assert fastmeta.cli.main(["bench", "step", *flags]) == 0
    assert "my_net:make, 9 parameters" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ("step --model resnet19", "unknown model 'resnet19': expected one of resnet18"),
        ("step --model nowhere:net", "cannot import 'nowhere' for 'nowhere:net'"),
        ("step --batch 0", "batch must be positive, got 0"),
        ("step --classes 1", "classes must be at least 2, got 1"),
        ("step --samples 3 --batch 4", "samples must be at least batch (4), got 3"),
        ("step --variants sgd nothing", "unknown variant 'nothing': expected some of default, goals, all, sgd"),
        ("step --dtype int8", "argument --dtype: invalid choice: 'int8'"),
        ("step --inputs nowhere:f", "cannot import 'nowhere'"),
        ("step --threads 0", "argument --threads: must be at least 1, got 0"),
        ("step --input-shape 3,x", "argument --input-shape: must look like N,N,N, got '3,x'"),
        ("step --json .", "--json must name a file, got the directory ."),
        ("step --json /dev/null/a.json", "cannot write /dev/null/a.json: "),
        ("ops --ops nothing", "unknown operation 'nothing': expected some of instance_loss"),
        ("ops --dtype int8", "unknown dtype 'int8': expected some of float64"),
        ("ops --sizes 128", "argument --sizes: must look like NxN, got '128'"),
        ("ops --sizes 128x1", "sizes must be n x C with n >= 1 and C >= 2, got 128x1"),
        ("ops --seconds 0", "--seconds: must be above 0 and finite, got 0"),
        ("", "the following arguments are required: ops|step"),
        ("ops --device cuda", "finds no CUDA device"),
    ],
)
def test_errors_are_one_line_and_exit_code_2(flags, message, capsys):
    if "cuda" in flags and torch.cuda.is_available():
        pytest.skip("this machine has a CUDA device")
    try:
        code = main(flags.split())
    except SystemExit as error:
        code = error.code
    out, err = capsys.readouterr()
    assert code == 2
    assert message in err
    assert err.startswith("fastmeta bench")
    assert err.count("\n") == 1
    assert out == ""


def test_where_no_variant_can_run(capsys):
    line = "step --model torchvision:resnet18 --input-shape 3,2 --variants sgd --batch 2 --no-check --seconds 0.1"
    assert main(line.split()) == 0
    out, err = capsys.readouterr()
    assert "skipped sgd: RuntimeError: Given groups=1" in out
    assert err == ""


@pytest.mark.parametrize(
    ("command", "what"),
    [
        ([], "Operations and whole steps, timed in turns, medians."),
        (["ops"], "Each fused operation against its plain-torch twin, eager and compiled."),
        (["step"], "The meta step against plain SGD steps and what one would write instead."),
        (["approx"], "What each approximation of the step saves, and how far it is from exact."),
    ],
)
def test_help(command, what, capsys):
    with pytest.raises(SystemExit) as done:
        main([*command, "--help"])
    assert done.value.code == 0
    text = capsys.readouterr().out
    assert text.startswith(" ".join(["usage: fastmeta bench", *command]))
    assert what in " ".join(text.split())
