"""``csv:PATH`` and ``parquet:PATH``: what becomes a feature, what a class, and which row is at fault."""

import builtins
import json

import numpy as np
import pytest

from fastmeta.cli import main
from fastmeta.data import InputError, load_dataset, split

LINES = ["a,b,label", "1,0.5,yes", "2,-1e3,no", "3,.25,yes", "4,7,maybe"]


@pytest.fixture
def csv(tmp_path):
    def write(lines, encoding="utf-8"):
        (tmp_path / "t.csv").write_bytes("\n".join(lines).encode(encoding))
        return f"csv:{tmp_path / 't.csv'}"

    return write


def test_numbers_are_features_and_words_are_classes(csv):
    data = load_dataset(csv(LINES))
    assert data.train.x.tolist() == [[1, 0.5], [2, -1000], [3, 0.25], [4, 7]]
    assert data.train.x.dtype == np.float32
    assert data.class_names == ("maybe", "no", "yes")
    assert data.train.targets.tolist() == [2, 1, 2, 0]


@pytest.mark.parametrize("delimiter", [",", ";", "\t", "|"])
@pytest.mark.parametrize(("encoding", "end"), [("utf-8", ""), ("utf-8-sig", "\r")])
def test_forms_that_tables_come_in(delimiter, encoding, end, csv):
    data = load_dataset(csv([line.replace(",", delimiter) + end for line in LINES], encoding))
    assert data.train.x.shape == (4, 2)
    assert data.class_names == ("maybe", "no", "yes")


def test_a_cell_in_quotes_may_hold_the_delimiter(csv):
    data = load_dataset(csv(["a,label", '1,"x, y"', '2,"""z"""']))
    assert data.class_names == ('"z"', "x, y")


def test_whole_numbers_are_classes_in_the_order_of_numbers(csv):
    data = load_dataset(csv(["a,class", "1,10", "2,9", "3,2"]))
    assert data.class_names == ("2", "9", "10")
    assert data.train.targets.tolist() == [2, 1, 0]


def test_a_column_that_counts_the_rows_is_told(csv):
    lines = [f"{k + 7},{k * k},{'xy'[k > 5]}" for k in range(12)]
    (note,) = load_dataset(csv(["id,a,label", *lines])).notes
    assert "column 'id' counts the rows and is taken for a feature" in note
    assert load_dataset(csv(["id,a,label", *reversed(lines)])).notes == ()


def test_columns_by_name(csv):
    """Truth is for measuring; clean rows and test rows have it for a label."""
    spec = csv(
        [
            "x,part,given,right",
            "1,train,a,b",
            "2,train,b,b",
            "3,clean,a,b",
            "4,meta,a,a",
            "5,test,b,a",
        ]
    )
    data = load_dataset(spec, label_column="given", truth_column="right", split_column="part")
    assert data.train.x.tolist() == [[1], [2]]
    assert data.y_true.tolist() == [1, 1]
    assert data.train.targets.tolist() == [0, 1]
    assert data.meta.targets.tolist() == [1, 0]
    assert data.meta_given.tolist() == [0, 0]
    assert data.test.targets.tolist() == [0]
    assert split(data).noise_rate == 0.5


@pytest.mark.parametrize("words", [("no", "yes"), ("4", "7")])
def test_rows_that_were_checked_are_the_clean_ones(words, csv):
    """Nobody knows the right labels of others, so their cells are empty."""
    lines = ["a,label,checked,part", "1,N,,train", "2,N,,train", "3,Y,,train", "4,Y,N,meta", "5,Y,Y,test"]
    lines = [line.replace("N", words[0]).replace("Y", words[1]) for line in lines]
    options = {"truth_column": "checked", "split_column": "part"}
    data = load_dataset(csv(lines), **options)
    assert (data.train.targets.tolist(), data.y_true) == ([0, 0, 1], None)
    assert (data.meta.targets.tolist(), data.test.targets.tolist()) == ([0], [1])
    assert data.class_names == words
    assert (
        "column 'checked' is empty in 3 training rows: labels of these are learned, and not measured" in data.notes[0]
    )
    known = load_dataset(csv([line.replace(",,", f",{words[0]},") for line in lines]), **options)
    assert (known.y_true.tolist(), known.notes) == ([0, 0, 0], ())
    with pytest.raises(InputError, match="'checked' has no label in row 3, in 1 meta or test row"):
        load_dataset(csv([*lines[:4], f"4,{words[1]},,meta", lines[5]]), **options)
    with pytest.raises(InputError, match=r"in row 0, in 3 row\(s\); fill these, or say .*--data.split-column"):
        load_dataset(csv([line.rpartition(",")[0] for line in lines]), truth_column="checked")


