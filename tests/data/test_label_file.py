"""Noise that a file holds: as many tools write it, of this training set and no other, and never run as code."""

import dataclasses
import json
import pickle
import signal

import numpy as np
import pytest
import torch

from fastmeta.cli import main
from fastmeta.data import Dataset, InputError, split
from fastmeta.data.noise import NoiseFile, lasting, parse
from fastmeta.training import Interrupted, TrainConfig, train
from fastmeta.training.rundir import run_labels
from tests.support.runs import two_classes
from tests.support.stopped import Kill

COUNT = 40


def dataset(**changes):
    x = np.random.default_rng(0).normal(size=(COUNT, 3)).astype(np.float32)
    arrays = {"x_train": x, "y_train": np.arange(COUNT) % 4, "class_names": ["ape", "bee", "cow", "dog"]}
    return Dataset.from_arrays({**arrays, **changes}, name="set")


CLEAN = np.arange(COUNT) % 4
NOISY = np.where(CLEAN == 1, 2, CLEAN)


def written(path, form):
    """A file of `NOISY` in one of the forms that there are, and what names the labels in it."""
    names = np.array(["ape", "bee", "cow", "dog"])
    if form == "npz":
        np.savez(path / "n.npz", labels=NOISY)
        return path / "n.npz"
    if form == "npz of several":
        np.savez(path / "n.npz", aggre=CLEAN, worst=NOISY)
        return f"{path / 'n.npz'}:worst"
    if form == "npy":
        np.save(path / "n.npy", NOISY.astype(np.uint8))
        return path / "n.npy"
    if form == "DivideMix":
        (path / "0.4_sym.json").write_text(json.dumps(NOISY.tolist()))
        return path / "0.4_sym.json"
    if form == "CIFAR-N":
        torch.save({"clean_label": CLEAN, "worse_label": NOISY, "aggre_label": CLEAN}, path / "CIFAR-10_human.pt")
        return f"{path / 'CIFAR-10_human.pt'}:worse_label"
    if form == "tensor":
        torch.save(torch.from_numpy(NOISY), path / "n.pt")
        return path / "n.pt"
    if form == "csv of names":
        (path / "n.csv").write_text("label\n" + "\n".join(names[NOISY]) + "\n")
        return path / "n.csv"
    assert form == "csv in another order"
    order = np.random.default_rng(1).permutation(COUNT)
    lines = [f"{row},{CLEAN[row]},{NOISY[row]}" for row in order]
    (path / "n.csv").write_text("\n".join(["index,given,label", *lines]))
    return path / "n.csv"


@pytest.mark.parametrize(
    "form", ["npz", "npz of several", "npy", "DivideMix", "CIFAR-N", "tensor", "csv of names", "csv in another order"]
)
def test_every_form_is_read(form, tmp_path):
    name = written(tmp_path, form)
    parts = split(dataset(), noise=f"file:{name}")
    assert np.array_equal(parts.train.y, NOISY[parts.train.row])
    assert np.array_equal(parts.train.y_true, CLEAN[parts.train.row])
    assert np.array_equal(parts.meta.y, CLEAN[parts.meta.row])  # clean rows keep what they have
    assert parts.noise_rate == 0.25
    assert parts.noise_matrix[1] == [0, 0, 1, 0]
    assert parts.noise_told.startswith("8 of 32 labels are wrong, 25.0%")


def test_a_file_of_cifar_n_was_written_by_an_older_numpy(tmp_path):
    """Their pickles name numpy.core, which has moved."""
    torch.save({"worse_label": NOISY}, tmp_path / "n.pt")
    found = torch.load(tmp_path / "n.pt", weights_only=False)["worse_label"]
    assert np.array_equal(found, NOISY)

    class Older(pickle._Pickler):
        def save_global(self, obj, name=None):
            if getattr(obj, "__module__", "").startswith("numpy._core.multiarray"):
                self.write(b"cnumpy.core.multiarray\n_reconstruct\n")
                self.memoize(obj)
            else:
                super().save_global(obj, name)

    Older.dispatch = {**pickle._Pickler.dispatch, type(len): Older.save_global}

    torch.save(
        {"worse_label": NOISY}, tmp_path / "o.pt", pickle_module=type("p", (), {"Pickler": Older, "__name__": "p"})
    )
    assert b"numpy.core.multiarray" in (tmp_path / "o.pt").read_bytes()
    parts = split(dataset(), noise=f"file:{tmp_path / 'o.pt'}")
    assert np.array_equal(parts.train.y, NOISY[parts.train.row])


