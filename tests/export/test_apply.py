"""Learned labels in the file that they are of: all else in it stays."""

import csv
import io
import json
import os
from importlib.util import find_spec
from urllib.parse import unquote

import numpy as np
import pytest

from fastmeta.cli import main
from fastmeta.data import InputError, load_dataset
from fastmeta.export import apply, export
from fastmeta.training import TrainConfig, train
from fastmeta.training.rundir import run_labels
from tests.support.finished import EXACT, changed, small_run, withheld
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


@pytest.mark.parametrize("nested", [False, True])
def test_of_a_folder_of_arrays_the_file_of_labels_changes(nested, tmp_path, capsys):
    place = tmp_path / "set"
    for name, array in two_classes().items():
        inside = "train/y_true.npy" if name == "y_true" else f"{name[2:]}/{name[0]}.npy"
        path = place / (inside if nested and name[1] == "_" else f"{name}.npy")
        path.parent.mkdir(parents=True, exist_ok=True)
        np.save(path, array)
    values = {"dataset": f"npy:{place}", "model": "mlp", "epochs": 3, "threads": 1, "baselines": "none"}
    labels = {"update": "exact", "label_step": 3.0, "warmup_epochs": 0}
    own = train(TrainConfig.from_mapping(values | {"labels": labels, "out": str(tmp_path / "run")})).path
    out, (y, before) = (
        tmp_path / "out",
        ("train/y.npy", "train/y_given.npy") if nested else ("y_train.npy", "y_given.npy"),
    )
    assert main(["labels", "apply", str(own), "--to", str(out), *(["--copy"] if nested else [])]) == 0
    assert ("are hard links" in " ".join(capsys.readouterr().out.split())) == (not nested)
    learned = run_labels(own)
    assert (learned.learned != learned.given).any()
    assert tree(out).keys() == tree(place).keys() | {before}
    for name, content in tree(place).items():
        assert (tree(out)[name] == content) == (name != y)
    assert np.array_equal(np.load(out / before), np.load(place / y))
    data = load_dataset(f"npy:{out}")
    assert data.notes == ()
    assert np.array_equal(data.train.targets[learned.row], learned.learned)
    with pytest.raises(InputError, match="lies in the data set"):
        apply(own, place / "new")


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
    for place in (tmp_path / "there" / "x.npz", tmp_path / ("x" * 300)):
        with pytest.raises(InputError, match="cannot write"):
            apply(run, place)


def test_data_that_have_changed_are_refused(run, tmp_path):
    with np.load(run / "labels.npz") as file:
        given = file["given"]
    given[3] = 1 - given[3]
    with pytest.raises(InputError, match=r"is not what the run was trained on: row 3 has label .*, the run was given"):
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


def table(count=60):
    """Rows of a CSV with a column of notes; every tenth label is wrong; the last ones are clean and test rows."""
    rng = np.random.default_rng(0)
    y = np.arange(count) % 2
    names = ["bent, a bit", 'so "so"']
    given = np.where((np.arange(count) % 10 == 0) & (np.arange(count) < 40), 1 - y, y)
    part = np.where(np.arange(count) < 40, "train", np.where(np.arange(count) < 50, "meta", "test"))
    x = rng.normal(0, 0.3, (count, 2)) + 2 * y[:, None]
    rows = [
        {"a": str(x[k, 0]), "kind": names[given[k]], "b": str(x[k, 1]), "note": f"n;{k}", "part": str(part[k])}
        for k in rng.permutation(count)
    ]
    return rows, names


def trained(dataset, folder):
    values = {
        "dataset": dataset,
        "model": "mlp",
        "epochs": 5,
        "threads": 1,
        "out": str(folder / "run"),
        "labels": {"update": "exact", "label_step": 3.0, "warmup_epochs": 0},
    }
    data = {"label_column": "kind", "split_column": "part"}
    return train(TrainConfig.from_mapping(values | {"data": data}), listener=Warnings()).path


def expected(rows, names, run):
    """The cells of the label column: those of rows that were trained on are learned."""
    labels, cells = run_labels(run), [row["kind"] for row in rows]
    own = [k for k, row in enumerate(rows) if row["part"] == "train"]
    for row, learned in zip(labels.row, labels.learned, strict=True):
        cells[own[row]] = names[learned]
    assert cells != [row["kind"] for row in rows]
    return cells


