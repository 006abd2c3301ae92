"""Steps by others' ideas and of other losses: each is compared with its own truth before it is timed."""

import re

import pytest
import torch

from fastmeta.bench import peers, step_losses, step_run, step_variants
from fastmeta.bench.step_check import Check, WrongStep, movement
from fastmeta.bench.step_problem import Problem, StepConfig

TINY = {"model": "mlp", "batch": 4, "meta_batch": 6, "classes": 3, "samples": 10, "input_shape": (2,), "rounds": 2}
CONV = {"model": "small_conv", "batch": 4, "meta_batch": 4, "classes": 3, "samples": 4, "input_shape": (3, 8, 8)}


def test_other_losses_take_their_naive_step():
    config = StepConfig(**TINY)
    problem = Problem(config, torch.float32)
    check = Check(config, problem)
    for name in step_losses.VARIANTS:
        if not name.endswith("full"):
            assert check.of(name, step_variants.VARIANTS[name](problem)) <= 1e-12, name
            assert step_variants.truth_of(name) == f"naive:{name.removeprefix('naive:').split(':')[0]}"


def test_figures_of_another_loss_are_by_its_own_naive_step():
    said = []
    names = ("reference", "naive:l2rw", "l2rw")
    content = step_run.run(StepConfig(**TINY, variants=names, memory=False), said.append)
    rows = {row["variant"]: row for row in content["rows"]}
    assert [rows[name]["naive"] for name in names] == ["reference", "naive:l2rw", "naive:l2rw"]
    (table,) = (text for text in said if "x naive" in text and "samples/s" in text)
    shown = next(line.split()[-1] for line in table.splitlines() if line.startswith("l2rw"))
    assert shown == f"{rows['l2rw']['ratios']['naive:l2rw']:.2f}"


@pytest.mark.parametrize("name", ["emlc", "autograd", "betty"])
def test_ideas_of_others_with_batch_norm(name):
    """Which leaves running statistics where one train forward has moved them to."""
    problem = Problem(StepConfig(**CONV), torch.float64)
    variant, truth = (step_variants.VARIANTS[k](problem) for k in (name, "reference"))
    moved, expected = (movement(v, problem) for v in (variant, truth))
    errors = moved.errors(expected)
    if variant.exact:
        assert max(errors.values()) <= 1e-12
    else:
        assert 1e-9 < errors["labels"] < 1e-1
    for key, tensor in truth.model.state_dict().items():
        torch.testing.assert_close(variant.model.state_dict()[key], tensor, rtol=1e-3, atol=1e-3, msg=key)
    buffers = dict(truth.model.named_buffers())
    assert buffers
    for key, tensor in variant.model.named_buffers():
        torch.testing.assert_close(tensor, buffers[key], rtol=1e-12, atol=1e-12, msg=key)


def test_the_graph_of_the_compiled_reference_is_its_step(monkeypatch):
    monkeypatch.setattr(torch._inductor, "standalone_compile", lambda graph, inputs, **options: graph)
    problem = Problem(StepConfig(**CONV, lr=0.1), torch.float64)
    compiled, eager = (step_variants.VARIANTS[k](problem) for k in ("reference:compiled", "autograd"))
    for _ in range(2):
        compiled.step()
        eager.step()
    torch.testing.assert_close(compiled.table, eager.table, rtol=1e-12, atol=1e-12)
    truth = eager.model.state_dict()
    for key, tensor in compiled.model.state_dict().items():
        torch.testing.assert_close(tensor, truth[key], rtol=1e-12, atol=1e-12, msg=key)


def not_traceable(num_classes):
    class Net(torch.nn.Linear):
        def forward(self, x):
            return super().forward(x * float(x.abs().max() > 0))

    return Net(2, num_classes)


def test_a_reference_without_a_graph_is_skipped_with_the_reason():
    config = {**TINY, "model": f"{__name__}:not_traceable"}
    content = step_run.run(
        StepConfig(**config, variants=("reference:compiled",), check=False, memory=False), lambda text: None
    )
    assert content["rows"][0]["skipped"].startswith("Untraceable: ")


@pytest.mark.parametrize("name", ["mwnet", "l2rw"])
@pytest.mark.parametrize("what", ["loss", "model"])
def test_a_wrong_step_of_another_loss_is_refused(monkeypatch, name, what):
    right = step_variants.VARIANTS[name]

    def wrong(problem):
        variant = right(problem)
        moving = list((variant.model if what == "model" else variant.loss).parameters())

        def take():
            before = [p.detach().clone() for p in moving]
            inner()
            with torch.no_grad():
                for p, b in zip(moving, before, strict=True):
                    p.copy_(b + 1.001 * (p - b))

        inner, variant.step = variant.step, take
        return variant

    monkeypatch.setitem(step_variants.VARIANTS, name, wrong)
    config = StepConfig(**TINY)
    problem = Problem(config, torch.float32)
    if (name, what) == ("l2rw", "loss"):  # its weights live for one step: the model alone shows them
        assert list(wrong(problem).loss.parameters()) == []
        return
    with pytest.raises(WrongStep, match=rf"{name} differs from the naive:{name} step in float64: .*by 1.0e-03"):
        Check(config, problem).of(name, wrong(problem))


def test_losses_of_each_precision_begin_alike_and_leave_the_generator_alone():
    config = StepConfig(**TINY)
    narrow, wide = (Problem(config, dtype) for dtype in (torch.float32, torch.float64))
    before = torch.get_rng_state()
    for name in step_losses.LOSSES:
        a, b = (step_losses.VARIANTS[name](p).loss for p in (narrow, wide))
        assert all(torch.equal(x.double(), y) for x, y in zip(a.parameters(), b.parameters(), strict=True))
    assert torch.equal(torch.get_rng_state(), before)


def test_the_preset_of_peers():
    wanted = step_variants.chosen(["peers"], "cpu")
    assert wanted == step_variants.chosen(["peers"], "cuda")
    assert {"sgd", "reference", "reference:compiled", "emlc", "betty", "higher", "torchopt"} < set(wanted)
    assert {f"{name}{mode}" for name in step_losses.LOSSES for mode in ("", ":trace", ":full")} < set(wanted)
    assert {f"naive:{name}" for name in step_losses.LOSSES} < set(wanted)
    assert not {"emlc", "betty", "mwnet"} & set(step_variants.chosen(["main"], "cpu"))


def test_every_idea_names_its_source():
    for module, source in ((peers.emlc_jvp, "Taraday, Baskin"), (peers.betty_difference, "Choe, .*DARTS.*Eq. \\(8\\)")):
        assert re.search(source, " ".join(module.__doc__.split()))


@pytest.mark.slow
def test_compiled_steps_of_peers():
    names = ("reference:compiled", "mwnet:full", "l2rw:full", "mlc:full")
    content = step_run.run(StepConfig(**TINY, variants=names, memory=False), lambda text: None)
    assert content["failures"] == []
    assert all(row["skipped"] is None and row["error"] < 1e-2 for row in content["rows"])
