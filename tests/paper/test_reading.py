"""What is read of trajectories, against plain computations on small ones."""

import itertools
import math

import numpy as np
import pytest

from fastmeta.data import InputError
from fastmeta.paper.reading import over_classes as curves
from fastmeta.paper.reading import superclass_share as others
from fastmeta.paper.reading.label_entropy import CLEAN, CORRECTED, UNCORRECTED, entropies
from fastmeta.paper.reading.learned_run import LearnedRun
from fastmeta.paper.reading.repeats import curves_repeat, rows_repeat
from fastmeta.paper.reading.top_shares import correctness, in_top
from fastmeta.training import TrainConfig
from fastmeta.trajectory import (
    ABOUT,
    GIVEN,
    ROWS,
    SUMS,
    About,
    Trajectory,
    digest,
    npy_bytes,
    snapshot_name,
    sums_bytes,
)


def run_of(path, tables, given, true=None, accuracy=None, rows=None):
    """A run whose labels were `tables` (E, N, C) at epochs 0, 1, ...; a single one is that of two epochs."""
    tables = np.asarray([*tables, *tables] if len(tables) == 1 else tables)
    _, size, classes = tables.shape
    folder = path / "trajectory"
    folder.mkdir(parents=True)
    rows, given = np.arange(size) if rows is None else np.asarray(rows), np.asarray(given)
    names = tuple(f"class {c}" for c in range(classes))
    epochs = len(tables) - 1
    about = About("instance", 1, epochs, 2, 2 * epochs, "steps", names, "a hash", digest(given))
    files = {ABOUT: about.to_bytes(), ROWS: npy_bytes(rows), GIVEN: npy_bytes(given)}
    files |= {snapshot_name(epoch): npy_bytes(table.astype(np.float16)) for epoch, table in enumerate(tables)}
    files[SUMS] = sums_bytes({name: digest(content) for name, content in files.items()})
    for name, content in files.items():
        (folder / name).write_bytes(content)
    accuracy = [[0.5] * classes] * len(tables) if accuracy is None else accuracy
    lines = [{"epoch": e, "meta_accuracy_by_class": a} for e, a in enumerate(accuracy)]
    known = None if true is None else np.asarray(true)
    return LearnedRun(path, Trajectory.read(path), given, known, rows, names, lines, TrainConfig())


def smoothed(given, classes, prob):
    """(N, C): `prob` on the given class, the rest shared out."""
    table = np.full((len(given), classes), (1 - prob) / (classes - 1))
    table[np.arange(len(given)), given] = prob
    return table


def tied(rng, size, classes):
    """Rows with many ties: few levels."""
    table = rng.integers(1, 4, (size, classes)).astype(float)
    return table / table.sum(1, keepdims=True)


def orders(row):
    """All rankings of a row, likeliest first, that ties allow; as likely as each other."""
    return [
        o for o in itertools.permutations(range(len(row))) if all(row[a] >= row[b] for a, b in itertools.pairwise(o))
    ]


def test_tied_classes_count_by_their_expectation():
    rng = np.random.default_rng(0)
    table, classes = tied(rng, 12, 5), rng.integers(0, 5, 12)
    for k in range(1, 7):
        by_hand = [np.mean([c in o[:k] for o in orders(row)]) for row, c in zip(table, classes, strict=True)]
        np.testing.assert_allclose(in_top(table, classes, k), by_hand, atol=1e-12)


def test_the_likeliest_others_count_by_their_expectation():
    rng = np.random.default_rng(1)
    table, given = tied(rng, 10, 6), rng.integers(0, 6, 10)
    superclass = np.array([0, 0, 1, 1, 1, 0])
    for k in (1, 3, 5):
        shares = others.others_in_top(table, given, k)
        np.testing.assert_allclose(shares.sum(1), k)
        for row, y, share in zip(table, given, shares, strict=True):
            ranked = [[c for c in o if c != y][:k] for o in orders(row)]
            np.testing.assert_allclose(share, [np.mean([c in o for o in ranked]) for c in range(6)], atol=1e-12)
        kin = [
            share[(superclass == superclass[y]) & (np.arange(6) != y)].sum() / k
            for y, share in zip(given, shares, strict=True)
        ]
        np.testing.assert_allclose(others.share_in_superclass(table, given, superclass, k), kin, atol=1e-12)


def test_equal_others_are_of_the_same_superclass_by_chance(tmp_path):
    given = np.arange(100)
    superclass = np.repeat(np.arange(20), 5)
    assert others.chance(superclass) == pytest.approx(4 / 99)
    run = run_of(tmp_path, [smoothed(given, 100, 0.9)], given)
    found = others.kinship(run, superclass)
    assert (found.of_rows, found.of_classes, found.chance) == pytest.approx((4 / 99,) * 3)
    assert found.of_rows_error == pytest.approx(0, abs=1e-12)


