"""Weight initialisation shared by the networks with BatchNorm."""

from __future__ import annotations

from torch import nn


def init_convolutions(model: nn.Module) -> None:
    """Kaiming normal, fan-out (He et al., 2015) for every convolution, zero convolution biases; all else stays."""
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            if module.bias is not None:
                nn.init.zeros_(module.bias)
