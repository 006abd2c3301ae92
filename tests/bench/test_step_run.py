"""Whole steps as the benchmark takes them: the same step by all, wrong ones refused, others skipped by name."""

import importlib.util
import re
from dataclasses import replace

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from fastmeta.bench import peers, step_plain, step_run, step_variants
from fastmeta.bench.step_problem import Problem, StepConfig, sizes
from fastmeta.bench.step_row import StepRow
from fastmeta.bench.step_variant import captured
from fastmeta.cli.bench import main

TINY = {"model": "mlp", "batch": 4, "meta_batch": 6, "classes": 3, "samples": 10, "input_shape": (2,), "rounds": 2}
FLAGS = ["--model=mlp", "--batch=4", "--meta-batch=6", "--classes=3", "--samples=10", "--input-shape=2", "--rounds=2"]


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
    content = step_run.run(config, said.append)
    assert content["sizes"]["forward_flops"] is None
    assert "not counted (the model does not run on meta tensors)" in said[0]
    assert all(row["milliseconds"] > 0 and row["forwards"] is None for row in content["rows"])


def test_every_variant_takes_the_same_step():
    said = []
    content = step_run.run(StepConfig(**TINY), said.append)
    rows = {row["variant"]: row for row in content["rows"]}
    assert list(rows) == step_variants.chosen(["default"], "cpu")
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
        if name not in ("sgd", "fastmeta:difference", "fastmeta:last:1", "betty"):
            assert row["error"] <= 1e-12
    assert rows["sgd"]["error"] is None
    assert rows["sgd"]["ratios"]["sgd"] == rows["reference"]["ratios"]["reference"] == 1
    assert rows["fastmeta:forward"]["note"] == "forward"
    assert 0 < rows["fastmeta:trace"]["forwards"] <= rows["fastmeta:reverse"]["forwards"]
    # three of four steps are plain ones, which cost 3 of 13 F at 2 n = m
    assert rows["fastmeta:every:4"]["forwards"] < 0.6 * rows["fastmeta"]["forwards"]


def test_tables_of_the_longest_names_and_figures_have_80_columns():
    names = tuple(step_variants.VARIANTS)
    row = StepRow(
        "",
        None,
        "difference",
        99999.9,
        (1, 1),
        9999999.0,
        dict.fromkeys(names, 999.99),
        1e9,
        99.99,
        1.0,
        99999,
        2**43,
        1e-9,
    )
    lines = step_run.tables([replace(row, variant=name) for name in names], "sgd:captured").splitlines()
    assert max(map(len, lines)) <= 80
    assert len(lines) == 2 * (len(names) + 1) + 1


def test_flops_of_the_exact_ways():
    config = StepConfig(model="resnet20", batch=2, meta_batch=4, classes=3, samples=2, input_shape=(3, 8, 8))
    problem, forward = Problem(config, torch.float32), sizes(config).forward_flops
    counted = {
        k: step_run.flops_of(step_variants.VARIANTS[f"fastmeta:{k}"](problem)) / forward for k in ("forward", "reverse")
    }
    # 13 F and what eager torch cannot leave out: a second primal forward; 2 F of gradients that nobody asked for.
    # The first layer needs no gradient for its input, hence a little less.
    assert counted == {"forward": pytest.approx(14, abs=0.15), "reverse": pytest.approx(15, abs=0.15)}


@pytest.mark.slow
def test_compiled_steps_are_checked_and_counted():
    names = ("sgd", "sgd:compiled", "fastmeta:trace", "fastmeta:full", "fastmeta:every:4-full")
    content = step_run.run(StepConfig(**TINY, variants=names), lambda text: None)
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
    steps = [build(problem) for build in (step_plain.eager, step_plain.capturable, step_plain.compiled)]
    for _ in range(3):
        for variant in steps:
            variant.step()
    truth = steps[0].model.state_dict()
    for variant in steps[1:]:
        for name, tensor in variant.model.state_dict().items():
            torch.testing.assert_close(tensor, truth[name], rtol=1e-12, atol=1e-12, msg=name)


