"""labels.store: the same run wherever the label table lies, stopped and killed at any moment."""

import os
import random
import signal
import subprocess
import sys
from dataclasses import replace

import pytest
import torch

import fastmeta
from fastmeta.cli.several_seeds import configs
from fastmeta.data import InputError
from fastmeta.distributed import ALONE
from fastmeta.training import Interrupted, LabelConfig, TrainConfig, TrainingError, store_choice
from fastmeta.training.fold_runs import plan_folds
from fastmeta.training.store_choice import settled
from tests.support.canaries import config as with_canaries
from tests.support.canaries import many_clean
from tests.support.plugs import files
from tests.support.runs import two_classes
from tests.support.stopped import Kill, config

METHOD = "instance_labels"
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
            fastmeta.train(again, data=two_classes(), listener=Kill(signal.SIGTERM, METHOD, 7))
        resumed = fastmeta.train(resume=tmp_path / f"{name}-run", data=two_classes())
        assert run_files(resumed.path) == run_files(dense.path)
        assert files(resumed.path) == files(whole.path)
    assert not list(tmp_path.glob("*.undo-*"))


def test_canaries_put_the_best_labels_back(tmp_path):
    """Out of the journal, which reaches back to them; with a stop behind the epoch in which they were the best."""
    data, rates = many_clean(rate=0.0), {"label_lr": 30000.0}  # labels can only get worse
    dense = fastmeta.train(with_canaries(tmp_path / "dense", labels=rates), data=data)
    assert dense.summary["canaries"]["kept_epoch"] < 3
    rates["store"] = f"mmap:{tmp_path / 'labels.rows'}"
    own = with_canaries(tmp_path / "run", labels=rates)
    with pytest.raises(Interrupted):
        fastmeta.train(own, data=data, listener=Kill(signal.SIGTERM, METHOD, 27))
    resumed = fastmeta.train(resume=tmp_path / "run", data=data)
    assert run_files(resumed.path) == run_files(dense.path)
    assert not list(tmp_path.glob("*.undo-*"))


KILLED = """
import os, random, signal, sys
import fastmeta
from fastmeta.losses.row_file import RowFile
from fastmeta.training import TrainConfig
from fastmeta.training.listener import Listener
from tests.support.runs import two_classes
from tests.support.stopped import Kill, config

out, store, kind, at = sys.argv[1:]
listener = Listener()
if kind == "step":
    listener = Kill(signal.SIGKILL, "instance_labels", int(at))
else:
    real, count = RowFile.write, [0]

    def write(file, index, rows):
        count[0] += 1
        if count[0] == int(at):
            real(file, index[: len(index) // 2], rows[: len(index) // 2])
            os.kill(os.getpid(), signal.SIGKILL)
        real(file, index, rows)

    RowFile.write = write
labels = fastmeta.training.LabelConfig(label_lr=300.0, target_prob=0.8, store=store)
asked = config(out, baselines="none", labels=labels)
fastmeta.train(asked, data=two_classes(), auto_resume=True, listener=listener)
"""


def killed(folder, *when):
    """A process that begins the run, or goes on with it, until it is killed; whether it was."""
    store = f"mmap:{folder / 'labels.rows'}"
    command = [sys.executable, "-c", KILLED, str(folder / "run"), store, *map(str, when)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode in (0, -signal.SIGKILL), done.stderr[-2000:]
    return done.returncode != 0


def check_same_as_unbroken(folder, data):
    fastmeta.train(resume=folder / "run", data=data)
    whole = made(folder / "whole", stored(EXACT, f"mmap:{folder / 'whole.rows'}"))
    assert run_files(folder / "run") == run_files(fastmeta.train(whole, data=data).path)
    assert not list(folder.glob("*.undo-*"))


def test_a_run_that_was_killed_goes_on_bitwise(tmp_path):
    assert killed(tmp_path, "write", 8)  # in the second epoch, whose rows the first one has written
    assert list(tmp_path.glob("*.undo-*"))
    check_same_as_unbroken(tmp_path, two_classes())


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(4))
def test_a_run_that_is_killed_again_and_again(seed, tmp_path):
    draws = random.Random(seed)
    for _ in range(5):
        killed(tmp_path, draws.choice(["step", "write"]), draws.randint(1, 9))
    check_same_as_unbroken(tmp_path, two_classes())


