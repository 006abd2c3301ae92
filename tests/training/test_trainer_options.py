"""Options of plain steps: an average of the weights, mixup, and a learning rate that grows at first."""

import copy
import signal

import pytest
import torch
from torch.nn.functional import cross_entropy

from fastmeta.data import InputError
from fastmeta.methods.mixup import Mixup
from fastmeta.training import DataConfig, Interrupted, LabelConfig, OptimConfig, TrainConfig, load_run, train
from fastmeta.training.prepare import prepare
from fastmeta.training.schedule import lr_at, lr_share
from tests.support.methods import Net64, assert_same_weights, naive, stage_of, taken
from tests.support.plugs import files
from tests.support.runs import Faulty, two_classes
from tests.support.stopped import Kill, config

ALL = {"ema": 0.8, "mixup": 0.4, "optim": OptimConfig(lr=0.05, warmup=1)}
EPOCH = LabelConfig(update="epoch", target_prob=0.7, steps=3)


@pytest.mark.parametrize("method", ["onehot", "instance_labels"])
def test_a_run_with_all_of_them_resumes_bitwise(method, tmp_path):
    def made(name):
        return config(tmp_path / name, method=method, model="mlp", baselines="noisy", **ALL)

    whole = train(made("whole"), data=two_classes())
    for at in ((method, 7), ("noisy", 3)):
        with pytest.raises(Interrupted):
            train(made(f"run-{at[0]}"), data=two_classes(), listener=Kill(signal.SIGTERM, *at))
        train(resume=tmp_path / f"run-{at[0]}", data=two_classes())
        assert files(tmp_path / f"run-{at[0]}") == files(whole.path)
    assert whole.summary["test_accuracy_last"] > 0.8
    assert 0 <= whole.summary["method_figures"]["test_accuracy_without_ema"] <= 1
    assert load_run(whole.path).config.ema == 0.8


def test_the_average_is_the_runs_model(tmp_path):
    torch.manual_seed(0)
    stage = stage_of(tmp_path / "run", "onehot", Net64(), ema=0.6)
    mean, trained = copy.deepcopy(stage.model), stage.method.predictor()
    assert stage.model is not trained
    for step in range(8):
        taken(stage, 1)
        stage.method.step = type(stage.method).step.__get__(stage.method)
        decay = min(0.6, (1 + step) / (10 + step))
        with torch.no_grad():
            for p, q in zip(mean.parameters(), trained.parameters(), strict=True):
                p.copy_(decay * p + (1 - decay) * q)
    assert_same_weights(stage.model, mean, atol=1e-7)  # the share is a float32
    with pytest.raises(AssertionError):
        assert_same_weights(stage.model, trained, atol=1e-4)


@pytest.mark.parametrize("how", ["loss", "gradient", "buffer"])
def test_a_bad_step_leaves_the_average_alone(how, tmp_path):
    torch.manual_seed(0)
    plan = config(tmp_path / "run", method="onehot", model=None, ema=0.5, data=DataConfig(batch_size=16))
    stage = prepare(plan, model=Faulty(how), data=two_classes()).stage("onehot")
    taken(stage, 2)
    before = copy.deepcopy(stage.model.state_dict())
    stage.mean.source.bad = True
    taken(stage, 2)
    assert int(stage.totals.read()["nonfinite"]) == 2
    assert all(torch.equal(v, before[k]) for k, v in stage.model.state_dict().items())
    stage.mean.source.bad = False
    taken(stage, 1)
    assert not torch.equal(stage.model.head.weight, before["head.weight"])
    assert torch.equal(stage.model.norm.running_mean, stage.mean.source.norm.running_mean)