def test_shares_of_a_superclass_are_means_over_classes(tmp_path):
    """Two classes with unequal numbers of rows; by its mean distribution a class may tell other than by its rows."""
    given, superclass = np.array([0, 0, 0, 2]), np.array([0, 0, 1, 1])
    table = np.array([[0.7, 0.2, 0.1, 0.0], [0.7, 0.0, 0.3, 0.0], [0.7, 0.0, 0.0, 0.3], [0.0, 0.0, 0.9, 0.1]])
    found = others.kinship(run_of(tmp_path, [table], given), superclass, k=1)
    assert found.of_rows == pytest.approx((1 / 3 + 1) / 2)
    assert found.of_rows_error == pytest.approx(np.std([1 / 3, 1], ddof=1) / math.sqrt(2))
    assert found.of_classes == pytest.approx((0 + 1) / 2)


def test_correctness_of_all_rows_and_of_wrong_ones(tmp_path):
    rng = np.random.default_rng(2)
    true = rng.integers(0, 4, 30)
    given = np.where(np.arange(30) < 12, (true + 1) % 4, true)
    start, end = smoothed(given, 4, 0.6), smoothed(np.where(np.arange(30) < 6, true, given), 4, 0.6)
    found = correctness(run_of(tmp_path, [start, end], given, true), ks=(1, 2, 4))
    assert found.wrong_share == pytest.approx(0.4)
    np.testing.assert_allclose(found.of_all[1], [0.6, 0.8])
    np.testing.assert_allclose(found.of_wrong[1], [0.0, 0.5])
    assert found.chance == pytest.approx({1: 0, 2: 1 / 3, 4: 1})
    # at the start a wrong label is right by chance alone, whichever the number of classes
    np.testing.assert_allclose(found.of_wrong[2], [1 / 3, 0.5 + 0.5 / 3])
    np.testing.assert_allclose(found.of_all[4], [1, 1])


def test_chunks_are_no_limit(tmp_path, monkeypatch):
    rng = np.random.default_rng(3)
    given, true = rng.integers(0, 3, 25), rng.integers(0, 3, 25)
    run = run_of(tmp_path, rng.dirichlet(np.ones(3), (2, 25)), given, true)
    whole = correctness(run).of_all[1], entropies(run).mean[CLEAN], others.most_moved(run, [0, 1, 2], 1, 2)
    monkeypatch.setattr("fastmeta.paper.reading.learned_run.CHUNK", 7)
    pieces = correctness(run).of_all[1], entropies(run).mean[CLEAN], others.most_moved(run, [0, 1, 2], 1, 2)
    for a, b in zip(whole, pieces, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-12)


def test_entropies_of_labels_that_were_put_right_stay_wrong_and_are_clean(tmp_path):
    given, true = np.array([0, 0, 1, 2]), np.array([1, 2, 1, 2])
    end = np.array([[0.2, 0.5, 0.3], [0.5, 0.3, 0.2], [0.0, 1.0, 0.0], [0.5, 0.0, 0.5]])
    found = entropies(run_of(tmp_path, [smoothed(given, 3, 0.5), end], given, true))
    assert found.rows == {CORRECTED: 1, UNCORRECTED: 1, CLEAN: 2}
    mixed = -sum(p * math.log(p) for p in (0.2, 0.5, 0.3))
    start = -(0.5 * math.log(0.5) + 0.5 * math.log(0.25))
    # float16 rounds by 2^-11 of a probability at most
    for name, last in ((CORRECTED, mixed), (UNCORRECTED, mixed), (CLEAN, math.log(2) / 2)):
        np.testing.assert_allclose(found.mean[name], [start, last], atol=1e-3)
    assert found.most == pytest.approx(math.log(3))
    with pytest.raises(InputError, match="right labels are not known"):
        entropies(run_of(tmp_path / "unknown", [end], given))


def test_harder_classes_that_are_smoothed_more_correlate(tmp_path):
    given = np.repeat(np.arange(4), 3)
    prob = np.array([0.9, 0.8, 0.6, 0.5])
    table = np.zeros((12, 5))
    table[np.arange(12), given] = prob[given]
    table[:, 4] = 1 - prob[given]
    accuracy = [[0.0] * 5, [0.9, 0.7, 0.5, 0.4, None]]
    found = curves.class_curves(run_of(tmp_path, [smoothed(given, 5, 0.5), table], given, accuracy=accuracy))
    assert np.isnan(found.target_prob[:, 4]).all()  # no rows, in training or among clean ones
    np.testing.assert_allclose(found.target_prob[:, :4], [[0.5] * 4, prob], atol=1e-3)
    np.testing.assert_allclose(found.mean_target_prob[:4], (0.5 + prob) / 2, atol=1e-3)
    assert found.alpha == pytest.approx([0.5, 0.3], abs=1e-3)
    told = curves.smoothing_follows_difficulty(found)
    assert told["spearman"] == pytest.approx(1)
    assert told["pearson"] == pytest.approx(np.corrcoef(prob, accuracy[1][:4])[0, 1], abs=1e-3)
    assert curves.easiest_middle_hardest(found) == [0, 2, 3]


