"""The clean set leaves the training set, noise falls on the rest, and nothing is claimed that nobody knows."""

import numpy as np
import pytest

from fastmeta.data import Dataset, InputError, split
from fastmeta.data.noise import corrupt, parse
from fastmeta.data.seeds import derived_seed, numpy_generator
from fastmeta.data.sources.digits import digits


def dataset(count=40, classes=4, **changes):
    x = np.random.default_rng(0).integers(0, 256, (count, 4, 4, 1), dtype=np.uint8)
    return Dataset.from_arrays({"x_train": x, "y_train": np.arange(count) % classes, **changes}, name="set")


def test_digits_parts_share_no_row_and_noise_stays_out_of_the_clean_set():
    data = digits(0)
    parts = split(data, noise="uniform:0.4", seed=0)
    assert (len(parts.train), len(parts.meta), len(parts.test)) == (1370, 30, 397)
    assert not set(parts.train.row) & set(parts.meta.row)
    assert np.array_equal(parts.meta.y, data.train.targets[parts.meta.row])
    assert np.array_equal(parts.train.y_true, data.train.targets[parts.train.row])
    assert np.array_equal(parts.train.x, data.train.x[parts.train.row])
    wrong = (parts.train.y != parts.train.y_true).mean()
    assert parts.noise_rate == pytest.approx(wrong)
    # 0.4 * 9/10 with a standard deviation of sqrt(.36 * .64 / 1370) = 0.013
    assert abs(wrong - 0.36) < 4 * 0.013
    assert parts.notes == ()


def test_splits_are_a_function_of_the_seed():
    a, b, c = (split(dataset(), noise="uniform:0.5", seed=s) for s in (1, 1, 2))
    assert a.fingerprint() == b.fingerprint() != c.fingerprint()


def test_without_a_clean_set_a_balanced_share_is_held_out_with_a_warning():
    parts = split(dataset(), meta_fraction=0.2)
    assert np.bincount(parts.meta.y).tolist() == [2, 2, 2, 2]
    assert sorted([*parts.train.row, *parts.meta.row]) == list(range(40))
    (note,) = parts.notes
    assert "8 training rows, 20% of each class, are held out" in note
    assert "trusted" in note
    assert parts.train.y_true is None
    assert parts.noise_rate is None
    assert np.array_equal(parts.train.y, parts.train.row % 4)  # nobody's labels are corrupted unasked


def test_labels_that_we_corrupt_are_known_and_given_truth_wins():
    assert np.array_equal(split(dataset(), noise="uniform:0.5").train.y_true, split(dataset()).train.y)
    truth = np.zeros(40, int)
    parts = split(dataset(y_true=truth), noise="uniform:0.5")
    assert not parts.train.y_true.any()


def test_clean_arrays_of_their_own_and_their_overlap_with_train():
    x = np.random.default_rng(1).integers(0, 256, (3, 4, 4, 1), dtype=np.uint8)
    parts = split(dataset(x_meta=x, y_meta=[0, 1, 2]))
    assert len(parts.train) == 40
    assert np.array_equal(parts.meta.x, x)
    assert parts.notes == ("the clean set has no image of 1 class(es): 3; it learns from the others",)
    leak = np.concatenate([x, dataset().train.x[7:8]])
    with pytest.raises(InputError, match=r"share 1 image.*row 7 of x_train.*drop these rows"):
        split(dataset(x_meta=leak, y_meta=[0, 1, 2, 3]))


def test_test_images_that_were_trained_on_are_said():
    """Of train, of the rows held out as clean, and of a clean set of its own."""
    x = dataset().train.x
    own = np.random.default_rng(1).integers(0, 256, (4, 4, 4, 1), dtype=np.uint8)
    new = np.random.default_rng(2).integers(0, 256, (3, 4, 4, 1), dtype=np.uint8)
    test = np.concatenate([new, x[5:7], own[:1]])
    clean = {"x_meta": own, "y_meta": [0, 1, 2, 3]}
    notes = split(dataset(**clean, x_test=test, y_test=np.zeros(6, int))).notes
    assert notes == ("3 of 6 test images stand in train or the clean set too: test figures flatter",)
    assert split(dataset(**clean, x_test=new, y_test=np.zeros(3, int))).notes == ()
    every = split(dataset(meta_index=np.arange(4), x_test=x, y_test=np.arange(40) % 4)).notes
    assert every == ("40 of 40 test images stand in train or the clean set too: test figures flatter",)


def test_classes_without_an_image_are_said():
    """Labels numbered from 1 give one class too many."""
    (held_out, note) = split(dataset(y_train=np.arange(40) % 4 + 1)).notes
    assert "held out" in held_out
    assert note.startswith("train has no image of 1 of 5 classes: 0; ")
    note = split(dataset(y_train=np.arange(40) % 2 * 9)).notes[1]
    assert "8 of 10 classes: 1, 2, 3, 4, 5 …; " in note


def test_one_image_of_each_class_cannot_be_held_out():
    with pytest.raises(InputError, match="no class has two images"):
        split(dataset(count=4))


def test_a_clean_set_that_leaves_too_little():
    with pytest.raises(InputError, match="no training row is left"):
        split(dataset(meta_index=np.arange(40)))
    with pytest.raises(InputError, match="one class only is left"):
        split(dataset(meta_index=np.flatnonzero(np.arange(40) % 4)))


def test_uniform_noise_reaches_every_class_and_may_hit_the_true_one():
    given = corrupt(np.zeros(20000, int), None, 10, "uniform:1", numpy_generator(0, "noise"))
    counts = np.bincount(given, minlength=10)
    # binomial(20000, 0.1): standard deviation 42
    assert np.all(np.abs(counts - 2000) < 5 * 42)


@pytest.mark.parametrize(
    "spec", ["uniform", "uniform:2", "uniform:x", "pairs:0.4", "", "uniform:nan", None, 0.4, "x" * 10**6]
)
def test_unknown_noise(spec):
    with pytest.raises(
        InputError,
        match=r"expected none, (\w+:RATE, ){8}file:PATH or package.module:function:RATE",
    ):
        parse(spec)


def test_streams_differ_by_seed_name_and_counter():
    seeds = {derived_seed(s, name, k) for s in (0, 1) for name in ("a", "b") for k in (0, 1)}
    assert len(seeds) == 8
    assert all(0 <= s < 2**63 for s in seeds)
