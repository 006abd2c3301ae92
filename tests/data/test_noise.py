"""Kinds of noise: how often labels go wrong, where they go, and that the seed alone decides."""

import signal

import numpy as np
import pytest

import fastmeta
from fastmeta.data import Dataset, InputError, split
from fastmeta.data.noise import KINDS, corrupt
from fastmeta.data.seeds import numpy_generator
from fastmeta.data.sources.digits import digits
from fastmeta.data.superclasses import CIFAR100
from fastmeta.training import Interrupted, TrainConfig
from tests.support.stopped import Kill, assert_same

COUNT = 20000


def corrupted(spec, classes, x=None, seed=0):
    """True and given labels of as many rows of each class."""
    true = np.arange(COUNT) % classes
    return true, corrupt(true, x, classes, spec, numpy_generator(seed, "noise"))


@pytest.mark.parametrize("classes", [2, 5])
def test_uniform_noise_that_spares_no_label(classes):
    """Wrong at the rate, to each other class alike."""
    true, given = corrupted("uniform_other:0.6", classes)
    for c in range(classes):
        rows = given[true == c]
        shares = np.bincount(rows, minlength=classes) / len(rows)
        assert abs(shares[c] - 0.4) < 5 * np.sqrt(0.24 / len(rows))
        assert np.allclose(np.delete(shares, c), 0.6 / (classes - 1), atol=0.03)


@pytest.mark.parametrize("rate", [0.0, 0.1, 0.4, 0.73, 1.0])
@pytest.mark.parametrize("count", [7, 1370])
def test_uniform_noise_of_an_exact_count(rate, count):
    true = np.arange(count) % 3
    given = corrupt(true, None, 3, f"uniform_exact:{rate}", numpy_generator(0, "noise"))
    assert (given != true).sum() == round(rate * count)
    if count > 1000 and rate == 1:
        assert all(400 > ((given - true) % 3 == k).sum() / 2 > 300 for k in (1, 2))


@pytest.mark.parametrize("classes", [2, 3, 10])
def test_permuted_classes(classes):
    found = set()
    for seed in range(6):
        true, given = corrupted("permute:0.4", classes, seed=seed)
        becomes = [int(np.unique(given[(true == c) & (given != true)]).item()) for c in range(classes)]
        assert sorted(becomes) == list(range(classes))
        assert abs((given != true).mean() - 0.4) < 5 * np.sqrt(0.24 / COUNT)
        found.add(tuple(becomes))
    assert len(found) > 1 or classes == 2


def test_superclass_noise_stays_in_its_group():
    groups = np.array([0, 1, 0, 2, 1, 0])
    true = np.arange(COUNT) % 6
    given = corrupt(true, None, 6, "superclass:0.4", numpy_generator(0, "noise"), groups)
    assert np.array_equal(groups[true], groups[given])
    for c, after in enumerate([2, 4, 5, 3, 1, 0]):
        assert set(np.unique(given[true == c])) == {c, after}
        assert abs((given != true)[true == c].mean() - 0.4 * (c != after)) < 0.05


def test_superclasses_are_those_of_the_data():
    """Of CIFAR-100 they are known by name, whatever the order; of others they are given, or refused with a way out."""
    names = [name for members in CIFAR100.values() for name in members.split()]
    order = np.random.default_rng(0).permutation(100)
    y = np.arange(400) % 100
    arrays = {"x_train": features(2)[:400], "y_train": y}
    cifar = Dataset.from_arrays({**arrays, "class_names": np.array(names)[order]})
    assert np.array_equal(cifar.superclasses, order // 5)
    parts = split(cifar, noise="superclass:0.5")
    assert np.array_equal(cifar.superclasses[parts.train.y], cifar.superclasses[parts.train.y_true])
    assert parts.noise_rate > 0.3
    few = {"x_train": features(2)[:40], "y_train": np.arange(40) % 4, "class_names": ["cat", "dog", "cup", "can"]}
    with pytest.raises(InputError, match=r"needs superclasses, which are known of CIFAR-100 alone.*data\.superclasses"):
        split(Dataset.from_arrays(few), noise="superclass:0.5")
    for groups in (
        [7, 7, 1, 1],
        np.array(["pet", "pet", "thing", "thing"]),
        {"pet": ["dog", "cat"], "x": ["cup", "can"]},
    ):
        made = split(Dataset.from_arrays({**few, "superclasses": groups}), noise="superclass:1").train
        assert np.array_equal(made.y, np.array([1, 0, 3, 2])[made.y_true])
    for groups, message in (
        ([1, 2], "2 of them for 4 classes"),
        ({"cat": "pet"}, "has none for class 'dog'"),
        ({"pet": ["cat", "dog", "cup", "can", "cow"]}, "names class 'cow', which there is not"),
        ([1, 2, None, 3], "neither number nor name"),
    ):
        with pytest.raises(InputError, match=message):
            Dataset.from_arrays({**few, "superclasses": groups})


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
    matrix = np.array(whole["noise_matrix"])
    assert matrix.shape == (10, 10)
    assert np.allclose(matrix.sum(1), 1, atol=1e-3)
    assert 1 - np.diag(matrix).mean() == pytest.approx(whole["noise_rate"], abs=0.02)
    assert 0.15 < whole["noise_rate"] < 0.45
    with pytest.raises(Interrupted):
        fastmeta.train(
            TrainConfig(**settings, out=str(tmp_path / "run")), listener=Kill(signal.SIGTERM, "instance_labels", 25)
        )
    fastmeta.train(resume=tmp_path / "run")
    assert_same(tmp_path / "run", tmp_path / "whole")
