"""LabelLearner is an estimator of scikit-learn's, and does what the trainer does."""

import pickle
import warnings

import numpy as np
import pytest
import torch
from torch import nn

import fastmeta

pytest.importorskip("sklearn", "1.6")
from sklearn.base import clone
from sklearn.exceptions import NotFittedError
from sklearn.model_selection import cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils.estimator_checks import check_estimator, estimator_checks_generator

from fastmeta import LabelLearner
from fastmeta.training import TrainConfig, train

#: scikit-learn's checks that do not apply, which it skips by itself, and why
NOT_APPLICABLE = {
    "check_array_api_input": "arrays are NumPy's; scikit-learn skips it without SCIPY_ARRAY_API",
}
#: those that are quick and reach most of the code; all run among the slow tests
QUICK = (
    "check_no_attributes_set_in_init",
    "check_estimators_unfitted",
    "check_do_not_raise_errors_in_init_or_set_params",
    "check_estimators_empty_data_messages",
    "check_estimator_sparse_array",
    "check_classifiers_one_label",
    "check_classifiers_regression_target",
    "check_supervised_y_no_nan",
    "check_estimators_pickle",
    "check_requires_y_none",
    "check_fit2d_1sample",
    "check_complex_data",
    "check_parameters_default_constructible",
    "check_methods_sample_order_invariance",
)
NAMES = np.array(["ant", "bee", "cow"])


def blobs(count, seed, spread=0.6):
    rng = np.random.default_rng(seed)
    y = np.arange(count) % 3
    return rng.normal(0, spread, (count, 4)) * [1, 10, 100, 1] + 2 * np.eye(3, 4)[y] * [1, 10, 100, 1], y


def noisy(y, seed=1):
    return np.where(np.random.default_rng(seed).random(len(y)) < 0.25, (y + 1) % 3, y)


def small():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 32), nn.ReLU(), nn.Linear(32, 3))


@pytest.fixture(scope="module")
def fitted():
    (X, y), (X_clean, y_clean) = blobs(300, 0), blobs(30, 1)
    learner = LabelLearner(small(), epochs=8, config={"threads": 1})
    given = noisy(y)
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # it has nothing to say
        assert learner.fit(X, NAMES[given], X_clean, NAMES[y_clean]) is learner
    return learner, X, NAMES[given], NAMES[y]


def test_labels_of_texts_are_learned_and_found(fitted):
    learner, _, given, true = fitted
    assert learner.classes_.tolist() == NAMES.tolist()
    assert (given == true).mean() < 0.8
    assert (learner.labels_ == true).mean() > 0.93
    assert learner.labels_.dtype == given.dtype
    quality, wrong = learner.label_quality_, given != true
    assert quality.dtype == np.float64
    assert 0 <= quality.min() <= quality.max() <= 1
    assert wrong[np.argsort(quality)[: wrong.sum()]].mean() > 0.85
    assert not len(learner.clean_index_)
    X_test, y_test = blobs(200, 2)
    assert learner.score(X_test, NAMES[y_test]) > 0.93
    proba = learner.predict_proba(X_test)
    assert proba.shape == (200, 3)
    assert np.allclose(proba.sum(1), 1)
    assert (learner.predict(X_test) == NAMES[proba.argmax(1)]).all()
    assert learner.n_features_in_ == 4
    assert learner.summary_["label_update"] == "posterior"


def test_it_is_the_trainer(fitted, tmp_path):
    """The same arrays and seed give the same labels and, on scaled samples, the same network."""
    learner, X, given, _ = fitted
    (X_clean, y_clean), codes = blobs(30, 1), np.searchsorted(NAMES, given)
    arrays = {"x_train": X.astype("f4"), "y_train": codes, "x_meta": X_clean.astype("f4"), "y_meta": y_clean}
    arrays |= {"x_test": X.astype("f4"), "y_test": codes}
    run = train(TrainConfig(epochs=8, threads=1, out=str(tmp_path / "run")), model=small(), data=arrays)
    with np.load(run.path / "labels.npz") as labels:
        assert (NAMES[labels["learned"]] == learner.labels_).all()
        assert np.array_equal(labels["label_quality"].astype("f8"), learner.label_quality_)
    # the trainer's figure of the same rows says that predictions scale samples as training does
    assert learner.score(X, given) == pytest.approx(run.summary["test_accuracy_last"])


def test_pickled_and_cloned(fitted):
    learner, X, *_ = fitted
    again = pickle.loads(pickle.dumps(learner))
    assert np.array_equal(again.predict_proba(X), learner.predict_proba(X))
    with pytest.raises(NotFittedError):
        clone(learner).predict(X)
    assert clone(learner).epochs == learner.epochs


