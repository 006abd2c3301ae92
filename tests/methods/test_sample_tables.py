"""elr, sop and data_parameters: their steps beside naive ones in float64, and what they keep of each sample."""

import copy
import math

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy, one_hot

from fastmeta.data import InputError
from fastmeta.training import TrainConfig
from tests.support.methods import Net64, assert_same_weights, naive, stage_of, taken
from tests.support.runs import two_classes

PIECES = pytest.mark.parametrize("micro_batch", [None, 6])  # pieces of 6, 6 and 4 rows
STEPS = 11  # of 5 an epoch: each row comes up twice at least


CLASSES = 10  # of which a batch of 16 rows has not all


def ten_classes():
    y = {"y_train": np.arange(80) % 10, "y_meta": np.arange(8), "y_test": np.arange(20) % 10}
    return two_classes(**y, y_true=None, class_names=None)


def certain():
    """A network that is sure of much: probabilities come to where elr clamps them."""
    torch.manual_seed(0)
    model = Net64(CLASSES)
    with torch.no_grad():
        model.body[2].weight.mul_(40)
    return model


def run(path, method, options, micro_batch):
    model = certain()
    stage = stage_of(path, method, model, options, ten_classes(), micro_batch=micro_batch, epochs=3)
    start = copy.deepcopy(stage.method.kept.state_dict())
    return stage, model, start, taken(stage, STEPS)


@PIECES
def test_elr(micro_batch, tmp_path):
    stage, model, start, batches = run(tmp_path / "run", "elr", {"beta": 0.6, "weight": 2.0}, micro_batch)
    y, t = stage.context.targets, start["t"].clone()
    assert t.dtype == torch.float64
    assert not t.any()

    def loss(z, index):
        p = z.softmax(1).clamp(1e-4, 1 - 1e-4)
        t[index] = 0.6 * t[index] + 0.4 * (p / p.sum(1, keepdim=True)).detach()
        return cross_entropy(z, y[index]) + 2.0 * (1 - (t[index] * p).sum(1)).log().mean()

    assert_same_weights(stage.model, naive(model, batches, loss, stage.config.optim))
    torch.testing.assert_close(stage.method.kept.t, t, rtol=0, atol=1e-12)


@PIECES
def test_sop(micro_batch, tmp_path):
    stage, model, start, batches = run(tmp_path / "run", "sop", {"lr_u": 2.0, "lr_v": 20.0}, micro_batch)
    # from larger numbers, so that they matter within a few steps
    for k, table in enumerate(start.values()):
        assert 0 < float(table.abs().max()) < 1e-6
        table.copy_(torch.linspace(0.2, 0.7, table.numel(), dtype=torch.float64).reshape(table.shape) + 0.1 * k)
    options = {"lr_u": 2.0, "lr_v": 20.0}
    stage = stage_of(tmp_path / "again", "sop", model, options, ten_classes(), micro_batch=micro_batch, epochs=3)
    stage.method.kept.load_state_dict(start)
    batches = taken(stage, STEPS)
    y = one_hot(stage.context.targets, CLASSES).double()
    u, v = (nn.Parameter(start[k].clone()) for k in "uv")
    sgd = torch.optim.SGD([{"params": [u], "lr": 2.0}, {"params": [v], "lr": 20.0}])

    def loss(z, index):
        if any(p.grad is not None for p in (u, v)):
            sgd.step()  # of the step before
            sgd.zero_grad()
        of_u = (u[index] ** 2 * y[index]).clamp(0, 1 - 1e-4)
        of_v = (v[index] ** 2 * (1 - y[index])).clamp(0, 1 - 1e-4)
        p = (z.softmax(1) + of_u - of_v.detach()).clamp(min=1e-4)
        p = nn.functional.normalize(p, p=1, dim=1).clamp(1e-4, 1.0)
        hard = one_hot(z.argmax(1), CLASSES)
        distance = ((hard + of_u.detach() - of_v - y[index]) ** 2).sum() / len(index)
        return -(y[index] * p.log()).sum(1).mean() + distance

    wanted = naive(model, batches, loss, stage.config.optim)
    sgd.step()
    assert_same_weights(stage.model, wanted)
    for table, p in ((stage.method.kept.u, u), (stage.method.kept.v, v)):
        torch.testing.assert_close(table, p.detach(), rtol=0, atol=1e-12)
    assert not torch.equal(u, start["u"])
    assert not torch.equal(v, start["v"])


