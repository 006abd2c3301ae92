"""The modes of a module's parts are the caller's: frozen parts stay frozen through training, evaluation and the end."""

import copy
import random

import pytest
import torch
from torch import nn

from fastmeta import train
from fastmeta.functional.evaluation import evaluation
from fastmeta.training import load_run
from fastmeta.training.modes import looked_at
from tests.support.methods import CORE
from tests.support.runs import Warnings, config, two_classes


class Partly(nn.Module):
    """A frozen BatchNorm and a dropout that is switched off, beside ones that are not."""

    def __init__(self):
        super().__init__()
        self.flat, self.frozen, self.head = nn.Flatten(), nn.BatchNorm1d(16), nn.Linear(16, 2)
        self.norm, self.off, self.drop = nn.BatchNorm1d(2), nn.Dropout(0.9), nn.Dropout(0.1)
        with torch.no_grad():
            self.frozen.running_mean.fill_(0.25)
            self.frozen.running_var.fill_(2.0)
        self.seen = set()

    def forward(self, x):
        self.seen.add(tuple(m.training for m in self.modules()))
        return self.drop(self.norm(self.head(self.off(self.frozen(self.flat(x))))))


class Keeping(Partly):
    """Keeps its parts in evaluation mode by train(), as detectors do."""

    def train(self, mode=True):
        super().train(mode)
        self.frozen.eval()
        self.off.eval()
        return self


def by_hand():
    model = Partly()
    model.frozen.eval().requires_grad_(False)
    model.off.eval()
    return model


MODELS = {"by hand": by_hand, "by train()": lambda: Keeping().train()}


@pytest.mark.parametrize("method", CORE)
@pytest.mark.parametrize("made", MODELS)
def test_frozen_parts_stand_still(made, method, tmp_path):
    torch.manual_seed(0)
    model = MODELS[made]()
    modes = [m.training for m in model.modules()]
    seen, kept = [], copy.deepcopy(model.state_dict())

    class Looks(Warnings):
        def step(self, stage):
            seen.append([m.training for m in stage.model.modules()])

    run = train(
        config(tmp_path / "run", method=method, model=None, baselines="noisy", checkpoint_seconds=0),
        model=model,
        data=two_classes(),
        listener=Looks(),
    )
    assert seen
    assert all(s == modes for s in seen)
    assert [m.training for m in model.modules()] == modes
    after = run.model.state_dict()
    for name in ("running_mean", "running_var", "num_batches_tracked"):
        assert torch.equal(after[f"frozen.{name}"], kept[f"frozen.{name}"])
        assert not torch.equal(after[f"norm.{name}"], kept[f"norm.{name}"])
    assert not any(m.training for m in run.model.modules())
    assert all(torch.equal(v, kept[k]) for k, v in model.state_dict().items())


@pytest.mark.parametrize("method", CORE)
def test_a_model_all_in_evaluation_mode_is_trained_so_and_that_is_said(method, tmp_path):
    torch.manual_seed(0)
    model = Partly().eval()
    listener = Warnings()
    run = train(config(tmp_path / "run", method=method, model=None), model=model, data=two_classes(), listener=listener)
    (text,) = [t for t in listener.texts if "is in evaluation mode in all its parts and is trained so" in t]
    assert text in run.summary["warnings"]
    assert "call model.train() before" in text
    assert int(run.model.norm.num_batches_tracked) == 0
    assert not torch.equal(run.model.head.weight, model.head.weight)
    for fine in (Partly(), None):
        quiet = Warnings()
        own = {"model": None} if fine is not None else {}
        train(config(tmp_path / str(fine is None), epochs=1, **own), model=fine, data=two_classes(), listener=quiet)
        assert not [t for t in quiet.texts if "evaluation mode" in t]
    assert load_run(run.path, model=Partly()).summary == run.summary


class Folding(nn.Linear):
    """An adapter that is folded into the weight in evaluation mode, by train()."""

    folded = False

    def train(self, mode=True):
        if mode == self.folded:
            with torch.no_grad():
                self.weight *= 0.5 if mode else 2
            self.folded = not mode
        return super().train(mode)


def test_evaluation_goes_through_train_and_puts_every_mode_back():
    inner = nn.Sequential(Folding(2, 2), nn.BatchNorm1d(2).eval(), nn.Sequential(nn.Dropout().eval(), Folding(2, 2)))
    model = Keeping().train()
    model.inner = inner
    model.head.eval()
    before = [m.training for m in model.modules()]
    weights = [m.weight.clone() for m in (inner[0], inner[2][1])]
    with evaluation(model):
        assert not any(m.training for m in model.modules())
        assert all(m.folded for m in (inner[0], inner[2][1]))
    assert [m.training for m in model.modules()] == before
    assert all(torch.equal(w, m.weight) for w, m in zip(weights, (inner[0], inner[2][1]), strict=True))
    assert not inner[0].folded


class Busy(nn.Module):
    """Draws, counts and moves a buffer in every forward, in evaluation mode too."""

    def __init__(self):
        super().__init__()
        self.rng, self.calls, self.last = random.Random(3), 0, None
        self.register_buffer("mean", torch.zeros(2))
        self.head = nn.Linear(2, 2)

    def forward(self, x):
        self.calls += 1
        self.mean += torch.rand(2) + self.rng.random() + random.random()
        self.last = x
        return self.head(x) + self.mean


def test_a_look_leaves_nothing():
    model = Busy()
    model.head.eval()
    x = torch.ones(3, 2)
    before = torch.get_rng_state(), random.getstate(), model.rng.getstate(), model.mean.clone()
    with looked_at(model, torch.device("cpu")), torch.no_grad():
        assert not model.training
        first = model(x)
        assert model.calls == 1
    assert torch.equal(before[0], torch.get_rng_state())
    assert before[1:3] == (random.getstate(), model.rng.getstate())
    assert torch.equal(model.mean, before[3])
    assert (model.calls, model.last) == (0, None)
    assert [m.training for m in model.modules()] == [True, False]
    assert torch.equal(model(x), first)
