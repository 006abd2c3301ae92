"""Methods that learn a loss: a run of each, stopped and gone on with; as one graph; their options and refusals."""

import copy

import pytest
import torch

import fastmeta
from fastmeta.cli.train import parse
from fastmeta.data import InputError
from fastmeta.methods.corrected_labels import CorrectedLabels
from fastmeta.methods.l2rw import Tally
from fastmeta.methods.mwnet import MetaWeightNet
from fastmeta.training import LabelConfig, OptimConfig, TrainConfig
from tests.support.runs import two_classes
from tests.support.stopped import config

METHODS = ["l2rw", "mwnet", "mlc"]


def made(path, method, **changes):
    return config(path, **{"method": method, "baselines": "none", "model": "mlp", **changes})


def test_a_run_has_the_figures_of_its_method_and_mlc_has_labels(tmp_path):
    """How each is resumed is looked at in test_every_method.py."""
    runs = {method: fastmeta.train(made(tmp_path / method, method), data=two_classes()) for method in METHODS}
    assert all(run.summary["uses_meta_batch"] for run in runs.values())
    figures = {method: run.summary["method_figures"] for method, run in runs.items() if method != "mlc"}
    assert all(value is not None for own in figures.values() for value in own.values())
    assert 0 < figures["l2rw"]["rows_weighted"] < 1
    assert 0 <= figures["l2rw"]["batches_without"] < 1
    labels = runs["mlc"].labels
    assert torch.equal(labels.probs(), fastmeta.load_run(runs["mlc"].path).labels.probs())
    assert not torch.equal(labels.probs(), fastmeta.InstanceLabels(labels.targets, 2, 0.9).probs())


def test_a_tally_goes_on_inside_of_an_epoch():
    class Result:
        alignment = torch.tensor([1.0, -1.0, 2.0, -0.5])

    whole, first, second = (Tally(torch.device("cpu")) for _ in range(3))
    for tally in (whole, whole, first):
        tally.add(Result())
    second.load_state_dict(first.state_dict())
    second.add(Result())
    for tally in (whole, second):
        tally.close()
        assert tally.last == {"rows_weighted": 0.5, "batches_without": 0.0}
        assert not tally.sums.any()


@pytest.mark.slow
@pytest.mark.parametrize("changes", [{"micro_batch": 8}, {"compile": "trace"}])
@pytest.mark.parametrize("method", METHODS)
def test_it_is_the_same_as_one_graph_and_in_pieces(method, changes, tmp_path):
    """Up to rounding; of a network without BatchNorm, which pieces leave as it is."""
    plain, other = (
        fastmeta.train(made(tmp_path / str(k), method, epochs=1, **c), data=two_classes())
        for k, c in enumerate([{}, changes])
    )
    for key, t in plain.model.state_dict().items():
        torch.testing.assert_close(other.model.state_dict()[key], t, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("method", METHODS)
def test_it_is_refused_what_is_about_a_table_of_labels(method):
    for name, value in (("target_prob", 0.5), ("label_lr", 3.0), ("label_step", 0.1), ("dtype", "bfloat16")):
        with pytest.raises(InputError, match=f"labels.{name}={value} is about a table of labels, and method={method}"):
            TrainConfig(method=method, labels=LabelConfig(**{name: value}))
    for update in ("epoch", "posterior"):
        with pytest.raises(InputError, match=f"labels.update={update} is about methods whose labels move"):
            TrainConfig(method=method, labels=LabelConfig(update=update))
    with pytest.raises(InputError, match=r"labels\.canaries=5 is about labels that are learned"):
        TrainConfig(method=method, labels=LabelConfig(canaries=5))


@pytest.mark.parametrize("method", METHODS[-1:])
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


def test_mwnet_has_options_as_flags_and_in_a_table(tmp_path):
    flags = ["--method", "mwnet", "--method.normalise", "n", "--method.optimizer", "sgd", "--method.hidden", "7"]
    config = parse(flags).run
    assert (config.options.normalise, config.options.hidden, config.options.lr) == ("n", 7, 1e-3)
    assert TrainConfig(method="mwnet").options.normalise == "sum"
    (tmp_path / "run.toml").write_text(config.to_toml())
    assert TrainConfig.read(tmp_path / "run.toml") == config


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"hidden": 0}, "method.hidden must be at least 1, got 0"),
        ({"lr": 0.0}, "method.lr must be above 0 and finite, got 0.0"),
        ({"lr": "fast"}, "method.lr must be a number, got 'fast'"),
        ({"weight_decay": -1.0}, "method.weight_decay must be at least 0 and finite, got -1.0"),
        ({"optimizer": "sgd", "momentum": 1.0}, r"method.momentum must be in \[0, 1\), got 1.0"),
        ({"momentum": 0.5}, "method.momentum=0.5 is about sgd, and method.optimizer is adam; leave it out"),
        ({"normalise": "mean"}, "method.normalise must be one of n, sum, got 'mean'"),
        ({"hiden": 3}, "unknown key 'method.hiden'; did you mean method.hidden"),
    ],
)
def test_wrong_options_of_mwnet_are_named(options, message):
    with pytest.raises(InputError, match=message):
        TrainConfig(method="mwnet", options=options)


