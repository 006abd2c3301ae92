"""Figures 2, 3, 4 and the claims in words, read off small runs; and figures in which nothing is cut off."""

from dataclasses import replace

import numpy as np
import pytest

pytest.importorskip("matplotlib")


from fastmeta import train
from fastmeta.data import InputError
from fastmeta.paper import artefact, figure2
from fastmeta.paper.artefact import Found
from fastmeta.paper.claims_in_words import ClaimsInWords
from fastmeta.paper.figure2 import Figure2
from fastmeta.paper.figure3 import Figure3
from fastmeta.paper.figure4 import Figure4
from fastmeta.paper.reading import (
    CLEAN,
    CORRECTED,
    ClassCurves,
    Correctness,
    Entropies,
    Example,
    Sample,
    class_curves,
    class_figure,
    correctness_figure,
    entropy_figure,
    pictures,
    read_run,
    sheet,
)
from fastmeta.paper.scale import NAMES, Scale
from fastmeta.report.style import write
from fastmeta.training import DataConfig, LabelConfig, TrainConfig
from tests.support.runs import Warnings, two_classes
from tests.support.trajectories import EXACT, plan

ARTEFACTS = (Figure2, Figure3, Figure4, ClaimsInWords)
MOVING = {"update": "exact", "target_prob": 0.7, "label_lr": 20.0, "canaries": "off"}
SEEDS = (0, 1)
LONG = "a very long name of a class"
CLASSES = ("$cat$", LONG, "dog")


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """The folder of small runs of the kinds that the artefacts want, of two folds in place of five."""
    folder = tmp_path_factory.mktemp("small")
    arrays = two_classes(x_meta=None, y_meta=None, x_test=None, y_test=None)
    for one in {w.key: w for kind in ARTEFACTS for w in kind().wanted(Scale("smoke", folder)).values()}.values():
        for seed in SEEDS:
            path, own = one.path(folder / "runs", seed), one.config
            labels = (
                EXACT[own.method] if own.method == "class_labels" else LabelConfig(**MOVING, reset=own.labels.reset)
            )
            for fold in range(2) if one.folds else [0]:
                data = DataConfig(folds=2, fold=fold, batch_size=16, meta_is_train=own.data.meta_is_train)
                how = {"epochs": 2, "seed": seed, "noise": "uniform:0.5", "labels": labels}
                out = path / f"fold{fold}" if one.folds else path
                config = replace(plan(out, own.method, **how), data=data)
                train(config, data=arrays, listener=Warnings(), draw=None)
            if one.folds:
                (path / "final").mkdir()
                (path / "final" / "summary.json").write_text("{}")  # which says that folds are finished
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(figure2, "FOLDS", 2)
        yield folder


@pytest.mark.parametrize("scale", NAMES)
def test_figures_are_read_off_runs_of_tables(scale, tmp_path):
    """So that none is trained for them; the claims in words take a few more."""
    keys = {
        name: {one.key for one in artefact(name).wanted(Scale(scale, tmp_path)).values()}
        for name in ("table1", "table6", "figure2", "figure3", "figure4", "claims")
    }
    assert keys["figure2"] <= keys["table1"]
    assert keys["figure3"] | keys["figure4"] <= keys["table6"]
    assert len(keys["claims"] - keys["table1"] - keys["table6"]) == (4 if scale == "cpu" else 3)


def reading(kind, runs, out, seeds=SEEDS):
    scale, one = Scale("smoke", runs), kind()
    out.mkdir(exist_ok=True)
    return one.read(Found(scale, seeds, one.wanted(scale), runs / "runs", out))


@pytest.mark.slow
@pytest.mark.parametrize("kind", ARTEFACTS)
def test_an_artefact_has_its_table_claims_and_figures(kind, runs, tmp_path):
    found = reading(kind, runs, tmp_path / "out")
    assert sum(claim.sign for claim in found.claims) == 1
    told = {claim.text: claim for claim in found.claims}
    assert len(told) == len(found.claims)
    assert all((claim.gap is None) == ("not measured" in claim.measured) for claim in told.values())
    assert any(claim.gap is not None for claim in told.values())
    assert next(claim for claim in told.values() if claim.sign).gap is not None
    assert found.figures
    for figure in found.figures:
        assert 1000 < (tmp_path / "out" / figure.file).stat().st_size < 500_000
        assert (tmp_path / "out" / figure.file).with_suffix(".svg").is_file()
    for row in found.rows:
        assert set(row.cells) == set(found.columns)
        assert all(set(cell.values) <= set(SEEDS) for cell in row.cells.values())


@pytest.mark.parametrize("kind", ARTEFACTS)
def test_an_artefact_without_runs_is_empty_and_decides_nothing(kind, tmp_path):
    found = reading(kind, tmp_path, tmp_path / "out")
    assert not found.figures
    assert {claim.verdict for claim in found.claims} == {"not decided"}
    assert not any(cell.values for row in found.rows for cell in row.cells.values())


@pytest.mark.slow
def test_claims_of_one_seed_are_not_decided(runs, tmp_path):
    found = reading(ClaimsInWords, runs, tmp_path / "out", seeds=(0,))
    assert {claim.verdict for claim in found.claims} == {"not decided"}
    assert any("it takes two seeds" in claim.measured for claim in found.claims)


