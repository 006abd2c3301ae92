"""coteaching and mentornet: which rows of a batch count, beside naive steps in float64."""

import copy
import math

import pytest
import torch
from torch.nn.functional import cross_entropy

from fastmeta.data import InputError
from fastmeta.training import TrainConfig
from fastmeta.training.prepare import prepare
from tests.support.methods import Net64, assert_same_weights, sgd_of, stage_of, taken
from tests.support.runs import two_classes
from tests.support.stopped import config


def test_coteaching_takes_the_rows_that_the_other_network_has_picked(tmp_path):
    torch.manual_seed(0)
    stage = stage_of(tmp_path / "run", "coteaching", Net64(), {"forget_rate": 0.5, "ramp_epochs": 2}, epochs=4)
    pair = [copy.deepcopy(m) for m in (stage.method.model, stage.method.second)]
    assert not torch.equal(pair[0].body[0].weight, pair[1].body[0].weight)
    steps, y, shares = [sgd_of(m, stage.config.optim) for m in pair], stage.context.targets, []
    for epoch in range(4):
        share = 0.5 * min(epoch / 2, 1)
        shares.append(stage.method.figures()["forgotten"])
        assert shares[-1] == share
        for x, index, lr in taken(stage, 5):
            losses = [cross_entropy(m(x), y[index], reduction="none") for m in pair]
            small = [loss.argsort()[: int((1 - share) * 16)] for loss in losses]
            for sgd, loss, rows in zip(steps, losses, small[::-1], strict=True):
                sgd.param_groups[0]["lr"] = lr
                sgd.zero_grad()
                loss[rows].mean().backward()
                sgd.step()
        stage.end_epoch()
        stage.method.step = type(stage.method).step.__get__(stage.method)
    assert shares == [0, 0.25, 0.5, 0.5]
    assert_same_weights(stage.method.model, pair[0])
    assert_same_weights(stage.method.second, pair[1])
    assert stage.model is stage.method.model


def test_by_default_it_forgets_what_the_runs_own_noise_has_made_wrong(tmp_path):
    def made(noise, **options):
        plan = config(tmp_path / "run", method="coteaching", options=options, noise=noise, model="mlp")
        return prepare(plan, data=two_classes(y_true=None, y_train=two_classes()["y_true"]))

    prepared = made("uniform:0.6")
    stage = prepared.stage("coteaching")
    assert stage.method.forget_rate == pytest.approx(prepared.splits.noise_rate)
    assert 0.1 < stage.method.forget_rate < 0.5
    assert made("uniform:0.6", forget_rate=0.2).stage("coteaching").method.forget_rate == 0.2
    with pytest.raises(InputError, match=r"give method\.forget_rate, such as 0\.2"):
        made("none")
    assert made("none", forget_rate=0.1).stage("coteaching").method.forget_rate == 0.1


def test_mentornet_weights_rows_by_the_curriculum(tmp_path):
    options = {"percentile": 0.6, "average": 0.3, "slope": 0.5, "dropout": 0.25}
    torch.manual_seed(0)
    stage = stage_of(tmp_path / "run", "mentornet", Net64(), options, epochs=8)
    model, y, average, weights = copy.deepcopy(stage.model), stage.context.targets, 0.0, []
    sgd = sgd_of(model, stage.config.optim)
    for number, (x, index, lr) in enumerate(taken(stage, 40)):
        percent = 100 * number // 40
        losses = cross_entropy(model(x), y[index], reduction="none")
        # the quantile of rank 0.6 * 15 = 9
        average = 0.3 * average + 0.7 * float(losses.detach().sort().values[9])
        above = losses.detach() - average
        v = torch.ones(16) if percent <= 18 else (above <= 0) * 1.0 if percent < 90 else (1 - above / 0.5).clamp(0, 1)
        stage.method.kept.step = number
        kept = stage.method.kept_at_random(16, percent)
        assert int(kept.sum()) == (8 if percent < 17 else 12)
        weights.append(v * kept)
        sgd.param_groups[0]["lr"] = lr
        sgd.zero_grad()
        (weights[-1] * losses).mean().backward()
        sgd.step()
    assert_same_weights(stage.model, model, atol=1e-10)
    assert float(stage.method.kept.average) == pytest.approx(average, abs=1e-10)
    assert stage.method.figures()["mean_weight"] == pytest.approx(float(weights[-1].mean()))
    assert len({tuple(w.nonzero().flatten().tolist()) for w in weights[:6]}) == 6  # other rows in each step


@pytest.mark.parametrize(
    ("method", "options", "message"),
    [
        ("coteaching", {"forget_rate": 1}, r"method\.forget_rate must be in \[0, 1\), got 1\.0"),
        ("coteaching", {"ramp_epochs": 0}, r"method\.ramp_epochs must be at least 1, got 0"),
        ("mentornet", {"percentile": 70}, r"method\.percentile must be in \[0, 1\], got 70\.0"),
        ("mentornet", {"slope": 0}, r"method\.slope must be above 0"),
        ("mentornet", {"dropout": 1}, r"method\.dropout must be in \[0, 1\)"),
        ("mentornet", {"average": math.nan}, r"method\.average must be in \[0, 1\)"),
    ],
)
def test_options_out_of_range_are_refused_by_name(method, options, message):
    with pytest.raises(InputError, match=message):
        TrainConfig(method=method, options=options)


@pytest.mark.parametrize("method", ["coteaching", "mentornet"])
def test_batches_in_pieces_are_refused(method):
    """Which rows count is decided over the whole batch."""
    with pytest.raises(InputError, match=f"micro_batch=4 is about steps in pieces, and method={method} takes none"):
        TrainConfig(method=method, micro_batch=4)