def test_without_a_clean_set_a_part_is_held_out_and_said():
    X, y = blobs(90, 0)
    with pytest.warns(UserWarning, match=r"18 rows of X \(clean_index_\) are held out"):
        learner = LabelLearner(epochs=2).fit(X, NAMES[y])
    held = learner.clean_index_
    assert np.bincount(y[held]).tolist() == [6, 6, 6]
    assert (learner.labels_[held] == NAMES[y][held]).all()
    assert (learner.label_quality_[held] == 1).all()
    assert len(learner.labels_) == 90
    with pytest.raises(ValueError, match="no clean set is given, and clean_fraction is None; give X_clean and y_clean"):
        LabelLearner(clean_fraction=None).fit(X, y)


def test_images_and_a_network_of_ones_own():
    rng = np.random.default_rng(0)
    y = np.arange(60) % 2
    X = (rng.integers(0, 100, (60, 4, 4)) + 120 * y[:, None, None]).astype(np.uint8)
    module = nn.Sequential(nn.Flatten(), nn.Linear(16, 2))
    before = module[1].weight.detach().clone()
    learner = LabelLearner(module, epochs=4).fit(X[:48], y[:48] == 1, X[48:], y[48:] == 1)
    assert learner.score(X, y == 1) == 1
    assert learner.classes_.dtype == bool
    assert torch.equal(module[1].weight, before)
    assert len(LabelLearner("small_conv", epochs=1).fit(X[:48], y[:48], X[48:], y[48:]).predict(X)) == 60
    with pytest.raises(ValueError, match=r"X has samples of shape \(4, 3\), expected \(4, 4\)"):
        learner.predict(X[:, :, :3])


def test_with_scikit_learns_tools():
    X, y = blobs(60, 0)
    X_clean, y_clean = blobs(12, 1)
    learner = LabelLearner(small(), epochs=2, config={"finetune_steps": 2})
    scores = cross_val_score(learner, X, NAMES[y], cv=2, params={"X_clean": X_clean, "y_clean": NAMES[y_clean]})
    assert scores.min() > 0.4
    with pytest.warns(UserWarning, match="held out"):
        assert len(make_pipeline(StandardScaler(), LabelLearner(small(), epochs=1)).fit(X, y).predict(X)) == 60


def test_a_network_that_is_fine_tuned_predicts():
    X, y = blobs(60, 0)
    plain, tuned = (
        LabelLearner(small(), epochs=1, config={"finetune_steps": k}).fit(X, y, *blobs(12, 1)).predict_proba(X)
        for k in (0, 5)
    )
    assert not np.array_equal(plain, tuned)


def test_what_is_drawn_at_random():
    X, y = blobs(30, 0)
    labels = [
        LabelLearner(epochs=1, random_state=state).fit(X, y, *blobs(9, 1)).predict_proba(X)
        for state in (0, np.random.RandomState(3), np.random.RandomState(3))
    ]
    same = [[np.array_equal(a, b) for b in labels] for a in labels]
    assert same == [[a == b for b in "abb"] for a in "abb"]


X, Y = blobs(30, 0)


@pytest.mark.parametrize(
    ("options", "arguments", "message"),
    [
        ({}, (X, Y, X), "X_clean comes without y_clean"),
        ({}, (X, Y, None, Y), "y_clean comes without X_clean"),
        ({}, (X, NAMES[Y], X, Y), "y holds texts, y_clean numbers"),
        ({}, (X, Y, X[:, :2], Y), "X has 2 features, but LabelLearner is expecting 4 features as input"),
        ({}, (X * 1e300, Y), "X holds a number in row 0 that is too large for float32"),
        ({"clean_fraction": 1.5}, (X, Y), r"clean_fraction must lie strictly between 0 and 1, got 1\.5"),
        ({"config": {"epochs": 3}}, (X, Y, X, Y), "config names epochs, which LabelLearner sets itself"),
        ({"config": {"data": {"root": "x"}}}, (X, Y, X, Y), "config names data.root"),
        ({"config": {"optim": {"rate": 3}}}, (X, Y, X, Y), r"LabelLearner: unknown key 'optim\.rate'"),
        ({"model": 3}, (X, Y, X, Y), r"model must be a name, a torch\.nn\.Module or None, got 3"),
        ({"model": "resnett"}, (X, Y, X, Y), "resnett"),
        ({"epochs": 0}, (X, Y, X, Y), "epochs must be at least 1, got 0"),
        ({"device": "tpu"}, (X, Y, X, Y), "device must be"),
    ],
)
def test_what_is_refused(options, arguments, message):
    with pytest.raises(ValueError, match=message):
        LabelLearner(**options).fit(*arguments)


