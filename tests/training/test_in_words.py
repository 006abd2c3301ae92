"""What a notebook shows of a run, of labels and of a step; labels as a data frame."""

import re
import sys
import types

import numpy as np
import pytest
import torch

import fastmeta
from fastmeta.data import InputError
from fastmeta.training import LabelConfig
from tests.support.runs import config, two_classes


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    out = str(tmp_path_factory.mktemp("words") / "run")
    return fastmeta.train(config(out, baselines="noisy"), data=two_classes(class_names=["dark", "dark"]))


def test_a_run_in_a_few_lines(run):
    lines = repr(run).splitlines()
    assert lines[0] == f"Run({str(run.path)!r})"
    assert [line.split()[0] for line in lines[1:5]] == ["data", "training", "test", "labels"]
    assert lines[-1].startswith("see ")
    assert "80 train (10.0% of the labels wrong), 8 clean, 20 test; 2 classes" in lines[1]
    assert "fixed labels: noisy " in lines[3]
    assert lines[4].startswith("labels    90.0% → ")
    assert all(line.startswith("warning ") for line in lines[5:-1])


def test_a_run_of_which_less_is_known(tmp_path):
    data = two_classes(y_true=None, x_test=None, y_test=None)
    data = {name: value for name, value in data.items() if value is not None}
    text = repr(fastmeta.train(config(str(tmp_path / "run"), baselines="none"), data=data))
    assert "no test set" in text
    assert "None" not in text
    assert re.search(r"\nlabels +\d+ changed\n", text)


def test_labels_and_step_in_a_few_lines():
    targets = torch.arange(6) % 3
    labels = fastmeta.InstanceLabels(targets, 3, target_prob=0.5)
    assert repr(labels).splitlines() == [
        "InstanceLabels(N=6, num_classes=3)",
        "  label_logits: (6, 3), float32, cpu, 72 bytes",
        "  changed: 0 of 6; probability of the given class: 0.500",
    ]
    labels.label_logits[0] = torch.tensor([0.0, 0.0, 9.0])
    assert "changed: 1 of 6" in repr(labels)
    assert "alpha: (3,)" in repr(fastmeta.ClassLabels(targets, 3))
    assert repr(fastmeta.InstanceLabels(targets[:0], 3)).count("\n") == 1
    model = torch.nn.Linear(2, 3)
    step = fastmeta.MetaStep(model, labels, torch.optim.SGD(model.parameters(), lr=0.1))
    assert repr(step).splitlines()[0] == "MetaStep(Linear, 9 trained parameters, SGD)"
    assert "tangent:    not chosen before the first step" in repr(step)
    step((torch.randn(6, 2), torch.arange(6)), (torch.randn(6, 2), targets))
    assert "steps:      1" in repr(step)
    assert len(repr(step).splitlines()) <= 9


class StandIn(types.ModuleType):
    """As much of pandas as a frame needs."""

    class Categorical:
        @classmethod
        def from_codes(cls, codes, categories):
            assert len(set(categories)) == len(categories)
            return [categories[code] for code in codes]

    @staticmethod
    def Index(values, name):
        return list(values)

    @staticmethod
    def DataFrame(columns, index):
        return types.SimpleNamespace(columns=columns, index=index)


def test_labels_as_a_frame(run, monkeypatch):
    """With a stand-in for pandas; beside it pandas itself, where it is installed."""
    monkeypatch.setitem(sys.modules, "pandas", StandIn("pandas"))
    frame = run.labels_table()
    assert list(frame.columns) == ["given", "learned", "true", "probability", "given_probability", "entropy"]
    with np.load(run.path / "labels.npz") as file:
        assert frame.index == file["index"].tolist()
        assert frame.columns["true"] == [("dark (0)", "dark (1)")[k] for k in file["true"]]
        assert np.array_equal(frame.columns["probability"], file["probability"])


def test_labels_as_a_frame_of_pandas(run):
    pytest.importorskip("pandas", reason="pandas is not installed; the stand-in has run")
    frame = run.labels_table()
    assert len(frame) == 80
    assert frame["given"].cat.categories.tolist() == ["dark (0)", "dark (1)"]
    assert frame[frame.given != frame.true].shape[0] == 8


def test_without_pandas_and_without_the_file(run, monkeypatch):
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(ImportError, match=r"pip install pandas, or read numpy\.load"):
        run.labels_table()
    monkeypatch.setitem(sys.modules, "pandas", StandIn("pandas"))
    moved = run.path / "elsewhere.npz"
    (run.path / "labels.npz").rename(moved)
    try:
        with pytest.raises(InputError, match=r"labels\.npz cannot be read"):
            run.labels_table()
    finally:
        moved.rename(run.path / "labels.npz")


def test_the_figures_of_a_run_show_its_images(tmp_path):
    config_of = config(str(tmp_path / "with figures" / "run"), baselines="none", labels=LabelConfig(label_lr=1e4))
    run = fastmeta.train(config_of, data=two_classes())
    assert run.summary["labels_changed"]
    names = {path.name for path in (run.path / "figures").iterdir()}
    stems = ("accuracy", "labels", "label_matrix", "confusion", "wrong_labels", "changed")
    assert names == {f"{stem}.{kind}" for stem in stems for kind in ("png", "svg")}
