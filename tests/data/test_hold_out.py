"""What is held out: disjoint, balanced if asked, by a seed that is not the run's; and a run that validates."""

import dataclasses
import json
import signal

import numpy as np
import pytest

import fastmeta
from fastmeta.cli import main
from fastmeta.data import Dataset, HoldOut, InputError, load_dataset, split
from fastmeta.training import DataConfig, Interrupted, TrainConfig
from tests.support.runs import two_classes
from tests.support.stopped import Kill, assert_same

SIZES = (50, 30, 10, 6)


def dataset(sizes=SIZES, **changes):
    y = np.repeat(np.arange(len(sizes)), sizes)
    x = np.arange(len(y), dtype=np.float32)[:, None]
    return Dataset.from_arrays({"x_train": x, "y_train": y, **changes}, name="set")


def apart(parts):
    """No row stands in two parts, and all of them stand in one; the samples are those of the rows."""
    found = [part for part in (parts.train, parts.meta, parts.val) if part is not None]
    assert sorted(np.concatenate([part.row for part in found])) == list(range(sum(map(len, found))))
    assert all(np.array_equal(part.x[:, 0], part.row) for part in found)
    assert parts.overlap == 0
    return [np.bincount(part.y, minlength=4).tolist() for part in found]


@pytest.mark.parametrize(
    ("options", "clean"),
    [
        ({"meta_count": 16}, [4, 4, 4, 4]),
        ({"meta_count": 16, "balanced": False}, [8, 5, 2, 1]),
        ({"meta_count": 4, "balanced": False}, [1, 1, 1, 1]),
        ({"meta_count": 5, "balanced": False}, [2, 1, 1, 1]),
        ({"meta_fraction": 0.2}, [10, 6, 2, 1]),
        ({"meta_fraction": 0.125, "balanced": True}, [3, 3, 3, 3]),
    ],
)
@pytest.mark.parametrize("val", [None, 0.1])
def test_a_clean_set_by_count_or_share(options, clean, val):
    parts = split(dataset(), noise="uniform_exact:0.5", hold_out=HoldOut(val_fraction=val, **options))
    counts = apart(parts)
    assert counts[1] == clean
    assert np.array_equal(parts.meta.y, dataset().train.targets[parts.meta.row])
    if val is not None:
        left = np.array(SIZES) - clean
        assert counts[2] == [max(1, round(0.1 * n)) for n in left]
        assert np.array_equal(parts.val.y, dataset().train.targets[parts.val.row])  # noise leaves them be
    assert parts.noise_rate == pytest.approx(0.5, abs=0.01)


@pytest.mark.parametrize("own", [{}, {"x_meta": np.array([[-1.0], [-2.0]]), "y_meta": [0, 1]}])
def test_training_rows_as_clean_rows_are_those_that_train_without_it(own):
    """With their labels as given, noise among them; what is held out or brought is left aside."""
    usual, found = (
        split(dataset(**own), noise="uniform_exact:0.5", hold_out=HoldOut(val_fraction=0.1, of_train=itself))
        for itself in (False, True)
    )
    assert np.array_equal(found.train.row, usual.train.row)
    assert np.array_equal(found.val.row, usual.val.row)
    assert np.array_equal(found.train.y, usual.train.y)
    assert np.array_equal(found.meta.row, found.train.row)
    assert np.array_equal(found.meta.y, found.train.y)
    assert np.array_equal(found.meta.x, found.train.x)
    assert found.noise_rate == usual.noise_rate == pytest.approx(0.5, abs=0.02)
    assert found.overlap == len(found.train)
    assert "training rows are the clean set too" in found.notes[-1]
    assert found.fingerprint() != usual.fingerprint()


def test_training_rows_as_clean_rows_leave_no_canaries():
    assert split(dataset(), canaries="auto", hold_out=HoldOut(of_train=True)).canaries is None
    with pytest.raises(InputError, match=r"labels.canaries=20 are clean rows that are no training rows"):
        split(dataset(), canaries="20", hold_out=HoldOut(of_train=True))


