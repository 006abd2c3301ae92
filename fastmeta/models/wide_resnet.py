"""Wide residual networks of Zagoruyko and Komodakis (2016) for 32x32 images."""

from __future__ import annotations

from torch import Tensor, nn

from fastmeta.models.init import init_convolutions


class PreActivationBlock(nn.Module):
    """bn-relu-conv twice; where the shape changes, the shortcut is a 1x1 convolution of the *activated* input."""

    def __init__(self, in_channels: int, out_channels: int, stride: int) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(in_channels)
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(out_channels)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1, bias=False)
        self.relu = nn.ReLU(inplace=True)
        same = in_channels == out_channels and stride == 1
        self.shortcut = None if same else nn.Conv2d(in_channels, out_channels, 1, stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        active = self.relu(self.bn1(x))
        residual = x if self.shortcut is None else self.shortcut(active)
        return self.conv2(self.relu(self.bn2(self.conv1(active)))) + residual


class WideResNet(nn.Module):
    """Depth 6k + 4, three stages of width 16w, 32w, 64w, no dropout."""

    def __init__(self, depth: int, widen: int, num_classes: int, in_channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(in_channels, 16, 3, padding=1, bias=False)
        blocks: list[nn.Module] = []
        channels = 16
        for stage, width in enumerate((16 * widen, 32 * widen, 64 * widen)):
            for block in range((depth - 4) // 6):
                blocks.append(PreActivationBlock(channels, width, 2 if stage > 0 and block == 0 else 1))
                channels = width
        self.blocks = nn.Sequential(*blocks)
        self.bn = nn.BatchNorm2d(channels)
        self.relu = nn.ReLU(inplace=True)
        self.linear = nn.Linear(channels, num_classes)
        init_convolutions(self)
        nn.init.zeros_(self.linear.bias)

    def forward(self, x: Tensor) -> Tensor:
        x = self.relu(self.bn(self.blocks(self.conv(x))))
        return self.linear(x.mean((2, 3)))


def wrn28_10(num_classes: int, in_channels: int = 3) -> WideResNet:
    """WRN-28-10: 36,479,194 parameters for 10 classes ("36.5M")."""
    return WideResNet(28, 10, num_classes, in_channels)
