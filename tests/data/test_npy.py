"""``npy:DIR``: where arrays lie, which files are none, and runs that are those of the same arrays in memory."""

import os
import pickle
import shutil
import signal
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

import fastmeta
from fastmeta.data import Features, Images, InputError, Pool, Settings, load_dataset, split
from fastmeta.data import npy_rows as module
from fastmeta.data.npy_rows import NpyFile, NpyRows
from fastmeta.data.row_sources import FeatureRows, ImageRows
from fastmeta.training import DataConfig, Interrupted, OptimConfig, TrainConfig
from tests.support.plugs import files
from tests.support.stopped import Kill

CPU = torch.device("cpu")


def arrays(kind):
    """Three classes; a label in five is wrong."""
    rng = np.random.default_rng(0)
    made = {"class_names": np.array(["ant", "bee", "cat"])}
    for part, n in (("train", 60), ("meta", 12), ("test", 15)):
        y = np.arange(n) % 3
        if kind == "images":
            x = rng.integers(0, 120, (n, 8, 6, 3)).astype(np.uint8) + (60 * y[:, None, None, None]).astype(np.uint8)
        else:
            x = (rng.normal(size=(n, 7)) + 2 * y[:, None]).astype(np.float32) * 10.0 ** np.arange(7, dtype=np.float32)
        made |= {f"x_{part}": x, f"y_{part}": y.astype(np.int32)}
    made["y_true"] = made["y_train"]
    made["y_train"] = np.where(np.arange(60) % 5 == 0, (made["y_true"] + 1) % 3, made["y_true"])
    return made


def flat(root, made):
    root.mkdir()
    for name, array in made.items():
        np.save(root / f"{name}.npy", array)
    return root


def nested(root, made):
    for name, array in made.items():
        short, part = {"y_true": ("y_true", "train")}.get(name, (name[0], name[2:]))
        if name == "class_names":
            short, part = name, "."
        (root / part).mkdir(parents=True, exist_ok=True)
        np.save(root / part / f"{short}.npy", array)
    return root


@pytest.fixture(params=["images", "features"])
def kind(request):
    return request.param


@pytest.mark.parametrize("laid", [flat, nested])
def test_it_is_the_data_set_of_the_same_arrays_in_one_file(laid, kind, tmp_path):
    np.savez(tmp_path / "set.npz", **arrays(kind))
    ours, theirs = load_dataset(f"npy:{laid(tmp_path / 'set', arrays(kind))}"), load_dataset(f"npz:{tmp_path}/set.npz")
    assert type(ours.train) is (ImageRows if kind == "images" else FeatureRows)
    for a, b in ((ours.train, theirs.train), (ours.meta, theirs.meta), (ours.test, theirs.test)):
        assert np.array_equal(a.x[:], b.x)
        assert np.array_equal(a.targets, b.targets)
        assert a.fingerprint() == b.fingerprint()
        assert a.input_shape == b.input_shape
        assert list(a.digests()) == list(b.digests())
    assert np.array_equal(ours.y_true, theirs.y_true)
    assert ours.class_names == ("ant", "bee", "cat")
    for noise in ("instance:0.4", "pair:0.3"):
        assert np.array_equal(*(split(data, noise=noise).train.y for data in (ours, theirs)))
    assert split(ours).notes == ()


def test_an_unpacked_npz_is_one(tmp_path):
    np.savez_compressed(tmp_path / "set.npz", **arrays("images"))
    shutil.unpack_archive(tmp_path / "set.npz", tmp_path / "set", "zip")
    assert np.array_equal(load_dataset(f"npy:{tmp_path}/set").train.x[:], arrays("images")["x_train"])


def test_labels_by_other_names(tmp_path):
    root = nested(tmp_path / "set", arrays("features"))
    os.rename(root / "train/y.npy", root / "train/worse.npy")
    np.save(root / "right.npy", arrays("features")["y_true"])
    data = load_dataset(f"npy:{root}", given="worse", truth="right")
    assert data.train.targets.tolist() == arrays("features")["y_train"].tolist()
    (note,) = data.notes
    assert "train/y_true.npy is not used" in note
    with pytest.raises(InputError, match=r"has no aggre\.npy and no train/aggre\.npy for data.given; found "):
        load_dataset(f"npy:{root}", given="aggre")
    with pytest.raises(InputError, match=r"data\.given names a file of .* without its \.npy, got '\.\./y'"):
        load_dataset(f"npy:{root}", given="../y")


