"""What a notebook shows of a run, of labels and of a step; labels as a data frame."""

import re
import sys

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


def test_labels_as_a_frame(run):
    pytest.importorskip("pandas", reason="pandas is not installed")
    frame = run.labels_table()
    read = ["probability", "given_probability", "label_quality", "entropy"]
    assert list(frame.columns) == ["given", "learned", "true", *read]
    assert frame["given"].cat.categories.tolist() == ["dark (0)", "dark (1)"]
    assert frame[frame.given != frame.true].shape[0] == 8
    with np.load(run.path / "labels.npz") as file:
        assert frame.index.tolist() == file["index"].tolist()
        assert frame["true"].tolist() == [("dark (0)", "dark (1)")[k] for k in file["true"]]
        assert np.array_equal(frame["probability"], file["probability"])
    head = frame.head().to_string().splitlines()  # as a terminal shows it; a notebook takes the other
    assert head[0].split() == list(frame.columns)
    assert head[1].split() == ["row"]
    assert "<td>dark (0)</td>" in frame.head()._repr_html_()


def test_without_pandas_and_without_the_file(run, monkeypatch):
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(ImportError, match=r"pip install pandas, or read numpy\.load"):
        run.labels_table()
    monkeypatch.undo()
    pytest.importorskip("pandas", reason="pandas is not installed")
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
