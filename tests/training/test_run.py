"""A run from config to directory and back."""

import json
from typing import NamedTuple

import numpy as np
import pytest
import torch
from torch import nn

import fastmeta
from fastmeta import train
from fastmeta.data import InputError
from fastmeta.training import DataConfig, LabelConfig, OptimConfig, TrainConfig, TrainingError, load_run
from fastmeta.training.rundir import checkpoint
from tests.support.methods import CORE
from tests.support.runs import Warnings, config, two_classes

#: of a run that has changed no label; the sheet of changed images comes with the first
FIGURES = ("accuracy", "confusion", "label_matrix", "labels", "wrong_labels")


@pytest.fixture(scope="module")
def digits_run(tmp_path_factory):
    path = tmp_path_factory.mktemp("run") / "with figures" / "digits"
    return fastmeta.train(fastmeta.TrainConfig(epochs=2, out=str(path), labels=LabelConfig(update="exact")))


def test_directory_holds_every_file(digits_run):
    files = sorted(str(p.relative_to(digits_run.path)) for p in digits_run.path.rglob("*") if p.is_file())
    assert files == [
        "checkpoint/state.safetensors",
        "config.toml",
        *(f"figures/{name}.{kind}" for name in FIGURES for kind in ("png", "svg")),
        "labels.npz",
        "labels.safetensors",
        "metrics.jsonl",
        "model.safetensors",
        "summary.json",
    ]
    for figure in (digits_run.path / "figures").iterdir():
        assert figure.read_bytes().startswith(b"\x89PNG" if figure.suffix == ".png" else b"<?xml")


def test_summary(digits_run):
    s = json.loads((digits_run.path / "summary.json").read_text())
    assert s == digits_run.summary
    assert (s["schema"], s["schema_version"]) == ("fastmeta.run", 2)
    assert (s["train_size"], s["meta_size"], s["test_size"], s["num_classes"]) == (1370, 30, 397, 10)
    assert list(s["baselines"]) == ["noisy", "union", "clean"]
    for stage in (s, *s["baselines"].values()):
        assert 0.2 < stage["test_accuracy_last"] <= stage["test_accuracy_best"] <= 1
        assert stage["nll"] > 0
        assert 0 <= stage["ece"] <= 1
        assert stage["seconds"] > 0
    assert s["label_accuracy_initial"] == pytest.approx(1 - s["noise_rate"])
    corrected = s["labels_corrected"] - s["labels_spoiled"]
    assert s["label_accuracy_final"] == pytest.approx(s["label_accuracy_initial"] + corrected / 1370)
    assert s["noise_rate"] < s["wrong_label_average_precision"] <= 1  # better than chance


