"""Labels in the forms of other tools: what stands in each row is what the run has learned."""

import base64
import csv
import json
import shutil
import sys
import xml.etree.ElementTree as ElementTree
from dataclasses import replace

import numpy as np
import pytest

from fastmeta.cli import main
from fastmeta.data import InputError, load_dataset
from fastmeta.export import FORMATS, export, samples_of
from fastmeta.training import DataConfig, TrainConfig, train
from fastmeta.training.rundir import run_labels
from tests.support.finished import NAMES, changed, small_run, withheld
from tests.support.runs import Warnings


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return small_run(tmp_path_factory.mktemp("export"))


@pytest.fixture(scope="module")
def mixed(run, tmp_path_factory):
    """With rows in another order than the data set's, and figures of their own."""
    rng = np.random.default_rng(0)
    order, given = rng.permutation(80), np.arange(80) % 2
    return changed(
        run,
        tmp_path_factory.mktemp("mixed") / "run",
        index=order + 100,
        given=given,
        learned=np.where(np.arange(80) % 5 == 0, 1 - given, given),
        label_quality=rng.random(80).astype(np.float32),
        true=None,
    )


def rows_of(path):
    with open(path, newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_every_format_has_its_file_and_says_what_it_is(mixed, capsys):
    pytest.importorskip("pyarrow")
    for name, chosen in FORMATS.items():
        assert main(["labels", "export", str(mixed), "--format", name]) == 0
        said = " ".join(capsys.readouterr().out.split())
        assert (mixed / "export" / chosen.name).exists()
        assert f"wrote {mixed / 'export' / chosen.name}: 80 rows, 16 with another label" in said
        assert f"classes, by their numbers from 0 on: {NAMES[0]}, {NAMES[1]}" in said
        assert "learned labels are in-sample" in said


def test_tables_are_in_the_order_of_the_data(mixed, tmp_path):
    labels = run_labels(mixed)
    assert (np.diff(labels.row) > 0).all()
    with np.load(mixed / "labels.npz") as file:
        of_row = {int(r): k for k, r in enumerate(file["index"])}
        at = [of_row[r] for r in range(100, 180)]
        given, learned, quality = file["given"][at], file["learned"][at], file["label_quality"][at]
    table = rows_of(export(mixed, "csv", tmp_path / "t.csv").path)
    frame = rows_of(export(mixed, "cleanlab", tmp_path / "c.csv").path)
    with np.load(export(mixed, "npz", tmp_path / "n.npz").path) as arrays:
        assert arrays["row"].tolist() == list(range(100, 180))
        assert (arrays["learned"] == learned).all()
        assert arrays["class_names"].tolist() == NAMES
        assert "in-sample" in str(arrays["note"])
    assert list(frame[0]) == ["row", "is_label_issue", "label_quality", "given_label", "predicted_label"]
    for k in range(80):
        row, one = frame[k], table[k]
        assert (int(row["row"]), int(one["row"])) == (100 + k, 100 + k)
        assert row["given_label"] == one["given_label"] == NAMES[given[k]]
        assert row["predicted_label"] == one["learned_label"] == NAMES[learned[k]]
        assert row["is_label_issue"] == one["changed"] == str(given[k] != learned[k])
        assert float(row["label_quality"]) == float(one["label_quality"]) == quality[k]
    assert "true_label" not in table[0]


def test_the_frame_is_as_cleanlabs(mixed, tmp_path):
    pandas = pytest.importorskip("pandas")
    pytest.importorskip("pyarrow")
    text = pandas.read_csv(export(mixed, "cleanlab", tmp_path / "c.csv").path, index_col="row")
    assert text.dtypes["is_label_issue"].kind == "b"
    binary = pandas.read_parquet(export(mixed, "cleanlab", tmp_path / "c.parquet").path).set_index("row")
    pandas.testing.assert_frame_equal(text, binary)


def test_parquet_knows_its_classes(mixed, tmp_path):
    parquet = pytest.importorskip("pyarrow.parquet")
    table = parquet.read_table(export(mixed, "parquet", tmp_path / "t.parquet").path)
    assert json.loads(table.schema.metadata[b"class_names"]) == NAMES
    assert table["learned_label"].to_pylist() == [r["learned_label"] for r in rows_of(_csv(mixed, tmp_path))]


def _csv(run, folder):
    return export(run, "csv", folder / "x.csv").path


def test_a_folder_for_datasets(mixed, tmp_path):
    """Read back by datasets where it is there; what it goes by stands in the metadata, and that is always looked at."""
    parquet = pytest.importorskip("pyarrow.parquet")
    folder = export(mixed, "hf", tmp_path / "hf").path
    (file,) = folder.glob("data/train-*.parquet")
    features = json.loads(parquet.read_schema(file).metadata[b"huggingface"])["info"]["features"]
    assert features["learned"] == {"names": NAMES, "_type": "ClassLabel"}
    assert set(features) == set(parquet.read_schema(file).names)
    assert "in-sample" in (folder / "README.md").read_text()
    try:
        import datasets
    except ImportError:
        return
    made = datasets.load_dataset(str(folder), cache_dir=str(tmp_path / "cache"))["train"]
    labels = run_labels(mixed)
    assert made["learned"][:] == labels.learned.tolist()
    assert made.features["learned"].int2str(1) == NAMES[1]


def test_tasks_of_label_studio(run, tmp_path):
    path = export(run, "labelstudio", tmp_path / "tasks.json", top=5).path
    tasks, labels = json.loads(path.read_text()), run_labels(run)
    assert [task["data"]["row"] for task in tasks] == labels.row[labels.suspicious(5)].tolist()
    interface = ElementTree.parse(path.with_suffix(".xml")).getroot()
    (choices,) = interface.iter("Choices")
    assert [choice.get("value") for choice in choices] == NAMES
    (image,) = interface.iter("Image")
    for task in tasks:
        (result,) = task["predictions"][0]["result"]
        at = int(np.flatnonzero(labels.row == task["data"]["row"])[0])
        assert result["value"] == {"choices": [NAMES[labels.learned[at]]]}
        assert (result["from_name"], result["to_name"]) == (choices.get("name"), image.get("name"))
        assert choices.get("toName") == image.get("name")
        assert task["predictions"][0]["score"] == pytest.approx(labels.probability[at])
        head, content = task["data"]["image"].split(",")
        assert head == "data:image/png;base64"
        assert base64.b64decode(content).startswith(b"\x89PNG")
    assert all(labels.given[labels.suspicious(5)] != labels.learned[labels.suspicious(5)])


def test_rows_are_numbers_where_the_samples_cannot_be_had(mixed, tmp_path):
    """Its labels are not those of the file that it names."""
    tasks = json.loads(export(mixed, "labelstudio", tmp_path / "t.json").path.read_text())
    assert len(tasks) == 80
    labels = run_labels(mixed)
    first = labels.row[labels.suspicious(1)[0]]
    assert tasks[0]["data"]["text"] == f"row {first}"
    changed_first = [t["predictions"][0]["result"][0]["value"]["choices"] != [t["data"]["given_label"]] for t in tasks]
    assert changed_first == sorted(changed_first, reverse=True)


def test_the_most_suspicious_rows_alone_stay_in_order(mixed, tmp_path):
    rows = [int(r["row"]) for r in rows_of(export(mixed, "cleanlab", tmp_path / "c.csv", top=7).path)]
    labels = run_labels(mixed)
    assert rows == sorted(labels.row[labels.suspicious(7)].tolist())


def test_labels_that_are_withheld_need_force(run, tmp_path, capsys):
    held = withheld(run, tmp_path / "held")
    assert main(["labels", "export", str(held), "--format", "csv"]) == 2
    said = capsys.readouterr().err
    assert "are withheld, because canaries find them worse than the given ones: 90.0% right as given, 50.0%" in said
    assert "--force" in said
    assert said.count("\n") == 1
    assert not (held / "export").exists()
    assert main(["labels", "export", str(held), "--format", "csv", "--force"]) == 0
    table, plain = rows_of(held / "export" / "labels.csv"), rows_of(_csv(run, tmp_path))
    assert [r["learned_label"] for r in table] == [r["learned_label"] for r in plain]
    assert "learned_probability" not in table[0]  # which the file has of the given class alone
    forced = json.loads(export(held, "labelstudio", tmp_path / "t.json", force=True).path.read_text())
    assert "score" not in forced[0]["predictions"][0]


def test_a_run_without_learned_labels_has_none_to_hand_out(run, tmp_path):
    with np.load(run / "labels.npz") as file:
        given = file["given"]
    told = {"learns_labels": False, "method": "onehot"}
    fixed = changed(run, tmp_path / "fixed", told, learned=given)
    with pytest.raises(InputError, match="has no labels but the given ones: method onehot learns none"):
        export(fixed, "csv")
    read_otherwise = changed(run, tmp_path / "read", told)  # labels of a fine-tuned network
    assert export(read_otherwise, "csv").rows == 80


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["{run}", "--format", "xls"], "invalid choice: 'xls'"),
        (["{run}", "--format", "csv", "--top", "0"], "must be at least 1"),
        (["{run}/checkpoint", "--format", "csv"], "is no run directory"),
        (["{run}", "--format", "csv", "--out", "{run}/config.toml/x.csv"], "cannot write"),
        (["{run}", "--format", "cleanlab", "--out", "x.txt"], "a frame of cleanlab is written as .csv or .parquet"),
    ],
)
def test_what_is_refused_in_one_line(arguments, message, run, capsys):
    try:
        code = main(["labels", "export", *(word.format(run=run) for word in arguments)])
    except SystemExit as stop:
        code = stop.code
    said = capsys.readouterr().err
    assert code == 2
    assert message in said
    assert said.count("\n") == 1


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"learned": np.zeros(3, np.int64)}, "learned is int64 of shape"),
        ({"learned": np.full(80, 7)}, r"learned holds classes outside 0\.\.1"),
        ({"label_quality": np.full(80, np.nan)}, "label_quality holds numbers that are not finite"),
        ({"label_quality": None, "given_probability": np.full(80, np.nan)}, "given_probability holds numbers that are"),
        ({"entropy": None}, "array entropy is missing"),
    ],
)
def test_a_damaged_table_is_refused(arrays, message, run, tmp_path):
    with pytest.raises(InputError, match=message):
        export(changed(run, tmp_path / "bad", **arrays), "csv")


