"""Every operation against its float64 twin in plain torch, with error budgets that carry their reason."""

import pytest
import torch

from fastmeta import ops
from tests.support.ops import BY_NAME, OPS, Batch, assert_same, budget, check, double

SHAPES = [(1, 2), (7, 3), (33, 10), (5, 17), (16, 100), (64, 1000)]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("op", OPS, ids=lambda op: op.name)
def test_within_torchs_own_error(op, shape, dtype, device):
    check(op, Batch(*shape, dtype=dtype, device=device))


@pytest.mark.parametrize("shape", [(7, 3), (9, 100), (3, 3000)], ids=str)
@pytest.mark.parametrize("kind", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("op", OPS, ids=lambda op: op.name)
def test_16_bits_are_those_of_float32_rounded_once(op, kind, shape, device):
    """Torch's own error in 16 bits is a loose bound for what is accumulated in float32: this is a tight one."""
    b, wide = Batch(*shape, dtype=kind, device=device), Batch(*shape, device=device)
    for name in ("logits", "u"):
        setattr(wide, name, getattr(b, name).float())
    got, expected = op.fused(b), op.fused(wide)
    for name, x in got.items():
        assert_same(x, expected[name].to(x.dtype))


@pytest.mark.parametrize("magnitude", [1e-3, 100.0, 1e4])
@pytest.mark.parametrize("op", OPS, ids=lambda op: op.name)
def test_magnitudes(op, magnitude, dtype, device):
    check(op, Batch(9, 37, dtype=dtype, device=device, magnitude=magnitude))


@pytest.mark.parametrize("op", OPS, ids=lambda op: op.name)
def test_many_classes(op, device):
    check(op, Batch(3, 65536, device=device, size=4))


@pytest.mark.parametrize("op", OPS, ids=lambda op: op.name)
def test_empty_batch(op, dtype, device):
    check(op, Batch(0, 10, dtype=dtype, device=device))


@pytest.mark.parametrize("op", ["instance_loss", "instance_label_step_", "class_loss", "class_label_step_"])
def test_without_weights_and_with_distinct_rows(op, dtype, device):
    check(BY_NAME[op], Batch(20, 10, dtype=dtype, device=device, weighted=False, distinct=True))


def test_bfloat16_table(device):
    b = Batch(20, 33, device=device, table_dtype=torch.bfloat16, distinct=True)
    check(BY_NAME["instance_loss"], b)
    op = BY_NAME["instance_label_step_"]
    written, truth = op.fused(b)["written"], op.truth(b)["written"]
    one, _ = budget(op, b, "written", truth)
    assert written.dtype == torch.bfloat16
    assert ((double(written) - truth).abs() <= one).all()


@pytest.mark.parametrize("table_dtype", [None, torch.bfloat16], ids=str)
def test_a_step_gives_the_loss_of_the_rows_as_they_are_stored(table_dtype, device):
    b = Batch(20, 33, device=device, table_dtype=table_dtype)
    step = BY_NAME["instance_label_step_"].fused(b)
    after = ops.instance_loss(b.logits, step["written"], b.index, b.weight)
    for name in ("loss", "v", "entropy"):
        assert_same(step[name], getattr(after, name))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_wide_directions(dtype, device):
    """u may be float32 beside 16-bit logits; results of a direction come back in its dtype."""
    b = Batch(6, 12, dtype=dtype, device=device)
    wide = b.u.float()
    assert ops.soft_cross_entropy_hvp(b.logits, wide).dtype == torch.float32
    torch.testing.assert_close(
        ops.soft_cross_entropy_label_grad(b.logits, wide),
        BY_NAME["soft_cross_entropy_label_grad"].truth(b)["out"].float().to(device),
    )
    same = ops.instance_label_step(b.table[b.index], b.index, b.logits, b.u, 0.1, 1.0)
    for got, expected in zip(
        ops.instance_label_step(b.table[b.index], b.index, b.logits, wide, 0.1, 1.0), same, strict=True
    ):
        assert_same(got, expected)


@pytest.mark.parametrize("unique", [False, True])
def test_functional_twin_of_the_instance_step(dtype, device, unique):
    b = Batch(20, 33, dtype=dtype, device=device, distinct=unique)
    table = b.table.clone()
    in_place = ops.instance_label_step_(table, b.index, b.logits, b.u, 0.1, 5.0, b.weight, unique=unique)
    twin = ops.instance_label_step(b.table[b.index], b.index, b.logits, b.u, 0.1, 5.0, b.weight, unique=unique)
    assert torch.equal(twin.new_rows, table[b.index])
    assert all(map(torch.equal, twin[1:], in_place))


def test_functional_twin_of_the_class_step(dtype, device):
    b = Batch(20, 5, dtype=dtype, device=device)
    alpha = b.alpha.clone()
    in_place = ops.class_label_step_(alpha, b.targets, b.logits, b.u, 0.1, 5.0, b.weight)
    twin = ops.class_label_step(b.alpha, b.targets, b.logits, b.u, 0.1, 5.0, b.weight)
    assert torch.equal(twin.new_alpha, alpha)
    assert all(map(torch.equal, twin[1:], in_place))


def test_alpha_is_clamped_and_absent_classes_stay(device):
    b = Batch(64, 4, device=device)
    b.targets.clamp_(max=2)
    alpha = torch.tensor([0.5, 0.5, 0.5, 7.0], device=device)
    ops.class_label_step_(alpha, b.targets, b.logits, b.u, 1.0, 1e6)
    assert set(alpha[:3].tolist()) <= {0.0, 1.0}
    assert alpha[3] == 7


def test_rates_as_tensors(device):
    b = Batch(8, 5, device=device)
    by_float = ops.instance_label_step(b.table[b.index], b.index, b.logits, b.u, 0.25, 5.0)
    for kind in (torch.float64, torch.float32):
        for where in ("cpu", device):
            scale, label_lr = (torch.tensor(x, dtype=kind, device=where) for x in (0.25, 5.0))
            got = ops.instance_label_step(b.table[b.index], b.index, b.logits, b.u, scale, label_lr)
            assert all(map(torch.equal, got, by_float))


def test_bitwise_repeatable(device):
    b = Batch(200, 40, device=device, size=20)
    for op in OPS:
        first, second = op.fused(b), op.fused(b)
        assert all(torch.equal(first[name], second[name]) for name in first), op.name


def test_threads_do_not_change_a_bit():
    b = Batch(600, 100, size=100)  # above the size from which rows go over threads
    before = torch.get_num_threads()
    try:
        results = []
        for threads in (1, 3):
            torch.set_num_threads(threads)
            results.append([op.fused(b) for op in OPS])
    finally:
        torch.set_num_threads(before)
    for op, one, many in zip(OPS, *results, strict=True):
        assert all(torch.equal(one[name], many[name]) for name in one), op.name
