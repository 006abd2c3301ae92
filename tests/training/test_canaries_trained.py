"""Intervals of canaries in real runs: they hold what became of the training labels."""

import numpy as np
import pytest
from sklearn.datasets import load_digits

from fastmeta import train
from fastmeta.data.noise import corrupt
from fastmeta.training import DataConfig, LabelConfig, TrainConfig
from tests.support.runs import Warnings

CLASSES, TEST, CLEAN = 10, 300, 300


def digits(noise, seed, given):
    """Digits under noise; what the clean ones had been is known, if `given`."""
    data, rng = load_digits(), np.random.default_rng(seed)
    order = rng.permutation(len(data.target))
    x, y = data.images[order].astype(np.uint8)[..., None], data.target[order]
    noisy = corrupt(y, x, CLASSES, noise, rng)
    test, clean, rest = np.split(np.arange(len(y)), [TEST, TEST + CLEAN])
    arrays = {"x_test": x[test], "y_test": y[test], "x_meta": x[clean], "y_meta": y[clean]}
    arrays |= {"x_train": x[rest], "y_train": noisy[rest], "y_true": y[rest]}
    return arrays | ({"y_meta_given": noisy[clean]} if given else {})


@pytest.mark.slow  # three minutes
@pytest.mark.parametrize("update", ["exact", "epoch", "posterior"])
def test_intervals_hold_what_became_of_the_training_labels(update, tmp_path):
    """Under noise that goes by the class, drawn or known from before, over sets and seeds."""
    held = []
    kinds = [("uniform:0.4", False), ("class:0.6", False), ("pair:0.3", False), ("class:0.6", True)]
    for number, (noise, given) in enumerate(kinds):
        for seed in range(5):
            out = tmp_path / f"{number}-{seed}"
            config = TrainConfig(
                model="mlp",
                epochs=15,
                threads=1,
                seed=seed,
                baselines="none",
                out=str(out),
                labels=LabelConfig(update=update, target_prob=0.6),
                data=DataConfig(batch_size=64, meta_batch_size=64, split_seed=seed),
            )
            run = train(config, data=digits(noise, seed, given), listener=Warnings())
            with np.load(out / "labels.npz") as file:
                true, was, now = file["true"], file["given"], file["withheld" if "withheld" in file else "learned"]
            told, wrong = run.summary["canaries"], was != true
            assert told["wrong_rate"] == pytest.approx(wrong.mean(), abs=0.1)
            for share, truth in ((told["put_right"], (now == true)[wrong]), (told["spoiled"], (now != true)[~wrong])):
                held.append(share["low"] <= truth.mean() <= share["high"])
    assert np.mean(held) >= 0.9
