"""Stochastic rounding of bfloat16 tables: neighbours, exactness, bias, and bits that depend on where alone."""

import pytest
import torch

from fastmeta import ops, reference, rng
from tests.support.ops import Batch, assert_same

SEED, STEP = 12345678901234, 7


def move(b: Batch, table: torch.Tensor, *, seed=SEED, step=STEP, functional=False, unique=False, rows=slice(None)):
    """New rows of the batch's `rows`, and what the operation returned."""
    weight = None if b.weight is None else b.weight[rows]
    index, rest = b.index[rows], (b.logits[rows], b.u[rows], 0.1, 5.0, weight)
    options = {"unique": unique, "seed": seed, "step": step}
    if functional:
        out = ops.instance_label_step(table[index], index, *rest, **options)
        return out.new_rows, out[1:]
    table = table.clone()
    out = ops.instance_label_step_(table, index, *rest, **options)
    return table[index], tuple(out)


def exact_and_table(b: Batch) -> tuple[torch.Tensor, torch.Tensor]:
    """The new rows before rounding, and the bfloat16 table: a float32 table of the same values takes the same step."""
    table = b.table.to(torch.bfloat16)
    return move(b, table.float(), seed=None, step=None)[0], table


def assert_drawn(got: torch.Tensor, expected: torch.Tensor) -> None:
    """The same draws. On CUDA a table of 16 bits gives its columns to other threads than one of 32: sums in another
    order move a few last bits, and of those few a decision, by one distance of two numbers."""
    assert (got != expected).double().mean() <= (1e-3 if got.is_cuda else 0)
    torch.testing.assert_close(got, expected)


@pytest.mark.parametrize("num_classes", [2, 3, 8, 9, 100, 127, 129, 1000])
@pytest.mark.parametrize("functional", [False, True])
def test_the_kernels_draw_the_reference_bits(num_classes, functional, device):
    b = Batch(20, num_classes, device=device)
    exact, table = exact_and_table(b)
    expected = rng.round_stochastically(exact, SEED, STEP, b.index)
    got, _ = move(b, table, functional=functional)
    assert_drawn(got, expected)
    if num_classes >= 100:
        assert not torch.equal(got, exact.to(torch.bfloat16))