def test_a_count_that_the_classes_do_not_share_out():
    counts = apart(split(dataset(), hold_out=HoldOut(meta_count=15)))
    assert sorted(counts[1]) == [3, 4, 4, 4]


@pytest.mark.parametrize("folds", [2, 5, 7])
def test_folds_share_no_row_and_have_all(folds):
    rows = []
    for fold in range(folds):
        parts = split(dataset(), hold_out=HoldOut(folds=folds, fold=fold))
        counts = apart(parts)
        assert all(n // folds <= c <= -(-n // folds) for n, c in zip(SIZES, counts[1], strict=True))
        assert abs(len(parts.meta) - sum(SIZES) / folds) < 1
        rows.append(parts.meta.row)
    assert sorted(np.concatenate(rows)) == list(range(sum(SIZES)))


def test_the_seed_of_the_split_is_not_that_of_the_noise():
    a, b, c = (
        split(dataset(), noise="uniform:0.5", seed=noise, hold_out=HoldOut(held, meta_count=8, val_fraction=0.2))
        for held, noise in ((0, 0), (0, 1), (1, 0))
    )
    for part in ("meta", "val", "train"):
        assert np.array_equal(getattr(a, part).row, getattr(b, part).row)
        assert not np.array_equal(getattr(a, part).row, getattr(c, part).row)
    assert not np.array_equal(a.train.y, b.train.y)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"meta_count": 3}, "data.meta_count=3 is fewer than one row for each of 4 classes"),
        (
            {"meta_count": 24},
            "asks for 6 rows of class 3, which has 6, and one stays in train.*--data.no-meta-balanced",
        ),
        ({"meta_count": 95, "balanced": False}, "data.meta_count=95 asks for .* take fewer$"),
        ({"folds": 97}, "data.folds=97 is more than the 96 training rows"),
    ],
)
def test_what_cannot_be_held_out(options, message):
    with pytest.raises(InputError, match=message):
        split(dataset(), hold_out=HoldOut(**options))


@pytest.mark.parametrize("option", [{"meta_count": 20}, {"folds": 5}])
def test_a_clean_set_of_ones_own_stays(option):
    brought = dataset(x_meta=np.array([[-1.0], [-2.0]]), y_meta=[0, 1])
    with pytest.raises(InputError, match=r"holds out a clean set, and set brings its own; leave it out"):
        split(brought, hold_out=HoldOut(**option))
    with pytest.raises(InputError, match=r"holds out a clean set, and set names its own in meta_index"):
        split(dataset(meta_index=[0, 60]), hold_out=HoldOut(**option))
    # all labels of the digits are right, so other rows are as good
    digits = load_dataset("digits")
    parts = split(digits, hold_out=HoldOut(**option))
    assert len(parts.meta) == option.get("meta_count", 280)
    assert len(parts.meta) + len(parts.train) == 1400


def test_equal_features_of_a_clean_set_are_counted():
    parts = split(dataset(x_meta=np.array([[1.0], [-2.0]]), y_meta=[0, 1]))
    assert parts.overlap == 1
    assert parts.overlap_told == "overlap of train with clean rows: 1"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"meta_count": 1}, "data.meta_count must be 0 or at least 2, got 1"),
        ({"val_fraction": 1.0}, "data.val_fraction must lie strictly between 0 and 1"),
        ({"folds": 1}, "data.folds must be at least 2"),
        ({"fold": -1}, "data.fold must be at least 0"),
        ({"fold": 1}, "data.fold=1 is one of data.folds, which is not given"),
        ({"folds": 5, "fold": 5}, r"data.fold must lie in 0..4 for data.folds=5, got 5"),
        ({"folds": 5, "meta_count": 9}, "data.meta_count and data.folds both say which rows"),
        ({"split_seed": -1}, "data.split_seed must be at least 0"),
    ],
)
def test_options_that_cannot_be(options, message, tmp_path):
    with pytest.raises(InputError, match=message):
        fastmeta.train(TrainConfig(data=DataConfig(**options), out=str(tmp_path / "run")))
    assert not list(tmp_path.iterdir())