def test_what_a_run_says_of_a_file_that_is_gone_or_full(tmp_path, monkeypatch):
    store = f"mmap:{tmp_path / 'labels.rows'}"
    labels = stored(EXACT, store)
    with pytest.raises(Interrupted):
        fastmeta.train(made(tmp_path / "run", labels), data=two_classes(), listener=Kill(signal.SIGTERM, METHOD, 7))
    rows = tmp_path / "labels.rows"
    other = made(tmp_path / "other", replace(labels, label_lr=100.0))
    with pytest.raises(InputError, match=r"labels.rows holds the label rows of another run; name another file, or del"):
        fastmeta.train(other, data=two_classes())
    assert not (tmp_path / "other").exists()
    rows.rename(tmp_path / "moved.rows")
    with pytest.raises(InputError, match=r"the label rows were in .*labels.rows, which is gone; bring it back"):
        fastmeta.train(resume=tmp_path / "run", data=two_classes())
    (tmp_path / "moved.rows").rename(rows)

    def full(*args):
        raise OSError(28, os.strerror(28))

    with monkeypatch.context() as patch:
        patch.setattr(os, "posix_fallocate", full)
        message = "cannot write the label rows in .*: No space left on device; make room there.*the last good state"
        with pytest.raises(TrainingError, match=message):
            fastmeta.train(resume=tmp_path / "run", data=two_classes())
    assert fastmeta.train(resume=tmp_path / "run", data=two_classes()).summary["label_accuracy_final"] is not None


@pytest.mark.parametrize(
    ("labels", "method", "message"),
    [
        (
            {"store": "mmap:x", "label_momentum": 0.5, "label_lr": 1.0},
            METHOD,
            "label_momentum=0.5 keeps labels in a dense",
        ),
        ({"store": "host", "parametrisation": "simplex", "label_lr": 1.0}, METHOD, "simplex keeps labels in a dense"),
        ({"store": "host"}, "class_labels", "method=class_labels has none"),
        ({"store": "mmap:x"}, "onehot", "method=onehot has none"),
        ({"store": "mmap:x", "label_lr": "search"}, METHOD, "label_lr=search trains several label tables"),
    ],
)
def test_what_has_no_table_elsewhere_is_refused(labels, method, message):
    with pytest.raises(InputError, match=message):
        TrainConfig(labels=LabelConfig(**labels), method=method)


def test_one_file_is_not_for_several_runs(tmp_path):
    asked = TrainConfig(labels=LabelConfig(store="mmap:x"), out=str(tmp_path / "runs"))
    for plan, what in ((lambda: configs(asked, 2), "--seeds"), (lambda: plan_folds(asked, 2), "--folds")):
        with pytest.raises(InputError, match=f"labels.store=mmap:x is the file of one run, and {what} makes several"):
            plan()


@pytest.mark.parametrize("store", ["disk", "mmap:", ""])
def test_what_is_no_store_is_refused(store):
    with pytest.raises(InputError, match=r"labels.store must be auto, device, host or mmap:PATH, got "):
        LabelConfig(store=store)


def test_auto_goes_by_size(monkeypatch):
    asked = TrainConfig(labels=EXACT)
    cpu = torch.device("cpu")
    monkeypatch.setattr(store_choice, "free_memory", lambda: 10**9)
    assert settled(asked, 1000, 1000, cpu, ALONE).labels.store == "device"
    with pytest.raises(InputError, match=r"float32 labels takes 3.7 GiB.*take labels.store=mmap:PATH"):
        settled(asked, 10**6, 1000, cpu, ALONE)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (10**8, 10**9))
    cuda = torch.device("cuda")
    assert settled(asked, 10_000, 1000, cuda, ALONE).labels.store == "device"
    assert settled(asked, 60_000, 1000, cuda, ALONE).labels.store == "host"
    posterior = TrainConfig(labels=LabelConfig(update="posterior", store="host"))
    with pytest.raises(InputError, match=r"labels.update=posterior holds 7 tables of predictions of all rows"):
        settled(posterior, 10**6, 1000, cpu, ALONE)
