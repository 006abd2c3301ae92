"""Every wrong argument: which one, what was expected, what came, and the way out."""

import re

import pytest
import torch
from torch import Tensor

from fastmeta import ops
from tests.support.ops import Batch


@pytest.fixture
def b(device) -> Batch:
    return Batch(6, 4, device=device)


def instance_step(b: Batch, **changes):
    args = {
        "label_logits": b.table,
        "index": b.index,
        "logits": b.logits,
        "u": b.u,
        "scale": 0.1,
        "label_lr": 1.0,
        "weight": b.weight,
    }
    return ops.instance_label_step_(**{**args, **changes})


def class_step(b: Batch, **changes):
    args = {
        "alpha": b.alpha,
        "targets": b.targets,
        "logits": b.logits,
        "u": b.u,
        "scale": 0.1,
        "label_lr": 1.0,
        "weight": b.weight,
    }
    return ops.class_label_step_(**{**args, **changes})


ERRORS = {
    "rank": (
        lambda b: ops.instance_loss(b.logits[0], b.table, b.index),
        r"logits must have two dimensions \(n, C\), got shape \(4,\)",
    ),
    "one class": (
        lambda b: ops.soft_cross_entropy(b.logits[:, :1], b.probs[:, :1]),
        r"logits must have at least 2 columns \(classes\), got shape \(6, 1\)",
    ),
    "integer logits": (
        lambda b: ops.soft_cross_entropy(b.logits.long(), b.probs),
        "logits must be float64, float32, bfloat16 or float16, got int64",
    ),
    "hard labels": (
        lambda b: ops.soft_cross_entropy(b.logits, b.targets),
        r"probs must have shape \(6, 4\) to match logits, got \(6,\); pass soft labels",
    ),
    "probs dtype": (
        lambda b: ops.soft_cross_entropy(b.logits, b.probs.double()),
        "probs must be float32 or bfloat16 with float32 logits, got float64",
    ),
    "u shape": (
        lambda b: instance_step(b, u=b.u[:3]),
        r"u must have shape \(6, 4\) to match logits, got \(3, 4\)",
    ),
    "u dtype": (
        lambda b: instance_step(b, u=b.u.bfloat16()),
        "u must be float32 with float32 logits, got bfloat16",
    ),
    "v dtype": (
        lambda b: ops.soft_cross_entropy_hvp(b.logits.half(), b.u.bfloat16()),
        "v must be float32 or float16 with float16 logits, got bfloat16",
    ),
    "table shape": (
        lambda b: instance_step(b, label_logits=b.table[:, :3]),
        r"label_logits must have shape \(N, 4\) to match logits, got \(50, 3\); it is the table",
    ),
    "table dtype": (
        lambda b: instance_step(b, label_logits=b.table.half()),
        "label_logits must be float32 or bfloat16 with float32 logits, got float16",
    ),
    "expanded table": (
        lambda b: instance_step(b, label_logits=b.table[:1].expand(50, -1)),
        r"label_logits is written in place and needs rows of its own, got strides \(0, 1\)",
    ),
    "columns of a table": (
        lambda b: instance_step(b, label_logits=b.table.t().contiguous().t()),
        r"label_logits must have adjacent columns \(stride 1\), got strides \(1, 50\); use label_logits.contiguous\(\)",
    ),
    "rows shape": (
        lambda b: ops.instance_label_step(b.table, b.index, b.logits, b.u, 0.1, 1.0),
        r"label_rows must have shape \(6, 4\) to match logits, got \(50, 4\); one row per batch row",
    ),
    "index shape": (
        lambda b: instance_step(b, index=b.index[:2]),
        r"index must have shape \(6,\) to match logits, got \(2,\)",
    ),
    "index dtype": (
        lambda b: instance_step(b, index=b.index.int()),
        r"index must be int64, got int32; use index.long\(\)",
    ),
    "targets dtype": (
        lambda b: ops.class_loss(b.logits, b.alpha, b.targets.bool()),
        r"targets must be int64, got bool; use targets.long\(\)",
    ),
    "weight shape": (
        lambda b: instance_step(b, weight=b.weight.unsqueeze(1)),
        r"weight must have shape \(6,\) to match logits, got \(6, 1\)",
    ),
    "weight dtype": (
        lambda b: instance_step(b, weight=b.weight.half()),
        r"weight must be float32 with float32 logits, got float16; use weight.to\(torch.float32\)",
    ),
    "alpha shape": (
        lambda b: class_step(b, alpha=b.alpha[:3]),
        r"alpha must have shape \(4,\) to match logits, got \(3,\)",
    ),
    "alpha stride": (
        lambda b: class_step(b, alpha=b.alpha.repeat_interleave(2)[::2]),
        "alpha is written in place and must be contiguous, got stride 2",
    ),
    "scale of a row": (
        lambda b: instance_step(b, scale=b.weight),
        r"scale must be a 0-dim float64 or float32 tensor, got shape \(6,\) of float32",
    ),
    "integer rate": (
        lambda b: class_step(b, label_lr=torch.tensor(1)),
        r"label_lr must be a 0-dim float64 or float32 tensor, got shape \(\) of int64",
    ),
    "dot dtype": (lambda b: ops.row_dot(b.logits, b.u.double()), "b must be float32 as a, got float64"),
    "dot shape": (lambda b: ops.row_dot(b.logits, b.u[:, :2]), r"b must have shape \(6, 4\) to match a, got \(6, 2\)"),
}


@pytest.mark.parametrize("case", ERRORS)
def test_wrong_argument(case, b):
    call, match = ERRORS[case]
    before = b.table.clone(), b.alpha.clone()
    with pytest.raises(RuntimeError, match=match) as error:
        call(b)
    assert ".h:" not in str(error.value), "a path of the build in the message"
    assert torch.equal(b.table, before[0])
    assert torch.equal(b.alpha, before[1])


