"""A copy of the model that takes a few steps on the clean set at the end of a run."""

import copy
import io
import os
import signal
import types

import numpy as np
import pytest
import torch
from rich.console import Console
from torch import nn
from torch.nn.functional import cross_entropy

from fastmeta import train
from fastmeta.data import EpochSampler, InputError
from fastmeta.report.figures import write_figures
from fastmeta.report.result_table import result_table
from fastmeta.training import DataConfig, Interrupted, LabelConfig, OptimConfig, TrainConfig, finetune, load_run
from fastmeta.training.rundir.checkpoint import unpack
from tests.support.canaries import many_clean
from tests.support.runs import Warnings, two_classes
from tests.support.runs import config as plain_config

FILE = "model-finetuned.safetensors"
STEPS, LR, META = 7, 0.3, 4


def config(path, **changes):
    data = DataConfig(batch_size=16, meta_batch_size=META, standardise=False)
    return plain_config(
        path, **{"data": data, "finetune_steps": STEPS, "finetune_lr": LR, "model": None, "epochs": 2, **changes}
    )


def features(**changes):
    """`two_classes` as numbers, which a network takes as they are, and less easily told apart."""
    arrays = two_classes(**changes)
    noise = np.random.default_rng(1)
    for name in ("x_train", "x_meta", "x_test"):
        if name in arrays:
            x = arrays[name].reshape(len(arrays[name]), -1).astype(np.float32) / 255
            arrays[name] = x + noise.normal(0, 1.0, x.shape).astype(np.float32)
    return arrays


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(16, 12), nn.BatchNorm1d(12), nn.ReLU(), nn.Dropout(0.5), nn.Linear(12, 2))


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    path = tmp_path_factory.mktemp("finetuned") / "run"
    return train(config(path, baselines="all"), model=network(), data=features(), listener=Warnings())


@pytest.fixture(scope="module")
def without(tmp_path_factory):
    path = tmp_path_factory.mktemp("without") / "run"
    changes = {"finetune_steps": 0, "finetune_lr": None}
    return train(config(path, baselines="all", **changes), model=network(), data=features(), listener=Warnings())


def naive(run, size):
    """A copy behind the steps on batches of `size`; BatchNorm takes their statistics from 8 on."""
    arrays, model = features(), copy.deepcopy(run.model).eval()
    model[1].train(size >= 8)
    x, y = torch.from_numpy(arrays["x_meta"]), torch.from_numpy(arrays["y_meta"])
    optimizer = torch.optim.SGD(model.parameters(), lr=LR, momentum=0.9)
    order = EpochSampler(len(y), size, seed=0, stream="finetune-order", device=torch.device("cpu"))
    for step in range(STEPS):
        rows = order(step)
        optimizer.zero_grad()
        cross_entropy(model(x[rows]), y[rows]).backward()
        optimizer.step()
    return model


def test_the_copy_takes_plain_steps_in_evaluation_mode(run):
    ours, before = run.finetuned.state_dict(), run.model.state_dict()
    for name, t in naive(run, META).state_dict().items():
        torch.testing.assert_close(ours[name], t, rtol=1e-5, atol=1e-6)
        assert torch.equal(ours[name], before[name]) == ("running" in name or "num_batches" in name), name
    assert not run.finetuned.training


def test_batch_norm_takes_the_statistics_of_larger_batches(tmp_path):
    data = DataConfig(batch_size=16, meta_batch_size=8, standardise=False)
    run = train(config(tmp_path / "run", data=data), model=network(), data=features(), listener=Warnings())
    ours, before = run.finetuned.state_dict(), run.model.state_dict()
    for name, t in naive(run, 8).state_dict().items():
        torch.testing.assert_close(ours[name], t, rtol=1e-4, atol=1e-5)
        assert not torch.equal(ours[name], before[name]), name
    assert run.summary["finetuned"]["lr"] == LR
    assert not any(m.training for m in run.finetuned.modules())