@pytest.mark.parametrize(
    ("content", "key", "message"),
    [
        (
            {"labels": NOISY[:-1]},
            "",
            "n.npz is not of this training set: it has 39 labels, set has 40 training samples",
        ),
        ({"labels": NOISY, "class_names": ["a", "b"]}, "", "it knows 2 classes, set has 4"),
        ({"labels": NOISY, "class_names": ["ape", "cow", "bee", "dog"]}, "", "its class 1 is 'cow', set has 'bee'"),
        ({"labels": NOISY, "data_hash": "0" * 32}, "", "the hash of its data is another one"),
        ({"labels": NOISY, "clean_label": CLEAN[::-1]}, "", r"labels before noise are others .* \(40 of 40\)"),
        ({"labels": NOISY + 1}, "", r"labels must lie in 0..3 \(4 classes are given\), got 1 to 4"),
        (
            {"labels": np.where(NOISY == 3, -100, NOISY)},
            "",
            r"holds -100 in 10 row\(s\), the first is row 3.*ignore_index",
        ),
        ({"labels": np.where(NOISY == 3, 255, NOISY)}, "", r"holds 255 in 10 row\(s\)"),
        ({"labels": NOISY * 1.0}, "", "labels must be class numbers of an integer dtype, or names, got float64"),
        ({"labels": np.array(["ape", "bat"] * 20)}, "", r"labels\[1\] is 'bat', which is no class of set: ape, bee"),
        ({"a": NOISY, "b": NOISY}, "", r"holds a, b; say which are the labels: file:.*n.npz:NAME"),
        ({"a": NOISY, "b": NOISY}, ":c", "has no labels 'c', found a, b"),
    ],
)
def test_a_file_of_other_data_is_refused(content, key, message, tmp_path):
    np.savez(tmp_path / "n.npz", **content)
    with pytest.raises(InputError, match=message):
        split(dataset(), noise=f"file:{tmp_path / 'n.npz'}{key}")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("n.npz", None, "n.npz does not exist"),
        ("n.csv", None, "n.csv does not exist"),
        ("n.json", b"[0, 1", "cannot be read as .json"),
        ("n.json", b"3", "it holds int, not a list of labels"),
        ("n.json", b"[0.5, 1]", "of an integer dtype, or names, got"),
        ("n.csv", b"0\n1\n", "its first line must name the columns"),
        ("n.csv", b"label,a\n1\n", "line 2 has 1 cells for 2 columns"),
        ("n.pt", b"not a zip", "cannot be read as .pt"),
        ("n.pkl", pickle.dumps([0, 1]), "it is a pickle, which would run code of whoever wrote it.*--trust-pickle"),
    ],
)
def test_a_file_that_cannot_be_read(name, content, message, tmp_path):
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=message) as refused:
        split(dataset(), noise=f"file:{tmp_path / name}")
    assert "\n" not in str(refused.value)


class Evil:
    def __reduce__(self):
        return (open, (EVIL, "w"))


EVIL = ""


def test_no_code_of_a_torch_file_is_run(tmp_path, monkeypatch):
    monkeypatch.setattr(f"{__name__}.EVIL", str(tmp_path / "was_here"))
    torch.save({"worse_label": Evil()}, tmp_path / "n.pt")
    with pytest.raises(InputError, match="holds more than tensors and arrays of numbers, which would run code"):
        split(dataset(), noise=f"file:{tmp_path / 'n.pt'}")
    assert not (tmp_path / "was_here").exists()


def test_a_pickle_that_is_trusted(tmp_path, monkeypatch, capsys):
    np.savez(tmp_path / "two.npz", **two_classes())
    labels = np.array(two_classes()["y_train"])
    (tmp_path / "n.pkl").write_bytes(pickle.dumps(1 - labels))
    monkeypatch.chdir(tmp_path)
    line = ["labels", "noise", "--dataset", "npz:two.npz", "--noise", "file:n.pkl", "--out", "n.npz"]
    assert main(line) == 2
    assert "--trust-pickle" in capsys.readouterr().err
    assert main([*line, "--trust-pickle"]) == 0
    assert np.array_equal(np.load("n.npz")["labels"], 1 - labels)
    with pytest.raises(InputError, match="--trust-pickle"):  # it was trusted that once
        split(Dataset.from_arrays(two_classes()), noise="file:n.pkl")


