"""Tensors that are not what they look like: shared, freed or misaligned memory, lazy signs, other layouts. The raw
operations and the public functions give the right values, or refuse in one line."""

from __future__ import annotations

import pytest
import torch

from fastmeta import ops
from fastmeta.ops import guard
from fastmeta.ops.guard import unfit
from tests.support.ops import BY_NAME, OPS, Batch, raw_arguments
from tests.support.refusals import RAW, changed, public, refused

IN_PLACE = ("instance_label_step_", "class_label_step_")


def tensor_arguments(operations=guard.NAMES, *, lists=False):
    """(operation, position of a tensor argument)"""
    for operation in operations:
        for at, x in enumerate(raw_arguments(operation, Batch(6, 9))):
            if isinstance(x, torch.Tensor) or (lists and isinstance(x, list)):
                yield operation, at


def name_of(operation, at):
    return getattr(RAW, operation).default._schema.arguments[at].name


def ids(cases):
    return [f"{operation}-{name_of(operation, at)}" for operation, at in cases]


def of_all(cases):
    return pytest.mark.parametrize(("operation", "at"), cases, ids=ids(cases))


def same(got, expected):
    got, expected = (x if isinstance(x, tuple | list) else (x,) for x in (got, expected))
    assert all(torch.equal(a.nan_to_num(9), b.nan_to_num(9)) for a, b in zip(got, expected, strict=True))


def called(operation, change_at=None, change=None):
    """The results of the raw operation on fresh arguments, and what it wrote."""
    given = list(raw_arguments(operation, Batch(6, 9)))
    if change is not None:
        given = changed(given, change_at, change)
    result = getattr(RAW, operation).default(*given)
    return (*result, given[0]) if operation in IN_PLACE else result


# ---------------------------------------------------------------------------------------------------------
# Memory
# ---------------------------------------------------------------------------------------------------------


def place(t, buffer, at):
    """A copy of `t` in the memory of `buffer`, `at` bytes from its start."""
    flat = buffer.view(torch.uint8).flatten()[at : at + t.numel() * t.element_size()]
    return flat.view(t.dtype).view(t.shape).copy_(t)