def test_runs_of_several_seeds_see_the_same_parts(tmp_path):
    """The digits' test and clean images too, unless the split is asked for by another seed."""

    def rows(seed, **options):
        config = TrainConfig(
            seed=seed,
            epochs=1,
            model="mlp",
            baselines="none",
            data=DataConfig(**options),
            out=str(tmp_path / f"{seed}-{len(options)}"),
        )
        run = fastmeta.train(config)
        with np.load(run.path / "labels.npz") as labels:
            return labels["index"], labels["true"], labels["given"], run.config.data.split_seed

    a, b, c = rows(0), rows(3), rows(3, split_seed=3)
    assert np.array_equal(a[0], b[0])
    assert np.array_equal(a[1], b[1])
    assert not np.array_equal(a[2], b[2])
    assert not np.array_equal(b[1], c[1])
    assert (a[3], b[3], c[3]) == (0, 0, 3)


def test_a_run_validates_and_goes_on(tmp_path, monkeypatch, capsys):
    """Its figures are in each line of metrics and in the summary; a stopped run ends as the whole one."""
    monkeypatch.chdir(tmp_path)
    line = ["train", "--data.val-fraction", "0.1", "--data.meta-count", "40", "--epochs", "3", "--baselines", "noisy"]
    assert main([*line, "--model", "mlp", "--out", "whole"]) == 0
    said = capsys.readouterr().out
    assert "1,223 train (72.9% of the labels wrong), 40 clean, 397 test" in said
    assert "137 rows to validate on" in said
    assert "overlap of train with clean and validation rows: 0" in said
    summary = json.loads((tmp_path / "whole/summary.json").read_text())
    assert (summary["val_size"], summary["meta_size"], summary["overlap"]) == (137, 40, 0)
    for name, figures in (("instance_labels", summary), ("noisy", summary["baselines"]["noisy"])):
        lines = [json.loads(text) for text in (tmp_path / "whole/metrics.jsonl").read_text().splitlines()]
        rows = {row["epoch"]: row for row in lines if row["run"] == name}
        best = max((1, 2, 3), key=lambda epoch: rows[epoch]["val_accuracy"])
        assert figures["val_accuracy_last"] == rows[3]["val_accuracy"]
        assert figures["val_accuracy_best"] == rows[best]["val_accuracy"]
        assert figures["val_accuracy_best_epoch"] == best
        assert figures["test_accuracy_at_best_val"] == rows[best]["test_accuracy"]
    config = dataclasses.replace(TrainConfig.read("whole/config.toml"), out="run", checkpoint_seconds=0)
    with pytest.raises(Interrupted):
        fastmeta.train(config, listener=Kill(signal.SIGTERM, "instance_labels", 25))
    fastmeta.train(resume="run")
    changed = json.loads((tmp_path / "run/summary.json").read_text())
    assert {k: changed[k] for k in changed if k.startswith(("val", "test"))} == {
        k: summary[k] for k in summary if k.startswith(("val", "test"))
    }


def test_a_run_that_began_before_splits_had_a_seed_goes_on(tmp_path):
    """They went by the run's."""
    from fastmeta.training.rundir import checkpoint

    data = two_classes()
    settings = {"seed": 2, "epochs": 4, "model": "mlp", "checkpoint_seconds": 0, "baselines": "none"}
    parts = DataConfig(split_seed=2, batch_size=8)
    whole, run = (TrainConfig(**settings, data=parts, out=str(tmp_path / name)) for name in ("whole", "run"))
    fastmeta.train(whole, data=data)
    with pytest.raises(Interrupted):
        fastmeta.train(run, data=data, listener=Kill(signal.SIGTERM, "instance_labels", 12))
    config, state = tmp_path / "run/config.toml", tmp_path / "run/checkpoint/state.safetensors"
    config.write_text(config.read_text().replace("split_seed = 2\n", ""))
    tensors, values = checkpoint.load(state)
    del values["config"]["data"]["split_seed"]
    checkpoint.save(state, tensors, values)
    fastmeta.train(resume=tmp_path / "run", data=data)
    config.write_text((tmp_path / "whole/config.toml").read_text())
    assert_same(tmp_path / "run", tmp_path / "whole")