def test_captured_steps_ask_for_a_device():
    assert captured(step_plain.capturable, Problem(StepConfig(**TINY), torch.float32)).startswith("needs a CUDA device")
    content = step_run.run(StepConfig(**TINY, variants=("sgd:captured",), check=False), lambda text: None)
    assert content["rows"][0]["skipped"] == "needs a CUDA device (--device cuda)"


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("name", ["sgd:captured", "reference:captured"])
def test_a_captured_step_is_the_eager_one(name):
    config = StepConfig(**TINY, device="cuda", dtype="float64", variants=(name,))
    content = step_run.run(config, lambda text: None)
    assert content["rows"][0]["skipped"] is None
    assert content["rows"][0]["error"] <= 1e-8


def test_a_variant_without_a_graph_is_skipped_with_the_reason():
    config = StepConfig(
        **{**TINY, "model": f"{__name__}:not_on_meta"}, variants=("fastmeta:trace",), check=False, memory=False
    )
    with pytest.warns(UserWarning, match="runs eagerly"):
        content = step_run.run(config, lambda text: None)
    assert content["rows"][0]["skipped"].startswith("RuntimeError: has no graph: ")


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_presets(device):
    everything = step_variants.chosen(["all"], device)
    assert everything == list(step_variants.VARIANTS)
    quick, wanted = step_variants.chosen(["default"], device), step_variants.chosen(["main"], device)
    assert {"sgd", "fastmeta", "fastmeta:trace", "reference"} <= set(quick)
    assert not any("full" in name or "compiled" in name for name in quick)
    assert ("sgd:captured" in quick) == ("sgd:captured" in wanted) == (device == "cuda")
    assert {"sgd:compiled", "fastmeta:full", "torchopt"} <= set(wanted)
    assert step_variants.chosen(["sgd", "default"], device) == quick


@pytest.mark.parametrize("dtype", ["bfloat16", "float64", "tf32"])
def test_other_precisions(dtype):
    said = []
    config = StepConfig(**TINY, dtype=dtype, variants=("sgd", "fastmeta", "reference"), memory=False)
    content = step_run.run(config, said.append)
    assert ("tf32 is about CUDA: on a CPU it is float32" in said) == (dtype == "tf32")
    assert all(row["skipped"] is None and row["forwards"] > 0 for row in content["rows"])


def test_own_factory_and_inputs():
    config = StepConfig(
        **{**TINY, "model": f"{__name__}:token_model"}, inputs=f"{__name__}:tokens", variants=("fastmeta", "reference")
    )
    content = step_run.run(config, lambda text: None)
    assert [row["error"] <= 1e-12 for row in content["rows"]] == [True, True]


def test_a_wrong_step_is_not_timed(monkeypatch):
    right = step_variants.VARIANTS["autograd"]

    def wrong(problem):
        variant = right(problem)

        def take():
            before = variant.table.clone()
            inner()
            variant.table.copy_(before + 1.001 * (variant.table - before))

        inner, variant.step = variant.step, take
        return variant

    monkeypatch.setitem(step_variants.VARIANTS, "autograd", wrong)
    content = step_run.run(StepConfig(**TINY, variants=("autograd", "fastmeta")), lambda text: None)
    assert [row["skipped"] is None for row in content["rows"]] == [False, True]  # the right one has its figures
    (failure,) = content["failures"]
    assert re.search(r"autograd differs from the reference step in float64: .*labels by 1.0e-03", failure)
    # what is compiled is judged in the precision that is timed, by the reference's own rounding there
    monkeypatch.setattr("fastmeta.bench.step_check.is_compiled", lambda name: True)
    content = step_run.run(StepConfig(**TINY, variants=("autograd",), label_lr=1e5), lambda text: None)
    assert re.search(r"autograd differs .*labels by 1.0e-03 \(allowed .e-0[4-9]\)", content["failures"][0])


def test_a_step_that_is_not_finite_gives_no_figure():
    config = StepConfig(**TINY, lr=1e38, variants=("fastmeta",), check=False, memory=False)
    content = step_run.run(config, lambda text: None)
    (failure,) = content["failures"]
    assert failure.startswith("fastmeta: a timed step was not finite")
    assert content["rows"][0]["milliseconds"] is None


