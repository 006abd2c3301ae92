"""timm's classifiers by name, without weights."""

import copy
import sys

import numpy as np
import pytest
import torch

import fastmeta.cli
from fastmeta import models, reference
from tests.support.meta import F64


@pytest.fixture
def timm():
    return pytest.importorskip("timm", reason="timm is not installed")


def exact(name, side, n=4, compile="off"):
    """Two steps in float64 beside the reference, running statistics included."""
    torch.manual_seed(0)
    model = models.build(f"timm:{name}", num_classes=3, input_shape=(3, side, side)).double()
    twin = copy.deepcopy(model)
    x, x_meta = torch.randn(n, 3, side, side, dtype=F64), torch.randn(n, 3, side, side, dtype=F64)
    y, y_meta, index = torch.randint(3, (n,)), torch.randint(3, (n,)), torch.randperm(n)
    labels = fastmeta.InstanceLabels(y, 3, dtype=F64)
    rows = labels.label_logits[index].clone()
    step = fastmeta.MetaStep(model, labels, torch.optim.SGD(model.parameters(), lr=0.01), label_lr=5.0, compile=compile)
    for _ in range(2):
        step((x, index), (x_meta, y_meta))
        with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):  # others have no second derivative
            rows, _ = reference.meta_step(
                twin,
                rows,
                reference.instance_probs,
                x,
                x_meta,
                y_meta,
                label_lr=5.0,
                optimizer=reference.SGDState(0.01),
            )
    torch.testing.assert_close(labels.label_logits[index], rows, rtol=1e-10, atol=1e-10)
    for mine, theirs in zip(model.state_dict().values(), twin.state_dict().values(), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-10, atol=1e-10)
    return model, step


def test_with_batchnorm(timm):
    model, _ = exact("test_resnet", 32)
    assert any(isinstance(m, torch.nn.BatchNorm2d) for m in model.modules())


def test_with_fused_attention(timm):
    model, step = exact("test_vit", 32)
    assert any(getattr(m, "fused_attn", False) for m in model.modules())
    assert "attention as plain maths" in step.explain()


@pytest.mark.slow
@pytest.mark.parametrize("compile", ["off", "trace"])
@pytest.mark.parametrize("name", ["resnet18", "vit_tiny_patch16_224", "convnext_atto", "test_efficientnet"])
def test_others(timm, name, compile):
    _, step = exact(name, 32, compile=compile)
    assert step.eager_because == ""


def test_by_name(timm):
    assert models.default_input_shape("timm:test_resnet") == (3, 160, 160)
    assert not models.names_code("timm:test_resnet")
    grey = models.build("timm:test_resnet", num_classes=4, input_shape=(1, 32, 32))  # fits any size
    assert grey(torch.ones(2, 1, 32, 32)).shape == (2, 4)
    tagged = models.build("timm:vit_tiny_patch16_224.augreg_in21k", num_classes=4, input_shape=(3, 32, 48))
    assert tagged(torch.ones(2, 3, 32, 48)).shape == (2, 4)  # made for this size
    with pytest.raises(ValueError, match=r"unknown model 'timm:convnext_tny': .* such as convnext_tiny"):
        models.build("timm:convnext_tny", num_classes=4)
    with pytest.raises(ValueError, match=r"model 'timm:resnet18.nonsense' of 3 classes cannot be made: .*Invalid"):
        models.build("timm:resnet18.nonsense", num_classes=3)


def test_on_the_command_line(timm, tmp_path, capsys):
    y = np.arange(48) % 3
    x = np.random.default_rng(0).integers(0, 100, (48, 32, 32, 3)) + 70 * y[:, None, None, None]
    np.savez(tmp_path / "data.npz", x_train=x.astype(np.uint8), y_train=y)
    data, out = f"npz:{tmp_path / 'data.npz'}", tmp_path / "run"
    train = ["train", "--dataset", data, "--model", "timm:test_vit", "--epochs", "1", "--out", str(out)]
    assert fastmeta.cli.main(train) == 0
    assert "timm:test_vit on cpu; 1 epoch" in capsys.readouterr().out
    assert isinstance(fastmeta.load_run(out).model, torch.nn.Module)  # needs no --trust-code


def test_timm_that_is_not_installed(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(ImportError, match="timm:resnet50 needs timm, pip install timm: "):
        models.build("timm:resnet50", num_classes=4)
    assert models.default_input_shape("timm:resnet50") == (3, 224, 224)
    with pytest.raises(SystemExit) as stop:
        fastmeta.cli.main(["check", "--model", "timm:resnet50"])
    assert stop.value.code == 2
    assert capsys.readouterr().err.startswith("fastmeta check: timm:resnet50 needs timm, pip install timm: ")
