"""Small models of every kind of layer, each with a train and a meta batch, in float64."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn


@dataclass
class Case:
    model: nn.Module
    x: Any
    x_meta: Any
    targets: Tensor  # (N,) given labels of the whole training set
    index: Tensor  # (n,)
    y_meta: Tensor  # (m,)
    num_classes: int

    @property
    def train(self) -> tuple[Any, Tensor]:
        return self.x, self.index

    @property
    def meta(self) -> tuple[Any, Tensor]:
        return self.x_meta, self.y_meta


class Residual(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(channels, channels, 3, padding=1, bias=False),
            nn.BatchNorm2d(channels),
            nn.ReLU(inplace=True),
            nn.Conv2d(channels, channels, 3, padding=1, bias=False),
            nn.BatchNorm2d(channels),
        )

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(x + self.body(x))


def mlp(c: int) -> nn.Module:
    return nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 12), nn.Tanh(), nn.Linear(12, c))


def resnet(c: int) -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(2, 6, 3, padding=1, bias=False),
        nn.BatchNorm2d(6),
        nn.ReLU(inplace=True),
        Residual(6),
        nn.MaxPool2d(2),
        Residual(6),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(6, c),
    )


def convolutions(c: int) -> nn.Module:
    """So wide inside that first and last layer count little: FLOPs are those of the networks that people train."""
    widths = [(3, 16), (16, 64), (64, 128), (128, 128)]
    blocks = [nn.Sequential(nn.Conv2d(i, o, 3, padding=1, bias=False), nn.BatchNorm2d(o), nn.ReLU()) for i, o in widths]
    return nn.Sequential(
        *blocks[:2], nn.MaxPool2d(2), *blocks[2:], nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(128, c)
    )


def groupnorm(c: int) -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(2, 8, 3, padding=1), nn.GroupNorm(4, 8), nn.SiLU(), nn.AvgPool2d(2), nn.Flatten(), nn.Linear(32, c)
    )


class Attention(nn.Module):
    """LayerNorm + fused scaled-dot-product attention + GELU."""

    def __init__(self, c: int) -> None:
        super().__init__()
        self.norm, self.qkv, self.out = nn.LayerNorm(8), nn.Linear(8, 24), nn.Linear(8, 8)
        self.mlp = nn.Sequential(nn.LayerNorm(8), nn.Linear(8, 16), nn.GELU(), nn.Linear(16, 8))
        self.head = nn.Linear(8, c)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (t.unflatten(-1, (2, 4)).transpose(1, 2) for t in self.qkv(self.norm(x)).chunk(3, -1))
        h = nn.functional.scaled_dot_product_attention(q, k, v)
        x = x + self.out(h.transpose(1, 2).flatten(2))
        return self.head((x + self.mlp(x)).mean(1))


class Recurrent(nn.Module):
    def __init__(self, c: int) -> None:
        super().__init__()
        self.rnn, self.head = nn.LSTM(4, 7, batch_first=True), nn.Linear(7, c)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.rnn(x)[0][:, -1])


class Embedded(nn.Module):
    """Token embedding, mean pooling, tied to nothing."""

    def __init__(self, c: int) -> None:
        super().__init__()
        self.table, self.hidden, self.head = nn.Embedding(11, 6), nn.Linear(6, 9), nn.Linear(9, c)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.head(torch.tanh(self.hidden(self.table(tokens).mean(1))))


def _images(n: int, size: int = 4) -> Tensor:
    return torch.randn(n, 2, size, size)


INPUTS: dict[str, tuple[Callable[[int], nn.Module], Callable[[int], Tensor]]] = {
    "mlp": (mlp, lambda n: torch.randn(n, 6)),
    "resnet": (resnet, _images),
    "groupnorm": (groupnorm, _images),
    "attention": (Attention, lambda n: torch.randn(n, 5, 8)),
    "lstm": (Recurrent, lambda n: torch.randn(n, 5, 4)),
    "embedding": (Embedded, lambda n: torch.randint(11, (n, 5))),
}
NAMES = list(INPUTS)


def make(
    name: str, num_classes: int = 10, *, n: int = 8, m: int = 12, seed: int = 0, dtype: Any = torch.float64
) -> Case:
    torch.manual_seed(seed)
    build, inputs = INPUTS[name]
    model = build(num_classes).to(dtype)

    def cast(x: Tensor) -> Tensor:
        return x.to(dtype) if x.is_floating_point() else x

    total = 3 * n
    return Case(
        model,
        cast(inputs(n)),
        # a shifted meta batch, so that BatchNorm statistics of the wrong batch would show
        cast(inputs(m) * 2 + 1) if name in ("resnet", "groupnorm") else cast(inputs(m)),
        torch.randint(num_classes, (total,)),
        torch.randperm(total)[:n],
        torch.randint(num_classes, (m,)),
        num_classes,
    )
