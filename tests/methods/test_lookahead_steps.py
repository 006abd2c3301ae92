"""labels.lookahead_steps: windows of steps in the trainer."""

import signal

import pytest

import fastmeta
from fastmeta.cli.train import parse
from fastmeta.data import InputError
from fastmeta.training import Interrupted, LabelConfig
from fastmeta.training.listener import Listener
from tests.support.plugs import files
from tests.support.runs import two_classes
from tests.support.stopped import Kill, config


class Seen(Listener):
    def __init__(self):
        self.steps = []

    def step(self, stage):
        self.steps.append(stage.step)


def made(path, method="instance_labels", **labels):
    labels = LabelConfig(canaries="off", lookahead_steps=3, **labels)
    return config(path, method=method, baselines="none", model="mlp", labels=labels)


def test_a_run_in_windows_that_is_stopped_goes_on_bitwise(tmp_path):
    """Behind the warm-up of an epoch each of five steps takes windows of three and two; saves lie between them."""
    seen = Seen()
    unbroken = fastmeta.train(made(tmp_path / "unbroken"), data=two_classes(), listener=seen)
    assert seen.steps == [1, 2, 3, 4, 5, 8, 10, 13, 15]
    assert unbroken.config.labels.update == "exact"
    path = tmp_path / "stopped"
    with pytest.raises(Interrupted):
        fastmeta.train(made(path), data=two_classes(), listener=Kill(signal.SIGTERM, "instance_labels", 8))
    fastmeta.train(resume=path, data=two_classes())
    assert files(path) == files(unbroken.path)


def test_class_labels_with_weights_of_samples(tmp_path):
    run = fastmeta.train(
        made(tmp_path / "run", "class_labels", entropy_weight="1-H/logC", warmup_epochs=0), data=two_classes()
    )
    assert run.labels.alpha.ne(run.labels.alpha.new_full((), 1 - run.config.labels.target_prob)).any()


def test_flag():
    assert parse(["--labels.lookahead-steps", "4"]).run.labels.lookahead_steps == 4
    assert parse(["--labels.lookahead-steps", "4"]).run.label_update == "exact"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"compile": "trace"}, "labels.lookahead_steps=3 does not go with compile=trace; leave it at off"),
        ({"approx": "delayed"}, "labels.lookahead_steps=3 does not go with approx=delayed"),
        ({"micro_batch": 8}, "labels.lookahead_steps=3 does not go with micro_batch=8"),
        ({"ema": 0.9}, "labels.lookahead_steps=3 does not go with ema=0.9"),
        ({"labels": {"lookahead": "optimizer"}}, "does not go with labels.lookahead=optimizer"),
        ({"labels": {"tangent": "forward"}}, "does not go with labels.tangent=forward"),
        ({"labels": {"store": "host"}}, "does not go with labels.store=host"),
        ({"labels": {"update": "epoch"}}, "labels.lookahead_steps=3 is about labels.update=exact"),
        ({"method": "mwnet"}, "labels.lookahead_steps=3 is about methods whose labels move"),
        ({"labels": {"lookahead_steps": 0}}, "labels.lookahead_steps must be at least 1"),
    ],
)
def test_refused(changes, message, tmp_path):
    labels = {"lookahead_steps": 3, **changes.get("labels", {})}
    with pytest.raises(InputError, match=message):
        config(tmp_path, **{**changes, "labels": LabelConfig(**labels)})