def test_columns_of_words_and_of_row_numbers_are_no_features(csv):
    data = load_dataset(csv([",name,a,flag,label", "0,x,1,True,u", "1,y,2,false,v"]))
    assert data.train.x.tolist() == [[1, 1], [2, 0]]
    assert data.notes == (f"{data.name}: 2 of 5 columns are no features: '', name",)


@pytest.mark.parametrize(
    ("lines", "options", "message"),
    [
        (["a,b", "1,2"], {}, "no column is called label, target, class, y; say which holds the labels, --data.label-c"),
        (LINES, {"label_column": "c"}, "no column 'c' for data.label_column, found a, b, label"),
        (LINES, {"truth_column": "c"}, "no column 'c' for data.truth_column"),
        (["a,label", "1,x", ",y", "nan,x"], {}, r"column 'a' is empty or NaN in row 1, in 2 row\(s\)"),
        (["a,label", "1,x", "inf,y"], {}, "column 'a' holds inf in row 1"),
        (["a,label", "1,x", "1e99,y"], {}, "column 'a' holds 1e.99 in row 1"),
        (["a,label", "1,x", "2,y", "oops,x"], {}, r"column 'a' holds 'oops' in row 2, among numbers, in 1 row\(s\)"),
        (["a,label", "1,x", "2,"], {}, "column 'label' has no label in row 1"),
        (["a,label", "1,1", "2,"], {}, "column 'label' has no label in row 1"),
        (["a,label", "1,0.5", "2,1.5"], {}, "column 'label' holds numbers such as 0.5, which are no classes"),
        (
            ["a,label", "1,0", "2,-100", "3,1"],
            {},
            r"'label' holds -100 in 1 row\(s\), the first is row 1; .*ignore_",
        ),
        (["a,label", "1,0", "2,255", "3,1"], {}, r"'label' holds 255 in 1 row\(s\), the first is row 1"),
        (["a,label", "1,-1", "2,1"], {}, "must start from 0, got -1 to 1"),
        (["a,label", "1,x", "2,x"], {}, r"one class only \(x\)"),
        (["a,label", "x,x", "y,y"], {}, "no column of numbers is left beside the labels"),
        (["a;label", "1,5;x", "2,5;y"], {}, "write them with a point, 1.5, not with a comma"),
        (LINES, {"truth_column": "label"}, "data.truth_column names 'label', which holds labels already; leave it out"),
        (["a,label", "1,1.0", "2,1.5"], {}, "holds numbers such as 1.5, which are no classes; .* or words$"),
        (["a,label", "1,1.0", "2,2.0"], {}, r"such as 1.0, which are no classes; .*; write these without a point, as"),
        (["a,label,p", "1,x,train", "2,y,val"], {"split_column": "p"}, "got 'val' in row 1; data.val_fraction"),
        (["a,label,p", "1,x,test", "2,y,test"], {"split_column": "p"}, "column 'p' puts no row into train"),
        (["1,2,3", "1,2,3"], {}, "has no header: its first line '1,2,3' holds numbers"),
        (["a,a", "1,2"], {}, "has the column 'a' twice"),
        (["a,label", "1"], {}, "has 1 cells for 2 columns in record 2"),
        (["a,label"], {}, "has no row below its header"),
        ([], {}, "has no row below its header"),
    ],
)
def test_what_is_wrong_is_named(lines, options, message, csv):
    with pytest.raises(InputError, match=message) as error:
        load_dataset(csv(lines), **options)
    assert "\n" not in str(error.value)


def test_files_that_are_no_table(tmp_path):
    (tmp_path / "b.csv").write_bytes(b"\xff\xfe\x00")
    for name, message in (("a.csv", "does not exist"), ("b.csv", "no table|cannot be read as a table in UTF-8")):
        with pytest.raises(InputError, match=message):
            load_dataset(f"csv:{tmp_path / name}")
    with pytest.raises(InputError, match=r"did you mean csv:my\.csv\?"):
        load_dataset("my.csv")
    with pytest.raises(InputError, match=r"data.label_column is about csv:PATH and parquet:PATH, and the data set is"):
        load_dataset("digits", label_column="a")


