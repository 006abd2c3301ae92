"""Kinds of noise: how often labels go wrong, where they go, and that the seed alone decides."""

import signal

import numpy as np
import pytest

import fastmeta
from fastmeta.data import Dataset, InputError, split
from fastmeta.data.noise import KINDS, corrupt
from fastmeta.data.seeds import numpy_generator
from fastmeta.data.sources.digits import digits
from fastmeta.training import Interrupted, TrainConfig
from tests.support.stopped import Kill, assert_same

COUNT = 20000


def corrupted(spec, classes, x=None, seed=0):
    """True and given labels of as many rows of each class."""
    true = np.arange(COUNT) % classes
    return true, corrupt(true, x, classes, spec, numpy_generator(seed, "noise"))


def features(size=6):
    return np.random.default_rng(1).normal(3, 5, (COUNT, size)).astype(np.float32)


@pytest.mark.parametrize("classes", [2, 4, 5])
def test_class_noise_moves_every_second_class_to_the_one_after_it(classes):
    true, given = corrupted("class:0.6", classes)
    for c in range(classes):
        rows = given[true == c]
        loses = c % 2 == 0 and c + 1 < classes
        # binomial with the deviation of its mean
        assert abs((rows != c).mean() - 0.6 * loses) <= 5 * loses * np.sqrt(0.24 / len(rows))
        assert set(np.unique(rows)) == ({c, c + 1} if loses else {c})


@pytest.mark.parametrize("classes", [2, 5])
def test_pair_noise_moves_every_class_to_the_one_after_it(classes):
    true, given = corrupted("pair:0.45", classes)
    for c in range(classes):
        rows = given[true == c]
        assert set(np.unique(rows)) == {c, (c + 1) % classes}
        assert abs((rows != c).mean() - 0.45) < 5 * np.sqrt(0.25 / len(rows))


@pytest.mark.parametrize("rate", [0.0, 0.05, 0.4, 0.8, 1.0])
def test_instance_noise_is_wrong_at_the_rate_in_every_class(rate):
    true, given = corrupted(f"instance:{rate}", 5, features())
    for c in range(5):
        # truncation moves the mean of the rates by up to 0.015 near 0.05
        assert abs((given != true)[true == c].mean() - rate) < 0.02 + 0.02 * (0 < rate < 0.1)
    assert (given != true).mean() == pytest.approx(rate, abs=0.02)
    assert rate not in (0, 1) or (given != true).mean() == rate


def test_instance_noise_goes_where_the_sample_points():
    """Equal samples of one class go one way with the softmax's probabilities; others go another way."""
    true = np.zeros(COUNT, int)
    x = np.where(np.arange(COUNT)[:, None] % 2, 1.0, -1.0)
    given = corrupt(true, x.astype(np.float32), 4, "instance:0.5", numpy_generator(3, "noise"))
    even, odd = (np.bincount(given[which::2], minlength=4)[1:] / (given[which::2] != 0).sum() for which in (0, 1))
    # scores s and -s: the product of the two shares is the same for every class
    assert np.allclose(even * odd / (even * odd).sum(), 1 / 3, atol=0.05)
    assert abs(even - odd).max() > 0.2
    assert given.min() >= 0
    assert given.max() < 4


@pytest.mark.parametrize("unit", [1e-6, 1.0, 1e6])
def test_instance_noise_knows_no_unit(unit):
    one, other = (corrupted("instance:0.4", 3, x)[1] for x in (features(), features() * np.float32(unit)))
    # one value in a thousand may round to the other side
    assert (one != other).mean() < 1e-3


def test_instance_noise_takes_images_and_samples_one_by_one():
    images = digits(0).train.x[:600]
    true = np.arange(600) % 10
    given = corrupt(true, images, 10, "instance:0.4", numpy_generator(0, "noise"))
    grey = corrupt(true, images[..., 0], 10, "instance:0.4", numpy_generator(0, "noise"))
    assert np.array_equal(given, grey)
    level = (images - images.mean()) / images.std()
    # standardised as here, images that come one by one are the same samples
    assert (corrupt(true, list(level), 10, "instance:0.4", numpy_generator(0, "noise")) != given).mean() < 0.01


def test_instance_noise_refuses_samples_that_are_no_numbers():
    for x in ([{"ids": 1}] * 4, [np.zeros(2), np.zeros(3)] * 2, ["text"] * 4, None):
        with pytest.raises(InputError, match=r"noise instance needs samples of numbers.*take uniform, pair or class"):
            corrupt(np.arange(4) % 2, x, 2, "instance:1", numpy_generator(0, "noise"))


@pytest.mark.parametrize("kind", list(KINDS))
def test_noise_is_a_function_of_the_seed_and_leaves_its_input_alone(kind):
    x = features(2)
    kept, true = x.copy(), np.arange(COUNT) % 3
    a, b, c = (corrupt(true, x, 3, f"{kind}:0.3", numpy_generator(s, "noise")) for s in (1, 1, 2))
    assert a.dtype == np.int64
    assert np.array_equal(a, b)
    assert not np.array_equal(a, c)
    assert np.array_equal(true, np.arange(COUNT) % 3)
    assert np.array_equal(x, kept)


@pytest.mark.parametrize("kind", list(KINDS))
def test_the_realised_rate_is_that_of_the_labels(kind):
    data = Dataset.from_arrays({"x_train": features(2)[:500], "y_train": np.arange(500) % 4}, name="set")
    parts = split(data, noise=f"{kind}:0.5", seed=3)
    assert parts.noise_rate == (parts.train.y != parts.train.y_true).mean() > 0.1


@pytest.mark.parametrize("kind", ["class", "instance"])
def test_a_run_that_was_stopped_goes_on_with_the_same_labels(kind, tmp_path):
    """It would refuse to go on with others."""
    settings = {"noise": f"{kind}:0.4", "model": "mlp", "epochs": 2, "baselines": "none", "checkpoint_seconds": 0}
    whole = fastmeta.train(TrainConfig(**settings, out=str(tmp_path / "whole"))).summary
    assert whole["noise"] == f"{kind}:0.4"
    assert 0.15 < whole["noise_rate"] < 0.45
    with pytest.raises(Interrupted):
        fastmeta.train(
            TrainConfig(**settings, out=str(tmp_path / "run")), listener=Kill(signal.SIGTERM, "instance_labels", 25)
        )
    fastmeta.train(resume=tmp_path / "run")
    assert_same(tmp_path / "run", tmp_path / "whole")
