"""Rows: repeated ones, ones with NaN or infinity, strides, and tables too large to touch."""

import pytest
import torch

from fastmeta import ops, reference
from tests.support.ops import OPS, Batch, acc, assert_same, double

NAN, INF = float("nan"), float("inf")


# ---------------------------------------------------------------------------------------------------------
# Repeated rows
# ---------------------------------------------------------------------------------------------------------


def test_repeated_rows_move_by_the_sum(dtype, device):
    b = Batch(40, 12, dtype, device, size=6)
    table, truth = b.table.clone(), double(b.table)
    got = ops.instance_label_step_(table, b.index, b.logits, b.u, 0.1, 5.0, b.weight)
    expected = reference.instance_label_step_(
        truth, b.index.cpu(), double(b.logits), double(b.u), 0.1, 5.0, double(b.weight)
    )
    tight = {"rtol": 1e-12, "atol": 1e-12} if dtype == torch.float64 else {"rtol": 1e-5, "atol": 1e-5}
    torch.testing.assert_close(double(table), truth, **tight)
    torch.testing.assert_close(double(got.loss), expected[0], **tight)
    v_eps = torch.finfo(dtype).eps
    torch.testing.assert_close(double(got.v), expected[1], rtol=0, atol=max(2 * v_eps, tight["atol"]))
    assert got.skipped == 0


def test_a_promise_of_unique_rows_changes_nothing_when_kept(dtype, device):
    b = Batch(30, 12, dtype, device, distinct=True)
    tables = b.table.clone(), b.table.clone()
    one = ops.instance_label_step_(tables[0], b.index, b.logits, b.u, 0.1, 5.0, b.weight, unique=True)
    two = ops.instance_label_step_(tables[1], b.index, b.logits, b.u, 0.1, 5.0, b.weight, unique=False)
    for got, expected in zip((tables[0], *one), (tables[1], *two), strict=True):
        assert_same(got, expected)


def test_order_of_a_sum_is_the_batchs(device):
    """1 + 1e8 - 1e8 in float32 depends on the order; the operation takes it from front to back."""
    u = torch.tensor([[1.0, -1.0], [1e8, -1e8], [-1e8, 1e8]], device=device)
    z, index = torch.zeros(3, 2, device=device), torch.zeros(3, dtype=torch.int64, device=device)
    table = torch.zeros(1, 2, device=device)
    ops.instance_label_step_(table, index, z, u, 1.0, 1.0)
    assert table[0, 0] == 0  # the 1 is lost in 1e8 first
    table = torch.zeros(1, 2, device=device)
    ops.instance_label_step_(table, index, z, u.flip(0), 1.0, 1.0)
    assert table[0, 0] == -0.5


# ---------------------------------------------------------------------------------------------------------
# Skipped rows
# ---------------------------------------------------------------------------------------------------------


def results_of(step) -> list[torch.Tensor]:
    return [getattr(step, name) for name in ("loss", "v", "entropy", "alignment")]


def assert_skipped(step, bad: torch.Tensor, others) -> None:
    """Rows `bad` are NaN and counted, the rest equals what `others` gives."""
    assert int(step.skipped) == int(bad.sum())
    for got, clean in zip(results_of(step), results_of(others), strict=True):
        assert got[bad].isnan().all()
        assert torch.equal(got[~bad], clean[~bad])


@pytest.mark.parametrize("value", [NAN, INF, -INF], ids=str)
@pytest.mark.parametrize("where", ["logits", "u", "weight", "table"])
@pytest.mark.parametrize("functional", [False, True])
def test_instance_step_skips_a_bad_row(value, where, functional, dtype, device):
    b = Batch(9, 21, dtype, device, distinct=True)
    bad = torch.zeros(9, dtype=torch.bool, device=device)
    bad[4] = True

    def run():
        rows = b.table[b.index]
        if functional:
            step = ops.instance_label_step(rows, b.index, b.logits, b.u, 0.1, 5.0, b.weight)
            return step, rows, step.new_rows
        table = b.table.clone()
        step = ops.instance_label_step_(table, b.index, b.logits, b.u, 0.1, 5.0, b.weight)
        return step, rows, table[b.index]

    clean, _, clean_rows = run()
    {"logits": b.logits, "u": b.u, "weight": b.weight.unsqueeze(1), "table": b.table}[where][
        int(b.index[4]) if where == "table" else 4, -1
    ] = value
    step, old_rows, new_rows = run()
    assert_skipped(step, bad, clean)
    assert torch.equal(new_rows[~bad], clean_rows[~bad])
    torch.testing.assert_close(new_rows[bad], old_rows[bad], rtol=0, atol=0, equal_nan=True)


