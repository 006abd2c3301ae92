"""Learned labels in the file that they are of: all else in it stays."""

import os

import numpy as np
import pytest

from fastmeta.cli import main
from fastmeta.data import InputError, load_dataset
from fastmeta.export import apply
from fastmeta.training import TrainConfig, train
from fastmeta.training.rundir import run_labels
from tests.support.finished import changed, small_run, withheld
from tests.support.runs import Warnings, two_classes


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return small_run(tmp_path_factory.mktemp("apply"))


def arrays_of(path):
    with np.load(path) as file:
        return dict(file)


def test_one_array_changes_and_what_was_given_is_kept(run, tmp_path, capsys):
    out = tmp_path / "out.npz"
    assert main(["labels", "apply", str(run), "--to", str(out)]) == 0
    before, after, labels = arrays_of(run.parent / "two.npz"), arrays_of(out), run_labels(run)
    assert (labels.learned != labels.given).any()
    assert list(after) == [*before, "y_given"]
    assert np.array_equal(after.pop("y_given"), before["y_train"])
    expected = before["y_train"].copy()
    expected[labels.row] = labels.learned
    for name, array in after.items():
        assert array.dtype == before[name].dtype
        assert np.array_equal(array, expected if name == "y_train" else before[name])
    said = " ".join(capsys.readouterr().out.split())
    assert f"{(labels.learned != labels.given).sum()} of 80 labels are other than the given ones" in said
    assert os.stat(out).st_mode & 0o044 or not os.stat(run / "config.toml").st_mode & 0o044


def test_what_is_written_can_be_trained_on_without_a_word(run, tmp_path):
    data = load_dataset(f"npz:{apply(run, tmp_path / 'out.npz').path}")
    assert data.unused == ()
    assert np.array_equal(data.train.targets[run_labels(run).row], run_labels(run).learned)


def test_rows_of_the_clean_set_and_other_names_and_dtypes(tmp_path):
    """Labels of one byte, in a column, under another name; some rows of the training set are clean."""
    arrays = two_classes(x_meta=None, y_meta=None)
    column = arrays.pop("y_train").astype(np.uint8)[:, None]
    arrays |= {"noted": column, "meta_index": np.arange(1, 9), "y_given": np.arange(80)}
    np.savez_compressed(tmp_path / "d.npz", **arrays)
    config = TrainConfig.from_mapping(
        {
            "dataset": f"npz:{tmp_path / 'd.npz'}",
            "model": "mlp",
            "epochs": 2,
            "out": str(tmp_path / "run"),
            "threads": 1,
        }
        | {"data": {"given": "noted"}}
    )
    run = train(config, listener=Warnings()).path
    done = apply(run, tmp_path / "out.npz")
    after, labels = arrays_of(done.path), run_labels(run)
    assert after["noted"].dtype == np.uint8
    assert after["noted"].shape == (80, 1)
    assert (after["noted"][1:9] == column[1:9]).all()
    assert (after["noted"][labels.row, 0] == labels.learned).all()
    assert (after["y_given"] == np.arange(80)).all()
    assert any("y_given was in" in line for line in done.lines)


def test_what_would_be_lost_is_refused(run, tmp_path):
    data = run.parent / "two.npz"
    with pytest.raises(InputError, match="is the data set itself, whose labels would be lost"):
        apply(run, data)
    (tmp_path / "there").write_text("mine")
    with pytest.raises(InputError, match="is there already; name another file"):
        apply(run, tmp_path / "there")
    assert (tmp_path / "there").read_text() == "mine"
    with pytest.raises(InputError, match="cannot write"):
        apply(run, tmp_path / "there" / "x.npz")


def test_data_that_have_changed_are_refused(run, tmp_path):
    with np.load(run / "labels.npz") as file:
        given = file["given"]
    given[3] = 1 - given[3]
    with pytest.raises(InputError, match=r"is not what the run was trained on: row 3 has label \d, the run was given"):
        apply(changed(run, tmp_path / "run", given=given), tmp_path / "x.npz")
    assert not (tmp_path / "x.npz").exists()


def test_labels_that_are_withheld_need_force(run, tmp_path, capsys):
    held, out = withheld(run, tmp_path / "held"), tmp_path / "x.npz"
    assert main(["labels", "apply", str(held), "--to", str(out)]) == 2
    assert "are withheld" in capsys.readouterr().err
    assert not out.exists()
    assert main(["labels", "apply", str(held), "--to", str(out), "--force"]) == 0
    assert np.array_equal(arrays_of(out)["y_train"], run_labels(run).learned)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"noise": "pair:0.4"}, "given labels with the noise pair:0.4, which the run added itself"),
        ({"dataset": "digits"}, "the data set of .* is digits; take labels export"),
        ({"dataset": "custom:arrays"}, "the data set of .* is custom:arrays; take labels export"),
    ],
)
def test_data_without_a_file_of_their_own(config, message, run, tmp_path):
    copy = changed(run, tmp_path / "run")
    values = TrainConfig.read(run / "config.toml").to_mapping() | config
    (copy / "config.toml").write_text(TrainConfig.from_mapping(values).to_toml())
    with pytest.raises(InputError, match=message):
        apply(copy, tmp_path / "x.npz")
