"""Labels of exact steps that are told how far to go, in the trainer: they wait, move, and resume bitwise."""

import json
import signal

import pytest

from fastmeta import train
from fastmeta.data import InputError
from fastmeta.training import Interrupted, LabelConfig
from tests.support.runs import Warnings, two_classes
from tests.support.stopped import Kill, assert_same, config

METHODS = ["instance_labels", "class_labels"]
EXACT = LabelConfig(update="exact")


def lines(run):
    records = [json.loads(line) for line in (run.path / "metrics.jsonl").read_text().splitlines()]
    return [r for r in records if r["run"] == run.summary["method"] and r["epoch"]]


def figures(path, **changes):
    run = train(config(path, baselines="none", **changes), data=two_classes(), listener=Warnings())
    return run, lines(run)


@pytest.fixture(scope="module", params=METHODS)
def unbroken(request, tmp_path_factory):
    path = tmp_path_factory.mktemp("steps") / "run"
    made = config(path, method=request.param, labels=EXACT, baselines="none")
    return train(made, data=two_classes(), listener=Warnings())


def test_labels_wait_for_a_tenth_of_the_run(unbroken):
    first, second, third = lines(unbroken)
    assert (first["meta_loss"], first["label_grad_norm"]) == (None, None)
    assert second["meta_loss"] is not None
    assert first["label_entropy_all"] != second["label_entropy_all"] != third["label_entropy_all"]
    text = (unbroken.path / "config.toml").read_text()
    assert "warmup_epochs = 1" in text
    assert "label_step = " in text
    assert "label_lr" not in text


@pytest.mark.parametrize("at", [3, 8])
def test_a_run_that_was_stopped_goes_on_bitwise(at, tmp_path, unbroken):
    path, method = tmp_path / "run", unbroken.summary["method"]
    made = config(path, method=method, labels=EXACT, baselines="none")
    with pytest.raises(Interrupted):
        train(made, data=two_classes(), listener=Kill(signal.SIGTERM, method, at))
    train(resume=path, data=two_classes(), listener=Warnings())
    assert_same(path, unbroken.path)


def test_the_warm_up_is_that_of_labels_that_move_between_epochs(tmp_path):
    made = {"epochs": 2, "method": "instance_labels"}
    _, (exact, _) = figures(tmp_path / "exact", **made, labels=EXACT)
    _, (between, _) = figures(tmp_path / "epoch", **made, labels=LabelConfig(update="epoch", steps=1))
    for name in ("train_loss", "train_fit", "test_accuracy", "nll"):
        assert exact[name] == between[name]


def test_a_rate_that_is_given_waits_for_nothing(tmp_path):
    run, (first, *_) = figures(tmp_path / "run", labels=LabelConfig(label_lr=20.0))
    assert first["meta_loss"] is not None
    assert "warmup_epochs = 0" in (run.path / "config.toml").read_text()
    assert run.summary["label_lr"] == 20.0
    run, (first, second, _) = figures(tmp_path / "waits", labels=LabelConfig(label_lr=20.0, warmup_epochs=1))
    assert first["meta_loss"] is None
    assert second["meta_loss"] is not None


def test_too_small_a_step_is_said(tmp_path):
    run, _ = figures(tmp_path / "run", labels=LabelConfig(label_step=1e-4))
    (text,) = [t for t in run.summary["warnings"] if "hardly moved" in t]
    assert "labels.label_step is too small by about ×" in text
    assert text.endswith("canaries tell (labels.canaries), and by default labels.label_step is 0.3")


def test_a_rate_that_is_too_small_is_answered_with_the_length(tmp_path):
    run, _ = figures(tmp_path / "run", labels=LabelConfig(label_lr=1e-3))
    (text,) = [t for t in run.summary["warnings"] if "hardly moved" in t]
    assert text.endswith("may get worse: labels.label_step=0.3 in its place says how far a visit moves a label")


def test_labels_that_got_worse_are_never_left_without_a_word(tmp_path):
    x = two_classes() | {"y_meta": 1 - two_classes()["y_meta"]}  # clean labels that are all wrong
    labels = LabelConfig(update="exact", label_step=1.0, canaries="off")
    run = train(config(tmp_path / "run", labels=labels, baselines="none"), data=x, listener=Warnings())
    (text,) = [t for t in run.summary["warnings"] if "worse than they were given" in t]
    assert "90.0% were right, and " in text
    assert "lower labels.label_step, or train on the given ones" in text


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ({"label_lr": 1.0, "label_step": 0.1}, "labels.label_step=0.1 how far it moves a label; leave one out"),
        ({"label_step": 0.0}, "labels.label_step must be above 0"),
        ({"update": "epoch", "label_step": 0.1}, "labels.label_step=0.1 is about labels.update=exact"),
    ],
)
def test_what_is_refused(labels, message, tmp_path):
    with pytest.raises(InputError, match=message):
        config(tmp_path, labels=LabelConfig(**labels))


def test_a_run_in_which_labels_could_not_move_is_refused(tmp_path):
    with pytest.raises(InputError, match="epochs=3 leaves none; train longer"):
        figures(tmp_path / "run", labels=LabelConfig(update="exact", warmup_epochs=3))
