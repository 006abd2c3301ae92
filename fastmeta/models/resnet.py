"""Residual networks for small images: the CIFAR forms of ResNet-18 and of ResNet-20/32."""

from __future__ import annotations

from typing import Literal

import torch.nn.functional as F
from torch import Tensor, nn

from fastmeta.models.init import init_convolutions

Shortcut = Literal["pad", "projection"]


class PadShortcut(nn.Module):
    """Option A of He et al.: every `stride`-th pixel, new channels filled with zeros; no parameters."""

    def __init__(self, in_channels: int, out_channels: int, stride: int) -> None:
        super().__init__()
        self.stride = stride
        before = (out_channels - in_channels) // 2
        self.channels = (before, out_channels - in_channels - before)

    def forward(self, x: Tensor) -> Tensor:
        return F.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, *self.channels))


def _shortcut(kind: Shortcut, in_channels: int, out_channels: int, stride: int) -> nn.Module:
    if stride == 1 and in_channels == out_channels:
        return nn.Identity()
    if kind == "pad":
        return PadShortcut(in_channels, out_channels, stride)
    convolution = nn.Conv2d(in_channels, out_channels, 1, stride, bias=False)
    return nn.Sequential(convolution, nn.BatchNorm2d(out_channels))


class BasicBlock(nn.Module):
    """relu(bn(conv(relu(bn(conv(x))))) + shortcut(x)), both convolutions 3x3."""

    def __init__(self, in_channels: int, out_channels: int, stride: int, shortcut: Shortcut) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(out_channels)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(out_channels)
        self.shortcut = _shortcut(shortcut, in_channels, out_channels, stride)
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        out = self.relu(self.bn1(self.conv1(x)))
        return self.relu(self.bn2(self.conv2(out)) + self.shortcut(x))


class ResNet(nn.Module):
    """A 3x3 stem without pooling, stages of `blocks` basic blocks (stride 2 from the second on), mean, linear."""

    def __init__(
        self,
        blocks: list[int],
        widths: list[int],
        num_classes: int,
        in_channels: int,
        shortcut: Shortcut,
        stem_stride: int = 1,
    ) -> None:
        super().__init__()
        self.conv = nn.Conv2d(in_channels, widths[0], 3, stem_stride, padding=1, bias=False)
        self.bn = nn.BatchNorm2d(widths[0])
        self.relu = nn.ReLU(inplace=True)
        stages: list[nn.Module] = []
        channels = widths[0]
        for stage, (depth, width) in enumerate(zip(blocks, widths, strict=True)):
            for block in range(depth):
                stride = 2 if stage > 0 and block == 0 else 1
                stages.append(BasicBlock(channels, width, stride, shortcut))
                channels = width
        self.blocks = nn.Sequential(*stages)
        self.linear = nn.Linear(channels, num_classes)
        init_convolutions(self)

    def forward(self, x: Tensor) -> Tensor:
        x = self.blocks(self.relu(self.bn(self.conv(x))))
        return self.linear(x.mean((2, 3)))


def resnet18(num_classes: int, in_channels: int = 3) -> ResNet:
    """ResNet-18 with a 3x3 stem and no max-pool: 11,173,962 parameters for 10 classes.

    The form that CIFAR papers use: four stages of width 64, 128, 256, 512, projection shortcuts.
    """
    return ResNet([2, 2, 2, 2], [64, 128, 256, 512], num_classes, in_channels, "projection")


def resnet20(num_classes: int, in_channels: int = 3, shortcut: Shortcut = "pad") -> ResNet:
    """ResNet-20 of He et al. (2016), section 4.2: 269,722 parameters for 10 classes.

    Three stages of three blocks, width 16, 32, 64, parameter-free shortcuts (their option A, "0.27M");
    `shortcut="projection"` gives the variant with 1x1 convolutions, 272,474 parameters.
    """
    return ResNet([3, 3, 3], [16, 32, 64], num_classes, in_channels, shortcut)


def resnet32(num_classes: int, in_channels: int = 3, shortcut: Shortcut = "pad") -> ResNet:
    """ResNet-32 of He et al. (2016), section 4.2: 464,154 parameters for 10 classes ("0.46M"); see `resnet20`."""
    return ResNet([5, 5, 5], [16, 32, 64], num_classes, in_channels, shortcut)