@PIECES
@pytest.mark.parametrize("parameters", ["instance", "class", "both"])
def test_data_parameters(parameters, micro_batch, tmp_path):
    rates = {"instance": {"lr_instance": 3.0}, "class": {"lr_class": 0.5}}
    rates["both"] = rates["instance"] | rates["class"]
    options = {"parameters": parameters, "decay": 1e-3, "momentum": 0.8, "start": 1.3, "largest": 1.5}
    stage, model, _, batches = run(tmp_path / "run", "data_parameters", options | rates[parameters], micro_batch)
    y, bound = stage.context.targets, math.log(1.5)
    s, c = (torch.full((n,), math.log(1.3), dtype=torch.float64, requires_grad=True) for n in (80, CLASSES))
    moving = [(p, lr) for p, lr, k in ((s, 3.0, "instance"), (c, 0.5, "class")) if parameters in (k, "both")]
    momentum = {id(p): torch.zeros_like(p) for p, _ in moving}
    met = []

    def move():
        """Rows without a gradient stay, momentum and all."""
        for p, lr in moving:
            rows = met[-1] if p is s else y[met[-1]].unique()
            buffer = momentum[id(p)]
            buffer[rows] = 0.8 * buffer[rows] + p.grad[rows]
            with torch.no_grad():
                p[rows] = (p[rows] - lr * buffer[rows]).clamp(-bound, bound)
            p.grad = None

    def loss(z, index):
        if met:
            move()
        met.append(index)
        logs = {id(s): s[index], id(c): c[y[index]]}
        logs = [logs[id(p)] for p, _ in moving]
        sigma = sum(t.exp() for t in logs)
        return cross_entropy(z / sigma[:, None], y[index]) + 0.5e-3 * sum((t**2).sum() for t in logs)

    wanted = naive(model, batches, loss, stage.config.optim)
    move()
    assert_same_weights(stage.model, wanted)
    for name, p in (("instance", s), ("class", c)):
        if parameters in (name, "both"):
            torch.testing.assert_close(getattr(stage.method.kept, name), p.detach(), rtol=0, atol=1e-12)
            assert float((p.detach() - math.log(1.3)).abs().max()) > 1e-3
        else:
            assert not hasattr(stage.method.kept, name)
    s = s.detach()
    assert float(s.abs().max()) <= bound
    if parameters == "instance":
        assert float(s.abs().max()) == bound  # some have come to the clamp


def test_a_step_costs_no_more_where_samples_are_many(tmp_path):
    """Rows that a batch has not met are the very same numbers, and so is their momentum."""
    torch.manual_seed(0)
    stage = stage_of(tmp_path / "run", "data_parameters", Net64(), {"lr_instance": 5.0})
    taken(stage, 5)  # one epoch
    before = copy.deepcopy(stage.method.kept.state_dict())
    ((_, index, _),) = taken(stage, 1)
    rest = torch.ones(80, dtype=torch.bool).index_fill(0, index, False)
    for name, value in stage.method.kept.state_dict().items():
        assert torch.equal(value[rest], before[name][rest])
        assert not torch.equal(value[index], before[name][index])


def test_wrong_labels_get_higher_temperatures_and_sop_takes_them_up(tmp_path):
    """Every tenth given label of these data is wrong."""
    torch.manual_seed(0)
    hot = stage_of(tmp_path / "hot", "data_parameters", Net64(), epochs=20)
    taken(hot, 100)
    s = hot.method.kept.instance
    assert s[::10].mean() > s[1::10].mean() + 0.1
    sop = stage_of(tmp_path / "sop", "sop", Net64(), epochs=40)
    taken(sop, 200)
    y = sop.context.targets
    other = sop.method.kept.v.gather(1, 1 - y[:, None]).squeeze(1) ** 2
    assert other[::10].mean() > 10 * other[1::10].mean()
    assert sop.method.figures()["taken_up_others"] > 0


@pytest.mark.parametrize(
    ("method", "options", "message"),
    [
        ("elr", {"beta": 1}, r"method\.beta must be in \[0, 1\), got 1\.0"),
        ("elr", {"weight": -1}, r"method\.weight must be at least 0 and finite, got -1\.0"),
        ("sop", {"lr_u": 0}, r"method\.lr_u must be above 0 and finite, got 0\.0"),
        ("sop", {"lr_v": math.nan}, r"method\.lr_v must be above 0 and finite, got nan"),
        ("data_parameters", {"start": 30}, r"method\.start must lie between 1/method\.largest and method\.largest"),
        ("data_parameters", {"largest": 0.5}, r"method\.largest must be in \[1, 1000000.0\], got 0\.5"),
        ("data_parameters", {"lr_class": 1}, r"method\.lr_class=1\.0 moves nothing where method\.parameters=instance"),
        ("data_parameters", {"parameters": "none"}, r"method\.parameters must be one of instance, class, both"),
        ("data_parameters", {"momentum": 1}, r"method\.momentum must be in \[0, 1\)"),
    ],
)
def test_options_out_of_range_are_refused_by_name(method, options, message):
    with pytest.raises(InputError, match=message):
        TrainConfig(method=method, options=options)