def test_other_numbers_and_orders_become_those_of_float32(tmp_path):
    x = np.random.default_rng(0).normal(size=(9, 4, 2))
    for array in (x, x.astype(">f8"), x.astype(">f4"), x.astype(np.float16), np.asfortranarray(x)):
        np.save(tmp_path / "x.npy", array)
        rows = NpyRows.of(NpyFile(tmp_path / "x.npy"))
        wanted = array.astype(np.float32)
        assert np.array_equal(rows[:], wanted)
        assert np.array_equal(rows.rows([5, 1, 5, 8]), wanted[[5, 1, 5, 8]])
        assert rows[2].dtype == np.float32


def test_parts_of_files_are_rows_like_any_others(tmp_path):
    rng = np.random.default_rng(0)
    a, b = (rng.integers(0, 256, (n, 3, 2)).astype(np.uint8) for n in (50, 20))
    np.save(tmp_path / "a.npy", a)
    np.save(tmp_path / "b.npy", b)
    first, second = (NpyRows.of(NpyFile(tmp_path / f"{name}.npy")) for name in "ab")
    left = np.setdiff1d(np.arange(50), [3, 7, 30])
    rows = first.take(left).join(second.take(np.arange(5, 15))).join(first.take(np.array([7, 3])))
    every = np.concatenate([a[left], b[5:15], a[[7, 3]]])[..., None]
    for _ in range(20):
        some = rng.integers(0, len(every), rng.integers(0, 30))
        begin, end = sorted(rng.integers(0, len(every) + 1, 2).tolist())
        assert np.array_equal(rows.rows(some), every[some])
        assert np.array_equal(rows.take(some)[:], every[some])
        assert np.array_equal(rows[begin:end], every[begin:end])
        assert np.array_equal(rows.take(np.arange(begin, end))[::-2], every[begin:end][::-2])
    assert np.array_equal(pickle.loads(pickle.dumps(rows))[:], every)  # as a spawned worker gets it
    assert np.array_equal(np.asarray(rows), every)
    assert np.array_equal(rows[every[:, 0, 0, 0] > 99], every[every[:, 0, 0, 0] > 99])


def spoiled(name, change):
    def act(root):
        change(root / name)

    return act


def saved(value, **options):
    return lambda path: np.save(path, value, **options)


NAN = arrays("features")["x_train"].copy()
NAN[41, 3] = np.nan


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda r: shutil.rmtree(r), "set does not exist; npy:DIR wants DIR/x_train.npy and DIR/y_train.npy"),
        (lambda r: (shutil.rmtree(r), r.write_bytes(b"")), "set is no folder; .* a file of several arrays is npz:PATH"),
        (
            spoiled("train/x.npy", os.unlink),
            r"has no x_train\.npy and no train/x\.npy; .*found class_n",
        ),
        (spoiled("x_train.npy", saved(np.zeros((2, 3)))), r"x_train\.npy and train/x\.npy, which are the same array"),
        (
            spoiled("train/y.npy", saved(np.array([{}] * 60))),
            r"y\.npy cannot be read as \.npy \(it holds Python obj",
        ),
        (spoiled("train/y.npy", saved(np.zeros(59, int))), "y_train has 59 labels for the 60 samples of x_train"),
        (spoiled("train/y.npy", lambda p: os.truncate(p, 200)), r"its header declares 240 bytes of data, and 72 are"),
        (spoiled("train/x.npy", lambda p: os.truncate(p, 5)), r"x\.npy cannot be read as \.npy \(it is no array\)"),
        (spoiled("train/x.npy", lambda p: p.write_bytes(b"")), r"x\.npy cannot be read as \.npy"),
        (spoiled("train/x.npy", saved(np.zeros((60, 7), int))), "x_train must be uint8 images .* or float features"),
        (spoiled("test/x.npy", saved(np.zeros((15, 6)))), r"x_test has samples of shape \(6,\), x_train of \(7,\)"),
        (spoiled("test/y.npy", os.unlink), "'x_test' comes without 'y_test'"),
        (lambda r: (os.unlink(r / "meta/x.npy"), os.symlink("nowhere", r / "meta/x.npy")), "meta/x.npy does not exist"),
        (lambda r: (os.unlink(r / "meta/x.npy"), os.symlink("x.npy", r / "meta/x.npy")), "cannot be (opened|read)"),
        (lambda r: (os.unlink(r / "meta/x.npy"), os.mkfifo(r / "meta/x.npy")), "x.npy is a pipe, a socket or a device"),
        (lambda r: (os.unlink(r / "meta/x.npy"), (r / "meta/x.npy").mkdir()), "x.npy is a folder; npy:DIR wants files"),
        (spoiled("class_names.npy", saved(np.array(["a", "b"]))), r"y_train must lie in 0\.\.1"),
    ],
)
def test_what_is_no_such_folder(change, message, tmp_path):
    root = nested(tmp_path / "set", arrays("features"))
    change(root)
    with pytest.raises(InputError, match=message) as told:
        load_dataset(f"npy:{root}")
    assert "\n" not in str(told.value)


