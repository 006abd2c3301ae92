"""fastmeta.check and its command: right gradients pass, wrong ones are caught, layers are named."""

import copy

import pytest
import torch
from torch import nn

import fastmeta
from fastmeta.cli.check import main
from tests.meta import cases
from tests.meta.test_tangent import Activation, Checkpointed, SilentZero


def run(model, case, family=fastmeta.InstanceLabels, **kw):
    labels = family(case.targets, case.num_classes, 0.8)
    return fastmeta.check(model.float(), labels, case.train, case.meta, 0.3, **kw)


def rows(report):
    return {row.way: row for row in report.rows}


@pytest.mark.parametrize("name", cases.NAMES)
@pytest.mark.parametrize("family", [fastmeta.InstanceLabels, fastmeta.ClassLabels])
def test_healthy_models(name, family):
    case = cases.make(name, dtype=torch.float32)
    report = run(case.model, case, family, timing=False)
    assert report.ok, report
    for row in report.rows:
        assert row.verdict == ("inexact" if row.way == "difference" else "exact")
        assert row.error < (1e-5 if row.way == "difference" else 1e-10)
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
        (["--model", "mlp", "--classes", "1"], "--classes is too small: 1"),
        (
            ["--model", "tests.test_checker:small", "--input-shape", "6", "--tangent", "sideways"],
            "tangent must be one of",
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
