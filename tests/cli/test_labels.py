"""``fastmeta labels``: files of labels, and one line for what cannot be had."""

import json

import numpy as np
import pytest

from fastmeta.cli import main
from fastmeta.data import load_dataset
from tests.support.runs import two_classes


@pytest.fixture
def npz(tmp_path):
    np.savez(tmp_path / "two.npz", **two_classes())
    return tmp_path / "two.npz"


@pytest.mark.parametrize("suffix", [".npz", ".json"])
def test_noise_is_written_with_what_it_is_of(suffix, npz, tmp_path, capsys):
    out = tmp_path / f"noise{suffix}"
    assert main(["labels", "noise", "--dataset", f"npz:{npz}", "--noise", "pair:0.4", "--out", str(out)]) == 0
    made = dict(np.load(out)) if suffix == ".npz" else json.loads(out.read_text())
    data = load_dataset(f"npz:{npz}")
    labels, given = np.asarray(made["labels"]), np.asarray(made["given"])
    assert np.array_equal(given, data.train.targets)
    assert 0 < (labels != given).mean() == pytest.approx(float(made["rate"]))
    assert (str(made["kind"]), int(made["seed"])) == ("pair:0.4", 0)
    assert str(made["data_hash"]) == data.train.fingerprint()
    assert tuple(made["class_names"]) == data.class_names
    said = capsys.readouterr().out
    assert f"{(labels != given).sum()} of {len(given)} labels are wrong" in said
    assert str(out) in said


@pytest.mark.parametrize(
    ("out", "noise", "message"),
    [
        ("n.txt", "pair:0.4", "a file of noise ends in .npz or .json, got n.txt"),
        ("n.npz", "pears:0.4", "unknown noise 'pears:0.4'"),
        ("/no/such/n.npz", "pair:0.4", "cannot write /no/such/n.npz"),
    ],
)
def test_what_cannot_be_written_is_one_line(out, noise, message, npz, capsys):
    if message.startswith("cannot write"):
        out = f"{npz}/n.npz"
        message = f"cannot write {out}"
    assert main(["labels", "noise", "--dataset", f"npz:{npz}", "--noise", noise, "--out", out]) == 2
    said = capsys.readouterr().err
    assert said.startswith(f"fastmeta labels noise: {message}")
    assert said.count("\n") == 1
