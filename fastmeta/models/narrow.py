"""Narrow networks for a few thousand 32x32 images on one CPU core: stand-ins for the networks of papers."""

from __future__ import annotations

from torch import nn

from fastmeta.models.init import init_convolutions
from fastmeta.models.plain import ConvNet, conv_bn_relu
from fastmeta.models.resnet import ResNet


def narrow_resnet(num_classes: int) -> ResNet:
    """Three basic blocks behind a stem of stride 2, for ResNet-18 and WRN-28-10: 75,578 parameters for 10 classes."""
    return ResNet([1, 1, 1], [12, 24, 48], num_classes, 3, "pad", stem_stride=2)


def narrow_plain(num_classes: int) -> ConvNet:
    """Five convolutions with BatchNorm, three of them of stride 2, for VGG16."""
    layers: list[nn.Module] = []
    channels = 3
    for width, stride in ((16, 2), (32, 1), (32, 2), (64, 1), (64, 2)):
        layers += conv_bn_relu(channels, width, bias=False, stride=stride)
        channels = width
    model = ConvNet(nn.Sequential(*layers), channels, num_classes)
    init_convolutions(model)
    return model


def narrow_alexnet(num_classes: int) -> ConvNet:
    """Three convolutions without BatchNorm, the first 5x5 of stride 2, for AlexNet."""
    layers: list[nn.Module] = []
    channels = 3
    for width, side, stride in ((32, 5, 2), (64, 3, 1), (64, 3, 1)):
        layers += [nn.Conv2d(channels, width, side, stride, padding=side // 2), nn.ReLU(inplace=True), nn.MaxPool2d(2)]
        channels = width
    return ConvNet(nn.Sequential(*layers), channels, num_classes)
