"""Learnable losses of every kind that the literature has, for tests."""

from __future__ import annotations

import copy
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import fastmeta
from fastmeta import reference
from tests.support.cases import Case

#: of the look-ahead and of the model
LR = 0.3


class Given(fastmeta.LearnableLoss):
    """What all of them hold: the given labels."""

    def __init__(self, targets: Tensor, num_classes: int) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.register_buffer("targets", targets)

    def losses(self, logits: Tensor, index: Tensor) -> Tensor:
        return F.cross_entropy(logits, self.targets[index], reduction="none")


class SampleWeights(Given):
    """One weight per sample (L2RW)."""

    def __init__(self, targets: Tensor, num_classes: int) -> None:
        super().__init__(targets, num_classes)
        self.weight = nn.Parameter(torch.rand(len(targets), dtype=torch.float64) + 0.5)

    def forward(self, logits, index, x=None):
        return self.weight[index] * self.losses(logits, index)


class WeightingNet(Given):
    """Meta-Weight-Net: weights by a net of the losses, which are constant in it; normalised by their sum."""

    def __init__(self, targets: Tensor, num_classes: int) -> None:
        super().__init__(targets, num_classes)
        self.net = nn.Sequential(nn.Linear(1, 9), nn.Tanh(), nn.Linear(9, 1)).double()

    def forward(self, logits, index, x=None):
        losses = self.losses(logits, index)
        weight = torch.sigmoid(self.net(losses.detach().unsqueeze(1))).squeeze(1)
        return len(index) * weight / weight.sum() * losses


class Corrector(Given):
    """MLC: a net of the sample and its given label makes the label."""

    def __init__(self, targets: Tensor, num_classes: int, features: int = 6) -> None:
        super().__init__(targets, num_classes)
        self.of_x, self.of_label = nn.Linear(features, 7).double(), nn.Linear(num_classes, 7).double()
        self.out = nn.Linear(7, num_classes).double()

    def forward(self, logits, index, x=None):
        given = F.one_hot(self.targets[index], self.num_classes).to(logits.dtype)
        label = torch.softmax(self.out(torch.tanh(self.of_x(x.flatten(1)) + self.of_label(given))), 1)
        return -(label * F.log_softmax(logits, 1)).sum(1)


class Temperatures(Given):
    """One temperature per sample."""

    def __init__(self, targets: Tensor, num_classes: int) -> None:
        super().__init__(targets, num_classes)
        self.log_t = nn.Parameter(0.1 * torch.randn(len(targets), dtype=torch.float64))

    def forward(self, logits, index, x=None):
        return self.losses(logits / self.log_t[index].exp().unsqueeze(1), index)


class Transition(Given):
    """A transition matrix on the prediction (forward correction)."""

    def __init__(self, targets: Tensor, num_classes: int) -> None:
        super().__init__(targets, num_classes)
        self.matrix = nn.Parameter(torch.randn(num_classes, num_classes, dtype=torch.float64))

    def forward(self, logits, index, x=None):
        noisy = torch.softmax(logits, 1) @ torch.softmax(self.matrix, 1)
        return -torch.log(noisy.gather(1, self.targets[index].unsqueeze(1)).squeeze(1))


LOSSES = {
    "sample weights": SampleWeights,
    "weighting net": WeightingNet,
    "corrector": Corrector,
    "temperatures": Temperatures,
    "transition": Transition,
}


def loss_of(name: str, case: Case) -> Given:
    torch.manual_seed(3)
    if name == "corrector":
        return Corrector(case.targets, case.num_classes, case.x.flatten(1).shape[1])
    return LOSSES[name](case.targets, case.num_classes)


def optimizers(kind: str, parameters: Any) -> torch.optim.Optimizer:
    return {
        "sgd": lambda: torch.optim.SGD(parameters, lr=0.5, momentum=0.9, nesterov=True, weight_decay=0.01),
        "adam": lambda: torch.optim.Adam(parameters, lr=0.05, weight_decay=0.01),
        "adamw": lambda: torch.optim.AdamW(parameters, lr=0.05),
    }[kind]()


def built(name: str, case: Case, kind: str = "adam", **kw: Any) -> fastmeta.MetaStep:
    """A step on copies, which moves one of these losses."""
    model, loss = copy.deepcopy(case.model), loss_of(name, case)
    optimizer = torch.optim.SGD(model.parameters(), lr=LR, momentum=0.9, weight_decay=1e-3)
    return fastmeta.MetaStep(model, loss, optimizer, loss_optimizer=optimizers(kind, loss.parameters()), **kw)


def assert_exact(loss: fastmeta.LearnableLoss, case: Case) -> None:
    """Its meta-gradient is that of autograd through the look-ahead, for each of its parameters."""
    phi, function = loss.seen_by(case.index, case.x)
    sgd = reference.SGDState(LR)
    truth = reference.meta_gradient(case.model, function, phi, case.x, *case.meta, lookahead=sgd)
    out = fastmeta.meta_gradient(case.model, loss, case.train, case.meta, lr=LR)
    assert out.grads.keys() == truth.grads.keys() == set(phi)
    for name, g in truth.grads.items():
        # where it is 0 but for rounding, such as of what a normalisation takes away, there is nothing to be relative to
        assert float((out.grads[name] - g).norm()) < 1e-10 * max(1e-3, float(g.norm())), name


def assert_bad_step_changes_nothing(step: fastmeta.MetaStep, case: Case) -> None:
    """A step on inputs that are not finite leaves every bit of model and loss, behind one that was."""
    step(case.train, case.meta)
    before = copy.deepcopy((step.model.state_dict(), step.loss.state_dict()))
    assert not bool(step((case.x * float("nan"), case.index), case.meta).finite)
    for a, b in zip(before, (step.model.state_dict(), step.loss.state_dict()), strict=True):
        assert all(torch.equal(t, b[k]) for k, t in a.items())


def same(a: nn.Module, b: nn.Module) -> None:
    """Up to rounding."""
    for key, t in b.state_dict().items():
        torch.testing.assert_close(a.state_dict()[key], t, rtol=1e-10, atol=1e-12)
