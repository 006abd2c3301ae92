"""The model's optimizer by name, its look-ahead, and resume; initial weights that are not those of the start."""

import signal

import pytest
import torch
from torch import nn

import fastmeta
from fastmeta.data import InputError
from fastmeta.training import Interrupted, LabelConfig, OptimConfig, TrainConfig
from fastmeta.training.prepare import prepare
from tests.support.plugs import files
from tests.support.runs import Warnings, two_classes
from tests.support.stopped import Kill, config


@pytest.mark.parametrize("method", ["instance_labels", "onehot"])
def test_adamw_trains_as_torch_has_it_and_resumes_bitwise(method, tmp_path):
    exact, adamw = LabelConfig(update="exact"), OptimConfig(name="adamw")
    made = lambda path: config(path, method=method, optim=adamw, labels=exact)  # noqa: E731
    unbroken = fastmeta.train(made(tmp_path / "unbroken"), data=two_classes())
    assert unbroken.config.optim == OptimConfig(name="adamw", lr=1e-3, weight_decay=1e-2)
    assert unbroken.summary["optimizer"] == "adamw"
    assert unbroken.summary["lookahead"] == ("0.1" if method == "instance_labels" else None)
    for at in ((method, 7), ("union", 8)):
        path = tmp_path / str(at)
        with pytest.raises(Interrupted):
            fastmeta.train(made(path), data=two_classes(), listener=Kill(signal.SIGTERM, *at))
        fastmeta.train(resume=path, data=two_classes())
        assert files(path) == files(unbroken.path)


def test_the_steps_are_those_of_adamw(tmp_path):
    made = config(tmp_path / "run", method="onehot", baselines="none", optim=OptimConfig(name="adamw", lr=0.01))
    stage = prepare(made, data=two_classes()).stage("onehot")
    model = prepare(made, data=two_classes()).build("model")
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01, weight_decay=1e-2)
    for step in range(5):
        rows = stage.sampler(step)
        x = stage.data.source.network_input(rows, torch.tensor(step), torch.device("cpu"))
        optimizer.param_groups[0]["lr"] = fastmeta.training.schedule.lr_at(stage.config.optim, step, stage.total)
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x), stage.data.targets[rows]).backward()
        optimizer.step()
        stage.take_step()
    for ours, theirs in zip(stage.model.parameters(), model.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-7)


def test_labels_go_as_far_by_default_whatever_the_look_ahead_is(tmp_path):
    def of_labels(**changes):
        changes = {"labels": LabelConfig(update="exact"), **changes}
        return prepare(config(tmp_path / "run", baselines="none", **changes), data=two_classes()).config.labels

    for changes in (
        {"optim": OptimConfig(lr=0.1)},
        {"optim": OptimConfig(name="adamw")},
        {"optim": OptimConfig(name="adamw", lr=1.0), "labels": LabelConfig(lookahead=0.05)},
    ):
        labels = of_labels(**changes)
        assert (labels.label_lr, labels.label_step) == (None, fastmeta.InstanceLabels.default_step)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"optim": {"name": "adam"}}, "optim.name must be one of sgd, adamw, got 'adam'"),
        ({"optim": {"name": "adamw", "nesterov": True}}, "optim.nesterov=True is about sgd"),
        ({"optim": {"name": "adamw", "momentum": 0.5}}, "optim.momentum=0.5 is about sgd"),
        ({"optim": {"name": "adamw"}, "labels": {"lookahead": "sgd"}}, "labels.lookahead=sgd follows an sgd"),
        ({"optim": {"name": "adamw"}, "labels": {"lookahead": "optimizer"}}, "labels.lookahead=optimizer follows"),
    ],
)
def test_what_does_not_fit_adamw_is_refused_by_name(changes, message):
    with pytest.raises(InputError, match=message):
        TrainConfig.from_mapping(changes)


def of_ones_own(seed):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Flatten(), nn.Linear(16, 2))


def test_resume_notices_a_model_with_other_initial_weights(tmp_path):
    def stopped(path, stage, baselines):
        made = config(path, model=None, baselines=baselines)
        with pytest.raises(Interrupted):
            fastmeta.train(made, data=two_classes(), model=of_ones_own(0), listener=Kill(signal.SIGTERM, stage, 7))

    stopped(tmp_path / "run", "instance_labels", "union")
    with pytest.raises(InputError, match=r"model= has other initial weights .* union would start from them"):
        fastmeta.train(resume=tmp_path / "run", data=two_classes(), model=of_ones_own(1))
    fastmeta.train(resume=tmp_path / "run", data=two_classes(), model=of_ones_own(0))

    stopped(tmp_path / "last", "instance_labels", "none")  # nothing will start from them
    heard = Warnings()
    fastmeta.train(resume=tmp_path / "last", data=two_classes(), model=of_ones_own(1), listener=heard)
    assert any("model= has other initial weights" in text for text in heard.texts)
    for name in ("model.safetensors", "labels.safetensors"):
        assert (tmp_path / "last" / name).read_bytes() == (tmp_path / "run" / name).read_bytes()