def test_figures_are_those_of_the_copy(run):
    arrays, told = features(), run.summary["finetuned"]
    assert (told["steps"], told["lr"], told["failed"]) == (STEPS, LR, None)
    with torch.no_grad():
        z = run.finetuned(torch.from_numpy(arrays["x_test"])).double()
        q = run.finetuned(torch.from_numpy(arrays["x_train"])).double().log_softmax(1)
    y = torch.from_numpy(arrays["y_test"])
    assert told["test_accuracy"] == pytest.approx(float((z.argmax(1) == y).double().mean()))
    assert told["nll"] == pytest.approx(float(cross_entropy(z, y)))
    p = run.labels.probs(torch.arange(80)).double().log()
    given, true = torch.from_numpy(arrays["y_train"]), torch.from_numpy(arrays["y_true"])
    readings = {"table": p.argmax(1), "network": q.argmax(1), "product": (p + q).argmax(1)}
    assert list(told["labels"]) == list(readings)
    for way, read in readings.items():
        assert told["labels"][way]["label_accuracy"] == pytest.approx(float((read == true).double().mean()))
        assert told["labels"][way]["labels_changed"] == int((read != given).sum())
        assert told["labels"][way]["labels_corrected"] == int(((read == true) & (given != true)).sum())
        assert told["labels"][way]["labels_spoiled"] == int(((read != true) & (given == true)).sum())
    assert len({tuple(read.tolist()) for read in readings.values()}) == 3  # or nothing would be told apart
    assert told["labels"]["table"]["label_accuracy"] == run.summary["label_accuracy_final"]
    table = np.load(run.path / "labels.npz")
    assert np.array_equal(table["learned"], readings["table"].numpy())


def test_baselines_too_but_for_the_one_of_clean_samples(run):
    baselines = run.summary["baselines"]
    assert "finetuned" not in baselines["clean"]
    for name in ("noisy", "union"):
        told = baselines[name]["finetuned"]
        assert told["steps"] == STEPS
        assert list(told["labels"]) == ["network"]
        changed = told["labels"]["network"]
        assert 0 <= changed["labels_corrected"] + changed["labels_spoiled"] <= changed["labels_changed"] <= 80


def test_the_run_itself_is_the_one_without(run, without):
    """And that one has no trace of it."""
    for name in ("model.safetensors", "labels.safetensors"):
        assert (run.path / name).read_bytes() == (without.path / name).read_bytes()
    with np.load(run.path / "labels.npz") as ours, np.load(without.path / "labels.npz") as others:
        differ = [name for name in ours if not np.array_equal(ours[name], others[name])]
    assert differ == ["label_quality"]  # which asks the copy
    for name in ("summary.json", "config.toml"):
        assert "finetune" not in (without.path / name).read_text()
    assert not (without.path / FILE).exists()
    assert without.finetuned is None
    assert "tuned" not in repr(without)
    for name, stage in without.summary["baselines"].items():
        assert stage["test_accuracy_last"] == run.summary["baselines"][name]["test_accuracy_last"]
    assert "finetune_steps = 7" in (run.path / "config.toml").read_text()


def test_words_table_and_figures_tell_of_it(run, without, tmp_path):
    out = io.StringIO()
    Console(file=out, width=80).print(result_table(run.summary))
    lines = out.getvalue().splitlines()
    assert max(map(len, lines)) <= 80
    told, accuracy = run.summary["finetuned"], run.summary["finetuned"]["test_accuracy"]
    (own, noisy, _) = (line.split() for line in lines if line.startswith(" fine-tuned"))
    assert own[1:3] == [f"{100 * accuracy:.1f}", f"{100 * told['labels']['network']['label_accuracy']:.1f}"]
    assert noisy[1] == f"{100 * run.summary['baselines']['noisy']['finetuned']['test_accuracy']:.1f}"
    (product,) = (line.split() for line in lines if line.startswith(" … × labels"))
    assert product[3] == f"{100 * told['labels']['product']['label_accuracy']:.1f}"
    assert f"nll {run.summary['nll']:.3f} → {told['nll']:.3f}" in out.getvalue()
    words = repr(run)
    assert f"finetuned 7 clean steps: {accuracy:.1%} of test right, nll" in words
    assert f"read      labels by table {run.summary['label_accuracy_final']:.1%}, network" in words
    out = io.StringIO()
    Console(file=out, width=80).print(result_table(without.summary))
    assert "tuned" not in out.getvalue()
    pytest.importorskip("matplotlib")
    for name in ("metrics.jsonl", "labels.npz"):
        (tmp_path / name).write_bytes((run.path / name).read_bytes())
    write_figures(tmp_path, run.summary)
    write_figures(tmp_path, without.summary)


def test_a_run_that_is_loaded_has_the_copy(run, tmp_path):
    again = load_run(run.path, model=network())
    for name, t in run.finetuned.state_dict().items():
        assert torch.equal(t, again.finetuned.state_dict()[name])
    assert unpack(run.path / FILE)[0].keys() == unpack(run.path / "model.safetensors")[0].keys()


