"""Methods that learn a loss: a run of each, stopped and gone on with; as one graph; their options and refusals."""

import signal

import pytest
import torch

import fastmeta
from fastmeta.cli.train import parse
from fastmeta.data import InputError
from fastmeta.training import Interrupted, LabelConfig, OptimConfig, TrainConfig
from tests.support.plugs import files
from tests.support.runs import two_classes
from tests.support.stopped import Kill, config

METHODS = ["l2rw"]


def made(path, method, **changes):
    return config(path, **{"method": method, "baselines": "none", "model": "mlp", **changes})


@pytest.mark.parametrize("method", METHODS)
def test_a_run_that_is_stopped_goes_on_bitwise(method, tmp_path):
    """Inside of an epoch, whose figures the method has counted in part."""
    unbroken = fastmeta.train(made(tmp_path / "unbroken", method), data=two_classes())
    path = tmp_path / "stopped"
    with pytest.raises(Interrupted):
        fastmeta.train(made(path, method), data=two_classes(), listener=Kill(signal.SIGTERM, method, 7))
    fastmeta.train(resume=path, data=two_classes())
    assert files(path) == files(unbroken.path)
    summary = unbroken.summary
    assert summary["uses_meta_batch"]
    assert all(value is not None for value in summary["method_figures"].values())
    assert summary["method_figures"] == files(unbroken.path)[1][-1]["method_figures"]


@pytest.mark.parametrize("method", METHODS)
def test_it_is_the_same_as_one_graph_and_in_pieces(method, tmp_path):
    """Up to rounding; of a network without BatchNorm, which pieces leave as it is."""
    changes = {"off": {}, "trace": {"compile": "trace"}, "pieces": {"micro_batch": 8}}
    runs = {
        k: fastmeta.train(made(tmp_path / k, method, epochs=1, **c), data=two_classes()) for k, c in changes.items()
    }
    for kind in ("trace", "pieces"):
        for key, t in runs["off"].model.state_dict().items():
            torch.testing.assert_close(runs[kind].model.state_dict()[key], t, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("method", METHODS)
def test_it_is_refused_what_is_about_a_table_of_labels(method):
    for name, value in (("target_prob", 0.5), ("label_lr", 3.0), ("dtype", "bfloat16")):
        with pytest.raises(InputError, match=f"labels.{name}={value} is about a table of labels, and method={method}"):
            TrainConfig(method=method, labels=LabelConfig(**{name: value}))
    for update in ("epoch", "posterior"):
        with pytest.raises(InputError, match=f"labels.update={update} is about methods whose labels move"):
            TrainConfig(method=method, labels=LabelConfig(update=update))
    with pytest.raises(InputError, match=r"labels\.canaries=5 is about labels that are learned"):
        TrainConfig(method=method, labels=LabelConfig(canaries=5))


@pytest.mark.parametrize("method", METHODS)
def test_a_resolved_config_is_one_again(method, tmp_path):
    run = fastmeta.train(made(tmp_path / "run", method, epochs=1, optim=OptimConfig(name="adamw")), data=two_classes())
    again = TrainConfig.read(run.path / "config.toml")
    assert again.trusted() == run.config
    assert again.labels.lookahead == "0.1"
    assert parse(["--config", str(run.path / "config.toml"), "--out", "elsewhere"]).run.method == method


def test_l2rw_is_refused_what_needs_weights_of_another_step():
    for approx in ("delayed", "every:2"):
        with pytest.raises(InputError, match=f"approx={approx} trains on the loss of an earlier step"):
            TrainConfig(method="l2rw", approx=approx)
    assert TrainConfig(method="l2rw", approx="last:1").approx == "last:1"
    with pytest.raises(InputError, match=r"labels\.lookahead=optimizer moves a model on"):
        TrainConfig(method="l2rw", labels=LabelConfig(lookahead="optimizer"))


def test_l2rw_counts_the_samples_that_had_a_weight(tmp_path):
    run = fastmeta.train(made(tmp_path / "run", "l2rw"), data=two_classes())
    figures = run.summary["method_figures"]
    assert 0 < figures["rows_weighted"] < 1
    assert 0 <= figures["batches_without"] < 1
    assert run.summary["label_accuracy_final"] == run.summary["label_accuracy_initial"]
