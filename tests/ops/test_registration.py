"""Schemas, shapes for tracing, and torch.compile."""

import pytest
import torch

from fastmeta import ops
from fastmeta.ops import guard
from tests.support.ops import Batch, raw_arguments

RAW = torch.ops.fastmeta


def test_every_schema_is_guarded():
    assert {
        name.removeprefix("fastmeta::")
        for name in torch._C._dispatch_get_all_op_names()
        if name.startswith("fastmeta::")
    } == set(guard.NAMES)


@pytest.mark.parametrize("name", guard.NAMES)
@pytest.mark.parametrize("kind", [torch.float32, torch.bfloat16], ids=str)
def test_opcheck(name, kind, device):
    arguments = raw_arguments(name, Batch(6, 9, kind, device))
    torch.library.opcheck(getattr(RAW, name).default, arguments)


@pytest.mark.parametrize("name", ["instance_label_step_", "instance_label_step"])
def test_opcheck_with_stochastic_rounding(name, device):
    arguments = raw_arguments(name, Batch(6, 9, device=device, table_dtype=torch.bfloat16))
    torch.library.opcheck(getattr(RAW, name).default, (*arguments, 3, torch.tensor(5, device=device)))


@pytest.mark.parametrize("name", guard.NAMES)
def test_compile_raw(name, device):
    op = getattr(RAW, name).default
    eager = raw_arguments(name, Batch(6, 9, device=device))
    traced = raw_arguments(name, Batch(6, 9, device=device))
    torch._dynamo.reset()
    expected, got = op(*eager), torch.compile(op, fullgraph=True, backend="aot_eager")(*traced)
    torch.testing.assert_close(got, expected, rtol=0, atol=0)
    torch.testing.assert_close(traced[:1], eager[:1], rtol=0, atol=0)  # what an in-place one wrote


def test_compile_the_label_step_with_rates_as_tensors(device):
    """A schedule does not compile anew."""
    torch._dynamo.reset()
    b = Batch(6, 9, device=device)

    @torch.compile(fullgraph=True, backend="aot_eager")
    def step(rows, label_lr):
        return ops.instance_label_step(rows, b.index, b.logits, b.u, 0.1, label_lr, b.weight)

    with torch._dynamo.config.patch(error_on_recompile=True):
        for rate in (1.0, 2.0, 3.0):
            label_lr = torch.tensor(rate)
            expected = ops.instance_label_step(b.table[b.index], b.index, b.logits, b.u, 0.1, rate, b.weight)
            assert all(map(torch.equal, step(b.table[b.index], label_lr), expected))


@pytest.mark.parametrize("backend", ["aot_eager", pytest.param("inductor", marks=pytest.mark.slow)])
def test_compile_the_differentiable_loss(backend, device):
    torch._dynamo.reset()
    b = Batch(6, 9, device=device)
    compiled = torch.compile(ops.soft_cross_entropy, fullgraph=True, backend=backend)
    results = []
    for f in (ops.soft_cross_entropy, compiled):
        z, p = b.logits.clone().requires_grad_(), b.probs.clone().requires_grad_()
        loss = f(z.sin(), p)
        loss.backward()
        results.append((loss.detach(), z.grad, p.grad))
    torch.testing.assert_close(results[1], results[0])


def test_compile_with_a_dynamic_batch(device):
    torch._dynamo.reset()
    compiled = torch.compile(ops.instance_loss, fullgraph=True, backend="aot_eager", dynamic=True)
    for n in (4, 7, 9):
        b = Batch(n, 5, device=device)
        got, expected = compiled(b.logits, b.table, b.index), ops.instance_loss(b.logits, b.table, b.index)
        assert all(map(torch.equal, got, expected))
        assert type(got) is ops.LabelLoss


def test_vmap_of_a_raw_operation(device):
    """By torch's own loop over the batch: the same rows, one call for each."""
    b = Batch(6, 9, device=device)
    z = torch.stack([b.logits, b.u])
    got = torch.func.vmap(lambda z: ops.instance_loss(z, b.table, b.index))(z)
    expected = map(torch.stack, zip(*(ops.instance_loss(x, b.table, b.index) for x in z), strict=True))
    assert all(map(torch.equal, got, expected))
    with pytest.raises(RuntimeError, match="Batching rule not implemented for fastmeta::instance_label_step_"):
        torch.func.vmap(lambda z: ops.instance_label_step_(b.table, b.index, z, b.u, 0.1, 1.0))(z)
