"""The average of trajectories over folds, beside one by hand."""

import dataclasses

import numpy as np
import pytest

from fastmeta.data import InputError
from fastmeta.trajectory import About, Trajectory, average, digest, npy_bytes, snapshot_name, sums_bytes

CLASSES, ROWS = ("a", "b", "c"), 10
GIVEN = np.arange(ROWS) % 3


def made(folder, kind, number, steps=4, **changes):
    """Fold `number` of 5 of 10 rows, two epochs of random labels."""
    rng = np.random.default_rng(number)
    rows = np.setdiff1d(np.arange(ROWS), [2 * number, 2 * number + 1])
    given = changes.pop("labels", GIVEN)[rows]
    about = About(kind, 1, 2, steps, 2 * steps, "steps", CLASSES, "data", digest(given), number, 5)
    about = dataclasses.replace(about, **changes)
    files = {"about.json": about.to_bytes(), "rows.npy": npy_bytes(rows), "given.npy": npy_bytes(given)}
    for epoch in range(3):
        shape, dtype = about.shape(epoch, len(rows)), np.float16 if kind == "instance" else np.float32
        values = rng.dirichlet(np.ones(3), shape[0]) if kind == "instance" else rng.random(shape)
        files[snapshot_name(epoch)] = npy_bytes(values.astype(dtype))
    files["sums.json"] = sums_bytes({name: digest(content) for name, content in files.items()})
    return written(folder / f"fold{number}", files)


def written(folder, files):
    folder.mkdir(parents=True)
    for name, content in files.items():
        (folder / name).write_bytes(content)
    return Trajectory.read(folder)


def averaged(folder, parts):
    return written(folder / "labels", dict(average(parts)))


def test_instance_labels_are_averaged_over_the_folds_that_trained_them(tmp_path):
    parts = [made(tmp_path, "instance", fold) for fold in range(5)]
    found = averaged(tmp_path, parts)
    assert found.rows.tolist() == list(range(ROWS))
    assert np.array_equal(found.given, GIVEN)
    assert (found.about.fold, found.about.folds, found.about.averaged) == (None, 5, tuple(p.digest for p in parts))
    for epoch in range(3):
        for row in range(ROWS):
            own = [p.snapshot(epoch)[p.rows.tolist().index(row)] for p in parts if row in p.rows]
            assert len(own) == 4
            wanted = np.mean([v.astype(np.float64) for v in own], 0).astype(np.float16)
            assert np.array_equal(found.snapshot(epoch)[row], wanted)


def test_class_labels_are_averaged_step_by_step(tmp_path):
    parts = [made(tmp_path, "class", fold) for fold in range(5)]
    found = averaged(tmp_path, parts)
    wanted = np.mean([p.class_probs().astype(np.float64) for p in parts], 0)
    np.testing.assert_allclose(found.class_probs(), wanted, atol=1e-7)
    np.testing.assert_allclose(found.snapshot(0)[0], np.mean([p.snapshot(0)[0] for p in parts], 0), atol=1e-7)


def test_folds_of_other_numbers_of_steps_go_by_the_share_of_an_epoch(tmp_path):
    four, five = made(tmp_path, "class", 0, steps=4), made(tmp_path, "class", 1, steps=5)
    found = averaged(tmp_path, [five, four])
    assert (found.about.steps_per_epoch, found.about.steps) == (4, 8)
    taken = five.snapshot(2)[[0, 1, 2, 4]]  # behind 1.25, 2.5, 3.75 and 5 of five steps
    np.testing.assert_allclose(found.snapshot(2), (taken + four.snapshot(2)) / 2, atol=1e-7)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"class_names": ("b", "a", "c")}, "classes in another order: class 0 is 'b' there and 'a' here"),
        ({"class_names": ("a", "b", "d")}, "is of other classes"),
        ({"data": "other"}, "are no folds of one run: data is other and data"),
        ({"folds": 4}, "folds is 4 and 5"),
        ({"moves": "epochs"}, "moves is epochs and steps"),
        ({"fold": 0}, "two are the same one"),
        ({"labels": (GIVEN + 1) % 3}, "6 given labels in .*fold1.* differ"),
    ],
)
def test_what_does_not_belong_together_is_refused(changes, message, tmp_path):
    parts = [made(tmp_path, "instance", 0), made(tmp_path, "instance", 1, **changes)]
    with pytest.raises(InputError, match=message):
        list(average(parts))


def test_a_share_that_is_no_share_and_an_epoch_that_is_not_there(tmp_path):
    found = made(tmp_path, "instance", 0)
    for where in (-1, 3, 1.5, -0.1):
        with pytest.raises(InputError, match="must lie in"):
            found.at(where)
    with pytest.raises(InputError, match="has no snapshot of epoch 3"):
        found.snapshot(3)
    with pytest.raises(InputError, match="no value per class"):
        found.class_probs()