@pytest.mark.parametrize("value", [-1, 50])
def test_index_out_of_range(value):
    b = Batch(6, 4)
    b.index[3] = value
    before = b.table.clone()
    for call in (lambda: instance_step(b), lambda: ops.instance_loss(b.logits, b.table, b.index)):
        with pytest.raises(RuntimeError, match=rf"index\[3\] = {value} is out of range for 50 rows of label_logits"):
            call()
    assert torch.equal(b.table, before)


@pytest.mark.parametrize("value", [-1, 4])
def test_target_out_of_range(value):
    b = Batch(6, 4)
    b.targets[5] = value
    for call in (lambda: class_step(b), lambda: ops.class_loss(b.logits, b.alpha, b.targets)):
        with pytest.raises(RuntimeError, match=rf"targets\[5\] = {value} is out of range for 4 classes"):
            call()


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_rates_must_be_finite(value, b):
    with pytest.raises(ValueError, match="scale must be finite, got"):
        instance_step(b, scale=value)
    with pytest.raises(ValueError, match="label_lr must be finite, got"):
        class_step(b, label_lr=value)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 10**400], ids=["nan", "inf", "beyond float64"])
def test_rates_of_a_lookahead_must_be_finite(value, b):
    with pytest.raises(ValueError, match="lr must be finite, got"):
        ops.lookahead_update([b.logits], [b.u], lr=value)


@pytest.mark.parametrize("value", ["0.1", None, [0.1]], ids=str)
def test_rates_must_be_numbers(value, b):
    with pytest.raises(TypeError, match=f"scale must be a number or a 0-dim tensor, got {re.escape(repr(value))}"):
        class_step(b, scale=value)
    with pytest.raises(TypeError, match=f"lr must be a number or a 0-dim tensor, got {re.escape(repr(value))}"):
        ops.lookahead_update([b.logits], [b.u], lr=value)


def test_arguments_must_be_tensors():
    """Arrays of numpy have a `device` too."""
    b = Batch(6, 4)
    calls = {
        "logits": lambda x: ops.instance_loss(x(b.logits), b.table, b.index),
        "probs": lambda x: ops.soft_cross_entropy(b.logits, x(b.probs)),
        "v": lambda x: ops.soft_cross_entropy_hvp(b.logits, x(b.u)),
        "index": lambda x: instance_step(b, index=x(b.index)),
        "u": lambda x: class_step(b, u=x(b.u)),
        "targets": lambda x: ops.class_loss(b.logits, b.alpha, x(b.targets)),
        "b": lambda x: ops.row_dot(b.logits, x(b.u)),
    }
    for name, call in calls.items():
        for convert, kind in ((Tensor.numpy, "ndarray"), (Tensor.tolist, "list"), (lambda t: None, "NoneType")):
            with pytest.raises(
                TypeError, match=rf"^{name} must be a tensor, got {kind}; use torch.as_tensor\({name}\)"
            ):
                call(convert)


def test_operands_of_a_lookahead_must_be_tensors(b):
    with pytest.raises(TypeError, match=r"^grads\[1\] must be a tensor, got NoneType; use zeros"):
        ops.lookahead_update([b.logits, b.u], [b.u, None], lr=0.1)
    with pytest.raises(TypeError, match=r"^params\[0\] must be a tensor, got list"):
        ops.lookahead_update([[1.0]], [b.u], lr=0.1)


def test_a_step_beyond_64_bits(b):
    with pytest.raises(ValueError, match=r"step must lie in \[-2\^63, 2\^63\), got"):
        instance_step(b, seed=1, step=2**70)


def test_unknown_reduction(b):
    with pytest.raises(ValueError, match='reduction must be "none", "mean" or "sum", got \'batchmean\''):
        ops.soft_cross_entropy(b.logits, b.probs, reduction="batchmean")


def test_device_mix(b):
    """Without a check a mix with meta tensors would give meta tensors."""
    meta = "meta"
    calls = {
        "probs": lambda: ops.soft_cross_entropy(b.logits, b.probs.to(meta)),
        "v": lambda: ops.soft_cross_entropy_hvp(b.logits, b.u.to(meta)),
        "u": lambda: ops.soft_cross_entropy_label_grad(b.logits, b.u.to(meta)),
        "label_logits": lambda: ops.instance_loss(b.logits, b.table.to(meta), b.index),
        "index": lambda: instance_step(b, index=b.index.to(meta)),
        "label_rows": lambda: ops.instance_label_step(b.table[:6].to(meta), b.index, b.logits, b.u, 0.1, 1.0),
        "alpha": lambda: ops.class_loss(b.logits, b.alpha.to(meta), b.targets),
        "targets": lambda: class_step(b, targets=b.targets.to(meta)),
        "weight": lambda: class_step(b, weight=b.weight.to(meta)),
        "label_lr": lambda: instance_step(b, label_lr=torch.tensor(1.0, device=meta)),
        "b": lambda: ops.row_dot(b.logits, b.u.to(meta)),
    }
    for name, call in calls.items():
        on = "a" if name == "b" else "logits"
        with pytest.raises(ValueError, match=f"^{name} is on meta but {on} on {b.logits.device}; move one"):
            call()


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_raw_operations_check_devices_too():
    b = Batch(6, 4, device="cuda")
    with pytest.raises(RuntimeError, match="index is on cpu but logits on cuda:0; move one of them"):
        torch.ops.fastmeta.instance_loss(b.logits, b.table, b.index.cpu(), None)
