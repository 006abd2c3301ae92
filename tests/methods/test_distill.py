"""distill: soft targets from a network or from learned labels, at a temperature."""

import signal
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from fastmeta.data import InputError
from fastmeta.training import DataConfig, Interrupted, LabelConfig, OptimConfig, TrainConfig, load_run, train
from fastmeta.training.prepare import prepare
from tests.support.methods import Net64, assert_same_weights, naive, stage_of, taken
from tests.support.plugs import files
from tests.support.runs import two_classes
from tests.support.stopped import Kill, config


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Finished runs by what they give: a model, labels of samples, labels of classes."""
    folder = tmp_path_factory.mktemp("runs")
    exact = LabelConfig(update="exact", target_prob=0.6, label_lr=20.0)
    plans = {
        "onehot": {"method": "onehot"},
        "instance": {"method": "instance_labels", "labels": exact},
        "class": {"method": "class_labels"},
    }
    for name, changes in plans.items():
        plan = config(folder / name, model="mlp", baselines="none", **{"optim": OptimConfig(lr=0.05), **changes})
        train(plan, data=two_classes())
    return {name: str(folder / name) for name in plans}


def soft_cross_entropy(t, log_q):
    return -(t * log_q).sum(1).mean()


@pytest.mark.parametrize("micro_batch", [None, 6])
@pytest.mark.parametrize(("both", "hard"), [(False, 0.0), (True, 0.0), (False, 0.3), (True, 0.4)])
@pytest.mark.parametrize("source", ["teacher", "instance", "class"])
def test_steps_are_naive_ones(source, both, hard, micro_batch, runs, tmp_path):
    torch.manual_seed(0)
    model, T = Net64(), 2.5
    options = {"temperature": T, "both": both, "hard": hard}
    options |= {"teacher": runs["onehot"]} if source == "teacher" else {"labels": runs[source]}
    stage = stage_of(tmp_path / "run", "distill", model, options, micro_batch=micro_batch)
    batches, y = taken(stage, 4), stage.context.targets
    seen = iter(batches)

    def loss(z, index):
        x, again, _ = next(seen)
        assert torch.equal(index, again)
        if source == "teacher":
            t = (load_run(runs["onehot"]).model(x).detach().double() / T).softmax(1)
        else:
            p = load_run(runs[source]).labels.probs(index).double() ** (1 / T)
            t = p / p.sum(1, keepdim=True)
        soft = soft_cross_entropy(t, (z / T if both else z).log_softmax(1)) * (T**2 if both else 1)
        return (1 - hard) * soft + hard * nn.functional.cross_entropy(z, y[index])

    wanted = naive(model, batches, loss, stage.config.optim)
    # tables and teachers are float32: a power, or a forward in pieces, rounds otherwise
    assert_same_weights(stage.model, wanted, atol=1e-12 if (source, micro_batch) == ("teacher", None) else 1e-6)


def test_a_teacher_is_read_once_where_no_step_sees_other_samples(runs, tmp_path, monkeypatch):
    """And in each step where they are augmented; the steps are the same."""
    plain = DataConfig(batch_size=16, augment="none")
    plan = config(
        tmp_path / "run", method="distill", options={"teacher": runs["onehot"], "temperature": 2.0}, model=None
    )
    stages, calls = [], {}
    for most in (2**26, 0):
        monkeypatch.setattr("fastmeta.methods.distill.MOST_LOGITS", most)
        torch.manual_seed(0)
        stage = prepare(replace(plan, data=plain), model=Net64(), data=two_classes()).stage("distill")
        calls[most] = []
        stage.method.teacher.register_forward_pre_hook(lambda *_, said=calls[most]: said.append(1))
        for _ in range(12):
            stage.take_step()
        stages.append(stage)
    kept, read = stages
    assert kept.method.logits.shape == (80, 2)
    assert read.method.logits is None
    assert (len(calls[2**26]), len(calls[0])) == (1, 12)
    for a, b in zip(kept.model.parameters(), read.model.parameters(), strict=True):
        assert torch.allclose(a, b, rtol=0, atol=1e-6)
    monkeypatch.setattr("fastmeta.methods.distill.MOST_LOGITS", 2**26)
    assert prepare(plan, model=Net64(), data=two_classes()).stage("distill").method.logits is None


def test_the_teacher_stands_still(runs, tmp_path):
    stage = stage_of(tmp_path / "run", "distill", Net64(), {"teacher": runs["onehot"]})
    before = {k: v.clone() for k, v in stage.method.teacher.state_dict().items()}
    taken(stage, 3)
    assert not any(m.training for m in stage.method.teacher.modules())
    assert all(torch.equal(v, before[k]) for k, v in stage.method.teacher.state_dict().items())


def test_a_run_on_labels_resumes_bitwise_and_knows_the_labels_that_it_began_with(runs, tmp_path):
    labels = tmp_path / "labels"
    instance = {"method": "instance_labels", "labels": LabelConfig(update="exact", label_lr=20.0)}
    teach = lambda lr: train(  # noqa: E731
        config(labels, model="mlp", baselines="none", **{**instance, "optim": OptimConfig(lr=lr)}), data=two_classes()
    )
    teach(0.05)
    made = lambda path: config(  # noqa: E731
        path, method="distill", options={"labels": str(labels)}, model="mlp", baselines="none"
    )
    whole = train(made(tmp_path / "whole"), data=two_classes())
    with pytest.raises(Interrupted):
        train(made(tmp_path / "run"), data=two_classes(), listener=Kill(signal.SIGTERM, "distill", 7))
    labels.rename(tmp_path / "kept")
    teach(0.02)
    with pytest.raises(InputError, match=r"labels\.safetensors is not the one that the run began with"):
        train(resume=tmp_path / "run", data=two_classes())
    labels.rename(tmp_path / "other")
    (tmp_path / "kept").rename(labels)
    train(resume=tmp_path / "run", data=two_classes())
    assert files(tmp_path / "run") == files(whole.path)


def test_what_cannot_teach_is_refused(runs, tmp_path):
    def refused(message, data=None, **options):
        plan = config(tmp_path / "run", method="distill", options=options, model="mlp", baselines="none")
        with pytest.raises(InputError, match=message):
            train(plan, data=two_classes() if data is None else data)
        assert not (tmp_path / "run").exists()

    refused("needs the directory of a finished run: method.teacher, .* or method.labels")
    refused("nowhere is no run directory", teacher=str(tmp_path / "nowhere"))
    refused("learned labels of .*onehot are none that can be read", labels=runs["onehot"])
    flipped = two_classes()["y_train"].copy()
    flipped[:3] = 1 - flipped[:3]
    refused("belong to other rows or other noise: 3 of 80", two_classes(y_train=flipped), labels=runs["instance"])
    fewer = {k: two_classes()[k][:70] for k in ("x_train", "y_train", "y_true")}
    refused("are 80 of 2 classes, and this run trains on 70 rows", two_classes(**fewer), labels=runs["instance"])
    for options, message in (
        ({"teacher": "a", "labels": "b"}, r"takes method\.teacher or method\.labels, and both are given"),
        ({"teacher": "a", "temperature": 0}, r"method\.temperature must be above 0"),
        ({"teacher": "a", "hard": 2}, r"method\.hard must be in \[0, 1\], got 2\.0"),
    ):
        with pytest.raises(InputError, match=message):
            TrainConfig(method="distill", options=options)


def test_labels_that_one_network_has_learned_train_another(tmp_path, monkeypatch):
    """Also of a network that only its user has, whose code the student's run does not want."""
    from fastmeta.cli import main

    monkeypatch.chdir(tmp_path)
    np.savez("data.npz", **two_classes())
    common = ["--dataset", "npz:data.npz", "--epochs", "2", "--threads", "1"]
    assert main(["train", *common, "--labels.update", "exact", "--model", "mlp", "--out", "learned"]) == 0
    own = nn.Sequential(nn.Flatten(), nn.Linear(16, 2))
    given = train(replace(TrainConfig.read("learned/config.toml"), out="custom", model=None), model=own)
    for labels in ("learned", "custom"):
        student = ["--method", "distill", "--method.labels", labels, "--model", "small_conv", "--out", f"of-{labels}"]
        assert main(["train", *common, *student, "--method.temperature", "0.5"]) == 0
        assert load_run(f"of-{labels}").summary["model"] == "small_conv"
    file = given.path / "labels.safetensors"
    file.write_bytes(file.read_bytes()[:-1])
    with pytest.raises(InputError, match=r"labels.safetensors cannot be read"):
        train(replace(TrainConfig.read("of-custom/config.toml"), out="again"))
