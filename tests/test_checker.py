"""fastmeta.check and its command: right gradients pass, wrong ones are caught, layers are named."""

import copy

import pytest
import torch
from torch import nn

import fastmeta
from fastmeta.cli.check import main
from tests.support import cases
from tests.support.layers import Activation, Checkpointed, SilentZero


def run(model, case, family=fastmeta.InstanceLabels, **kw):
    labels = family(case.targets, case.num_classes, 0.8)
    return fastmeta.check(model.float(), labels, case.train, case.meta, 0.3, **kw)


def rows(report):
    return {row.tangent: row for row in report.rows}


@pytest.mark.parametrize("name", cases.NAMES)
@pytest.mark.parametrize("family", [fastmeta.InstanceLabels, fastmeta.ClassLabels])
def test_healthy_models(name, family):
    case = cases.make(name, dtype=torch.float32)
    report = run(case.model, case, family, timing=False)
    assert report.ok, report
    for row in report.rows:
        assert row.verdict == ("inexact" if row.tangent == "difference" else "exact")
        assert row.error < (1e-5 if row.tangent == "difference" else 1e-10)
        assert row.cosine == pytest.approx(1)


def test_changes_nothing_and_measures():
    case = cases.make("resnet", dtype=torch.float32)
    before = copy.deepcopy(case.model.state_dict())
    random = torch.get_rng_state()
    report = run(case.model, case)
    assert all(torch.equal(before[k], v) for k, v in case.model.state_dict().items())
    assert torch.equal(random, torch.get_rng_state())
    for way in ("reverse", "forward", "difference", "reference (autograd)"):
        assert rows(report)[way].milliseconds > 0
        assert rows(report)[way].peak_mib > 0
    text = str(report)
    assert "the meta-gradient of this model is right" in text
    assert "peak MiB" in text


def test_a_layer_without_second_derivative_is_named_and_differences_judge():
    case = cases.make("mlp", dtype=torch.float32)
    model = nn.Sequential(nn.Linear(6, 16), nn.Sequential(nn.Tanh(), nn.Hardsigmoid()), nn.Linear(16, 10))
    report = run(model, case, timing=False)
    assert report.ok, report
    assert "central differences of the meta loss" in report.truth
    assert rows(report)["auto (forward)"].verdict == "exact"
    assert rows(report)["auto (forward)"].error < 1e-5
    assert "first layer in the way: 1.1 (Hardsigmoid)" in rows(report)["reverse"].note


def test_a_silently_wrong_layer_is_named():
    case = cases.make("mlp", dtype=torch.float32)
    model = nn.Sequential(nn.Linear(6, 16), Activation(SilentZero), nn.Linear(16, 10))
    report = run(model, case, timing=False)
    assert rows(report)["auto (reverse)"].verdict == "exact"
    assert rows(report)["forward"].verdict == "cannot"
    assert "1 (Activation): its derivative disagrees" in rows(report)["forward"].note


class Forgetful(nn.Module):
    """Differentiates a detached copy of its weight in every second call: a gradient that no way can get right."""

    def __init__(self):
        super().__init__()
        self.inner, self.calls = nn.Linear(6, 10), 0

    def forward(self, x):
        self.calls += 1
        return self.inner(x) * (1 + 0.5 * self.calls)


def test_a_wrong_gradient_is_not_ok():
    case = cases.make("mlp", dtype=torch.float32)
    report = run(Forgetful(), case, timing=False, tangents=("auto",))
    assert not report.ok
    assert "NOT OK" in str(report)


def test_reentrant_checkpointing_is_not_ok():
    report = run(Checkpointed(True), cases.make("mlp", dtype=torch.float32), timing=False)
    assert not report.ok
    assert all(row.verdict == "cannot" and "use_reentrant=False" in row.note for row in report.rows)


