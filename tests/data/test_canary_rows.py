"""Which clean rows become canaries."""

import numpy as np
import pytest

from fastmeta.data import Dataset, InputError, as_dataset, split
from fastmeta.data.canary_rows import choose, how_many, shares_behind
from tests.support.canaries import before, many_clean, streams


def parts(canaries="auto", seed=0, **changes):
    return split(Dataset.from_arrays(many_clean(**changes), name="set"), seed=seed, canaries=canaries)


def test_auto_takes_some_of_200_clean_rows_and_more():
    assert how_many("auto", np.arange(199) % 10) == (0, "199 clean rows are too few to spare some, 200 are enough")
    assert how_many("auto", np.arange(200) % 10) == (80, "")
    assert how_many("auto", np.arange(1000) % 10) == (250, "")
    assert how_many("auto", np.arange(10**5) % 10) == (1000, "")
    assert how_many("off", np.arange(1000) % 10) == (0, "")
    assert how_many("auto", np.arange(200) % 150)[1] == "200 clean rows of 150 classes are too few to spare 80"


@pytest.mark.parametrize("wanted", ["19", "101", "9999"])
def test_numbers_that_cannot_be_had(wanted):
    with pytest.raises(InputError, match=rf"labels.canaries must be from 20 to 100 \(half .* got {wanted}$"):
        how_many(wanted, np.arange(200) % 10)


def test_too_few_clean_rows_for_any():
    with pytest.raises(InputError, match="must be off for 30 clean rows"):
        how_many("20", np.arange(30) % 10)


def test_canaries_leave_the_clean_set_and_nothing_else_changes():
    without, found = parts("off"), parts()
    assert len(found.canaries) == 80
    assert np.array_equal(without.train.row, found.train.row)
    assert np.array_equal(without.train.y, found.train.y)
    assert np.array_equal(np.sort([*found.meta.row, *found.canaries.row]), without.meta.row)
    arrays = many_clean()
    for part in (found.meta, found.canaries):
        assert np.array_equal(part.y, arrays["y_meta"][part.row])
        assert np.allclose(part.x, arrays["x_meta"][part.row])
    assert without.fingerprint() != found.fingerprint() == parts().fingerprint() != parts(seed=1).fingerprint()
    # each class has its share of them
    assert np.bincount(found.canaries.y).tolist() == pytest.approx([80 / 3] * 3, abs=1)


def test_a_row_of_each_class_stays():
    y = np.array([0] * 195 + [1] * 3 + [2] + [3])
    for seed in range(20):
        chosen = choose(80, y, None, y, 4, seed)
        assert len(np.unique(chosen.rows)) == 80
        assert set(np.delete(y, chosen.rows)) == {0, 1, 2, 3}


def test_rows_of_train_can_be_the_clean_set():
    arrays = many_clean()
    x, y = (np.concatenate([arrays[f"{k}_train"], arrays[f"{k}_meta"]]) for k in "xy")
    data = {"x_train": x, "y_train": y, "meta_index": np.arange(150, 360)}
    found = split(as_dataset(data), canaries="auto")
    assert set(found.canaries.row) <= set(range(150, 360))
    assert found.chosen.given is None
    known = split(as_dataset({**data, "y_meta_given": before()}), canaries="auto")
    assert np.array_equal(known.chosen.given, before()[known.canaries.row - 150])


def test_labels_from_before_they_were_checked():
    found = parts(y_meta_given=before())
    assert np.array_equal(found.chosen.given, before()[found.canaries.row])
    wrong = found.chosen.given != found.canaries.y
    assert 0.3 < wrong.mean() < 0.5
    rate = (before() != np.arange(210) % 3).mean()
    assert found.chosen.wrong_rate == pytest.approx(rate)
    # weighted, they stand for the clean rows, but for those that stay
    assert found.chosen.weight[wrong].sum() / found.chosen.weight.sum() == pytest.approx(rate, abs=0.02)


def test_too_few_wrong_ones_from_before_are_not_used():
    y = np.arange(210) % 3
    given = np.where(np.arange(210) < 9, (y + 1) % 3, y)
    assert parts(y_meta_given=given).chosen.given is None


def test_classes_of_a_balanced_clean_set_weigh_as_in_training():
    rng = np.random.default_rng(0)
    y_true = rng.choice(3, 6000, p=[0.7, 0.25, 0.05])
    given = np.where(rng.random(6000) < 0.3, (y_true + 1) % 3, y_true)
    y = np.arange(600) % 3
    earlier = np.where(rng.random(600) < 0.3, (y + 1) % 3, y)
    chosen = choose(150, y, earlier, given, 3, 0)
    shares = np.bincount(y[chosen.rows], chosen.weight)
    assert shares / shares.sum() == pytest.approx([0.7, 0.25, 0.05], abs=0.1)
    assert chosen.wrong_rate == pytest.approx(0.3, abs=0.05)


def test_shares_behind_given_ones():
    transition = np.array([[0.8, 0.2, 0.0], [0.1, 0.7, 0.2], [0.3, 0.0, 0.7]])
    shares = np.array([0.6, 0.3, 0.1])
    assert shares_behind(transition, shares @ transition, np.ones(3)) == pytest.approx(shares, abs=1e-3)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"y_meta_given": np.zeros(5, int)}, "y_meta_given has 5 labels for 210 clean rows"),
        ({"y_meta_given": np.zeros(210)}, "y_meta_given must be class numbers"),
        ({"y_meta_given": np.full(210, -1)}, "y_meta_given must start from 0"),
        (
            {"y_meta_given": before(), "x_meta": None, "y_meta": None},
            "comes without them; give x_meta",
        ),
    ],
)
def test_labels_from_before_that_do_not_fit(changes, message):
    with pytest.raises(InputError, match=message):
        as_dataset(many_clean(**changes))


def test_labels_from_before_beside_sources():
    parts = streams()
    found = split(as_dataset({**parts, "y_meta_given": before()}), canaries="auto")
    assert np.array_equal(found.chosen.given, before()[found.canaries.row])
    with pytest.raises(InputError, match="y_meta_given has 3 labels for 210 clean rows"):
        as_dataset({**parts, "y_meta_given": before()[:3]})
    with pytest.raises(InputError, match="comes without them"):
        as_dataset({"train": parts["train"], "y_meta_given": before()})
