"""labels.store: the same run wherever the label table lies, stopped and killed at any moment."""

import signal
from dataclasses import replace

import pytest

import fastmeta
from fastmeta.training import Interrupted, LabelConfig
from tests.support.plugs import files
from tests.support.runs import two_classes
from tests.support.stopped import Kill, config

EXACT = LabelConfig(label_lr=300.0, target_prob=0.8)
UPDATES = {
    "exact": EXACT,
    "bfloat16": replace(EXACT, dtype="bfloat16"),
    "epoch": LabelConfig(update="epoch", eta=30.0),
    "posterior": LabelConfig(update="posterior", warmup_epochs=1, every=1),
    "reset": replace(EXACT, reset=True),
}


def stored(labels, store):
    return replace(labels, store=store)


def made(folder, labels, **more):
    return config(folder, baselines="none", labels=labels, **more)


def run_files(path):
    """But for what says where the table lies."""
    named, metrics, _ = files(path)
    return {name: content for name, content in named.items() if name != "config.toml"}, metrics


@pytest.mark.parametrize(
    ("update", "compile"),
    [*((u, "off") for u in UPDATES), pytest.param("exact", "trace", marks=pytest.mark.slow)],
)
def test_a_run_is_that_of_a_dense_table_and_goes_on_where_it_was_stopped(update, compile, tmp_path):
    labels = UPDATES[update]
    dense = fastmeta.train(made(tmp_path / "dense", labels, compile=compile), data=two_classes())
    for store in ("host", f"mmap:{tmp_path / 'labels.rows'}"):
        name = store[:4]
        whole = fastmeta.train(made(tmp_path / name, stored(labels, store), compile=compile), data=two_classes())
        assert run_files(whole.path) == run_files(dense.path)
        again = made(tmp_path / f"{name}-run", stored(labels, store), compile=compile)
        with pytest.raises(Interrupted):
            fastmeta.train(again, data=two_classes(), listener=Kill(signal.SIGTERM, "instance_labels", 7))
        resumed = fastmeta.train(resume=tmp_path / f"{name}-run", data=two_classes())
        assert run_files(resumed.path) == run_files(dense.path)
        assert files(resumed.path) == files(whole.path)
    assert not list(tmp_path.glob("*.undo-*"))
