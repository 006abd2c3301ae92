"""Models that write into their input: every pass of a step sees the batch as it was given."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fastmeta
from fastmeta.functional.given_input import WrittenInput

N, CLASSES = 8, 4
SETTINGS: dict[str, dict[str, Any]] = {
    "forward": {"tangent": "forward"},
    "reverse": {"tangent": "reverse"},
    "micro": {"micro_batch": 4},
    "last layer": {"approx": "last:1"},
    "watched": {"approx": "last:1", "watch_every": 2},
    "watched periods": {"approx": "every:2", "watch_every": 2},
    "difference": {"approx": "difference"},
    "trace": {"compile": "trace"},
    "window": {"lookahead_steps": 2},
}


class Normalise(nn.Module):
    """By a running mean that starts at zero: the first pass of all writes, and changes nothing."""

    def __init__(self, in_place: bool) -> None:
        super().__init__()
        self.in_place = in_place
        self.register_buffer("mean", torch.zeros(6))
        self.layers = nn.Sequential(nn.Linear(6, 5), nn.BatchNorm1d(5), nn.Tanh(), nn.Linear(5, CLASSES))

    def forward(self, x: Tensor) -> Tensor:
        mean = x.detach().mean(0)
        z = x.sub_(self.mean) if self.in_place else x - self.mean
        self.mean.lerp_(mean, 0.1)
        return self.layers(z)


class InDict(Normalise):
    def forward(self, batch: dict[str, Tensor]) -> Tensor:
        return super().forward(batch["x"])


def trained(in_place: bool, kind: type[Normalise] = Normalise, **settings: Any) -> Tensor:
    torch.manual_seed(0)
    x, y = torch.randn(40, 6).double() + 3, torch.randint(CLASSES, (40,))
    model = kind(in_place).double()
    labels = fastmeta.InstanceLabels(y, num_classes=CLASSES, dtype=torch.float64)
    step = fastmeta.MetaStep(model, labels, torch.optim.SGD(model.parameters(), lr=0.1), label_lr=10.0, **settings)
    window = settings.get("lookahead_steps", 1)

    def given(rows: Any) -> Any:
        return {"x": x[rows].clone()} if kind is InDict else x[rows].clone()

    for _ in range(6):
        parts = torch.randperm(32)[: N * window].split(N)
        train = [(given(rows), rows) for rows in parts]
        step(train if window > 1 else train[0], (given(slice(32, 40)), y[32:]))
    moved = [*model.state_dict().values(), labels.label_logits]
    return torch.cat([t.detach().flatten().double() for t in moved])


@pytest.mark.parametrize("name", SETTINGS)
def test_as_if_out_of_place(name: str) -> None:
    torch.testing.assert_close(trained(True, **SETTINGS[name]), trained(False, **SETTINGS[name]), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", ["forward", "reverse", "window"])
def test_inside_of_a_dict(name: str) -> None:
    torch.testing.assert_close(trained(True, InDict, **SETTINGS[name]), trained(False, **SETTINGS[name]))


@pytest.mark.parametrize("first", [nn.ReLU, lambda: nn.ReLU(inplace=True)])
def test_the_batch_stays_as_it_is(first: Any) -> None:
    """Also where the passes are products of a chain of linear layers."""
    torch.manual_seed(0)
    model = nn.Sequential(first(), nn.Linear(6, CLASSES))
    labels = fastmeta.InstanceLabels(torch.zeros(N, dtype=torch.int64), num_classes=CLASSES)
    step = fastmeta.MetaStep(model, labels, torch.optim.SGD(model.parameters(), lr=0.1))
    x, x_meta = torch.randn(N, 6), torch.randn(N, 6)
    before, before_meta = x.clone(), x_meta.clone()
    for _ in range(3):
        step((x, torch.arange(N)), (x_meta, torch.zeros(N, dtype=torch.int64)))
    assert torch.equal(x, before)
    assert torch.equal(x_meta, before_meta)


@pytest.mark.parametrize("settings", [{}, {"approx": "last:1", "watch_every": 1}, {"lookahead_steps": 2}])
def test_one_that_begins_to_write_is_refused_once(settings: dict[str, Any]) -> None:
    torch.manual_seed(0)
    model = Normalise(False)
    labels = fastmeta.InstanceLabels(torch.zeros(2 * N, dtype=torch.int64), num_classes=CLASSES)
    step = fastmeta.MetaStep(model, labels, torch.optim.SGD(model.parameters(), lr=0.1), **settings)
    window = settings.get("lookahead_steps", 1)

    def take() -> Any:
        train = [(torch.randn(N, 6) + 3, rows) for rows in torch.arange(window * N).split(N)]
        return step(train if window > 1 else train[0], (torch.randn(N, 6), torch.zeros(N, dtype=torch.int64)))

    take()
    model.in_place = True
    before = [t.clone() for t in (*model.state_dict().values(), labels.label_logits)]
    with pytest.raises(WrittenInput, match="written into its input x"):
        take()
    assert all(map(torch.equal, before, [*model.state_dict().values(), labels.label_logits]))
    assert take().finite