@pytest.mark.parametrize("damage", ["gone", "other"])
def test_a_copy_that_is_damaged_is_refused(damage, tmp_path):
    made = train(config(tmp_path / "run", baselines="none"), model=network(), data=features(), listener=Warnings())
    file = made.path / FILE
    content = file.read_bytes()
    file.unlink()
    if damage == "other":
        file.write_bytes((made.path / "model.safetensors").read_bytes())
        with pytest.raises(InputError, match=f"{FILE} has changed since the run wrote it"):
            load_run(made.path, model=network())
        file.write_bytes(content[:-1])
    with pytest.raises(InputError, match=f"{FILE} cannot be read"):
        load_run(made.path, model=network())


class Stopping:
    """Calls `how` at the step `at` of fine-tuning, counted over all stages."""

    def __init__(self, at, how):
        self.left, self.how = at, how

    def __call__(self, *arguments, **options):
        self.left -= 1
        if not self.left:
            self.how()
        return cross_entropy(*arguments, **options)


class Crash(Exception):
    pass


def crash():
    raise Crash


@pytest.mark.parametrize(
    ("how", "at", "seconds"),
    [
        ("signal", 3, 60),
        ("signal", STEPS, 0),
        ("signal", STEPS + 2, 60),
        ("crash", 1, 0),
        ("crash", STEPS, 60),
        ("crash", 2 * STEPS + 1, 60),
    ],
)
def test_stopped_while_it_is_fine_tuned(how, at, seconds, run, tmp_path, monkeypatch):
    """At a step of the method's own copy, at its last one, and at those of baselines."""
    path = tmp_path / "run"
    made = config(path, baselines="all", checkpoint_seconds=seconds)
    with monkeypatch.context() as patch:
        stop = (lambda: os.kill(os.getpid(), signal.SIGTERM)) if how == "signal" else crash
        patch.setattr(finetune, "cross_entropy", Stopping(at, stop))
        with pytest.raises(Interrupted if how == "signal" else Crash) as caught:
            train(made, model=network(), data=features(), listener=Warnings())
    if how == "signal" and at % STEPS:
        name = ["instance_labels", "noisy", "union"][at // STEPS]
        assert f"in {name} while a copy was fine-tuned; saved in" in str(caught.value)
    calls = Stopping(-1, crash)
    monkeypatch.setattr(finetune, "cross_entropy", calls)
    resumed = train(resume=path, model=network(), data=features(), listener=Warnings())
    assert -1 - calls.left == STEPS * (3 - at // STEPS + (how == "crash" and not at % STEPS))
    for name in ("model.safetensors", "labels.safetensors", "labels.npz", FILE):
        assert (path / name).read_bytes() == (run.path / name).read_bytes()
    assert resumed.summary["digest"] == run.summary["digest"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"finetune_steps": -1}, "finetune_steps must be at least 0, got -1"),
        ({"finetune_steps": 1.5}, "finetune_steps must be a whole number"),
        ({"finetune_steps": True}, "finetune_steps must be a whole number"),
        ({"finetune_steps": 3, "finetune_lr": 0.0}, "finetune_lr must be above 0"),
        ({"finetune_steps": 3, "finetune_lr": float("nan")}, "finetune_lr must be above 0"),
    ],
)
def test_options_that_do_not_fit(changes, message):
    with pytest.raises(InputError, match=message):
        TrainConfig(**changes)


def test_a_rate_without_steps_is_refused(tmp_path):
    with pytest.raises(
        InputError, match=r"finetune_lr=0\.1 is about the steps of finetune_steps, and finetune_steps is 0"
    ):
        train(config(tmp_path / "run", finetune_steps=0, finetune_lr=0.1), model=network(), data=features())


def test_data_without_clean_samples_are_refused_by_name(tmp_path):
    arrays = features()
    arrays |= {"x_meta": arrays["x_meta"][:0], "y_meta": arrays["y_meta"][:0]}
    with pytest.raises(InputError, match=r"x_meta must be uint8 images .* none empty"):
        train(config(tmp_path / "run"), model=network(), data=arrays)
    assert not (tmp_path / "run").exists()