def checks():
    return list(estimator_checks_generator(LabelLearner(epochs=1, config={"labels": {"update": "exact"}})))


def name_of(check):
    return getattr(check, "func", check).__name__


@pytest.mark.parametrize("name", QUICK)
@pytest.mark.filterwarnings("ignore")
def test_scikit_learns_checks_that_are_quick(name):
    found = [(estimator, check) for estimator, check in checks() if name_of(check) == name]
    for estimator, check in found[:1]:
        check(estimator)


def test_the_quick_checks_are_checks():
    there = {name_of(check) for _, check in checks()}
    assert len(there & set(QUICK)) >= len(QUICK) - 2  # names come and go with scikit-learn's version


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_all_of_scikit_learns_checks():
    done = check_estimator(LabelLearner(epochs=10), on_fail=None, on_skip=None)
    assert len(done) > 40
    assert not {r["check_name"]: r["exception"] for r in done if r["status"] == "failed"}
    assert {r["check_name"] for r in done if r["status"] == "skipped"} <= set(NOT_APPLICABLE)


def test_it_is_found_without_the_trainer_being_loaded():
    assert fastmeta.LabelLearner is LabelLearner
    assert "LabelLearner" in fastmeta.__all__


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"y": np.where(np.arange(60) == 7, None, NAMES[np.arange(60) % 3])},
            r"^y has no label in row 7, in 1 row\(s\)",
        ),
        ({"y": [float("nan"), *NAMES[np.arange(59) % 3]]}, "^y has no label in row 0"),
        (
            {"y_clean": np.where(np.arange(9) > 6, None, NAMES[np.arange(9) % 3])},
            "^y_clean has no label in row 7, in 2",
        ),
        ({"X_clean": np.zeros((9, 3))}, "X has 3 features, but LabelLearner is expecting 4"),
        ({"y_clean": NAMES[np.arange(8) % 3]}, r"inconsistent numbers of samples: \[9, 8\]"),
        ({"config": "optim.lr=3"}, "^config must be a mapping of values, nested as in TOML, or None, got 'optim.lr=3'"),
    ],
)
def test_what_cannot_be_fitted_is_said_in_a_line(change, message):
    (X, y), (X_clean, y_clean) = blobs(60, 0), blobs(9, 1)
    learner = LabelLearner(epochs=1, config=change.pop("config", None))
    with pytest.raises(ValueError, match=message) as refused:
        learner.fit(**{"X": X, "y": NAMES[y], "X_clean": X_clean, "y_clean": NAMES[y_clean], **change})
    assert "\n" not in str(refused.value)


def test_labels_that_pandas_lacks_are_named():
    pandas = pytest.importorskip("pandas")
    (X, y), (X_clean, y_clean) = blobs(60, 0), blobs(9, 1)
    given = pandas.Series(NAMES[y], dtype="string").mask(y == 1)
    with pytest.raises(ValueError, match=r"^y has no label in row 1, in 20 row\(s\)"):
        LabelLearner(epochs=1).fit(X, given, X_clean, NAMES[y_clean])


def test_images_and_numbers_are_not_taken_for_each_other():
    rng = np.random.default_rng(0)
    images, y = rng.integers(0, 255, (30, 8, 8)).astype(np.uint8), np.arange(30) % 3
    learner = LabelLearner("mlp", epochs=1, config={"threads": 1}).fit(images[:20], y[:20], images[20:], y[20:])
    assert learner.predict(images[:3]).shape == (3,)
    with pytest.raises(ValueError, match="X holds numbers, expected uint8 images, as in fit; bring both to one dtype"):
        learner.predict(images[:3] / 255)
    with pytest.raises(ValueError, match="X_clean holds numbers, expected uint8 images, as in X"):
        learner.fit(images[:20], y[:20], images[20:] / 255, y[20:])
    with pytest.raises(ValueError, match=r"X has samples of shape \(8, 4\), expected \(8, 8\), as in fit"):
        learner.predict(images[:3, :, :4])


def test_what_does_not_fit_on_the_device_changes_nothing():
    (X, y), (X_clean, y_clean), (X_test, _) = blobs(60, 0), blobs(9, 1), blobs(20, 2)
    made = [
        LabelLearner("mlp", epochs=1, config={"threads": 1, "data": {"resident": resident}}).fit(X, y, X_clean, y_clean)
        for resident in ("yes", "no")
    ]
    assert np.array_equal(*(learner.predict_proba(X_test) for learner in made))