def test_metrics_have_a_line_per_epoch_and_stage(digits_run):
    lines = [json.loads(line) for line in (digits_run.path / "metrics.jsonl").read_text().splitlines()]
    stages = ("instance_labels", "noisy", "union", "clean")
    assert [(r["run"], r["epoch"]) for r in lines] == [(name, epoch) for name in stages for epoch in range(3)]
    last = lines[2]
    assert last["step"] == 2 * (1370 // 64)
    assert last["test_accuracy"] == digits_run.summary["test_accuracy_last"]
    assert last["label_accuracy"] == digits_run.summary["label_accuracy_final"]
    assert last["label_grad_norm"] > 0


def test_labels_file(digits_run):
    with np.load(digits_run.path / "labels.npz") as t:
        probs = digits_run.labels.probs().numpy()
        assert np.array_equal(t["given"], digits_run.labels.targets.numpy())
        assert (t["learned"] == probs.argmax(1)).mean() > 0.99  # but for ties
        np.testing.assert_allclose(t["probability"], probs.max(1), rtol=1e-6)
        np.testing.assert_allclose(t["given_probability"], probs[np.arange(1370), t["given"]], rtol=1e-6)
        np.testing.assert_allclose(t["entropy"], -(probs * np.log(probs)).sum(1), rtol=1e-5)
        from fastmeta.data.sources.digits import digits

        assert np.array_equal(digits(0).train.targets[t["index"]], t["true"])


def test_load_run_gives_back_the_same(digits_run):
    again = load_run(digits_run.path)
    assert again.summary == digits_run.summary
    assert again.config == digits_run.config
    assert torch.equal(again.labels.label_logits, digits_run.labels.label_logits)
    assert not again.model.training
    x = torch.randn(3, 1, 8, 8)
    assert torch.equal(again.model(x), digits_run.model(x))


def test_config_file_of_a_run_runs_it_again(digits_run, tmp_path):
    text = (digits_run.path / "config.toml").read_text()
    (tmp_path / "again.toml").write_text(f'out = "{tmp_path / "again"}"\n' + text.replace('baselines = "all"', ""))
    again = train(TrainConfig.read(tmp_path / "again.toml"))
    for name in ("model.safetensors", "labels.safetensors"):
        assert (again.path / name).read_bytes() == (digits_run.path / name).read_bytes()


@pytest.mark.parametrize("method", CORE)
def test_every_method_on_arrays_of_ones_own(method, tmp_path):
    run = train(config(tmp_path / "run", method=method, baselines="clean"), data=two_classes())
    s = run.summary
    assert s["test_accuracy_last"] > 0.9
    assert (s["train_size"], s["meta_size"], s["test_size"]) == (80, 8, 20)
    assert s["noise_rate"] == pytest.approx(0.1)
    assert s["noise"] == "none"
    assert s["class_names"] == ["dark", "bright"]
    assert (run.labels is None) == (method == "onehot")
    assert s["label_update"] == {"onehot": None, "class_labels": "exact", "instance_labels": "posterior"}[method]
    assert s["label_lr"] is None
    assert list(s["baselines"]) == ["clean"]


def test_what_nobody_knows_is_null(tmp_path):
    listener, path = Warnings(), tmp_path / "with figures"
    data = two_classes(y_true=None, x_meta=None, y_meta=None, x_test=None, y_test=None)
    s = train(config(path), data=data, listener=listener).summary
    for key in ("noise_rate", "label_accuracy_initial", "label_accuracy_final", "labels_corrected", "labels_spoiled"):
        assert s[key] is None
    for key in ("wrong_label_average_precision", "test_accuracy_last", "test_accuracy_best", "nll", "ece"):
        assert s[key] is None
    assert isinstance(s["labels_changed"], int)
    assert (s["train_size"], s["meta_size"], s["test_size"]) == (64, 16, None)
    held_out = [text for text in listener.texts if "held out" in text]
    assert len(held_out) == 1
    assert held_out[0] in s["warnings"]
    assert not (path / "figures/accuracy.png").exists()
    assert (path / "figures/labels.png").exists()
    assert "true" not in np.load(path / "labels.npz").files


def test_a_module_of_ones_own_is_copied_and_must_be_given_again(tmp_path):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(16, 2))
    before = model[1].weight.clone()
    run = train(config(tmp_path / "run"), model=model, data=two_classes())
    assert torch.equal(model[1].weight, before)
    assert not torch.equal(run.model[1].weight, before)
    assert run.summary["model"] == "custom:Sequential"
    with pytest.raises(InputError, match="pass it as model="):
        load_run(run.path)
    assert torch.equal(load_run(run.path, model=model).model[1].weight, run.model[1].weight)


def test_the_callers_random_state_and_threads_stay(tmp_path):
    torch.manual_seed(7)
    state, threads = torch.get_rng_state(), torch.get_num_threads()
    train(config(tmp_path / "run", epochs=1), data=two_classes())
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.get_num_threads() == threads


def test_bf16_keeps_weights_and_labels_in_fp32(tmp_path):
    run = train(config(tmp_path / "run", precision="bf16"), data=two_classes())
    assert run.summary["test_accuracy_last"] > 0.9
    assert {t.dtype for t in run.model.state_dict().values()} == {torch.float32}
    assert run.labels.label_logits.dtype == torch.float32


def test_too_small_a_label_lr_is_said(tmp_path):
    listener = Warnings()
    run = train(config(tmp_path / "run", labels=LabelConfig(label_lr=1e-3)), data=two_classes(), listener=listener)
    (text,) = [t for t in listener.texts if "hardly moved" in t]
    assert text in run.summary["warnings"]


HOW = [("onehot", "off"), ("instance_labels", "off"), ("instance_labels", "trace")]


@pytest.mark.parametrize(("method", "compile"), HOW)
def test_divergence_ends_the_run_and_keeps_the_last_checkpoint(method, compile, tmp_path):
    run = config(
        tmp_path / "run",
        method=method,
        compile=compile,
        epochs=40,
        checkpoint_seconds=0,
        optim=OptimConfig(lr=1e30, schedule="constant"),
    )
    with pytest.raises(TrainingError, match=r"not finite for 10 steps in a row .* lower optim\.lr") as caught:
        train(run, data=two_classes(), listener=Warnings())
    # the first step threw the weights away, though it was finite itself: what was saved is the start
    assert f"the last good state, of {method} at step 0, is in {tmp_path / 'run/checkpoint'}" in str(caught.value)
    tensors, _ = checkpoint.load(tmp_path / "run/checkpoint/state.safetensors")
    weights = [t for k, t in tensors.items() if k.startswith("parts/model/")]
    assert max(float(w.abs().max()) for w in weights) < 10
    assert not (tmp_path / "run/summary.json").exists()
    with pytest.raises(InputError, match="is not finished; go on with: fastmeta train --resume"):
        load_run(tmp_path / "run")


class Spoiled(nn.Module):
    """Counts its training forwards that counted in a buffer; from the twelfth on its logits are NaN."""

    def __init__(self):
        super().__init__()
        self.inner = nn.Linear(16, 2)
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x):
        if self.training:
            self.calls.add_(1)
        return self.inner(x.flatten(1)) * torch.where(self.calls < 12, 1.0, torch.nan)