@of_all([(operation, at) for operation, at in tensor_arguments(IN_PLACE) if at > 0])
def test_what_is_written_is_not_read_through_another_argument(operation, at):
    op, name = getattr(RAW, operation).default, name_of(operation, at)
    for shift in (0, 8, -8):  # the same place, and pieces of it
        given = list(raw_arguments(operation, Batch(6, 9)))
        if shift < 0 and given[at].ndim == 0:
            continue  # just before it
        size = given[0].numel() * given[0].element_size()
        memory = torch.zeros(size // 8 + 200, dtype=torch.float64)
        given[at] = place(given[at], memory, 800 + shift)
        written = memory.view(torch.uint8)[800 : 800 + size].view(given[0].dtype).view(given[0].shape)
        given[0] = written
        before = memory.clone()
        for call in (op, lambda *given: public(operation, list(given))):
            text = refused(lambda call=call, given=given: call(*given), name)
            assert text.startswith(f"{name} shares memory with {name_of(operation, 0)}, which is written in place")
        assert torch.equal(memory.view(torch.int64), before.view(torch.int64))


def test_a_batch_of_the_table_itself_is_refused():
    table = torch.randn(50, 9)
    b = Batch(6, 9)
    for logits, u, name in ((table[:6], b.u, "logits"), (b.logits, table[3:9], "u"), (table[::9], b.u, "logits")):
        with pytest.raises(RuntimeError, match=f"^{name} shares memory with label_logits, .*pass {name}.clone"):
            ops.instance_label_step_(table, b.index, logits, u, 0.1, 1.0)
    weight = b.alpha[:6]
    with pytest.raises(RuntimeError, match=r"^weight shares memory with alpha, .*pass weight.clone"):
        ops.class_label_step_(b.alpha, b.targets, b.logits, b.u, 0.1, 1.0, weight)


def test_columns_of_one_buffer_side_by_side_are_apart():
    """Table, logits and tangent as columns of one array, as a record of a file has them: no byte is shared."""
    n, b = 12, Batch(12, 9, size=12, weighted=True, distinct=True)
    record = torch.zeros(n, 9 + 9 + 9 + 1)
    table, logits, u, weight = record[:, :9], record[:, 9:18], record[:, 18:27], record[:, 27]
    for view, values in ((table, b.table), (logits, b.logits), (u, b.u), (weight, b.weight)):
        view.copy_(values)
    got = ops.instance_label_step_(table, b.index, logits, u, 0.1, 5.0, weight)
    expected = ops.instance_label_step_(b.table, b.index, b.logits, b.u, 0.1, 5.0, b.weight)
    same(tuple(got), tuple(expected))
    assert torch.equal(table, b.table)
    overlapping = record[:, 8:17]
    with pytest.raises(RuntimeError, match="logits shares memory with label_logits"):
        ops.instance_label_step_(table, b.index, overlapping, u, 0.1, 5.0, weight)


@of_all(list(tensor_arguments(lists=True)))
def test_freed_memory_is_not_touched(operation, at):
    """Sharded training keeps tensors whose storage was given back."""

    def freed(t):
        t = t.clone()
        t.untyped_storage().resize_(0)
        return t

    given = list(raw_arguments(operation, Batch(6, 9)))
    call = getattr(RAW, operation).default
    text = refused(lambda: call(*changed(given, at, freed)), name_of(operation, at))
    assert "but its storage holds 0; it was freed or resized" in text


@of_all(list(tensor_arguments(lists=True)))
def test_misaligned_elements_are_refused(operation, at):
    def misaligned(t):
        raw = bytearray(t.numel() * t.element_size() + 1)
        return torch.frombuffer(raw, dtype=t.dtype, offset=1, count=t.numel()).view(t.shape).copy_(t)

    given = list(raw_arguments(operation, Batch(6, 9)))
    call = getattr(RAW, operation).default
    if name_of(operation, at) == "images":  # of bytes, which stand anywhere
        same(call(*changed(given, at, misaligned)), call(*given))
        return
    text = refused(lambda: call(*changed(given, at, misaligned)), name_of(operation, at))
    assert "bytes in memory" in text


# ---------------------------------------------------------------------------------------------------------
# Lazy values, layouts, modes
# ---------------------------------------------------------------------------------------------------------

READ = [(operation, at) for operation, at in tensor_arguments() if operation not in IN_PLACE or at > 0]


@of_all(READ)
def test_a_view_that_is_negated_when_read_is_read_so(operation, at):
    def lazily(t):
        return torch._neg_view(-t)

    def imaginary(t):
        return torch.complex(t, -t).conj().imag if t.dtype in (torch.float32, torch.float64) else t

    if name_of(operation, at) != "images":  # of uint8
        same(called(operation, at, lazily), called(operation))
    if raw_arguments(operation, Batch(6, 9))[at].ndim == 0:
        same(called(operation, at, imaginary), called(operation))


@pytest.mark.parametrize("operation", IN_PLACE)
def test_a_lazily_negated_table_is_not_written(operation):
    given = list(raw_arguments(operation, Batch(6, 9)))
    before = given[0].clone()
    for lazy in (torch._neg_view(given[0]), torch.complex(given[0], given[0]).conj().imag, given[0].cfloat().conj()):
        text = refused(lambda x=lazy: getattr(RAW, operation).default(x, *given[1:]), name_of(operation, 0))
        assert "resolve_neg()" in text
    assert torch.equal(given[0], before)
    # and a lazy argument beside a plain table, which is written
    same(called(operation, 3, lambda t: torch._neg_view(-t)), called(operation))


@of_all(list(tensor_arguments(lists=True)))
def test_other_layouts_are_refused(operation, at):
    def nested(t):
        return torch.nested.nested_tensor([t.float(), t.float()])

    ways = [torch.Tensor.to_sparse, nested]
    example = raw_arguments(operation, Batch(6, 9))[at]
    example = example[0] if isinstance(example, list) else example
    if example.ndim == 2 and example.dtype == torch.float32:
        ways += [
            torch.Tensor.to_sparse_csr,
            torch.Tensor.to_mkldnn,
            lambda t: torch.quantize_per_tensor(t, 0.1, 0, torch.qint8),
        ]
    for way in ways:
        given = changed(list(raw_arguments(operation, Batch(6, 9))), at, way)
        text = refused(lambda x=given: getattr(RAW, operation).default(*x), name_of(operation, at))
        assert "must be a dense tensor, got" in text
        if operation != "soft_cross_entropy_backward":
            refused(lambda x=given: public(operation, x), name_of(operation, at), (RuntimeError, ValueError, TypeError))


def test_another_device_is_named(monkeypatch):
    b = Batch(6, 9)

    assert unfit(b.logits) == unfit(b.logits.to("meta")) == ""

    class Elsewhere:
        is_nested = is_quantized = is_cpu = is_meta = False
        layout, device = torch.strided, "cuda:0"
        is_cuda = True

    assert unfit(Elsewhere()).startswith("is on cuda:0, but fastmeta's CUDA half is not loaded: ")
    Elsewhere.is_cuda, Elsewhere.device = False, "xpu:0"
    assert unfit(Elsewhere()) == "is on xpu:0, but fastmeta has kernels for CPU and CUDA; move it there"


@of_all(READ)
def test_zero_tensors_count_as_zeros(operation, at):
    """torch's stand-ins for gradients that are zero. They have no columns side by side: matrices are refused."""

    def lazily(t):
        return torch._efficientzerotensor(t.shape, dtype=t.dtype)

    if raw_arguments(operation, Batch(6, 9))[at].ndim == 2:
        text = refused(lambda: called(operation, at, lazily), name_of(operation, at))
        assert "must have adjacent columns" in text
    elif operation != "load_images" or raw_arguments(operation, Batch(6, 9))[at].ndim == 0:  # contiguous ones, there
        same(called(operation, at, lazily), called(operation, at, torch.zeros_like))


@pytest.mark.parametrize("op", OPS, ids=lambda op: op.name)
def test_tensors_of_inference_mode(op):
    expected = op.fused(Batch(6, 9))
    with torch.inference_mode():
        b = Batch(6, 9)
        inside = op.fused(b)
    outside = op.fused(b)
    for name, t in expected.items():
        assert torch.equal(t, inside[name])
        assert torch.equal(t, outside[name])


def test_results_carry_no_graph_whatever_requires_one():
    for op in OPS:
        if op.name == "soft_cross_entropy":
            continue
        b = Batch(6, 9)
        expected = op.fused(b)
        b.logits.requires_grad_(), b.u.requires_grad_(), b.weight.requires_grad_()
        for name, t in op.fused(b).items():
            assert torch.equal(t, expected[name])
            assert not t.requires_grad


def test_a_size_that_is_known_only_while_the_graph_runs():
    """``torch._check`` defers to it; a plain comparison in the shape function would break the graph here."""
    torch._dynamo.reset()
    b = Batch(12, 9)
    keep = b.weight > 1

    @torch.compile(fullgraph=True, backend="aot_eager")
    def loss(keep):
        rows = keep.nonzero().squeeze(1)
        return ops.instance_loss(b.logits[rows], b.table, b.index[rows], b.weight[rows])

    with torch._dynamo.config.patch(capture_dynamic_output_shape_ops=True):
        same(tuple(loss(keep)), tuple(ops.instance_loss(b.logits[keep], b.table, b.index[keep], b.weight[keep])))
    assert BY_NAME["instance_loss"]
