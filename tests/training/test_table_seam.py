"""The trainer with a label table from outside of the package: same bits as a dense one, killed and resumed bitwise."""

import json
import signal

import numpy as np
import pytest
import torch

import fastmeta
from fastmeta.training import Interrupted, LabelConfig
from tests.support.plugs import files
from tests.support.runs import two_classes
from tests.support.stopped import Kill, config

TABLES = """
import tempfile
import numpy as np
import torch
import fastmeta
from fastmeta.methods import InstanceLabelMethod
from tests.support.label_tables import Halves, Sparse


class File(fastmeta.LabelTable):
    # a file that has moved on when its process is killed
    def __init__(self, start):
        super().__init__(start)
        self.array = np.memmap(tempfile.TemporaryFile(), np.float32, "w+", shape=start.shape)
        for index in start.pieces():
            self.write_(index, start.rows(index))

    def rows(self, index):
        return torch.from_numpy(self.array[index.numpy()])

    def write_(self, index, rows):
        self.array[index.numpy()] = rows.numpy()

    def get_extra_state(self):
        return torch.from_numpy(np.array(self.array))

    def set_extra_state(self, state):
        self.array[:] = state.numpy()


class Plain(fastmeta.LabelTable):
    # no state of its own making: an attribute
    def __init__(self, start):
        super().__init__(start)
        self.moved = {}

    def rows(self, index):
        rows = self.start.rows(index)
        for place, row in enumerate(index.tolist()):
            rows[place] = self.moved.get(row, rows[place])
        return rows

    def write_(self, index, rows):
        self.moved.update(zip(index.tolist(), rows.clone()))


def method(kind):
    return type(f"Of{kind.__name__}", (InstanceLabelMethod,), {"table": kind})


OfFile, OfHalves, OfPlain, OfSparse = map(method, (File, Halves, Plain, Sparse))
"""

LABELS = LabelConfig(label_lr=300.0, target_prob=0.8)


@pytest.mark.parametrize("kind", ["OfFile", "OfHalves", "OfPlain", "OfSparse"])
def test_a_run_is_that_of_a_dense_table_and_goes_on_where_it_was_stopped(plug, kind, tmp_path):
    name = f"{plug('tables_from_outside', TABLES)}:{kind}"
    made = lambda folder, **more: config(tmp_path / folder, baselines="none", labels=LABELS, **more)  # noqa: E731
    dense = fastmeta.train(made("dense"), data=two_classes())
    whole = fastmeta.train(made("whole", method=name), data=two_classes())
    for file in ("model.safetensors", "labels.npz", "labels.safetensors"):
        assert (whole.path / file).read_bytes() == (dense.path / file).read_bytes(), file
    assert int(whole.summary["labels_changed"]) > 0
    assert torch.equal(whole.labels.label_logits, dense.labels.label_logits)
    with pytest.raises(Interrupted):
        fastmeta.train(made("run", method=name), data=two_classes(), listener=Kill(signal.SIGTERM, name, 7))
    resumed = fastmeta.train(resume=tmp_path / "run", data=two_classes(), trust_code=True)
    assert files(resumed.path) == files(whole.path)
    assert torch.equal(fastmeta.load_run(resumed.path, trust_code=True).labels.label_logits, dense.labels.label_logits)


def test_a_table_that_memory_does_not_hold_leaves_what_labels_npz_says(plug, tmp_path, monkeypatch):
    def no_room(needed, what):
        raise ValueError(f"{what} would take too much")

    monkeypatch.setattr("fastmeta.losses.instance_labels.check_room", no_room)
    name = f"{plug('tables_from_outside', TABLES)}:OfSparse"
    run = fastmeta.train(config(tmp_path / "run", method=name, baselines="none", labels=LABELS), data=two_classes())
    assert run.labels is None
    with np.load(run.path / "labels.npz") as made:
        assert len(made["learned"]) == run.summary["train_size"]
    assert json.loads((run.path / "summary.json").read_text())["labels_changed"] > 0


def test_labels_that_move_once_an_epoch(plug, tmp_path):
    labels = LabelConfig(update="epoch", eta=30.0)
    name = f"{plug('tables_from_outside', TABLES)}:OfSparse"
    made = lambda folder, **more: config(tmp_path / folder, baselines="none", labels=labels, **more)  # noqa: E731
    dense = fastmeta.train(made("dense"), data=two_classes())
    own = fastmeta.train(made("own", method=name), data=two_classes())
    assert torch.equal(own.labels.label_logits, dense.labels.label_logits)
    assert dense.labels.label_logits.unique().numel() > 2  # they have moved