def test_mwnet_takes_its_optimizer_and_its_decay_from_its_options(tmp_path):
    loss = fastmeta.WeightingNet(torch.tensor([0, 1]), 2)
    of = lambda **options: MetaWeightNet(MetaWeightNet.Config(**options)).make_optimizer(loss)  # noqa: E731
    sgd, adam = of(optimizer="sgd", lr=0.01), of()
    assert (sgd.defaults["lr"], sgd.defaults["momentum"], sgd.defaults["weight_decay"]) == (0.01, 0.9, 5e-4)
    assert (type(adam), adam.defaults["lr"], adam.defaults["weight_decay"]) == (torch.optim.Adam, 1e-3, 1e-4)
    assert of(weight_decay=0.0).defaults["weight_decay"] == 0


def test_mlc_reads_its_labels_by_the_network_in_evaluation_mode(tmp_path):
    """At the end of each epoch; the network, with BatchNorm, is left as it was."""

    class Look(fastmeta.Listener):
        epochs = 0

        def epoch(self, stage, record):
            self.epochs += 1
            method, model = stage.method, copy.deepcopy(stage.model).eval()
            assert stage.model.training
            assert method.loss.net[0].in_features == 16 + 128
            for x, rows in stage.samples().train():
                with torch.no_grad():
                    wanted = method.loss.probs(model(x), rows, x)
                torch.testing.assert_close(method.labels.probs(rows), wanted, rtol=1e-4, atol=1e-4)

    look, changes = Look(), {"options": {"features": "input"}, "model": "small_conv", "epochs": 2}
    fastmeta.train(made(tmp_path / "run", "mlc", **changes), data=two_classes(), listener=look)
    assert look.epochs == 2


def test_labels_that_a_corrector_loses_are_kept_as_they_were():
    labels = CorrectedLabels(torch.tensor([0, 1, 2]), 3, 0.9)
    before = labels.probs()
    made_of = torch.tensor([[0.2, 0.3, 0.5], [torch.nan, 0.5, 0.5]])
    assert labels.read(torch.tensor([2, 1]), made_of) == 1
    torch.testing.assert_close(labels.probs()[2], made_of[0])
    assert torch.equal(labels.probs()[:2], before[:2])
    assert labels.stuck(0.9) is None


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"features": "hidden"}, "method.features must be one of logits, input, got 'hidden'"),
        ({"embedding": 0}, "method.embedding must be at least 1, got 0"),
        ({"hidden": -1}, "method.hidden must be at least 1, got -1"),
        ({"lr": float("inf")}, "method.lr must be above 0 and finite, got inf"),
        ({"weight_decay": -1.0}, "method.weight_decay must be at least 0 and finite"),
    ],
)
def test_wrong_options_of_mlc_are_named(options, message):
    with pytest.raises(InputError, match=message):
        TrainConfig(method="mlc", options=options)