@pytest.fixture(scope="module")
def one(tmp_path_factory):
    path = tmp_path_factory.mktemp("one") / "run"
    config = plan(path, "instance_labels", epochs=1, noise="uniform:0.5")
    arrays = two_classes(x_meta=None, y_meta=None, x_test=None, y_test=None)
    train(replace(config, data=DataConfig(folds=2, batch_size=16)), data=arrays, listener=Warnings(), draw=None)
    return read_run(path)


def test_a_run_is_read_with_what_is_known_of_its_rows(one):
    run = one
    assert len(run.given) == len(run.rows) == 40
    assert np.array_equal(run.given, run.trajectory.given)
    assert set(run.lines[-1]) >= {"meta_accuracy", "meta_accuracy_by_class"}
    assert pictures(run, [0, 1]) == [None, None]  # data of the caller's own cannot be read again
    for chunk, probs in run.chunks(run.epochs[-1]):
        assert np.array_equal(chunk, np.arange(40))
        assert np.array_equal(probs, run.trajectory.at(run.epochs[-1]).astype(float))
    assert np.array_equal(run.label(0, 3), run.trajectory.at(0)[3].astype(float))


def test_curves_of_class_labels_are_those_of_their_rows(tmp_path):
    config = plan(tmp_path / "run", "class_labels", noise="uniform:0.5")
    train(config, data=two_classes(), listener=Warnings(), draw=None)
    run = read_run(tmp_path / "run")
    told = class_curves(run).target_prob
    assert run.epochs == [0, 1, 2, 3]
    for epoch, probs in zip(run.epochs, told, strict=True):
        own = run.trajectory.at(epoch)[np.arange(80), run.given]
        np.testing.assert_allclose(probs, [own[run.given == c].mean() for c in (0, 1)], rtol=1e-6)
    assert not np.allclose(told[0], told[-1])


def test_a_run_without_a_trajectory_says_how_to_get_one(tmp_path):
    config = plan(tmp_path / "run", "instance_labels", trajectory_every=None, epochs=1)
    train(config, data=two_classes(), listener=Warnings(), draw=None)
    with pytest.raises(InputError, match="--trajectory-every"):
        read_run(tmp_path / "run")


def test_images_of_digits_are_as_bright_as_they_can_be(one):
    (first, second) = pictures(replace(one, config=TrainConfig(dataset="digits")), [0, 5])
    assert first.shape == second.shape == (8, 8)
    assert max(first.max(), second.max()) == 255


# -- figures ----------------------------------------------------------------------------------------------


def curves(spread):
    epochs, rng = np.arange(6), np.random.default_rng(0)
    share = np.clip(
        np.linspace(0.2, 0.98, 6)[:, None] - np.array([0, 0.1, 0.2]) + spread * rng.normal(size=(6, 3)), 0, 1
    )
    return ClassCurves(CLASSES, epochs, share, epochs, share)


def examples():
    picture = np.random.default_rng(1).integers(0, 255, (32, 32, 3), dtype=np.uint8)
    return [
        Example(p, n, 0.8, [(LONG, 0.1), ("$cat$", 1e-5), ("dog", 0.0)]) for p, n in ((picture, "$cat$"), (None, LONG))
    ]


def noisy_samples(count, classes):
    tables = np.random.default_rng(1).dirichlet(np.ones(classes), (count, 2))
    pictures = [None, np.zeros((8, 8), np.uint8)] * count
    return [Sample(image, 0, classes - 1, *pair) for image, pair in zip(pictures, tables, strict=False)]


EPOCHS, LINE = np.arange(4), np.linspace(0.3, 1.0, 4)
SHARE = Correctness(EPOCHS, {1: LINE, 5: LINE}, {1: 0 * LINE, 5: LINE}, {1: 0.0, 5: 4 / 9}, 0.4)
ENTROPY = Entropies(EPOCHS, {CORRECTED: LINE, CLEAN: LINE / 2}, {CORRECTED: 3, CLEAN: 9}, float(np.log(10)))
DRAWN = {
    "classes": lambda: class_figure([curves(0.02), curves(0.03)], [0, 1, 2], examples(), examples_title="Likeliest"),
    "without examples": lambda: class_figure([curves(0)], [1], [], examples_title=""),
    "correctness": lambda: correctness_figure([SHARE, SHARE]),
    "entropy": lambda: entropy_figure([ENTROPY]),
    "sheet": lambda: sheet(noisy_samples(5, 30), [*CLASSES * 10], 20),
    "one sample": lambda: sheet(noisy_samples(1, 2), ["0", "1"], 20),
}


@pytest.mark.parametrize("name", DRAWN)
def test_nothing_is_cut_off(name):
    figure = DRAWN[name]()
    figure.draw_without_rendering()
    inside, (width, height) = figure.get_tightbbox(), figure.get_size_inches()
    assert -0.02 <= inside.x0 < inside.x1 <= width + 0.02
    assert -0.02 <= inside.y0 < inside.y1 <= height + 0.02


def test_figures_are_the_same_each_time(tmp_path):
    first, second = (write(DRAWN["without examples"](), tmp_path / name / "one") for name in ("a", "b"))
    assert [p.read_bytes() for p in first] == [p.read_bytes() for p in second]
