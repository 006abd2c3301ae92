"""Unmodified torchvision classifiers: "auto" finds an exact way for every one of them, in float64."""

import pytest
import torch

import fastmeta
from fastmeta import models

torchvision = pytest.importorskip("torchvision", exc_type=ImportError)

#: name -> side of the images; what has a fixed size gets it
SIDES = {
    "alexnet": 64,
    "convnext_tiny": 32,
    "densenet121": 32,
    "efficientnet_b0": 32,
    "googlenet": 32,
    "inception_v3": 299,
    "maxvit_t": 224,
    "mnasnet0_5": 32,
    "mobilenet_v2": 32,
    "mobilenet_v3_small": 32,
    "regnet_y_400mf": 32,
    "resnet50": 32,
    "resnext50_32x4d": 32,
    "shufflenet_v2_x0_5": 32,
    "squeezenet1_1": 32,
    "swin_t": 64,
    "vgg11_bn": 32,
    "vit_b_16": 224,
    "wide_resnet50_2": 32,
}
QUICK = ["googlenet", "mobilenet_v3_small"]


@pytest.mark.parametrize("name", [pytest.param(n, marks=[] if n in QUICK else [pytest.mark.slow]) for n in SIDES])
def test_exact(name):
    torch.manual_seed(0)
    model = models.build(f"torchvision:{name}", num_classes=4)
    side, n = SIDES[name], 4 if SIDES[name] < 200 else 2
    x, x_meta = torch.randn(n, 3, side, side), torch.randn(n, 3, side, side)
    labels = fastmeta.InstanceLabels(torch.randint(4, (n,)), 4, 0.7)
    report = fastmeta.check(
        model,
        labels,
        (x, torch.arange(n)),
        (x_meta, torch.randint(4, (n,))),
        1e-3,
        tangents=("auto",),
        timing=False,
    )
    assert report.ok, report
    assert report.rows[0].verdict == "exact", report