def test_the_twin_in_plain_torch(device):
    """Sums in another order move a few last bits, and of those few a decision."""
    b = Batch(40, 500, device=device)
    fused, plain = b.table.to(torch.bfloat16), b.table.to(torch.bfloat16)
    rest = (b.index, b.logits, b.u, 0.1, 5.0, b.weight)
    out = ops.instance_label_step_(fused, *rest, seed=SEED, step=STEP)
    truth = reference.instance_label_step_(plain, *rest, seed=SEED, step=STEP)
    assert (fused != plain).double().mean() < 1e-3
    torch.testing.assert_close(fused, plain)  # one distance of two numbers
    torch.testing.assert_close(out.alignment, truth[3], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(out.loss, truth[0], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_logits_of_16_bits(dtype, device):
    b = Batch(20, 33, dtype=dtype, device=device)
    exact, table = exact_and_table(b)
    assert_drawn(move(b, table)[0], rng.round_stochastically(exact, SEED, STEP, b.index))


def test_rows_of_a_large_table_and_steps_of_64_bits(device):
    """All 64 bits of a row count, of a step the lower 32."""
    b = Batch(4, 64, device=device, distinct=True)
    exact, table = exact_and_table(b)
    rows, far = table[b.index], b.index + (5 << 33)
    drawn = {}
    for name, index, step in (("near", b.index, 3), ("far", far, 3), ("late", b.index, 3 + (1 << 32))):
        out = ops.instance_label_step(
            rows, index, b.logits, b.u, 0.1, 5.0, b.weight, unique=True, seed=2**63 - 1, step=step
        )
        drawn[name] = out.new_rows
        assert_drawn(out.new_rows, rng.round_stochastically(exact, 2**63 - 1, step, index))
    assert not torch.equal(drawn["near"], drawn["far"])
    assert torch.equal(drawn["near"], drawn["late"])


def test_a_neighbour_and_nothing_else(device):
    b = Batch(30, 100, device=device)
    exact, table = exact_and_table(b)
    got = move(b, table)[0].float()
    bits = exact.view(torch.int32)
    toward_zero = (bits & -0x10000).view(torch.float32)
    away = ((bits & -0x10000) + 0x10000).view(torch.float32)
    assert ((got != toward_zero) & (got != away)).double().mean() <= (1e-3 if got.is_cuda else 0)  # as in assert_drawn
    assert (got == toward_zero).any()
    assert (got == away).any()


def test_exact_where_representable(device):
    """A step of length zero leaves every row, and so does one between representable numbers."""
    b = Batch(30, 64, device=device, weighted=False)
    table = b.table.to(torch.bfloat16)
    for step in range(20):
        new = table.clone()
        ops.instance_label_step_(new, b.index, b.logits, b.u, 0.0, 5.0, seed=SEED, step=step)
        assert torch.equal(new, table)
    # p = 1/2 and u = +-1: the gradient is +-1/2
    flat, u = torch.zeros(1, 2, dtype=torch.bfloat16, device=device), torch.tensor([[1.0, -1.0]], device=device)
    index = torch.zeros(1, dtype=torch.int64, device=device)
    ops.instance_label_step_(flat, index, torch.zeros(1, 2, device=device), u, 1.0, 3.0, seed=SEED, step=STEP)
    assert flat.tolist() == [[-1.5, 1.5]]


@pytest.mark.parametrize("what", ["seed", "step"])
def test_unbiased(what, device):
    """Over 400 seeds (or steps) the mean rounding error is zero within 4 sigma of its own spread, in each sign."""
    b = Batch(16, 256, device=device, distinct=True)
    exact, table = exact_and_table(b)
    draws = 400
    total = torch.zeros_like(exact, dtype=torch.float64)
    for k in range(draws):
        total += move(b, table, **{what: k}, unique=True)[0].double()
    bits = exact.view(torch.int32)
    low, away = (((bits & -0x10000) + step).view(torch.float32).double() for step in (0, 0x10000))
    gap, up = away - low, (bits & 0xFFFF).double() / 0x10000
    error = (total / draws - exact.double()) / gap
    variance = up * (1 - up) / draws
    for part in (exact > 0, exact < 0):
        assert error[part].sum().abs() <= 4 * variance[part].sum().sqrt()
    # single entries: of 4,096, a handful at most lie beyond 4 sigma
    assert (error.abs() > 4 * variance.sqrt() + 1e-12).sum() <= 4


def test_columns_draw_independently(device):
    """Neighbouring columns, halves of a word, words of a block and blocks have uncorrelated draws."""
    bits = rng.column_bits(3, 4, torch.arange(4000), 24).double() / 2**16
    correlation = torch.corrcoef(bits.T) - torch.eye(24)
    assert correlation.abs().max() < 5 / 4000**0.5


def test_the_bits_do_not_depend_on_the_batch(device):
    b = Batch(24, 100, device=device, distinct=True)
    table = b.table.to(torch.bfloat16)
    got, _ = move(b, table)
    order = torch.randperm(24, device=device)
    assert torch.equal(move(b, table, rows=order)[0], got[order])
    assert torch.equal(move(b, table, rows=order[:5])[0], got[order[:5]])
    assert_drawn(move(b, table, unique=True)[0], got)
    assert not torch.equal(move(b, table, step=STEP + 1)[0], got)
    assert not torch.equal(move(b, table, seed=SEED + 1)[0], got)


@pytest.mark.parametrize("unique", [False, True])
def test_functional_twin(unique, device):
    b = Batch(20, 33, device=device, distinct=unique)
    table = b.table.to(torch.bfloat16)
    rows, in_place = move(b, table, unique=unique)
    twin_rows, twin = move(b, table, functional=True, unique=unique)
    assert torch.equal(rows, twin_rows)
    assert all(map(torch.equal, in_place, twin))
    # and both give the loss of the rows as they are stored
    after = ops.instance_loss(b.logits, table.index_copy(0, b.index, rows), b.index, b.weight)
    assert_same(in_place[0], after.loss)
    assert_same(in_place[1], after.v)


def test_threads_do_not_change_a_bit():
    b = Batch(600, 100, size=100)
    table, before = b.table.to(torch.bfloat16), torch.get_num_threads()
    try:
        results = []
        for threads in (1, 3):
            torch.set_num_threads(threads)
            results.append(move(b, table)[0])
    finally:
        torch.set_num_threads(before)
    assert torch.equal(*results)


def test_a_row_that_overflows_stays(device):
    """Half-way from the largest bfloat16 to the next, which is none: about half of the rows stay and are counted."""
    rows = 64
    top, gap = torch.finfo(torch.bfloat16).max, 2.0**120
    table = torch.full((rows, 2), top, dtype=torch.bfloat16, device=device)
    index, z = torch.arange(rows, device=device), torch.zeros(rows, 2, device=device)
    u = torch.tensor([-1.0, 1.0], device=device).expand(rows, -1)  # at p = 1/2 the gradient is -+1/2
    new = table.clone()
    step = ops.instance_label_step_(new, index, z, u, 1.0, gap, seed=SEED, step=STEP)
    overflows = rng.column_bits(SEED, STEP, index, 2)[:, 0] >= 0x8000
    assert 0 < overflows.sum() < rows
    assert step.skipped == overflows.sum()
    assert torch.equal(step.loss.isnan(), overflows)
    assert torch.equal(new[:, 0] == top, torch.ones_like(overflows))
    assert torch.equal(new[overflows], table[overflows])


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_bad_rows_are_skipped(value, device):
    b = Batch(9, 21, device=device, distinct=True)
    table = b.table.to(torch.bfloat16)
    clean, _ = move(b, table)
    b.u[4, 3] = value
    got, out = move(b, table)
    assert int(out[0].isnan().sum()) == 1
    assert torch.equal(got[4], table[b.index[4]])
    keep = torch.arange(9, device=device) != 4
    assert torch.equal(got[keep], clean[keep])


def test_other_tables_are_rounded_to_nearest(dtype, device):
    b = Batch(20, 33, dtype=dtype, device=device)
    with_seed, without = move(b, b.table), move(b, b.table, seed=None, step=None)
    assert torch.equal(with_seed[0], without[0])
    assert all(map(torch.equal, with_seed[1], without[1]))


def test_a_step_on_the_device(device):
    b = Batch(20, 33, device=device)
    table = b.table.to(torch.bfloat16)
    got, _ = move(b, table)
    for where in ("cpu", device):
        assert torch.equal(move(b, table, step=torch.tensor(STEP, device=where))[0], got)


def test_small_steps_are_lost_to_nearest_and_kept_by_chance(device):
    """200 steps of a twentieth of two numbers' distance: ten distances, of which rounding to nearest makes none."""
    rows, num_classes, steps = 200, 2, 200
    start = torch.full((rows, num_classes), 4.0, dtype=torch.bfloat16, device=device)
    gap = 2.0**-5  # between 4 and 8
    index, z = torch.arange(rows, device=device), torch.zeros(rows, num_classes, device=device)
    u = torch.tensor([-1.0, 1.0], device=device).expand(rows, -1)
    nearest, by_chance = start.clone(), start.clone()
    for step in range(steps):
        # at p = 1/2 the gradient is -+1/2; p hardly changes on the way
        options = (index, z, u, 1.0, gap / 10)
        ops.instance_label_step_(nearest, *options, unique=True)
        ops.instance_label_step_(by_chance, *options, unique=True, seed=SEED, step=step)
    exact = start.float().clone()
    for _ in range(steps):
        ops.instance_label_step_(exact, index, z, u, 1.0, gap / 10, unique=True)
    assert torch.equal(nearest, start)
    moved = by_chance.float() - start.float()
    truth = exact - start.float()
    assert truth[0, 0] > 9 * gap
    # the mean of 200 rows, whose paths spread by about sqrt(200 / 20) distances
    assert (moved.mean(0) - truth.mean(0)).abs().max() < 4 * gap * (steps / 20 / rows) ** 0.5


def test_errors(device):
    b = Batch(4, 5, device=device)
    table = b.table.to(torch.bfloat16)
    for options in ({"seed": 1, "step": None}, {"seed": None, "step": 1}):
        with pytest.raises(ValueError, match=r"stochastic rounding needs seed and step, got (seed|step) alone"):
            move(b, table, **options)
    with pytest.raises(ValueError, match=r"seed must lie in \[0, 2\^63\), got -1"):
        move(b, table, seed=-1)
    with pytest.raises(RuntimeError, match=r"step must be a 0-dim int64 tensor, got shape \(1,\) of float32"):
        move(b, table, step=torch.zeros(1, device=device))
    scale = torch.tensor(0.1)
    with pytest.raises(RuntimeError, match="needs seed and step, got seed alone"):
        torch.ops.fastmeta.instance_label_step_(table, b.index, b.logits, b.u, scale, scale, None, False, 3, None)


def test_the_functional_twin_of_the_truth_draws_alike():
    b = Batch(9, 17, table_dtype=torch.bfloat16, size=5)
    table = b.table.clone()
    args = (b.index, b.logits, b.u, 0.1, 5.0, b.weight)
    in_place = reference.instance_label_step_(table, *args, seed=SEED, step=STEP)
    new_rows, *others = reference.instance_label_step(b.table[b.index], *args, seed=SEED, step=STEP)
    assert torch.equal(new_rows, table[b.index])
    assert all(map(torch.equal, others, in_place))
