"""Fixed labels under four losses, each by its equation."""

import pytest
import torch

from fastmeta.data import InputError
from fastmeta.methods.fixed_labels import confidence_penalty, focal
from fastmeta.training import TrainConfig
from tests.support.methods import Net64, assert_same_weights, naive, stage_of, taken


def plain(z, y):
    return -z.log_softmax(1)[torch.arange(len(y)), y]


def smoothed(z, y, eps):
    classes = z.shape[1]
    p = torch.full_like(z, eps / classes)
    p[torch.arange(len(y)), y] += 1 - eps
    return -(p * z.log_softmax(1)).sum(1)


def penalised(z, y, beta):
    q = z.softmax(1)
    return plain(z, y) - beta * torch.distributions.Categorical(probs=q).entropy()


def focused(z, y, gamma):
    q = z.softmax(1)[torch.arange(len(y)), y]
    return -((1 - q) ** gamma) * q.log()


CASES = {
    "onehot": (None, plain),
    "label_smoothing": ({"eps": 0.3}, lambda z, y: smoothed(z, y, 0.3)),
    "confidence_penalty": ({"beta": 0.4}, lambda z, y: penalised(z, y, 0.4)),
    "focal": ({"gamma": 1.5}, lambda z, y: focused(z, y, 1.5)),
}


@pytest.mark.parametrize("micro_batch", [None, 6])  # pieces of 6, 6 and 4 rows
@pytest.mark.parametrize("method", CASES)
def test_steps_are_naive_ones(method, micro_batch, tmp_path):
    torch.manual_seed(0)
    model, (options, losses) = Net64(), CASES[method]
    stage = stage_of(tmp_path / "run", method, model, options, micro_batch=micro_batch)
    batches = taken(stage, 6)
    given = stage.context.targets
    wanted = naive(model, batches, lambda z, index: losses(z, given[index]).mean(), stage.config.optim)
    assert_same_weights(stage.model, wanted)


def test_smoothing_by_a_probability_below_chance_is_refused(tmp_path):
    with pytest.raises(InputError, match=r"at least 1/C = 0\.5 of 2 classes, got 0\.4"):
        stage_of(tmp_path / "run", "label_smoothing", Net64(), {"target_prob": 0.4})


def test_smoothing_by_the_probability_of_the_given_class(tmp_path):
    """Of ten classes p_y = 0.4 is eps = 2/3."""
    torch.manual_seed(0)
    model = Net64()
    stage = stage_of(tmp_path / "run", "label_smoothing", model, {"target_prob": 0.7})
    given, classes = stage.context.targets, stage.context.num_classes
    eps = 0.3 * classes / (classes - 1)
    wanted = naive(model, taken(stage, 3), lambda z, index: smoothed(z, given[index], eps).mean(), stage.config.optim)
    assert_same_weights(stage.model, wanted)


@pytest.mark.parametrize("gamma", [0.0, 0.5, 2.0])
def test_extreme_logits_have_finite_gradients(gamma):
    z = torch.tensor([[1e4, -1e4, 0.0], [-1e4, 1e4, 0.0], [0.0, 0.0, 0.0]], requires_grad=True)
    y = torch.tensor([0, 0, 1])
    for value in (focal(z, y, gamma), confidence_penalty(z, y, 0.1)):
        (g,) = torch.autograd.grad(value, z)
        assert bool(value.isfinite())
        assert bool(g.isfinite().all())


def test_what_is_switched_off_is_plain_cross_entropy():
    z, y = torch.randn(5, 3, dtype=torch.float64), torch.tensor([0, 1, 2, 0, 1])
    wanted = plain(z, y).mean()
    torch.testing.assert_close(focal(z, y, 0.0), wanted)
    torch.testing.assert_close(confidence_penalty(z, y, 0.0), wanted)


@pytest.mark.parametrize(
    ("method", "options", "message"),
    [
        ("label_smoothing", {"eps": 1.5}, r"method\.eps must be in \[0, 1\], got 1\.5"),
        ("label_smoothing", {"target_prob": -0.1}, r"method\.target_prob must be in \[0, 1\], got -0\.1"),
        ("label_smoothing", {"target_prob": 0.4, "eps": 0.2}, r"say the same; leave one out"),
        ("label_smoothing", {"eps": float("nan")}, r"method\.eps must be in \[0, 1\], got nan"),
        ("confidence_penalty", {"beta": -1}, r"method\.beta must be at least 0 and finite, got -1\.0"),
        ("focal", {"gamma": float("inf")}, r"method\.gamma must be at least 0 and finite, got inf"),
        ("focal", {"gama": 1}, r"unknown key 'method\.gama'; did you mean method\.gamma"),
        ("onehot", {"eps": 0.1}, r"unknown key 'method\.eps'; there are none"),
        ("focal", {"gamma": "much"}, r"method\.gamma must be a number"),
    ],
)
def test_options_out_of_range_are_refused_by_name(method, options, message):
    with pytest.raises(InputError, match=message):
        TrainConfig(method=method, options=options)


def test_options_are_flags():
    from fastmeta.cli.train import parse

    assert parse(["--method", "label_smoothing", "--method.eps", "0.2"]).run.options.eps == 0.2