def test_a_table_of_text(tmp_path):
    """One column changes; separators, a byte order mark and line ends stay."""
    rows, names = table()
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, rows[0], delimiter=";", lineterminator="\r\n")
    writer.writeheader()
    writer.writerows(rows)
    (tmp_path / "t.csv").write_bytes(b"\xef\xbb\xbf" + text.getvalue().encode())
    run = trained(f"csv:{tmp_path / 't.csv'}", tmp_path)
    out = apply(run, tmp_path / "out.csv").path.read_bytes()
    assert out.startswith(b"\xef\xbb\xbfa;kind;b;note;part\r\n")
    after = list(csv.DictReader(io.StringIO(out.decode("utf-8-sig"), newline=""), delimiter=";"))
    cells = expected(rows, names, run)
    assert after == [{**row, "kind": cell} for row, cell in zip(rows, cells, strict=True)]
    (tmp_path / "t.csv").write_text(text.getvalue().replace("train", "meta", 1))
    with pytest.raises(InputError, match="is not what the run was trained on"):
        apply(run, tmp_path / "again.csv")


def test_a_table_of_parquet(tmp_path):
    arrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    rows, names = table()
    columns = {k: [float(r[k]) if k in "ab" else r[k] for r in rows] for k in rows[0]}
    before = arrow.table(columns)
    before = before.set_column(1, "kind", before.column("kind").dictionary_encode())
    parquet.write_table(before, tmp_path / "t.parquet")
    run = trained(f"parquet:{tmp_path / 't.parquet'}", tmp_path)
    after = parquet.read_table(apply(run, tmp_path / "out.parquet").path)
    assert after.schema.names == before.schema.names
    assert after.column("kind").to_pylist() == expected(rows, names, run)
    assert arrow.types.is_dictionary(after.schema.field("kind").type)
    for name in ("a", "b", "note", "part"):
        assert after.column(name).equals(before.column(name))


def test_a_folder_of_images_names_its_files(tmp_path):
    image = pytest.importorskip("PIL.Image")
    arrays = two_classes()
    for k, (pixels, given) in enumerate(zip(arrays["x_train"], arrays["y_train"], strict=True)):
        place = tmp_path / "images" / ("dark", "bright one")[given] / f"{k} %.png"
        place.parent.mkdir(parents=True, exist_ok=True)
        image.fromarray(pixels[..., 0]).save(place)
    config = TrainConfig(
        dataset=f"folder:{tmp_path / 'images'}",
        model="mlp",
        epochs=4,
        threads=1,
        out=str(tmp_path / "run"),
        labels=EXACT,
    )
    run = train(config, listener=Warnings()).path
    with open(export(run, "csv").path, newline="") as file:
        rows = list(csv.DictReader(file))
    assert all(row["file"].startswith(f"{row['given_label']}/") for row in rows)
    assert all((tmp_path / "images" / row["file"]).is_file() for row in rows)
    task = json.loads(export(run, "labelstudio", top=1).path.read_text())[0]
    assert task["data"]["image"].startswith("/data/local-files/?d=")
    assert (tmp_path / "images" / unquote(task["data"]["image"].partition("=")[2])).is_file()


def tree(root):
    return {str(p.relative_to(root)): p.read_bytes() for p in sorted(root.rglob("*")) if p.is_file()}


@pytest.fixture(scope="module")
def of_images(tmp_path_factory):
    """A run of images below train/, a tenth of them in the folder of the other class, and their folder."""
    from PIL import Image

    place = tmp_path_factory.mktemp("of_images") / "set"
    arrays, names = two_classes(), ("dark", "bright one")
    for part in ("train", "meta", "test"):
        for k, (pixels, c) in enumerate(zip(arrays[f"x_{part}"], arrays[f"y_{part}"], strict=True)):
            path = place / part / names[c] / ("deep" if k % 3 else "") / f"{k // 2}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            while path.exists():  # names that stand in both classes, and a few of their own
                path = path.with_stem(f"{path.stem}x")
            Image.fromarray(pixels[..., 0]).save(path)
    (place / "train" / "empty").mkdir()
    (place / "train/dark/broken.png").write_bytes(b"none")
    (place / "train/dark/notes.txt").write_text("mine")
    config = TrainConfig.from_mapping(
        {"dataset": f"folder:{place}", "model": "mlp", "epochs": 4, "threads": 1, "out": str(place.parent / "run")}
        | {"labels": {"update": "exact", "label_step": 3.0, "warmup_epochs": 0}, "data": {"skip_corrupt": True}}
    )
    return train(config, listener=Warnings()).path, place