def test_a_rate_that_diverges_is_halved_and_that_is_told(tmp_path):
    heard = Warnings()
    made = config(tmp_path / "run", baselines="none", finetune_steps=30, finetune_lr=16.0)
    run = train(made, model=network(), data=features(), listener=heard)
    told = run.summary["finetuned"]
    assert told["failed"] is None
    assert told["lr"] in [16.0 / 2**k for k in range(1, 6)]
    (text,) = (t for t in heard.texts if "diverged" in t)
    assert text == f"instance_labels: fine-tuning diverged at finetune_lr=16; taken anew at {told['lr']:g}"
    x, y = (torch.from_numpy(features()[name]) for name in ("x_meta", "y_meta"))
    with torch.no_grad():
        assert cross_entropy(run.finetuned(x), y) < cross_entropy(run.model(x), y) + 0.1


def test_steps_that_diverge_leave_the_run_as_it_is(tmp_path):
    heard = Warnings()
    made = config(tmp_path / "run", baselines="noisy", finetune_lr=1e38, finetune_steps=30)
    run = train(made, model=network(), data=features(), listener=heard)
    reason = "fine-tuning diverged at rates from finetune_lr=1e+38 down to 3.125e+36; lower it"
    assert f"instance_labels: {reason}" in heard.texts
    assert f"noisy: {reason}" in heard.texts
    told = run.summary["finetuned"]
    assert (told["failed"], told["test_accuracy"], told["labels"]) == (reason, None, {})
    assert run.summary["test_accuracy_last"] is not None
    assert run.finetuned is None
    assert not (run.path / FILE).exists()
    assert f"finetuned failed: {reason}" in repr(run)
    out = io.StringIO()
    Console(file=out, width=80).print(result_table(run.summary))
    assert sum(line.startswith(" fine-tuned") and " failed " in line for line in out.getvalue().splitlines()) == 2
    assert f"failed: {reason}" in " ".join(out.getvalue().split())
    assert "fine-tuned:" not in out.getvalue()


@pytest.mark.parametrize(
    "changes",
    [
        {"precision": "bf16"},
        {"micro_batch": 2},
        {"optim": OptimConfig(name="adamw")},
        {"method": "onehot"},
        {"method": "class_labels"},
        {"labels": LabelConfig(update="epoch"), "epochs": 3},
        {"labels": LabelConfig(update="posterior")},
    ],
    ids=str,
)
def test_any_run(changes, tmp_path):
    run = train(
        config(tmp_path / "run", baselines="none", **changes), model=network(), data=features(), listener=Warnings()
    )
    told = run.summary["finetuned"]
    assert told["failed"] is None
    assert ("product" in told["labels"]) == (run.summary["learns_labels"])
    assert not torch.equal(run.finetuned[0].weight, run.model[0].weight)
    assert run.finetuned[0].weight.dtype == torch.float32


def test_bf16_steps_see_the_weights_of_the_step_before(tmp_path):
    """Autocast keeps weights that it has cast: each step has to look at them anew."""
    small = {"baselines": "none", "precision": "bf16", "finetune_steps": 40, "finetune_lr": 0.05}
    run = train(config(tmp_path / "run", **small), model=network(), data=features(), listener=Warnings())
    x, y = torch.from_numpy(features()["x_meta"]), torch.from_numpy(features()["y_meta"])
    with torch.no_grad():
        assert cross_entropy(run.finetuned(x), y) < 0.5 * cross_entropy(run.model(x), y)


def test_what_nobody_knows_is_null(tmp_path):
    arrays = features(y_true=None, x_test=None, y_test=None)
    run = train(config(tmp_path / "run", baselines="noisy"), model=network(), data=arrays, listener=Warnings())
    told = run.summary["finetuned"]
    assert (told["test_accuracy"], told["nll"], told["ece"]) == (None, None, None)
    for reading in told["labels"].values():
        assert reading["label_accuracy"] is None
        assert reading["labels_corrected"] is None
        assert reading["labels_changed"] >= 0
    assert "finetuned 7 clean steps\nread      labels by table" in repr(run)
    Console(file=io.StringIO(), width=80).print(result_table(run.summary))