def test_a_bad_occurrence_does_not_disturb_the_others(dtype, device):
    b = Batch(3, 8, dtype, device)
    b.index[:] = 7
    without = b.table.clone()
    keep = [0, 2]
    expected = ops.instance_label_step_(without, b.index[keep], b.logits[keep], b.u[keep], 0.1, 5.0, b.weight[keep])
    b.logits[1, 3] = NAN
    table = b.table.clone()
    got = ops.instance_label_step_(table, b.index, b.logits, b.u, 0.1, 5.0, b.weight)
    assert torch.equal(table, without)
    assert got.skipped == 1
    for all_rows, good_rows in zip(results_of(got), results_of(expected), strict=True):
        assert torch.equal(all_rows[keep], good_rows)
        assert all_rows[1].isnan().all()


def test_a_bad_label_row_skips_all_its_occurrences(device):
    b = Batch(6, 8, device=device)
    b.index[:] = torch.tensor([1, 2, 1, 3, 1, 2], device=device)
    b.table[1, 0] = INF
    before = b.table.clone()
    got = ops.instance_label_step_(b.table, b.index, b.logits, b.u, 0.1, 5.0)
    bad = b.index == 1
    assert got.skipped == 3
    assert torch.equal(got.loss.isnan(), bad)
    assert torch.equal(b.table[1], before[1])
    assert not torch.equal(b.table[2], before[2])


@pytest.mark.parametrize("rate", [NAN, INF, 1e300])
def test_a_step_that_is_not_finite_leaves_the_labels(rate, device):
    b = Batch(6, 8, device=device)
    rate = torch.tensor(rate, dtype=torch.float64, device=device)
    table, alpha = b.table.clone(), b.alpha.clone()
    step = ops.instance_label_step_(table, b.index, b.logits, b.u, 0.1, rate)
    assert torch.equal(table, b.table)
    assert step.skipped == 6
    assert step.v.isnan().all()
    step = ops.class_label_step_(alpha, b.targets, b.logits, b.u, 0.1, rate)
    assert torch.equal(alpha, b.alpha)
    assert step.skipped == 6


def test_overflow_of_a_float16_table_leaves_the_row(device):
    b = Batch(2, 8, torch.float16, device, table_dtype=torch.float16, distinct=True)
    b.u *= torch.tensor([[1e-3], [1.0]], device=device).half()
    table = b.table.clone()
    step = ops.instance_label_step_(table, b.index, b.logits, b.u, 1.0, 3e6)
    assert step.skipped == 1
    assert table.isfinite().all()
    assert torch.equal(table[b.index[1]], b.table[b.index[1]])
    assert not torch.equal(table[b.index[0]], b.table[b.index[0]])


