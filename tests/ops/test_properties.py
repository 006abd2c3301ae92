"""Any shape, stride, dtype and magnitude: the operations keep to float64 truth and to the identities of the maths."""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fastmeta import ops
from tests.support.ops import OPS, Batch, check, double

DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16]
QUICK = settings(max_examples=40, deadline=None, derandomize=True)

batches = st.builds(
    Batch,
    n=st.integers(0, 12),
    num_classes=st.integers(2, 70),
    dtype=st.sampled_from(DTYPES),
    size=st.integers(1, 20),
    magnitude=st.sampled_from([1e-4, 1.0, 30.0, 1e3, 1e4]),
    weighted=st.booleans(),
    seed=st.integers(0, 2**31),
)


@QUICK
@given(b=batches, which=st.integers(0, len(OPS) - 1), gap=st.integers(0, 5))
def test_truth(b, which, gap):
    for name in ("logits", "u", "probs", "table"):
        x = getattr(b, name)
        setattr(b, name, torch.nn.functional.pad(x, (gap, gap))[:, gap : gap + b.num_classes])
    check(OPS[which], b)


@QUICK
@given(b=batches)
def test_label_gradient_is_the_hvp_at_the_label(b):
    """A step of a row of its own is label_lr * scale * w * hvp(l, u)."""
    table, u = double(b.table)[: b.n], double(b.u)[: b.table.shape[0]]
    n = table.shape[0]
    index, z = torch.arange(n), double(b.logits)[:n]
    new = ops.instance_label_step(table, index, z, u, 0.1, 2.0).new_rows
    torch.testing.assert_close(new, table - 0.2 * ops.soft_cross_entropy_hvp(table, u), rtol=1e-12, atol=1e-12)


@QUICK
@given(b=batches, shift=st.floats(-1e4, 1e4))
def test_a_shift_of_logits_changes_nothing(b, shift):
    z = double(b.logits)
    moved, still = (ops.instance_loss(x, b.table.double(), b.index) for x in (z + shift, z))
    torch.testing.assert_close(moved.loss, still.loss, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(moved.v, still.v, rtol=0, atol=1e-9)


@QUICK
@given(b=batches)
def test_gradients_of_a_softmax_sum_to_zero(b):
    step = ops.instance_label_step(b.table[b.index], b.index, b.logits, b.u, 0.1, 1.0, b.weight)
    total = double(step.v).sum(-1).abs()
    assert (total <= 4 * b.num_classes * torch.finfo(b.dtype).eps).all()
    assert (step.entropy >= 0).all()
    assert (double(step.entropy) <= torch.tensor(float(b.num_classes)).log() * (1 + 1e-6)).all()
