"""Networks without shortcuts: VGG16 with BatchNorm, AlexNet, a small convolutional net, a multi-layer perceptron."""

from __future__ import annotations

from torch import Tensor, nn

from fastmeta.models.init import init_convolutions


class ConvNet(nn.Module):
    """`features`, mean over the remaining pixels, one linear layer."""

    def __init__(self, features: nn.Sequential, channels: int, num_classes: int) -> None:
        super().__init__()
        self.features = features
        self.linear = nn.Linear(channels, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(self.features(x).mean((2, 3)))


def conv_bn_relu(in_channels: int, out_channels: int, *, bias: bool, stride: int = 1) -> list[nn.Module]:
    convolution = nn.Conv2d(in_channels, out_channels, 3, stride, padding=1, bias=bias)
    return [convolution, nn.BatchNorm2d(out_channels), nn.ReLU(inplace=True)]


def vgg16_bn(num_classes: int, in_channels: int = 3) -> ConvNet:
    """VGG16 with BatchNorm and a single linear layer: 14,728,266 parameters for 10 classes.

    The CIFAR form: the 13 convolutions of configuration D with their biases, five max-pools, no hidden linear layers.
    """
    layers: list[nn.Module] = []
    channels = in_channels
    for stage in ([64] * 2, [128] * 2, [256] * 3, [512] * 3, [512] * 3):
        for width in stage:
            layers += conv_bn_relu(channels, width, bias=True)
            channels = width
        layers.append(nn.MaxPool2d(2))
    model = ConvNet(nn.Sequential(*layers), channels, num_classes)
    init_convolutions(model)
    return model


def alexnet(num_classes: int, in_channels: int = 3) -> ConvNet:
    """AlexNet for 32x32 images: 2,472,266 parameters for 10 classes ("2.47M").

    Five convolutions (the first 11x11, stride 4), three 2x2 max-pools, a single linear layer, no BatchNorm.
    """
    features = nn.Sequential(
        nn.Conv2d(in_channels, 64, 11, stride=4, padding=5),
        nn.ReLU(inplace=True),
        nn.MaxPool2d(2),
        nn.Conv2d(64, 192, 5, padding=2),
        nn.ReLU(inplace=True),
        nn.MaxPool2d(2),
        nn.Conv2d(192, 384, 3, padding=1),
        nn.ReLU(inplace=True),
        nn.Conv2d(384, 256, 3, padding=1),
        nn.ReLU(inplace=True),
        nn.Conv2d(256, 256, 3, padding=1),
        nn.ReLU(inplace=True),
        nn.MaxPool2d(2),
    )
    return ConvNet(features, 256, num_classes)


def small_conv(num_classes: int, in_channels: int = 1, width: int = 32) -> ConvNet:
    """Three 3x3 convolutions with BatchNorm, one max-pool: made for 8x8 digits, 57k parameters at width 32."""
    features = nn.Sequential(
        *conv_bn_relu(in_channels, width, bias=False),
        *conv_bn_relu(width, 2 * width, bias=False),
        nn.MaxPool2d(2),
        *conv_bn_relu(2 * width, 2 * width, bias=False),
    )
    model = ConvNet(features, 2 * width, num_classes)
    init_convolutions(model)
    return model


def mlp(num_classes: int, in_features: int, hidden: tuple[int, ...] = (512, 512)) -> nn.Sequential:
    """in_features-512-512-num_classes with ReLU between, after a flatten: 669,706 parameters for 784-…-10."""
    layers: list[nn.Module] = [nn.Flatten()]
    features = in_features
    for width in hidden:
        layers += [nn.Linear(features, width), nn.ReLU(inplace=True)]
        features = width
    return nn.Sequential(*layers, nn.Linear(features, num_classes))