@pytest.mark.parametrize("value", [NAN, INF, -INF], ids=str)
@pytest.mark.parametrize("where", ["logits", "u", "weight", "alpha"])
def test_class_step_skips_a_bad_row(value, where, dtype, device):
    b = Batch(12, 6, dtype, device)
    b.targets[:] = torch.arange(12, device=device) % 5
    b.targets[4] = 5
    bad = torch.zeros(12, dtype=torch.bool, device=device)
    bad[4] = True
    clean_alpha = b.alpha.clone()
    clean = ops.class_label_step_(clean_alpha, b.targets, b.logits, b.u, 0.1, 0.5, b.weight)
    {"logits": b.logits, "u": b.u, "weight": b.weight.unsqueeze(1), "alpha": b.alpha.unsqueeze(1)}[where][
        5 if where == "alpha" else 4, -1
    ] = value
    alpha = b.alpha.clone()
    step = ops.class_label_step_(alpha, b.targets, b.logits, b.u, 0.1, 0.5, b.weight)
    assert_skipped(step, bad, clean)
    assert torch.equal(alpha[:5], clean_alpha[:5])
    torch.testing.assert_close(alpha[5], b.alpha[5], rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("value", [NAN, INF, -INF], ids=str)
def test_losses_skip_bad_rows(value, dtype, device):
    b = Batch(5, 9, dtype, device, distinct=True)
    b.logits[1, 0] = value
    b.table[b.index[3], 2] = value
    got = ops.instance_loss(b.logits, b.table, b.index)
    assert got.loss.isnan().tolist() == [False, True, False, True, False]
    assert got.v.isnan().all(-1).tolist() == [False, True, False, True, False]
    assert got.skipped == 2
    got = ops.class_loss(b.logits, b.alpha, b.targets)
    assert got.loss.isnan().tolist() == [False, True, False, False, False]
    assert got.skipped == 1


@pytest.mark.parametrize("value", [NAN, INF, -INF], ids=str)
def test_soft_cross_entropy_of_a_bad_row_is_nan(value, dtype, device):
    b = Batch(3, 40, dtype, device)
    b.logits[1, 20] = value
    z = b.logits.requires_grad_()
    loss = ops.soft_cross_entropy(z, b.probs, reduction="none")
    assert loss.isnan().tolist() == [False, True, False]
    (g,) = torch.autograd.grad(loss.sum(), z)
    assert g.isnan().all(-1).tolist() == [False, True, False]
    for out in (ops.soft_cross_entropy_hvp(z, b.u), ops.soft_cross_entropy_label_grad(z, b.u)):
        assert out.isnan().all(-1).tolist() == [False, True, False]


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_cuda_skips_and_counts_an_index_out_of_range(monkeypatch):
    b = Batch(4, 5, device="cuda", distinct=True)
    b.index[1], b.targets[2] = 10**12, -1
    before = b.table.clone()
    step = ops.instance_label_step_(b.table, b.index, b.logits, b.u, 0.1, 5.0)
    assert step.skipped == 1
    assert step.loss.isnan().tolist() == [False, True, False, False]
    assert (b.table != before).any(-1).sum() == 3
    assert ops.class_loss(b.logits, b.alpha, b.targets).skipped == 1
    monkeypatch.setenv("FASTMETA_DEBUG", "1")
    with pytest.raises(ValueError, match=r"index must lie in \[0, 49\] for 50 rows of label_logits, got"):
        ops.instance_loss(b.logits, b.table, b.index)
    with pytest.raises(ValueError, match=r"targets must lie in \[0, 4\] for 5 classes, got -1 to"):
        ops.class_loss(b.logits, b.alpha, b.targets)


# ---------------------------------------------------------------------------------------------------------
# Strides
# ---------------------------------------------------------------------------------------------------------


def padded_rows(x: torch.Tensor) -> torch.Tensor:
    return torch.nn.functional.pad(x, (3, 4))[:, 3:-4] if x.ndim == 2 else x


def every_second(x: torch.Tensor) -> torch.Tensor:
    return x.repeat_interleave(2, 0)[::2] if x.ndim else x


def transposed(x: torch.Tensor) -> torch.Tensor:
    return x.t().contiguous().t() if x.ndim == 2 else x


@pytest.mark.parametrize("layout", [padded_rows, every_second, transposed])
@pytest.mark.parametrize("op", OPS, ids=lambda op: op.name)
def test_layouts(op, layout, dtype, device):
    b, strided = Batch(7, 19, dtype, device), Batch(7, 19, dtype, device)
    for name in ("logits", "u", "probs", "table", "alpha", "index", "targets", "weight"):
        if layout is transposed and name == "table":
            continue
        setattr(strided, name, layout(getattr(strided, name)))
    expected, got = op.fused(b), op.fused(strided)
    for name in expected:
        assert_same(got[name], expected[name])


@pytest.mark.parametrize("stride", [0, 1, 4])
def test_a_single_column_may_have_any_stride(stride, dtype, device):
    """Of (n, 1), as the output of a layer of one unit: `contiguous` leaves its strides as they are."""
    x, y = (torch.randn(4, 1, device=device).to(dtype).as_strided((4, 1), (1, stride)) for _ in range(2))
    assert_same(ops.row_dot(x, y), (x.to(acc(dtype)) * y.to(acc(dtype))).squeeze(1))


def test_in_place_tables_are_written_through_their_strides(device):
    b = Batch(7, 19, device=device)
    storage = torch.zeros(50, 24, device=device)
    table = storage[:, 2:21]
    table.copy_(b.table)
    ops.instance_label_step_(table, b.index, b.logits, b.u, 0.1, 5.0)
    ops.instance_label_step_(b.table, b.index, b.logits, b.u, 0.1, 5.0)
    assert torch.equal(table, b.table)
    assert not storage[:, :2].any()
    assert not storage[:, 21:].any()


def test_expanded_rows_and_gradients(device):
    b = Batch(7, 19, device=device)
    row, weight = b.logits[:1].expand(7, -1), b.weight[:1].expand(7)
    got = ops.instance_loss(row, b.table, b.index, weight)
    expected = ops.instance_loss(row.contiguous(), b.table, b.index, weight.contiguous())
    for one, other in zip(got, expected, strict=True):
        assert_same(one, other)
    z = b.logits.requires_grad_()
    ops.soft_cross_entropy(z, b.probs[:1].expand(7, -1), reduction="sum").backward()  # its gradient has stride 0
    torch.testing.assert_close(z.grad, z.detach().softmax(-1) - b.probs[:1])


@pytest.mark.parametrize("kind", [torch.float32, torch.bfloat16], ids=str)
def test_offsets_beyond_32_bits(kind, device):
    """Three rows of a table of more than 2^31 elements, whose memory is reserved and never touched elsewhere."""
    rows, num_classes = 2**19 + 3, 4096
    if device == "cuda" and torch.cuda.mem_get_info()[0] < 10 * 2**30:
        pytest.skip("needs 10 GiB of GPU memory")
    table = torch.empty(rows, num_classes, dtype=kind, device=device)
    index = torch.tensor([rows - 1, 0, rows - 2], device=device)
    b = Batch(3, num_classes, device=device, size=3, table_dtype=kind)
    table[index] = b.table
    small = b.table.clone()
    order = torch.arange(3, device=device)
    got = ops.instance_label_step_(table, index, b.logits, b.u, 0.1, 5.0)
    expected = ops.instance_label_step_(small, order, b.logits, b.u, 0.1, 5.0)
    assert all(map(torch.equal, got, expected))
    assert torch.equal(table[index], small)
    assert_same(ops.instance_loss(b.logits, table, index).loss, expected.loss)