@pytest.mark.parametrize("copy", [False, True])
def test_images_lie_in_the_folder_of_their_learned_class(copy, of_images, tmp_path, capsys):
    run, place = of_images
    before, to = tree(place), tmp_path / "new" / "set"
    assert main(["labels", "apply", str(run), "--to", str(to), *(["--copy"] if copy else [])]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert tree(place) == before
    assert ("are hard links" in said) == (not copy)
    some = place / "test/dark/0.png"
    assert (to / "test/dark/0.png").samefile(some) == (not copy)
    labels, data, after = run_labels(run), load_dataset(f"folder:{place}", skip_corrupt=True), tree(to)
    assert "1 files of" in said  # notes.txt
    assert sorted(after.values()) == sorted(v for k, v in before.items() if not k.endswith(".txt"))
    assert {k for k in after if not k.startswith("train")} == {k for k in before if not k.startswith("train")}
    assert "train/dark/broken.png" in after
    moved = labels.learned != labels.given
    assert moved.any()
    for row, learned, other in zip(labels.row, labels.learned, moved, strict=True):
        name, there = data.row_names[row], data.class_names[learned]
        if not other:
            assert after[name] == before[name]
        else:
            inside = name.split("/", 2)[2]
            assert any(
                after.get(f"train/{there}/{n}") == before[name]
                for n in (inside, f"{inside[:-4]}_dark.png", f"{inside[:-4]}_bright one.png")
            )
    again = load_dataset(f"folder:{to}", skip_corrupt=True)
    assert again.class_names == data.class_names
    assert len(again.train) == len(data.train)
    assert np.array_equal(np.bincount(again.train.targets), np.bincount(labels.learned))
    assert (to.stat().st_mode & 0o777) == 0o777 & ~os.umask(os.umask(0o022))


def test_labels_that_a_noise_file_gave_are_not_where_images_lie(of_images, tmp_path):
    run, place = of_images
    data = load_dataset(f"folder:{place}", skip_corrupt=True)
    np.savez(tmp_path / "n.npz", labels=np.roll(data.train.targets, 1))
    values = TrainConfig.read(run / "config.toml").to_mapping()
    values |= {"out": str(tmp_path / "run"), "noise": f"file:{tmp_path / 'n.npz'}", "epochs": 2}
    labels = run_labels(train(TrainConfig.from_mapping(values), listener=Warnings()).path)
    again = load_dataset(f"folder:{apply(labels.path, tmp_path / 'x').path}", skip_corrupt=True)
    assert np.array_equal(np.bincount(again.train.targets), np.bincount(labels.learned, minlength=2))


def test_a_folder_that_would_be_lost_or_mixed_is_refused(of_images, tmp_path, run):
    own, place = of_images
    before = tree(place.parent)
    for to, message in (
        (place, "is the data set itself"),
        (place / "train" / "new", "lies in the data set, and would be a part of it"),
        (place.parent / "run", "is there already"),
        (place / "test/dark/0.png/x", "lies in the data set"),
        (tmp_path / "file" / "x", "cannot write"),
    ):
        (tmp_path / "file").write_text("mine")
        with pytest.raises(InputError, match=message):
            apply(own, to)
    assert tree(place.parent) == before
    assert sorted(p.name for p in tmp_path.iterdir()) == ["file"]
    with pytest.raises(InputError, match="copy is about folders"):
        apply(run, tmp_path / "x.npz", copy=True)


def test_a_disk_that_is_full_leaves_nothing(of_images, tmp_path, monkeypatch):
    def full(old, new):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("shutil.copy2", full)
    with pytest.raises(InputError, match="No space left on device"):
        apply(of_images[0], tmp_path / "x", copy=True)
    assert not list(tmp_path.iterdir())


def test_names_that_are_no_unicode(tmp_path):
    """As folders and files may be called."""
    from PIL import Image

    rng, names = np.random.default_rng(0), [os.fsdecode(name) for name in (b"a\xff", b"b\n<i>&")]
    for name in names:
        for k in range(12):
            path = tmp_path / "set" / name / f"{os.fsdecode(bytes([0xFE]))}{k}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(rng.integers(0, 255, (4, 4, 3)).astype(np.uint8)).save(path, "PNG")
    run = train(
        TrainConfig(
            dataset=f"folder:{tmp_path / 'set'}",
            model="mlp",
            epochs=3,
            threads=1,
            labels=EXACT,
            baselines="none",
            out=str(tmp_path / "run"),
        ),
        listener=Warnings(),
    )
    for form in ("csv", "npz", "cleanlab", "labelstudio", *(("parquet", "hf") if find_spec("pyarrow") else ())):
        assert export(run.path, form).rows == 20
    assert len(tree(apply(run.path, tmp_path / "out").path)) == 24
    if find_spec("pandas"):
        assert run.labels_table()["given"].cat.categories.tolist() == ["a\\udcff", "b\n<i>&"]