def test_a_run_of_a_table(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(0)
    rows = [f"{rng.normal() + 2 * (i % 2)},{rng.normal()},{['no', 'yes'][i % 2]}" for i in range(60)]
    (tmp_path / "t.csv").write_text("\n".join(["a,b,answer", *rows]))
    line = ["train", "--dataset", "csv:t.csv", "--data.label-column", "answer", "--noise", "pair:0.3", "--epochs", "1"]
    assert main([*line, "--out", "run"]) == 0
    summary = json.loads((tmp_path / "run/summary.json").read_text())
    assert summary["class_names"] == ["no", "yes"]
    assert summary["input_shape"] == [2]


def test_parquet_says_what_it_needs(tmp_path, monkeypatch):
    (tmp_path / "t.parquet").write_bytes(b"x")
    real = builtins.__import__

    def absent(name, *rest):
        if name.startswith("pyarrow"):
            raise ImportError(name)
        return real(name, *rest)

    monkeypatch.setattr(builtins, "__import__", absent)
    with pytest.raises(InputError, match=r"needs pyarrow, which is not installed: pip install 'fastmeta\[parquet\]'"):
        load_dataset(f"parquet:{tmp_path / 't.parquet'}")


def test_parquet_is_read_as_csv_is(tmp_path, csv):
    pyarrow = pytest.importorskip("pyarrow", reason="parquet:PATH is read by pyarrow")
    from pyarrow import parquet

    table = {"a": [1, 2, 3, 4], "b": [0.5, -1e3, 0.25, 7.0], "label": ["yes", "no", "yes", "maybe"]}
    parquet.write_table(pyarrow.table(table), tmp_path / "t.parquet")
    ours, theirs = load_dataset(f"parquet:{tmp_path / 't.parquet'}"), load_dataset(csv(LINES))
    assert ours.class_names == theirs.class_names
    assert np.array_equal(ours.train.x, theirs.train.x)
    assert np.array_equal(ours.train.targets, theirs.train.targets)
    for column, values, message in (
        ("b", [0.5, None, 0.25, 7.0], "column 'b' is empty or NaN in row 1"),
        ("label", ["yes", None, "yes", "no"], "column 'label' has no label in row 1"),
        ("label", [1.0, 0.0, 1.0, 0.0], "holds numbers such as 1.0, which are no classes"),
    ):
        parquet.write_table(pyarrow.table({**table, column: values}), tmp_path / "t.parquet")
        with pytest.raises(InputError, match=message):
            load_dataset(f"parquet:{tmp_path / 't.parquet'}")
    (tmp_path / "t.parquet").write_bytes(b"no parquet")
    with pytest.raises(InputError, match="cannot be read as Parquet"):
        load_dataset(f"parquet:{tmp_path / 't.parquet'}")


def test_what_parquet_has_beside_numbers_and_words(tmp_path):
    arrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    from decimal import Decimal

    def data(table):
        parquet.write_table(table, tmp_path / "t.parquet")
        return load_dataset(f"parquet:{tmp_path / 't.parquet'}")

    made = data(arrow.table({"a": [Decimal("1.5"), Decimal("2.5")], "label": [b"x", "\u00e4".encode()]}))
    assert made.train.x.tolist() == [[1.5], [2.5]]
    assert made.class_names == ("x", "\u00e4")
    for table, message in (
        (
            arrow.table([[1.0, 2.0], [1.0, 2.0], [0, 1]], names=["a", "a", "label"]),
            "has the column 'a' twice; give one",
        ),
        (arrow.table({"a": [1.0, None], "label": [0, 1]}), "column 'a' is empty or NaN in row 1"),
        (arrow.table({"a": [1.0, 2.0], "label": [0, None]}), "column 'label' has no label in row 1"),
    ):
        with pytest.raises(InputError, match=message):
            data(table)


def test_a_parquet_that_is_larger_than_memory(tmp_path, monkeypatch):
    arrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    parquet.write_table(arrow.table({"a": np.zeros(1000), "label": np.arange(1000) % 2}), tmp_path / "t.parquet")
    monkeypatch.setattr("fastmeta.data.sources.parquet.free_memory", lambda: 24 * 2000 - 1)
    with pytest.raises(InputError, match=r"holds 1,000 rows of 2 columns, which take .* take fewer rows"):
        load_dataset(f"parquet:{tmp_path / 't.parquet'}")
