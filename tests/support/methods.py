"""Methods of the package: options that they need, and their steps beside naive ones in float64."""

import copy

import torch
from torch import nn

from fastmeta.training import OptimConfig
from fastmeta.training.prepare import prepare
from fastmeta.training.schedule import lr_at
from tests.support.runs import two_classes
from tests.support.stopped import config

#: those of the paper, on which tests of the trainer are run
CORE = ("onehot", "class_labels", "instance_labels")


class Net64(nn.Module):
    """Logits in float64, whatever comes in."""

    def __init__(self, classes=2):
        super().__init__()
        self.body = nn.Sequential(nn.Linear(16, 12), nn.Tanh(), nn.Linear(12, classes)).double()

    def forward(self, x):
        return self.body(x.flatten(1).double())


def stage_of(path, method, model, options=None, data=None, **changes):
    """A stage of a run on the arrays of `two_classes`, batches of 16 of 80 rows."""
    changes = {"optim": OptimConfig(lr=0.3, nesterov=True, weight_decay=1e-3), "baselines": "none", **changes}
    plan = config(path, method=method, options=options, model=None, **changes)
    return prepare(plan, model=model, data=two_classes() if data is None else data).stage(method)


def taken(stage, count):
    """(x, index, lr) of `count` steps of a stage, as its method has seen them."""
    seen, method_step = [], stage.method.step

    def step(batch):
        lr = lr_at(stage.config.optim, stage.step, stage.horizon)
        seen.append((stage.context.network_input(batch.x), batch.index.clone(), lr))
        return method_step(batch)

    stage.method.step = step
    for _ in range(count):
        stage.take_step()
    return seen


def sgd_of(model, optim):
    """torch's own, whose rate is for each step to set."""
    return torch.optim.SGD(
        model.parameters(),
        lr=1.0,
        momentum=optim.momentum,
        nesterov=optim.nesterov,
        weight_decay=optim.weight_decay,
        foreach=False,
    )


def naive(model, batches, loss, optim):
    """A copy of `model` behind steps of torch's own SGD along autograd's gradient of ``loss(logits, index)``."""
    model = copy.deepcopy(model)
    sgd = sgd_of(model, optim)
    for x, index, lr in batches:
        sgd.param_groups[0]["lr"] = lr
        sgd.zero_grad()
        loss(model(x), index).backward()
        sgd.step()
    return model


def assert_same_weights(a, b, atol=1e-12):
    for p, q in zip(a.parameters(), b.parameters(), strict=True):
        torch.testing.assert_close(p.detach(), q.detach(), rtol=0, atol=atol)