class Square(torch.autograd.Function):
    """x^2, whose backward is a subclass's."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x * x


class Cubed(Square):
    """A backward that is not its own, though consistent in itself."""

    @staticmethod
    def backward(ctx, grad):
        return grad * 3 * ctx.saved_tensors[0]


class Once(Square):
    """A right backward that cannot be differentiated: a term of the second derivative vanishes in silence."""

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad):
        return grad * 2 * ctx.saved_tensors[0]


def with_layer(function):
    return nn.Sequential(nn.Linear(6, 16), Activation(function), nn.Linear(16, 10))


def test_a_layer_with_a_wrong_backward_is_named():
    report = run(with_layer(Cubed), cases.make("mlp", dtype=torch.float32), timing=False)
    assert not report.ok
    assert rows(report)["difference"].verdict == "WRONG"
    assert report.suspect.startswith("1 (Activation): its derivative disagrees with a central difference")
    assert report.suspect in str(report)


def test_a_backward_that_hides_its_second_derivative_is_no_truth():
    report = run(with_layer(Once), cases.make("mlp", dtype=torch.float32), timing=False)
    assert report.ok, report
    assert "central differences of the meta loss" in report.truth
    assert rows(report)["auto (difference)"].error < 1e-5
    assert "1 (Activation): its derivative disagrees" in rows(report)["reverse"].note
    assert not report.suspect


class SingleOnly(nn.Linear):
    def forward(self, x):
        if x.dtype != torch.float32:
            raise TypeError("float32, please")
        return super().forward(x)


def test_a_model_without_a_float64_form_cannot_be_checked():
    report = run(SingleOnly(6, 10), cases.make("mlp", dtype=torch.float32), timing=False)
    assert not report.ok
    assert {row.verdict for row in report.rows} == {"cannot"}
    assert "TypeError: float32, please [in a float64 copy of the model]" in str(report)


def test_fused_attention_is_said():
    case = cases.make("attention", dtype=torch.float32)
    report = run(case.model, case, timing=False, tangents=("reverse", "difference"))
    assert rows(report)["reverse"].note == "attention as plain maths"
    assert rows(report)["difference"].note == ""


def test_some_ways_alone():
    case = cases.make("mlp", dtype=torch.float32)
    assert run(case.model, case, timing=False, tangents=("reverse",)).ok
    assert not run(with_layer(Once), case, timing=False, tangents=("reverse",)).ok


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"tangents": "auto"}, r"tangents must be a tuple .* got 'auto'"),
        ({"tangents": ()}, r"tangents must be a tuple"),
        ({"index": torch.tensor([0, 99])}, r"index must lie in \[0, 19\] for 20 training samples, got 0 to 99"),
        ({"y_meta": torch.tensor([0, 10])}, r"y_meta must lie in \[0, 9\] for 10 classes, got 0 to 10"),
        ({"model": nn.Linear(6, 3)}, r"logits of x must have shape \(2, 10\) for these labels, got \(2, 3\)"),
        ({"model": nn.Linear(5, 10)}, "the model fails on x: RuntimeError: "),
        ({"lr": float("nan")}, "lr must be above 0, got nan"),
    ],
)
def test_arguments_that_do_not_fit(changes, message):
    given = {"model": nn.Linear(6, 10), "index": torch.arange(2), "y_meta": torch.arange(2), "lr": 0.1, **changes}
    labels, x = fastmeta.InstanceLabels(torch.arange(20) % 10, 10), torch.zeros(2, 6)
    tangents = given.get("tangents", ("auto",))
    with pytest.raises(ValueError, match=message):
        fastmeta.check(
            given["model"], labels, (x, given["index"]), (x, given["y_meta"]), given["lr"], tangents=tangents
        )


def test_random_layers():
    case = cases.make("resnet", dtype=torch.float32)
    case.model.insert(4, nn.Dropout(0.3))
    assert run(case.model, case, timing=False).ok


def test_command(capsys):
    assert main(["--model", "tests.test_checker:small", "--input-shape", "6", "--no-timing"]) == 0
    assert "the meta-gradient of this model is right" in capsys.readouterr().out


def test_command_exits_with_1_on_a_wrong_gradient(capsys):
    assert main(["--model", "tests.test_checker:forgetful", "--input-shape", "6", "--no-timing"]) == 1
    assert "NOT OK" in capsys.readouterr().out


def small(num_classes):
    return cases.mlp(num_classes)


def forgetful(num_classes):
    return Forgetful()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--model", "resnet19"], "resnet19"),
        (["--model", "nowhere.at:all"], "nowhere"),
        (["--model", "mlp", "--classes", "1"], "argument --classes: must be at least 2, got 1"),
        (["--model", "mlp", "--batch", "0"], "argument --batch: must be at least 1, got 0"),
        (["--model", "mlp", "--batch", "x"], "argument --batch: must be a whole number, got 'x'"),
        (["--model", "mlp", "--input-shape", "3,a"], "argument --input-shape: must look like N,N,N, got '3,a'"),
        (["--model", "mlp", "--lr", "0"], "argument --lr: must be above 0 and finite, got 0"),
        (["--model", "mlp", "--device", "tpu"], "device must be auto, cpu, cuda or cuda:N, got 'tpu'"),
        (["--model", "mlp", "--device", "cuda:99"], "device cuda:99 is not there"),
        (["--model", "tests.test_checker:small"], "the model fails on x: RuntimeError: "),
        ([], "the following arguments are required: --model"),
        (["--what"], "the following arguments are required: --model"),
        (
            ["--model", "tests.test_checker:small", "--input-shape", "6", "--tangent", "sideways"],
            "tangents must be a tuple of some of auto, reverse, forward, difference, got ('sideways',)",
        ),
    ],
)
def test_command_errors_are_one_line(arguments, message, capsys):
    with pytest.raises(SystemExit) as stop:
        main(arguments)
    assert stop.value.code == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
