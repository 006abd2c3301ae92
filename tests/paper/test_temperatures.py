"""Tables 4 and 5: which students they want, which temperature counts, what is written."""

import csv
from pathlib import Path

import pytest

from fastmeta.paper import Scale
from fastmeta.paper.artefact import Found
from fastmeta.paper.table4 import Table4
from fastmeta.paper.table5 import Table5
from fastmeta.paper.temperatures import TEMPERATURES, Curve, write_curves
from fastmeta.paper.wanted import in_order

CURVE = Curve(
    test={0.5: {0: 40.0, 1: 42.0}, 1.0: {0: 44.0, 1: 45.0}, 2.0: {0: 50.0, 1: 49.0}},
    val={0.5: {0: 41.0, 1: 41.0}, 1.0: {0: 46.0, 1: 48.0}, 2.0: {0: 47.0, 1: 43.0}},
    failed={},
)


@pytest.mark.parametrize("name", [pytest.param("short", marks=pytest.mark.slow), "cpu", "smoke"])
def test_no_temperature_trains_a_teacher_again(name, tmp_path):
    scale = Scale(name, tmp_path)
    fourth, fifth = Table4().wanted(scale), Table5().wanted(scale)
    students = [one for one in fourth.values() if one.sources]
    assert len({one.key for one in students}) == 4 * len(TEMPERATURES[name])
    sources = {source.key for one in (*fourth.values(), *fifth.values()) for source in one.sources.values()}
    # three teachers, of which the folds give labels too; table 5 has labels of VGG16 where that learns any
    assert len(sources) == 3 + any(key.startswith("from_vgg16") for key in fifth)
    for one in (*fourth.values(), *fifth.values()):
        # whatever is compared holds the same rows out, and whoever teaches none
        held = one.config.data.val_fraction is not None
        assert held == (one.key not in sources)
        assert one.config.data.split_seed is None
    # the same students, and the same baseline, where both tables have them
    shared = {one.key for one in fourth.values()} & {one.key for one in fifth.values()}
    assert len(shared) == (1 + len(TEMPERATURES[name]) if "onehot/alexnet" in fifth else 0)
    assert next(one.key for one in in_order(students)) in sources


def test_a_teacher_of_folds_is_their_final_run_and_a_trajectory_their_labels(tmp_path):
    wanted = Table4().wanted(Scale("smoke", tmp_path))
    config = wanted["instance_teacher/T=1"].config_for(tmp_path, 3)
    assert Path(config.options.teacher).name == "final"
    config = wanted["instance_labels/T=1"].config_for(tmp_path, 3)
    assert Path(config.options.trajectory).parts[-2:] == ("seed3", "labels")


def test_validation_chooses_and_what_the_test_set_would_choose_is_marked():
    assert CURVE.best(CURVE.val) == 1.0
    assert CURVE.best(CURVE.test) == 2.0
    assert CURVE.chosen().values == {0: 44.0, 1: 45.0}
    assert CURVE.gap.values == {0: 0.0, 1: 0.0}
    assert CURVE.cell(2.0, optimistic=True).optimistic
    partly = Curve(CURVE.test, {**CURVE.val, 2.0: {1: 60.0}}, {0: "diverged"})  # a seed counts with all or not at all
    assert partly.chosen().values == {1: 49.0}
    assert partly.chosen().failed == {0: "diverged"}
    nothing = Curve({1.0: {}}, {1.0: {}}, {})
    assert nothing.best(nothing.val) is None
    assert nothing.plain().values == {}


@pytest.mark.slow
def test_the_curve_is_logged_and_drawn(tmp_path):
    found = Found(Scale("smoke", tmp_path), (0, 1), {}, tmp_path / "runs", tmp_path / "table4")
    (figure,) = write_curves(found, {"one-hot": CURVE, "nothing": Curve({1.0: {}}, {1.0: {}}, {})})
    assert (tmp_path / "table4" / figure.file).stat().st_size < 500_000
    with open(tmp_path / "table4" / "temperatures.csv") as file:
        lines = list(csv.DictReader(file))
    assert len(lines) == 6
    assert lines[-1] == {
        "student of": "one-hot",
        "temperature": "2",
        "seed": "1",
        "test %": "49.0",
        "validation %": "43.0",
    }


@pytest.mark.parametrize("table", [Table4, Table5])
def test_a_look_before_any_run_is_finished(table, tmp_path):
    scale = Scale("smoke", tmp_path)
    reading = table().read(Found(scale, (0,), table().wanted(scale), tmp_path / "runs", tmp_path / "out"))
    assert [claim.sign for claim in reading.claims].count(True) == 1
    assert {claim.verdict for claim in reading.claims} == {"not decided"}
    assert reading.figures == []