@pytest.mark.parametrize("when", ["build", "step"])
def test_a_variant_that_breaks_leaves_the_others(monkeypatch, when):
    """As code that a compiler has made may, which raises more than RuntimeErrors."""
    right = step_variants.VARIANTS["fastmeta"]

    def broken(problem):
        assert when == "step", "wrong stride"
        variant = right(problem)

        def take():
            raise AssertionError("wrong stride")

        variant.step = take
        return variant

    monkeypatch.setitem(step_variants.VARIANTS, "fastmeta:forward", broken)
    config = StepConfig(**TINY, variants=("fastmeta:forward", "fastmeta"), memory=False, check=when == "build")
    content = step_run.run(config, lambda text: None)
    (failure,) = content["failures"]
    assert failure.startswith("fastmeta:forward: AssertionError: wrong stride")
    assert [row["skipped"] is None for row in content["rows"]] == [False, True]


def test_where_the_reference_does_not_fit_steps_are_timed_unchecked(monkeypatch):
    def big(problem):
        raise torch.OutOfMemoryError("CUDA out of memory.")

    monkeypatch.setitem(step_variants.VARIANTS, "reference", big)
    said = []
    content = step_run.run(StepConfig(**TINY, variants=("fastmeta", "reference"), memory=False), said.append)
    rows = {row["variant"]: row for row in content["rows"]}
    assert rows["fastmeta"]["milliseconds"] > 0
    assert rows["fastmeta"]["error"] is None
    assert rows["reference"]["skipped"] == "OutOfMemoryError: CUDA out of memory."
    assert "not checked     reference in torch.float64: OutOfMemoryError: CUDA out of memory." in said
    assert content["failures"] == []


def test_no_variant_is_begun_after_the_limit():
    content = step_run.run(StepConfig(**TINY, variants=("sgd", "fastmeta"), limit=1e-9), lambda text: None)
    assert [row["skipped"][:9] for row in content["rows"]] == ["not begun", "not begun"]


def test_where_nothing_is_timed_there_is_no_table(capsys):
    assert main(["step", *FLAGS, "--variants", "sgd:captured"]) == 2
    told = capsys.readouterr()
    assert told.err == "fastmeta bench: nothing was timed, for the reasons above\n"
    assert "skipped sgd:captured: needs a CUDA device" in told.out
    assert "tangent" not in told.out


def test_rounds_before_ctrl_c_count(monkeypatch, capsys):
    right = step_variants.VARIANTS["fastmeta"]

    def stops(problem):
        variant = right(problem)
        take, left = variant.step, iter(range(60))

        def step():
            if next(left, None) is None:
                raise KeyboardInterrupt
            take()

        variant.step = step
        return variant

    monkeypatch.setitem(step_variants.VARIANTS, "fastmeta", stops)
    said = []
    config = replace(StepConfig(**TINY, memory=False, check=False), variants=("sgd", "fastmeta"), rounds=None)
    monkeypatch.setattr(step_run, "_count", lambda *_: (None, None))  # which takes further steps
    content = step_run.run(replace(config, seconds=10), said.append)
    assert content["stopped"] is True
    assert 0 < content["rounds"] < 60
    assert f"rounds          {content['rounds']}" in said
    assert all(row["milliseconds"] > 0 for row in content["rows"])


@pytest.mark.parametrize("name", ["fastmeta", "mwnet"])
def test_counting_changes_no_step(name):
    """The eager step of a plain network is one of products alone, and that of a loss with a network is counted."""
    problem = Problem(StepConfig(**TINY), torch.float32)
    variant = step_variants.VARIANTS[name](problem)
    seen = []

    class Products(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            out = func(*args, **(kwargs or {}))
            if formula := flop_registry.get(func.overloadpacket):
                seen.append(formula(*args, **(kwargs or {}), out_val=out))
            return out

    counted = step_run.flops_of(variant)
    with Products():
        variant.cycle()
    assert counted == sum(seen) > 0


def test_absent_libraries_are_skipped_by_name(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    config = StepConfig(**TINY, variants=("sgd", "higher", "torchopt"), check=False, memory=False)
    said = []
    content = step_run.run(config, said.append)
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