@pytest.mark.parametrize("resident", ["yes", "no"])
def test_a_number_that_is_none_is_named_by_its_row(resident, tmp_path):
    root = flat(tmp_path / "set", arrays("features") | {"x_train": NAN})
    with pytest.raises(InputError, match=r"set/x_train\.npy holds nan in row 41 \(at \(41, 3\)\); fill such"):
        Pool.of(split(load_dataset(f"npy:{root}")), CPU, Settings(), resident)


def test_a_number_too_large_for_float32_is_named(tmp_path):
    x = np.ones((4, 2))
    x[2, 1] = 1e300
    np.save(tmp_path / "x.npy", x)
    with pytest.raises(InputError, match=r"x\.npy holds 1e\+300 in row 2 \(at \(2, 1\)\)"):
        NpyRows.of(NpyFile(tmp_path / "x.npy")).rows([3, 2])


def test_links_are_followed_and_val_is_told(tmp_path):
    root = nested(tmp_path / "set", arrays("images"))
    os.rename(root / "train", tmp_path / "elsewhere")
    os.symlink(tmp_path / "elsewhere", root / "train")
    shutil.copytree(root / "test", root / "val")
    data = load_dataset(f"npy:{root}")
    assert len(data.train) == 60
    (note,) = data.notes
    assert "val/x.npy, val/y.npy are not used" in note
    assert "data.val_fraction" in note


def test_columns_behind_each_other_that_are_too_large_are_refused(tmp_path, monkeypatch):
    root = flat(tmp_path / "set", arrays("features"))
    np.save(root / "x_train.npy", np.asfortranarray(arrays("features")["x_train"]))
    wanted = load_dataset(f"npy:{root}").train.x[:]
    assert np.array_equal(wanted, arrays("features")["x_train"])
    monkeypatch.setattr(module, "free_memory", lambda: 4 * wanted.nbytes - 1)
    with pytest.raises(InputError, match=r"Fortran order.*np\.ascontiguousarray"):
        load_dataset(f"npy:{root}")


def test_a_file_that_shrinks_is_an_error_and_not_the_end_of_the_process(tmp_path):
    root = flat(tmp_path / "set", arrays("images"))
    rows = load_dataset(f"npy:{root}").train.x
    os.truncate(root / "x_train.npy", 128 + 40 * 8 * 6 * 3 + 5)
    assert rows.rows([39, 2]).shape == (2, 8, 6, 3)
    with pytest.raises(InputError, match=r"x_train\.npy ends before row 40: it has become shorter .* resume the run"):
        rows.rows([40, 2])
    with pytest.raises(InputError, match=r"header declares 8,640 bytes of data"):  # as a spawned worker sees it
        pickle.loads(pickle.dumps(rows))


def test_a_sample_stands_for_many_rows(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "LOOKED_AT", 1000)
    monkeypatch.setattr(module, "SAMPLED", 4)
    x = np.zeros((100, 4, 4), np.uint8)

    def fingerprint(row=None, count=100, shape=(4, 4), y=0):
        made = x.copy()
        if row is not None:
            made[row] = 1
        np.save(tmp_path / "x.npy", made[:count].reshape(count, *shape))
        rows = NpyRows.of(NpyFile(tmp_path / "x.npy"))
        assert rows.digests() is None
        return rows.fingerprint(np.full(count, y))

    same = fingerprint()
    assert fingerprint(50) == same
    assert (
        len({same, fingerprint(0), fingerprint(99), fingerprint(count=99), fingerprint(y=1), fingerprint(shape=(2, 8))})
        == 6
    )


def config(root, path, resident, **changes):
    data = DataConfig(batch_size=16, meta_batch_size=8, resident=resident, **changes.pop("data", {}))
    return TrainConfig(
        **{"epochs": 2, "threads": 1, "baselines": "none", "optim": OptimConfig(lr=0.05), **changes},
        dataset=f"npy:{root}",
        data=data,
        checkpoint_seconds=0,
        out=str(path),
    )


def weights(path):
    found = files(path)
    return {k: v for k, v in found[0].items() if k != "config.toml"}, found[1]