@pytest.mark.parametrize("compile", ["off", "trace"])
def test_ten_bad_steps_leave_the_state_of_before(compile, tmp_path):
    """80 rows in batches of 16 are 5 steps an epoch: what is saved behind epoch 2 stays, whatever comes after."""
    run = config(
        tmp_path / "run",
        model=None,
        compile=compile,
        epochs=40,
        checkpoint_seconds=0,
        data=DataConfig(batch_size=16),
        optim=OptimConfig(lr=0.05),
    )
    with pytest.raises(TrainingError, match="not finite for 10 steps in a row") as caught:
        train(run, model=Spoiled(), data=two_classes(), listener=Warnings())
    assert f"the last good state, of instance_labels at step 10, is in {tmp_path / 'run/checkpoint'}" in str(
        caught.value
    )
    tensors, values = checkpoint.load(tmp_path / "run/checkpoint/state.safetensors")
    assert values["stage"]["step"] == 10
    assert all(bool(t.isfinite().all()) for t in tensors.values() if t.is_floating_point())
    assert float(tensors["parts/model/state.calls"]) == 10


def test_a_compiled_run_learns_what_an_eager_one_does(tmp_path):
    runs = [
        train(config(tmp_path / mode, compile=mode, labels=LabelConfig(update="exact")), data=two_classes())
        for mode in ("off", "trace")
    ]
    assert [r.summary["compile"] for r in runs] == ["off", "trace"]
    a, b = (r.labels.label_logits for r in runs)
    assert float((a - b).norm() / b.norm()) < 1e-3
    start = fastmeta.InstanceLabels(runs[0].labels.targets, 2, 0.9).label_logits
    assert float((b - start).norm() / start.norm()) > 0.1


class Hungry(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner, self.forwards = nn.Linear(16, 2), 0

    def forward(self, x):
        self.forwards += self.training
        if self.forwards > 30:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
        return self.inner(x.flatten(1))


def test_out_of_memory_names_the_ways_out_and_the_last_good_state(tmp_path):
    exact = LabelConfig(update="exact")
    run = config(tmp_path / "run", model=None, epochs=40, checkpoint_seconds=0, labels=exact)
    with pytest.raises(TrainingError, match="out of memory in a step on 80 train and 8 meta rows, whose graphs") as e:
        train(run, model=Hungry(), data=two_classes(), listener=Warnings())
    assert "micro_batch=80" in str(e.value)
    _, values = checkpoint.load(tmp_path / "run/checkpoint/state.safetensors")
    assert values["stage"]["step"] > 0
    assert f"the last good state, of instance_labels at step {values['stage']['step']}, is in" in str(e.value)


@pytest.mark.parametrize("method", ["onehot", "instance_labels"])
def test_pieces_change_no_run(method, tmp_path):
    """80 rows in pieces of 27 at most, 8 clean ones whole; a network without BatchNorm."""
    runs = [
        train(config(tmp_path / str(k), method=method, model="mlp", micro_batch=k), data=two_classes())
        for k in (None, 30)
    ]
    assert runs[1].config.micro_batch == 30
    pairs = list(zip(*(r.model.parameters() for r in runs), strict=True))
    assert all(torch.allclose(a, b, rtol=1e-4, atol=1e-6) for a, b in pairs)
    assert not all(torch.equal(a, b) for a, b in pairs)  # sums in another order


@pytest.mark.parametrize("approx", ["delayed", "every:2", "last:1", "difference"])
def test_approximations_train(approx, tmp_path):
    run = train(
        config(tmp_path / "run", approx=approx, labels=LabelConfig(warmup_epochs=0)),
        data=two_classes(),
        listener=Warnings(),
    )
    assert run.summary["approx"] == approx
    assert run.summary["test_accuracy_last"] > 0.9
    last = json.loads((run.path / "metrics.jsonl").read_text().splitlines()[-1])
    assert last["meta_loss"] is not None
    assert last["label_grad_norm"] > 0


def test_tf32_on_a_cpu_says_that_it_is_fp32(tmp_path):
    listener = Warnings()
    run = train(config(tmp_path / "run", precision="tf32"), data=two_classes(), listener=listener)
    assert [t for t in listener.texts if "precision tf32 is about CUDA: on cpu it is fp32" in t]
    assert (run.summary["precision"], run.summary["device"]) == ("tf32", "cpu")


class Output(NamedTuple):
    logits: torch.Tensor


class Wrapping(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = nn.Linear(16, 2)

    def forward(self, x):
        return Output(self.inner(x.flatten(1)))


@pytest.mark.parametrize("method", ["onehot", "instance_labels"])
def test_models_whose_output_holds_the_logits(method, tmp_path):
    run = train(config(tmp_path / "run", method=method, model=None), model=Wrapping(), data=two_classes())
    assert run.summary["test_accuracy_last"] > 0.9
