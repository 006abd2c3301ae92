"""A run that was stopped, by a signal or by force, goes on bitwise where it stopped."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import safetensors.torch
import torch

from fastmeta import train
from fastmeta.data import InputError
from fastmeta.training import Interrupted, LabelConfig, TrainConfig, load_run
from fastmeta.training.listener import Listener
from tests.support.runs import Warnings, two_classes
from tests.support.stopped import Kill, assert_same, config, interrupted


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize(
    "at", [("instance_labels", 1), ("instance_labels", 7), ("instance_labels", 15), ("union", 5), ("union", 14)]
)
def test_a_signal_saves_at_a_step_boundary(signum, at, unbroken, tmp_path):
    path = tmp_path / "run"
    handlers = [signal.getsignal(s) for s in (signal.SIGTERM, signal.SIGINT)]
    # behind the last step of a stage the signal is heard while its labels are read
    where = "while labels were read" if at == ("instance_labels", 15) else f"at step {at[1]} of 15"
    with pytest.raises(Interrupted, match=f"in {at[0]} {where}") as stopped:
        train(config(path), data=two_classes(), listener=Kill(signum, *at))
    assert (stopped.value.signum, stopped.value.path) == (signum, path)
    assert [signal.getsignal(s) for s in (signal.SIGTERM, signal.SIGINT)] == handlers
    assert not (path / "summary.json").exists()
    run = train(resume=path, data=two_classes())
    assert_same(path, unbroken)
    assert run.summary == load_run(path).summary


KILLED = """
import signal, sys
from fastmeta import train
from tests.support.stopped import Kill, config
from tests.support.runs import two_classes
train(config(sys.argv[1]), data=two_classes(), listener=Kill(signal.SIGKILL, sys.argv[2], int(sys.argv[3])))
"""


class TwoSignals(Listener):
    """The second one behind the same step, as by someone who does not wait."""

    def step(self, stage):
        if (stage.name, stage.step) == ("union", 7):
            os.kill(os.getpid(), signal.SIGINT)
            os.kill(os.getpid(), signal.SIGINT)


def test_a_second_ctrl_c_stops_at_once_and_says_what_is_saved(unbroken, tmp_path):
    path = tmp_path / "run"
    with pytest.raises(Interrupted, match="SIGINT at once; the last saved state, of union at step 5, is in") as stopped:
        train(config(path), data=two_classes(), listener=TwoSignals())
    assert (stopped.value.signum, stopped.value.path) == (signal.SIGINT, path)
    train(resume=path, data=two_classes())
    assert_same(path, unbroken)


def test_ctrl_c_while_the_directory_is_made_leaves_none(tmp_path, monkeypatch):
    def stop(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "replace", stop)
    with pytest.raises(KeyboardInterrupt):
        train(config(tmp_path / "run"), data=two_classes())
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(not hasattr(signal, "SIGHUP"), reason="no such signal here")
def test_a_terminal_that_goes_away_is_heard_unless_nohup_says_otherwise(tmp_path):
    kill = Kill(signal.SIGHUP, "instance_labels", 2)
    with pytest.raises(Interrupted, match="SIGHUP in instance_labels at step 2"):
        train(config(tmp_path / "heard", baselines="none"), data=two_classes(), listener=kill)
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        train(config(tmp_path / "ignored", baselines="none"), data=two_classes(), listener=kill)
        assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


def test_what_is_ignored_stays_ignored_when_another_signal_stops_the_run(tmp_path):
    kill = Kill(signal.SIGTERM, "instance_labels", 2)
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with pytest.raises(Interrupted, match="SIGTERM"):
            train(config(tmp_path / "run", baselines="none"), data=two_classes(), listener=kill)
        assert signal.getsignal(signal.SIGINT) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, before)


@pytest.mark.parametrize("at", [("instance_labels", 8), ("union", 11)])
def test_a_killed_run_goes_on_from_its_last_checkpoint(at, unbroken, tmp_path):
    path = tmp_path / "run"
    root = Path(__file__).parents[2]
    environment = {**os.environ, "PYTHONPATH": str(root), "OMP_NUM_THREADS": "1"}
    script = [sys.executable, "-c", KILLED, str(path), *map(str, at)]
    done = subprocess.run(script, cwd=root, env=environment, capture_output=True, check=False)
    assert done.returncode == -signal.SIGKILL, done.stderr.decode()
    with open(path / "metrics.jsonl", "a") as file:
        file.write('{"run": "instance_labels", "ep')  # as torn as a line can be
    (path / "checkpoint" / ".state.safetensors.part").write_bytes(b"as torn as a checkpoint can be")
    train(resume=path, data=two_classes())
    assert_same(path, unbroken)
    assert list(path.rglob(".*")) == []


def test_a_bfloat16_table_draws_on(tmp_path):
    """Stochastic rounding goes on with the counter that the checkpoint holds."""
    options = {"labels": LabelConfig(update="exact", dtype="bfloat16"), "baselines": "none"}
    unbroken, path = train(config(tmp_path / "unbroken", **options), data=two_classes()).path, tmp_path / "run"
    with pytest.raises(Interrupted):
        train(config(path, **options), data=two_classes(), listener=Kill(signal.SIGTERM, "instance_labels", 7))
    run = train(resume=path, data=two_classes())
    assert_same(path, unbroken)
    assert run.labels.label_logits.dtype == torch.bfloat16
    assert run.labels.label_step == 10  # of 15 steps, behind an epoch of warm-up
    assert torch.equal(load_run(path).labels.label_logits, run.labels.label_logits)


def test_another_thread_count_is_said(tmp_path):
    path = interrupted(tmp_path / "run")
    text = (path / "config.toml").read_text()
    (path / "config.toml").write_text(text.replace("threads = 1", "threads = 2"))
    listener = Warnings()
    train(resume=path, data=two_classes(), listener=listener)
    assert [t for t in listener.texts if "CPU threads 2, begun with 1" in t]


def test_what_cannot_be_resumed(tmp_path, unbroken):
    path = interrupted(tmp_path / "run")
    with pytest.raises(InputError, match="the data are not those"):
        train(resume=path, data=two_classes(seed=1))
    with pytest.raises(InputError, match="begun with data= of the caller's own"):
        train(resume=path)
    with pytest.raises(InputError, match="begun without model=: leave it out"):
        train(resume=path, data=two_classes(), model=torch.nn.Linear(1, 1))
    with pytest.raises(InputError, match="not both"):
        train(TrainConfig(), resume=path)
    with pytest.raises(InputError, match="is no run directory"):
        train(resume=tmp_path)
    state = path / "checkpoint" / "state.safetensors"
    state.write_bytes(state.read_bytes()[:1000])
    with pytest.raises(InputError, match="is no checkpoint that can be read"):
        train(resume=path, data=two_classes())
    for content in (b"", safetensors.torch.save({"a": torch.zeros(1)}, {"fastmeta": "{"})):
        state.write_bytes(content)
        with pytest.raises(InputError, match="is no checkpoint that can be read"):
            train(resume=path, data=two_classes())
    assert train(resume=unbroken).summary == load_run(unbroken).summary  # finished already: nothing to do


@pytest.mark.parametrize(
    ("before", "after", "message"),
    [
        ("epochs = 3", "epochs = 2", "epochs is 2, was 3; change it back"),
        ("momentum = 0.9", "momentum = 0.5", "optim.momentum is 0.5, was 0.9"),
        ("seed = 0", "seed = 1", "seed is 1, was 0"),
        ('model = "small_conv"', 'model = "mlp"', "model is 'mlp', was 'small_conv'"),
    ],
)
def test_a_config_that_was_changed_is_not_gone_on_with(before, after, message, tmp_path):
    path = interrupted(tmp_path / "run")
    text = (path / "config.toml").read_text()
    assert before in text
    (path / "config.toml").write_text(text.replace(before, after))
    with pytest.raises(InputError, match=message):
        train(resume=path, data=two_classes())


class Dropping(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.net = torch.nn.Sequential(
            torch.nn.Flatten(), torch.nn.Linear(16, 8), torch.nn.ReLU(), torch.nn.Dropout(0.3), torch.nn.Linear(8, 2)
        )

    def forward(self, x):
        return self.net(x)


@pytest.mark.parametrize(
    ("compile", "step"), [("trace", 6), ("trace", 7), pytest.param("full", 7, marks=pytest.mark.slow)]
)
def test_graphs_and_approximations_go_on_bitwise(compile, step, tmp_path):
    """With a random layer, momentum, and a stop where labels move (6) and where they do not (7)."""
    torch.manual_seed(0)
    model = Dropping()
    paths = tmp_path / "unbroken", tmp_path / "broken"
    changes = {"model": None, "baselines": "none", "compile": compile, "approx": "every:2", "watch_every": 1}
    train(config(paths[0], **changes), model=model, data=two_classes())
    stop = Kill(signal.SIGTERM, "instance_labels", step)
    with pytest.raises(Interrupted):
        train(config(paths[1], **changes), model=model, data=two_classes(), listener=stop)
    train(resume=paths[1], model=model, data=two_classes())
    assert_same(*paths[::-1])