def test_the_mean_of_folds_leaves_out_classes_that_a_fold_lacks(tmp_path):
    given = np.array([0, 1, 2])
    parts = [
        curves.class_curves(run_of(tmp_path / str(k), [smoothed(given, 3, p)], given, accuracy=[a]))
        for k, (p, a) in enumerate([(0.5, [0.2, 0.4, None]), (0.75, [0.4, None, None])])
    ]
    mean = curves.mean_curves(parts)
    np.testing.assert_allclose(mean.target_prob, [[0.625] * 3] * 2)
    np.testing.assert_allclose(mean.accuracy, [[0.3, 0.4, np.nan]])
    longer = curves.class_curves(run_of(tmp_path / "longer", [smoothed(given, 3, 0.5)] * 3, given))
    with pytest.raises(InputError, match="other classes or epochs"):
        curves.mean_curves([parts[0], longer])


def test_alpha_early_and_late():
    def of(alpha, epochs):
        one = np.array(alpha)[:, None].repeat(2, 1)
        return curves.smoothing(curves.ClassCurves(("a", "b"), np.array(epochs), 1 - one, np.array([0]), one[:1]))

    found = of([0.5, 0.9, 0.7, 0.5, 0.3, 0.1, 0.1, 0.1, 0.1], range(9))
    assert (found.start, found.last) == pytest.approx((0.5, 0.1))
    assert (found.early, found.late) == pytest.approx(((0.5 / 2 + 0.9 + 0.7 / 2) / 2, 0.1))
    assert of([0.4], [0]).late == pytest.approx(0.4)
    few = of([0.4, 0.2], [0, 10])  # a start and an end
    assert (few.early, few.late) == pytest.approx((0.3, 0.3))


@pytest.mark.parametrize("ties", [False, True])
def test_correlations_are_those_of_scipy(ties):
    from scipy import stats

    rng = np.random.default_rng(4)
    x, y = rng.normal(size=(2, 20))
    y = x + y
    if ties:
        x, y = x.round(), y.round()
    assert curves.correlation(x, y) == pytest.approx(stats.pearsonr(x, y)[0])
    assert curves.rank_correlation(x, y) == pytest.approx(stats.spearmanr(x, y)[0])
    assert curves.correlation(np.array([1.0, np.nan, 2.0]), np.array([1.0, 2.0, 3.0])) is None
    assert curves.correlation(np.full(5, 0.1), x[:5]) is None


def test_runs_repeat_where_rows_and_classes_go_the_same_way(tmp_path):
    rng = np.random.default_rng(5)
    given = np.arange(40) % 4
    own, noise = rng.uniform(0.3, 0.9, 40), rng.uniform(0.3, 0.9, 40)

    def table(prob):
        rest = np.repeat((1 - prob)[:, None] / 3, 4, 1)
        rest[np.arange(40), given] = prob
        return rest

    start = smoothed(given, 4, 0.6)
    runs = [run_of(tmp_path / str(k), [start, table(p)], given) for k, p in enumerate((own, own, noise))]
    same, *unlike = rows_repeat(runs)
    assert same == pytest.approx(1)
    assert max(map(abs, unlike)) < 0.5
    # rows are matched by their numbers, and those that both have with the same label count
    order = rng.permutation(40)
    moved = run_of(tmp_path / "moved", [start[order], table(own)[order]], given[order], rows=order)
    assert rows_repeat([runs[0], moved]) == [pytest.approx(1)]
    other = given.copy()
    other[3:] = (other[3:] + 1) % 4
    few = run_of(tmp_path / "few", [start, table(own)], other)
    assert len(rows_repeat([runs[0], few])) == 1
    other[:3] = (other[:3] + 1) % 4
    assert rows_repeat([runs[0], run_of(tmp_path / "none", [start, table(own)], other)]) == []

    found = curves_repeat([curves.class_curves(run) for run in runs])
    assert len(found["curves"]) == len(found["classes"]) == 3
    assert found["classes"][0] == pytest.approx(1)


def test_the_likeliest_others_of_a_row_and_rows_that_moved_most(tmp_path):
    given = np.array([0, 0, 1])
    table = np.array([[0.5, 0.1, 0.3, 0.1], [0.3, 0.0, 0.2, 0.5], [0.25, 0.25, 0.25, 0.25]])
    assert others.likeliest_others(table[1], 0, 2) == [(3, 0.5), (2, 0.2)]
    assert others.likeliest_others(table[2], 1) == [(0, 0.25), (2, 0.25), (3, 0.25)]
    run = run_of(tmp_path, [table], given)
    assert others.most_moved(run, [0, 1], 0) == [1, 2]
    assert others.most_moved(run, [0, 3], 0, each=2) == [1, 0]