@pytest.mark.parametrize(
    ("kind", "workers", "changes"),
    [
        ("images", 2, {"model": "small_conv", "data": {"padding": 1, "augment": "crop_flip"}}),
        ("features", 0, {"model": "mlp"}),
        pytest.param("images", 0, {"model": "small_conv", "method": "onehot"}, marks=pytest.mark.slow),
        pytest.param("features", 2, {"model": "mlp", "baselines": "union"}, marks=pytest.mark.slow),
        pytest.param("features", 1, {"model": "mlp", "data": {"standardise": False}}, marks=pytest.mark.slow),
    ],
)
def test_a_streamed_run_is_that_of_arrays_in_memory_and_goes_on_bitwise(kind, workers, changes, tmp_path):
    root = flat(tmp_path / "set", arrays(kind))
    np.savez(tmp_path / "set.npz", **arrays(kind))
    made = config(root, tmp_path / "memory", "yes", **changes)
    in_memory = fastmeta.train(replace(made, dataset=f"npz:{tmp_path}/set.npz"))
    of = {**changes.get("data", {}), "workers": workers}
    made = config(root, tmp_path / "run", "no", **{**changes, "data": of})
    with pytest.raises(Interrupted):
        fastmeta.train(made, listener=Kill(signal.SIGTERM, made.method, 4))
    run = fastmeta.train(resume=tmp_path / "run")
    assert weights(run.path) == weights(in_memory.path)


@pytest.mark.slow
def test_a_run_that_began_in_memory_goes_on_without_it(kind, tmp_path, monkeypatch):
    root = flat(tmp_path / "set", arrays(kind))
    unbroken = fastmeta.train(config(root, tmp_path / "unbroken", "auto", model="mlp"))
    with pytest.raises(Interrupted):
        fastmeta.train(
            config(root, tmp_path / "run", "auto", model="mlp"),
            listener=Kill(signal.SIGTERM, unbroken.summary["method"], 2),
        )
    monkeypatch.setattr("fastmeta.data.pool.free_memory", lambda: 1000)
    run = fastmeta.train(resume=tmp_path / "run")
    assert weights(run.path) == weights(unbroken.path)


def test_what_does_not_fit_is_read_as_it_is_needed_and_that_is_said(kind, tmp_path, monkeypatch):
    parts = split(load_dataset(f"npy:{flat(tmp_path / 'set', arrays(kind))}"))
    needed = sum(len(x) * x[0].nbytes for x in (arrays(kind)[f"x_{part}"] for part in ("train", "meta", "test")))
    monkeypatch.setattr("fastmeta.data.pool.free_memory", lambda: 4 * needed)
    fits = Pool.of(parts, CPU, Settings())
    assert type(fits.source) is (Images if kind == "images" else Features)
    assert fits.note is None
    monkeypatch.setattr("fastmeta.data.pool.free_memory", lambda: 4 * needed - 1)
    short = Pool.of(parts, CPU, Settings())
    assert type(short.source) is (ImageRows if kind == "images" else FeatureRows)
    assert "more than a quarter of the 0.0 MiB of memory that are free: they are read as they are needed" in short.note
    monkeypatch.setattr("fastmeta.data.pool.free_memory", lambda: 4 * needed)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    assert Pool.of(parts, CPU, Settings()).note is not None
    monkeypatch.setattr("fastmeta.data.pool.free_memory", lambda: needed - 1)
    with pytest.raises(InputError, match=r"of memory are free; have them read as they are needed \(--data.resident no"):
        Pool.of(parts, CPU, Settings(), "yes")
    rows = torch.tensor([3, 61, 0, 17, 70])
    at = torch.tensor(5)
    for step in (None, 5):
        ours = fits.source.network_input(rows, None if step is None else at, CPU)
        theirs = short.source.network_input(rows, step, CPU)
        assert torch.equal(ours, theirs)
    assert fits.splits.fingerprint() == short.splits.fingerprint()


def test_a_table_becomes_a_folder_in_pieces(tmp_path, monkeypatch):
    """As docs/scale.md writes it."""
    page = (Path(__file__).parents[2] / "docs/scale.md").read_text()
    code = page.split("## Data beyond memory")[1].split("```py\n")[1].split("```")[0]
    monkeypatch.chdir(tmp_path)
    a = arrays("features")
    with open("table.csv", "w") as file:
        file.write("a,label,b\n")
        file.writelines(f"{x[0]},{y},{x[1]}\n" for x, y in zip(a["x_train"], a["y_train"], strict=True))
    exec(compile(code, "scale.md", "exec"), {})
    data = load_dataset("npy:arrays")
    assert np.allclose(data.train.x[:], a["x_train"][:, :2])
    assert data.train.targets.tolist() == a["y_train"].tolist()