def test_a_run_with_a_pickle_goes_on_only_if_it_is_trusted_again(tmp_path, monkeypatch, capsys):
    """And says so: the file may be another by then. Its folder copes without it."""
    arrays = {k: np.array(v) for k, v in two_classes().items()}
    (tmp_path / "two.pkl").write_bytes(pickle.dumps(arrays))
    (tmp_path / "n.pkl").write_bytes(pickle.dumps(1 - arrays["y_train"]))
    np.savez(tmp_path / "two.npz", **arrays)
    monkeypatch.chdir(tmp_path)
    for number, (dataset, noise) in enumerate([("npz:two.pkl", "none"), ("npz:two.npz", "file:n.pkl")]):
        config = TrainConfig(dataset=dataset, noise=noise, model="mlp", epochs=2, threads=1, checkpoint_seconds=0)
        made = [dataclasses.replace(config, out=f"{name}{number}") for name in ("whole", "run")]
        whole = train(made[0], trust_pickle=True)
        with pytest.raises(Interrupted) as stop:
            train(made[1], trust_pickle=True, listener=Kill(signal.SIGTERM, "instance_labels", 1))
        assert stop.value.way.endswith(f"run{number} --trust-pickle")
        assert main(["train", "--resume", f"run{number}"]) == 2
        assert "add --trust-pickle" in capsys.readouterr().err
        train(resume=f"run{number}", trust_pickle=True)
        assert run_labels(f"run{number}").learned.tolist() == run_labels(whole.path).learned.tolist()
        assert main(["train", "--resume", f"run{number}"]) == 0  # it is finished: nothing is read
        assert main(["show", f"run{number}", "--no-page"]) == 0
        for format in ("csv", "labelstudio"):
            assert main(["labels", "export", f"run{number}", "--format", format]) == 0
        capsys.readouterr()
        assert main(["labels", "apply", f"run{number}", "--to", f"out{number}.npz"]) == (2 if number == 0 else 0)
        assert ("two.pkl is a pickle, which labels are not written into" in capsys.readouterr().err) == (number == 0)
    line = ["train", "--dataset", "npz:two.pkl", "--model", "mlp", "--epochs", "1", "--seeds", "2", "--out", "seeds"]
    assert main(line) == 2
    assert "add --trust-pickle" in capsys.readouterr().err


def test_without_a_pickle_nothing_is_said_of_trust(tmp_path):
    config = TrainConfig(model="mlp", epochs=2, threads=1, checkpoint_seconds=0, out=str(tmp_path / "run"))
    with pytest.raises(Interrupted) as stop:
        train(config, data=two_classes(), trust_pickle=True, listener=Kill(signal.SIGTERM, "instance_labels", 1))
    assert "--trust" not in stop.value.way


@pytest.mark.parametrize("spec", ["file:", "file:n", "file:n.txt", "file:.npz.d/x"])
def test_what_names_no_file_of_labels(spec):
    with pytest.raises(InputError, match=r"takes a file that ends in \.npz"):
        parse(spec)


def test_a_name_of_a_file_lasts(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert lasting("file:a.npz:b") == f"file:{tmp_path / 'a.npz'}:b"
    assert lasting("file:a:b.json") == f"file:{tmp_path / 'a:b.json'}"
    assert lasting("pair:0.4") == "pair:0.4"


def test_what_the_command_writes_is_trained_on(tmp_path, monkeypatch):
    """From another folder too, and not by another data set of the same size."""
    np.savez(tmp_path / "two.npz", **two_classes())
    other = two_classes()
    other["x_train"] = other["x_train"][::-1]
    np.savez(tmp_path / "other.npz", **other)
    monkeypatch.chdir(tmp_path)
    assert main(["labels", "noise", "--dataset", "npz:two.npz", "--noise", "pair:0.4", "--out", "n.npz"]) == 0
    line = ["train", "--noise", "file:n.npz", "--model", "mlp", "--epochs", "1", "--dataset"]
    assert main([*line, "npz:two.npz", "--out", "run"]) == 0
    summary = json.loads((tmp_path / "run/summary.json").read_text())
    made = np.load("n.npz")
    assert summary["noise"] == f"file:{tmp_path / 'n.npz'}"
    assert summary["noise_rate"] == pytest.approx(float(made["rate"]), abs=0.1)
    assert main([*line, "npz:other.npz", "--out", "run2"]) == 2
    assert not (tmp_path / "run2").exists()


def test_the_digits_have_the_same_parts_in_both_commands(tmp_path, monkeypatch):
    """Whatever seed draws the noise."""
    monkeypatch.chdir(tmp_path)
    line = ["labels", "noise", "--dataset", "digits", "--noise", "pair:0.4", "--seed", "3", "--out", "n.npz"]
    assert main(line) == 0
    assert main(["train", "--noise", "file:n.npz", "--seed", "5", "--dry-run", "--model", "mlp", "--epochs", "1"]) == 0
    assert main([*line, "--data.split-seed", "1"]) == 0
    assert main(["train", "--noise", "file:n.npz", "--dry-run", "--model", "mlp", "--epochs", "1"]) == 2


def test_noise_of_python(tmp_path):
    made = NoiseFile.of(dataset(), "uniform_exact:0.5", 3)
    assert (made.labels != made.given).sum() == COUNT // 2
    (tmp_path / "n.json").write_bytes(made.packed(".json"))
    parts = split(dataset(), noise=f"file:{tmp_path / 'n.json'}")
    assert np.array_equal(parts.train.y, made.labels[parts.train.row])