def test_a_run_that_is_not_finished_or_was_touched(run, tmp_path):
    shutil.copytree(run, tmp_path / "a")
    (tmp_path / "a" / "summary.json").unlink()
    with pytest.raises(InputError, match="is not finished: go on with fastmeta train --resume"):
        export(tmp_path / "a", "csv")
    shutil.copytree(run, tmp_path / "b")
    shutil.copy(changed(run, tmp_path / "c", entropy=np.ones(80)) / "labels.npz", tmp_path / "b" / "labels.npz")
    with pytest.raises(InputError, match=r"labels\.npz has changed since the run wrote it"):
        export(tmp_path / "b", "csv")


def test_without_pyarrow_the_way_is_said(run, monkeypatch):
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(ImportError, match="parquet needs pyarrow: pip install 'fastmeta"):
        export(run, "parquet")
    assert export(run, "csv").rows == 80


def test_samples_are_those_of_the_run_whatever_its_seeds(tmp_path):
    """The digits' parts go by a seed of their own; right labels tell whether they are the same, under noise too."""
    config = TrainConfig(
        seed=3, data=DataConfig(split_seed=5), epochs=1, threads=1, baselines="none", out=str(tmp_path / "run")
    )
    labels = run_labels(train(config, listener=Warnings()).path)
    samples = samples_of(labels)
    assert np.array_equal(samples.x[7], load_dataset("digits", seed=5).train.x[labels.row[7]])
    other = replace(labels.config, data=replace(labels.config.data, split_seed=4))
    assert samples_of(replace(labels, config=other)) is None
