"""Networks: published parameter counts, FLOPs counted on meta tensors, shapes, both ways of differentiating twice."""

import pytest
import torch
from torch.autograd import forward_ad
from torch.func import functional_call
from torch.utils.flop_counter import FlopCounterMode

from fastmeta import models

# Published counts for 10 classes and 32x32x3 images (784 inputs for the MLP).
PARAMETERS = {
    "resnet18": 11_173_962,
    "resnet20": 269_722,
    "resnet32": 464_154,
    "vgg16_bn": 14_728_266,
    "alexnet": 2_472_266,
    "wrn28_10": 36_479_194,
    "vit_tiny": 5_362_762,
    "mlp": 669_706,
}
SMALL = {"small_conv": (1, 8, 8), "mlp": (1, 8, 8), "resnet20": (3, 8, 8)}


def count(model):
    return sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize("name", PARAMETERS)
def test_parameter_count_is_the_published_one(name):
    shape = (1, 28, 28) if name == "mlp" else (3, 32, 32)
    with torch.device("meta"):
        model = models.build(name, num_classes=10, input_shape=shape)
    assert count(model) == PARAMETERS[name]


def test_projection_shortcuts_give_their_published_count():
    assert count(models.resnet20(10, shortcut="projection")) == 272_474


@pytest.mark.parametrize(("name", "gflop"), [("resnet18", 142), ("wrn28_10", 1342)])
def test_forward_flops_at_batch_128(name, gflop):
    with torch.device("meta"):
        model, x = models.build(name, num_classes=10), torch.empty(128, 3, 32, 32)
    with FlopCounterMode(display=False) as counter:
        model(x)
    assert round(counter.get_total_flops() / 1e9) == gflop


@pytest.mark.parametrize("name", models.NAMES)
@pytest.mark.parametrize("num_classes", [2, 100])
def test_logits_shape(name, num_classes):
    shape = SMALL.get(name, (3, 32, 32))
    with torch.device("meta"):
        model = models.build(name, num_classes=num_classes, input_shape=shape)
        assert model(torch.empty(4, *shape)).shape == (4, num_classes)


@pytest.mark.parametrize("name", [*SMALL, "alexnet"])
def test_forward_ad_equals_double_backward(name):
    torch.manual_seed(0)
    shape = SMALL.get(name, (3, 32, 32))
    model = models.build(name, num_classes=5, input_shape=shape).double()
    params = dict(model.named_parameters())
    x = torch.randn(6, *shape, dtype=torch.float64)
    tangents = {k: torch.randn_like(p) for k, p in params.items()}

    v = torch.zeros(6, 5, dtype=torch.float64, requires_grad=True)
    grads = torch.autograd.grad(model(x), params.values(), v, create_graph=True)
    (reverse,) = torch.autograd.grad(grads, v, list(tangents.values()))
    with forward_ad.dual_level():
        duals = {k: forward_ad.make_dual(p.detach(), tangents[k]) for k, p in params.items()}
        buffers = {k: b.clone() for k, b in model.named_buffers()}
        forward = forward_ad.unpack_dual(functional_call(model, (duals, buffers), (x,))).tangent
    torch.testing.assert_close(forward, reverse, rtol=1e-10, atol=1e-10)


def test_torchvision_by_name():
    pytest.importorskip("torchvision")
    with torch.device("meta"):
        model = models.build("torchvision:resnet18", num_classes=7)
        assert model(torch.empty(2, 3, 64, 64)).shape == (2, 7)
    assert count(model) == 11_176_512 + 7 * 513


def broken(num_classes):
    raise RuntimeError("no weights here\nor anywhere")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            {"name": "resnet19"},
            "unknown model 'resnet19': expected one of resnet18, .*mlp, torchvision:NAME, timm:NAME or",
        ),
        ({"name": "no_such_module:net"}, "cannot import 'no_such_module' for 'no_such_module:net'"),
        ({"name": "torch.nn:NoSuchNet"}, "'torch.nn' has no 'NoSuchNet', asked for by 'torch.nn:NoSuchNet'"),
        ({"name": ":"}, "expected package.module:name, got ':'"),
        (
            {"name": "os.path:join"},
            r"is called as factory\(num_classes=10\) and failed: TypeError: join",
        ),
        ({"name": "tests.models.test_models:broken"}, "and failed: RuntimeError: no weights here"),
        ({"name": "builtins:dict"}, "'builtins:dict' must return a torch.nn.Module, got dict"),
        ({"name": "mlp", "num_classes": 1}, "num_classes must be at least 2, got 1"),
        ({"name": "vgg16_bn", "input_shape": (1, 8, 8)}, r"at least 32 pixels a side, got \(1, 8, 8\)"),
        ({"name": "vit_tiny", "input_shape": (3, 30, 32)}, r"sides that are multiples of 4, got \(3, 30, 32\)"),
        ({"name": "resnet20", "input_shape": (784,)}, r"takes \(channels, height, width\).*got \(784,\)"),
        ({"name": "mlp", "input_shape": ()}, r"input_shape must be positive sizes without the batch, got \(\)"),
    ],
)
def test_errors_are_one_line(arguments, message):
    with pytest.raises(ValueError, match=message) as caught:
        models.build(**{"num_classes": 10, **arguments})
    assert "\n" not in str(caught.value)


def test_own_factory_is_called_with_the_number_of_classes():
    with torch.device("meta"):
        assert models.build("fastmeta.models:resnet20", num_classes=7).linear.out_features == 7


@pytest.mark.parametrize("name", models.NAMES)
def test_default_input_shape_fits(name):
    with torch.device("meta"):
        shape = models.default_input_shape(name)
        assert models.build(name, num_classes=3, input_shape=shape)(torch.empty(2, *shape)).shape == (2, 3)


def test_unknown_torchvision_name_suggests_close_ones():
    pytest.importorskip("torchvision")
    with pytest.raises(ValueError, match=r"unknown model 'torchvision:resnet51'.*resnet50"):
        models.build("torchvision:resnet51", num_classes=10)


@pytest.mark.parametrize(("name", "spec"), models._CONVOLUTIONAL.items())
def test_smallest_image_is_the_stated_one(name, spec):
    for side in {spec.min_side, max(spec.min_side - 1, 1)}:
        with torch.device("meta"):
            model = spec.factory(10, 3)
            if side == spec.min_side:
                assert model(torch.empty(2, 3, side, side)).shape == (2, 10)
            else:
                with pytest.raises(RuntimeError):
                    model(torch.empty(2, 3, side, side))
