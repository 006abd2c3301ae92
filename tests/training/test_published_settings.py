"""What published settings are given in: a number of steps, and constants by which images are brought to scale."""

import json
import signal

import numpy as np
import pytest
import torch

from fastmeta.cli.train import parse
from fastmeta.data import InputError
from fastmeta.training import DataConfig, Interrupted, LabelConfig, OptimConfig, TrainConfig, load_run, train
from fastmeta.training.estimate import dry_run
from fastmeta.training.prepare import prepare
from fastmeta.training.schedule import lr_at
from tests.support.plugs import files
from tests.support.runs import two_classes
from tests.support.stopped import Kill, config

#: of 5 steps: two epochs, and two steps of a third
STEPS = {"epochs": None, "max_steps": 12, "model": "mlp", "baselines": "noisy"}
STEP = OptimConfig(lr=0.05, schedule="step", milestones=(0.5, 11 / 12))


def lines(path, name):
    records = [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]
    return [r for r in records if r["run"] == name]


@pytest.mark.parametrize("update", ["exact", pytest.param("posterior", marks=pytest.mark.slow)])
def test_a_run_ends_in_the_middle_of_an_epoch_and_resumes_bitwise(update, tmp_path):
    def made(name):
        return config(tmp_path / name, labels=LabelConfig(update=update), optim=STEP, **STEPS)

    whole = train(made("whole"), data=two_classes())
    for name in ("instance_labels", "noisy"):
        found = lines(whole.path, name)
        assert [(r["epoch"], r["step"]) for r in found] == [(0, 0), (1, 5), (2, 10), (3, 12)]
        assert [round(r["lr"], 9) for r in found[1:]] == [0.05, 0.005, 0.0005]
    assert whole.config.epochs == whole.summary["epochs"] == 3
    assert whole.summary["test_accuracy_last"] == lines(whole.path, "instance_labels")[-1]["test_accuracy"]
    assert not torch.equal(whole.labels.probs(), whole.labels.probs()[:1].expand(80, -1))
    for at in (("instance_labels", 11), ("noisy", 11)):
        with pytest.raises(Interrupted):
            train(made(f"run-{at[0]}"), data=two_classes(), listener=Kill(signal.SIGTERM, *at))
        train(resume=tmp_path / f"run-{at[0]}", data=two_classes())
        assert files(tmp_path / f"run-{at[0]}") == files(whole.path)


def test_whichever_comes_first_ends_the_run(tmp_path):
    def of(**changes):
        prepared = prepare(config(tmp_path / "run", **{**STEPS, **changes}), data=two_classes())
        again = prepare(prepared.config, data=two_classes())
        assert again.config == prepared.config
        stage = prepared.stage("instance_labels")
        return prepared.config.epochs, stage.total, stage.horizon

    assert of(epochs=9) == (3, 12, 12)
    assert of(epochs=2) == of(max_steps=10) == (2, 10, 10)


def test_methods_and_pilots_know_where_the_run_ends(tmp_path):
    plan = config(tmp_path / "run", **{**STEPS, "max_steps": 3}, method="mentornet")
    assert prepare(plan, data=two_classes()).stage("mentornet").method.steps == 3
    rng = np.random.default_rng(0)
    clean = {"x_meta": rng.integers(0, 255, (200, 4, 4, 1)).astype(np.uint8), "y_meta": np.arange(200) % 2}
    data = two_classes(**clean)
    plan = config(tmp_path / "run", **{**STEPS, "max_steps": 3}, labels=LabelConfig(update="exact", warmup_epochs=1))
    with pytest.raises(InputError, match="epochs=1 leaves none"):
        prepare(plan, data=data)
    prepared = prepare(config(tmp_path / "run", **{**STEPS, "max_steps": 3}), data=data)
    pilot, own = prepared.stage("pilot"), prepared.stage("instance_labels")
    assert (pilot.total, own.total) == (3, 3)
    assert own.steps_per_epoch == (80 + prepared.data.canary_size) // 16 > 5