@pytest.mark.parametrize("micro_batch", [None, 6])
@pytest.mark.parametrize("smoothed", [True, False])
@pytest.mark.parametrize("method", ["onehot", "instance_labels"])
def test_mixup_mixes_samples_and_labels(method, smoothed, micro_batch, tmp_path, monkeypatch):
    drawn, call = [], Mixup.__call__

    def look(self, x):
        mixed, pairs = call(self, x)
        drawn.append((mixed, pairs.share, pairs.partner))
        torch.testing.assert_close(mixed, pairs.share * x + (1 - pairs.share) * x[pairs.partner])
        return mixed, pairs

    monkeypatch.setattr(Mixup, "__call__", look)
    torch.manual_seed(0)
    model = Net64()
    labels = {} if method == "onehot" else {"labels": EPOCH}
    stage = stage_of(tmp_path / "run", method, model, mixup=0.7, micro_batch=micro_batch, **labels)
    if method == "instance_labels":
        stage.method.labels.to(torch.float64)
    if method == "instance_labels" and not smoothed:
        stage.method.updates.epochs_done = 1  # the given labels are smoothed in the first epoch alone
    batches = taken(stage, 5)
    given, seen = stage.context.targets, iter(drawn)
    p = torch.eye(2).double()[given]
    if method == "instance_labels":
        p = 0.9 * p + 0.1 / 2 if smoothed else stage.method.labels.probs().double()

    def loss(z, index):
        _, share, partner = next(seen)
        a, b = (cross_entropy(z, p[i]) for i in (index, index[partner]))
        return share * a + (1 - share) * b

    mixed = [(x, index, lr) for (x, _, _), (_, index, lr) in zip(drawn, batches, strict=True)]
    wanted = naive(model, mixed, loss, stage.config.optim)
    assert_same_weights(stage.model, wanted)
    assert len({share for _, share, _ in drawn}) == 5


def test_mixup_of_little_and_of_much(tmp_path):
    x = torch.randn(6, 3)
    torch.manual_seed(0)
    assert Mixup(None)(x)[0] is x
    assert torch.equal(torch.randn(1), torch.manual_seed(0) and torch.randn(1))  # nothing was drawn
    for alpha in (1e-4, 1.0, 1e6):
        shares = [Mixup(alpha)(x)[1].share for _ in range(20)]
        assert all(0 <= share <= 1 for share in shares)
    assert all(abs(share - 0.5) < 0.01 for share in shares)


@pytest.mark.parametrize("schedule", ["cosine", "step", "constant"])
def test_the_rate_grows_for_the_first_epochs_and_then_is_that_of_the_schedule(schedule, tmp_path):
    optim = OptimConfig(lr=0.4, schedule=schedule, weight_decay=0.0)
    plain = [lr_at(optim, step, 40) for step in range(40)]
    rates = [lr_at(optim, step, 40, 10) for step in range(40)]
    assert rates[10:] == plain[10:]
    assert rates[:10] == pytest.approx([(step + 1) / 10 * plain[step] for step in range(10)])
    assert lr_share(optim, 20, 40, 10) < lr_share(optim, 20, 40)
    optim = OptimConfig(lr=0.4, schedule=schedule, warmup=2)
    stage = stage_of(tmp_path / "run", "onehot", Net64(), optim=optim, epochs=8)
    stage.take_step()
    assert stage.context.optimizers["optimizer"].param_groups[0]["lr"] == pytest.approx(0.04)


OTHERS = ["class_labels", "focal", "elr", "l2rw"]


@pytest.mark.parametrize("method", OTHERS)
def test_other_methods_are_refused_by_name(method):
    for changes, text in (
        ({"ema": 0.9}, r"ema=0\.9 is about an average of weights"),
        ({"mixup": 0.2}, r"mixup=0\.2 is about mixtures of samples"),
        ({"optim": OptimConfig(warmup=2)}, r"optim\.warmup=2 is about a learning rate that grows"),
    ):
        with pytest.raises(InputError, match=f"{text}, and method={method} takes none; leave it out"):
            TrainConfig(method=method, **changes)


def test_values_out_of_range_and_steps_that_are_not_plain_are_refused(tmp_path):
    for changes, text in (
        ({"ema": 1.0}, r"ema must be in \[0, 1\), got 1\.0"),
        ({"mixup": 0}, r"mixup must be above 0"),
        (
            {"method": "instance_labels", "labels": LabelConfig(update="exact"), "mixup": 0.3},
            r"take labels\.update=post",
        ),
    ):
        with pytest.raises(InputError, match=text):
            TrainConfig(**{"method": "onehot", **changes})
    with pytest.raises(InputError, match=r"optim\.warmup must be at least 1, got 0"):
        OptimConfig(warmup=0)
    with pytest.raises(InputError, match=r"mixup=0\.3 is about plain steps, and labels\.update=exact takes others"):
        prepare(TrainConfig(mixup=0.3))  # the digits take exact steps by default


def test_they_are_flags_and_a_config_without_them_is_as_before():
    from fastmeta.cli.train import parse

    run = parse(["--method", "onehot", "--ema", "0.99", "--mixup", "0.2", "--optim.warmup", "3"]).run
    assert (run.ema, run.mixup, run.optim.warmup) == (0.99, 0.2, 3)
    assert not {"ema", "mixup"} & TrainConfig().to_mapping().keys()
    assert "warmup" not in TrainConfig().to_mapping()["optim"]
