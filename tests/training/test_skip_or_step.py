"""One rule for every method and baseline: a step whose loss, gradient or new buffers are not finite changes nothing."""

import copy
import json

import pytest
import torch
from torch import nn

from fastmeta import train
from fastmeta.report.result_table import result_table
from fastmeta.training import DataConfig, OptimConfig, TrainingError, load_run
from fastmeta.training.prepare import prepare
from tests.support.methods import CORE
from tests.support.runs import Faulty, Warnings, config, two_classes


def stage_of(method, tmp_path, model, **changes):
    data = DataConfig(batch_size=16)
    plan = config(tmp_path, method=method, model=None, data=data, optim=OptimConfig(lr=0.05), **changes)
    return prepare(plan, model=model, data=two_classes()).stage(method)


def state(stage):
    tensors = {k: v.clone() for k, v in stage.save()[0].items() if not k.startswith(("rng", "totals"))}
    return tensors


WAYS = [(m, "off", k) for m in CORE for k in (None, 6)] + [(m, "trace", None) for m in CORE if m != "onehot"]
CASES = [(*w, how) for w in WAYS for how in ("loss", "gradient")]
CASES += [(*w, how) for w in WAYS for how in ("buffer", "variance")]


@pytest.mark.parametrize(("method", "compile", "micro_batch", "how"), CASES)
def test_a_bad_step_changes_nothing_and_is_counted(method, compile, micro_batch, how, tmp_path):
    torch.manual_seed(0)
    stage = stage_of(method, tmp_path / "run", Faulty(how), compile=compile, micro_batch=micro_batch)
    for _ in range(2):
        stage.take_step()
    before, bad = state(stage), [0, 0]
    assert any(k.startswith("parts/optimizer/") for k in before)
    stage.model.bad = True
    for k in range(2):
        stage.take_step()
        after = state(stage)
        bad[k] = int(stage.totals.read()["nonfinite"])
        assert {k for k in before if not torch.equal(before[k], after[k])} == set()
    assert bad == [1, 2]
    stage.model.bad = False
    stage.take_step()
    weight = "parts/model/state.head.weight"
    assert not torch.equal(stage.save()[0][weight], before[weight])
    assert int(stage.totals.read()["nonfinite"]) == 2
    assert all(bool(p.isfinite().all()) for p in stage.model.parameters())


@pytest.mark.parametrize("method", CORE)
def test_ten_bad_steps_in_a_row_end_the_methods_own_stage(method, tmp_path):
    model = Faulty("gradient")
    model.bad = True
    data = DataConfig(batch_size=16)
    with pytest.raises(TrainingError, match="not finite for 10 steps in a row"):
        train(config(tmp_path / "run", method=method, model=None, data=data), model=model, data=two_classes())


class BadOnClean(nn.Module):
    """NaN logits in training on batches that are one clean set: the baseline `clean` diverges, nothing else does."""

    def __init__(self, rows=8):
        super().__init__()
        self.rows, self.net = rows, nn.Sequential(nn.Flatten(), nn.Linear(16, 2))

    def forward(self, x):
        z = self.net(x)
        return z * torch.nan if self.training and len(x) == self.rows and z.requires_grad else z


def test_a_baseline_that_diverges_ends_alone(tmp_path):
    listener = Warnings()
    plan = config(tmp_path / "run", method="onehot", model=None, epochs=12, baselines="clean,union")
    run = train(plan, model=BadOnClean(), data=two_classes(), listener=listener)
    clean, union = run.summary["baselines"]["clean"], run.summary["baselines"]["union"]
    assert "clean: loss or gradient was not finite for 10 steps in a row" in clean["failed"]
    assert {k: v for k, v in clean.items() if k not in ("failed", "seconds")} == dict.fromkeys(
        ("test_accuracy_last", "test_accuracy_best", "test_accuracy_best_epoch", "nll", "ece", "train_fit")
    )
    assert union["failed"] is None
    assert union["test_accuracy_last"] > 0.9
    (text,) = [t for t in listener.texts if "this baseline has no figures" in t]
    assert text in run.summary["warnings"]
    assert run.summary["test_accuracy_last"] > 0.9
    assert load_run(run.path, model=BadOnClean()).summary == json.loads((run.path / "summary.json").read_text())
    from rich.console import Console

    console = Console(width=200, record=True)
    console.print(result_table(run.summary))
    text = console.export_text()
    assert "failed" in text
    assert "not finite for 10 steps" in text


def test_a_stop_never_saves_weights_that_are_not_finite(tmp_path):
    stage = stage_of("onehot", tmp_path / "run", Faulty())
    assert stage.finite()
    assert stage.sound()
    with torch.no_grad():
        stage.model.head.weight[0, 0] = torch.inf
    assert not stage.finite()
    assert not stage.sound()


def test_sound_leaves_modes_and_statistics_alone(tmp_path):
    stage = stage_of("onehot", tmp_path / "run", Faulty())
    stage.model.norm.eval()
    before = copy.deepcopy(stage.model.state_dict())
    assert stage.sound()
    assert [m.training for m in stage.model.modules()] == [True, True, False, True]
    assert all(torch.equal(v, before[k]) for k, v in stage.model.state_dict().items())