def test_steps_are_told_and_kept(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    np.savez("a.npz", **two_classes())
    assert parse(["--max-steps", "12"]).run == TrainConfig(max_steps=12)
    plan = config("run", dataset="npz:a.npz", **STEPS)
    assert "5 steps per epoch of 16 train and 8 clean images; 12 steps in all" in dry_run(plan)
    run = train(plan)
    assert load_run(run.path).config.max_steps == 12
    assert "\nmax_steps = 12\n" in (run.path / "config.toml").read_text()
    with pytest.raises(InputError, match="max_steps must be at least 1, got 0"):
        TrainConfig(max_steps=0)


MEAN, STD = (0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)


def colour():
    rng = np.random.default_rng(0)
    parts = {name: rng.integers(0, 256, (count, 6, 6, 3)).astype(np.uint8) for name, count in SIZES.items()}
    return parts | {f"y_{name[2:]}": np.arange(count) % 2 for name, count in SIZES.items()}


SIZES = {"x_train": 32, "x_meta": 8, "x_test": 8}


def test_images_are_brought_to_scale_by_constants_that_are_given(tmp_path):
    from torchvision.transforms import Normalize

    def inputs(**of_data):
        data = DataConfig(augment="none", **of_data)
        stage = prepare(config(tmp_path / "run", model="mlp", data=data), data=colour()).stage("instance_labels")
        train = stage.data.few(5)
        (test, _) = stage.data.test
        return train, test.network_input(torch.arange(5), None, stage.device)

    pixels = [torch.from_numpy(colour()[name][:5]).permute(0, 3, 1, 2) / 255 for name in ("x_train", "x_test")]
    for found, expected in zip(inputs(mean=MEAN, std=STD), map(Normalize(MEAN, STD), pixels), strict=True):
        torch.testing.assert_close(found, expected, atol=2e-6, rtol=1e-5)
    whole = torch.from_numpy(colour()["x_train"]).double() / 255
    own = Normalize(whole.mean((0, 1, 2)).tolist(), whole.std((0, 1, 2), correction=0).tolist())
    for found, expected in zip(inputs(), map(own, pixels), strict=True):
        torch.testing.assert_close(found, expected, atol=2e-6, rtol=1e-5)


def test_constants_that_do_not_fit_are_refused_by_name(tmp_path):
    for message, values in {
        "data.mean and data.std go together, a number for each channel, got 3 and 0": {"mean": MEAN},
        r"data.mean must be in \[0, 1\], got 125.3": {"mean": (125.3, 123.0, 113.9), "std": STD},
        "data.std must be .* 0": {"mean": MEAN, "std": (0.2, 0.0, 0.2)},
        "data.mean must be a list, got 0.5": {"mean": 0.5, "std": 0.5},
    }.items():
        with pytest.raises(InputError, match=message):
            DataConfig(**values)
    grey = config(tmp_path / "run", data=DataConfig(mean=MEAN, std=STD, padding=1))
    with pytest.raises(InputError, match="must have a number for each of 1 channels, got 3"):
        prepare(grey, data=two_classes())
    features = two_classes() | {name: two_classes()[name].astype(np.float32) for name in SIZES}
    with pytest.raises(InputError, match=r"data.mean=.* is about images"):
        prepare(config(tmp_path / "run", model="mlp", data=DataConfig(mean=(0.5,), std=(0.5,))), data=features)
    run = parse(["--data.mean", "0.4914", "0.4822", "0.4465", "--data.std", "0.2023", "0.1994", "0.201"]).run
    assert (run.data.mean, run.data.std) == (MEAN, STD)
    assert TrainConfig.from_mapping(run.to_mapping()) == run
    assert "mean" not in TrainConfig().to_mapping()["data"]


def test_a_schedule_reaches_to_the_last_step():
    optim = OptimConfig(lr=1.0, schedule="step", milestones=(0.9, 0.95))
    rates = [lr_at(optim, step, 20_000) for step in (17_999, 18_000, 18_999, 19_000, 19_999)]
    assert rates == pytest.approx([1, 0.1, 0.1, 0.01, 0.01])