def test_canaries_judge_each_reading(tmp_path):
    """And the labels that are read are those that they keep."""
    made = plain_config(
        tmp_path / "run", baselines="all", epochs=4, finetune_steps=5, labels=LabelConfig(label_lr=50.0)
    )
    run = train(made, data=many_clean(), listener=Warnings())
    told, canaries = run.summary["finetuned"]["labels"], run.summary["canaries"]
    assert told[run.summary["reading"]["chosen"]]["right_by_canaries"] == canaries["right_after"]
    assert all(0 <= reading["right_by_canaries"] <= 1 for reading in told.values())
    learned = np.load(run.path / "labels.npz")
    assert "pilot" not in run.summary["baselines"]
    if not run.summary["labels_withheld"]:
        changed = told[run.summary["reading"]["chosen"]]["labels_changed"]
        assert changed == int((learned["learned"] != learned["given"]).sum())
    for name in ("noisy", "union"):
        assert "right_by_canaries" not in run.summary["baselines"][name]["finetuned"]["labels"]["network"]


def test_a_predictor_without_gradients_is_fine_tuned_all_the_same(tmp_path, plug):
    plug("mean_method", MEAN)
    run = train(
        config(tmp_path / "run", baselines="none", method="mean_method:Mean"),
        model=network(),
        data=features(),
        listener=Warnings(),
    )
    assert run.summary["finetuned"]["failed"] is None
    assert not torch.equal(run.finetuned[0].weight, run.model[0].weight)


MEAN = """
import copy

import torch

from fastmeta.methods.fixed_labels import OneHot


class Mean(OneHot):
    def setup(self, context):
        super().setup(context)
        self.mean = copy.deepcopy(super().predictor()).requires_grad_(False)

    def step(self, batch):
        outcome = super().step(batch)
        with torch.no_grad():
            for p, new in zip(self.mean.parameters(), super().predictor().parameters()):
                p.lerp_(new, 0.1)
        return outcome

    def predictor(self):
        return self.mean
"""


def test_the_callers_draws_and_those_of_the_run_stay(tmp_path):
    torch.manual_seed(3)
    state = torch.get_rng_state()
    train(
        config(tmp_path / "run", baselines="none"), model=copy.deepcopy(NETWORK), data=features(), listener=Warnings()
    )
    assert torch.equal(torch.get_rng_state(), state)


NETWORK = network()


def test_the_command_line_and_the_dry_run(tmp_path, capsys):
    from fastmeta.cli.train import main

    flags = ["--epochs", "1", "--model", "mlp", "--baselines", "noisy,clean", "--finetune-steps", "4000"]
    assert main([*flags, "--dry-run"]) == 0
    told = " ".join(capsys.readouterr().out.split())
    assert "4,000 clean steps of 30 images at rate 0.02, momentum 0.9, on a copy of each of 2 models" in told
    assert told.count("s of fine-tuning, by counted forwards") == 2
    assert "finetune_steps = 4000 finetune_lr = 0.02" in told
    path = tmp_path / "run"
    assert main([*flags[:-1], "2", "--out", str(path)]) == 0
    assert "instance_labels: 2 clean steps on a copy: test " in capsys.readouterr().out
    assert load_run(path).summary["finetuned"]["lr"] == 0.02
    assert main(["--finetune-lr", "0.1"]) == 2
    assert "finetune_lr=0.1 is about the steps of finetune_steps" in capsys.readouterr().err


def test_the_expected_end_counts_it(monkeypatch):
    from fastmeta.cli import progress

    now = types.SimpleNamespace(now=0.0)
    monkeypatch.setattr(progress.time, "monotonic", lambda: now.now)

    def left(**changes):
        out = io.StringIO()
        listener = progress.ConsoleListener(Console(file=out, width=200, force_terminal=False))
        splits = types.SimpleNamespace(
            noise_rate=None,
            noise_told=None,
            overlap_told="",
            val=None,
            test=None,
            train=range(60),
            meta=range(30),
            num_classes=2,
        )
        made = TrainConfig(model="mlp", epochs=10, method="onehot", baselines="noisy,clean", **changes)
        listener.begin("run", made, splits, "cpu")
        sampler, data = types.SimpleNamespace(batch_size=10), types.SimpleNamespace(train_size=60)
        stage = types.SimpleNamespace(
            name="onehot",
            step=0,
            total=60,
            steps_per_epoch=6,
            config=made,
            sampler=sampler,
            meta_sampler=sampler,
            data=data,
        )
        for _ in range(20):
            now.now += 1.0
            stage.step += 1
            listener.step(stage)
        return out.getvalue()

    # from the 11th step on: 49 and twice 60 steps of 1 s
    assert "in about 2 min 49 s" in left()
    # two copies of 100 steps and a look at 60 rows, which is 2 steps
    assert "in about 6 min 13 s" in left(finetune_steps=100)
