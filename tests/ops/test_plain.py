"""The short way of plain CPU tensors, past the guard: taken where nothing is lost by it, with the same results."""

import copy

import pytest
import torch
from torch.autograd import forward_ad
from torch.fx.experimental.proxy_tensor import make_fx

from fastmeta import ops
from fastmeta.ops import guard
from fastmeta.ops.soft_cross_entropy import KEPT, SoftCrossEntropy
from tests.support.ops import Batch


def test_what_is_plain():
    x = torch.randn(3, 4)
    seen = []

    def look(t):
        seen.append(guard.plain(t))
        return t.sum()

    assert guard.plain(x, x.clone().requires_grad_())
    assert not guard.plain(x, torch.nn.Parameter(x))
    assert not guard.plain(x, [x])
    assert not guard.plain(x.to("meta"))
    with forward_ad.dual_level():
        assert not guard.plain(x)
    torch.func.grad(look)(x)
    torch.func.vmap(look)(x)
    make_fx(look)(x)
    make_fx(look, tracing_mode="fake")(x)
    torch.compile(look, backend="eager")(x)
    assert seen == [False] * 5


def test_a_trace_holds_the_guarded_operation():
    x = torch.randn(3, 4)
    graph = make_fx(lambda x: ops.row_dot(x, x) + ops.soft_cross_entropy(x, x, reduction="none"))(x)
    called = {str(node.target) for node in graph.graph.nodes if node.op == "call_function"}
    assert {"fastmeta.row_dot.default", "fastmeta.soft_cross_entropy.default"} <= called
    assert not any(name.startswith("fastmeta_cpu") for name in called)


def test_results_carry_no_graph():
    x = torch.randn(3, 4, requires_grad=True)
    assert not ops.row_dot(x, x * 2).requires_grad
    with torch.no_grad():
        assert not ops.soft_cross_entropy(x, x).requires_grad
    with torch.inference_mode():
        assert ops.soft_cross_entropy(x, x).is_inference()


def test_no_kernel_is_said_in_one_line():
    x = torch.randn(3, 4)
    with pytest.raises(RuntimeError, match=r"^a must be a dense tensor, got layout torch\.sparse_coo"):
        ops.row_dot(x.to_sparse(), x)
    with pytest.raises(RuntimeError, match=r"^logits must be a dense tensor, got layout torch\.sparse_csr"):
        ops.soft_cross_entropy(x.to_sparse_csr(), x)


def general(logits, probs, reduction):
    """By way of the function whose backward is a kernel."""
    loss = SoftCrossEntropy.apply(logits, probs)[0]
    return {"none": loss, "mean": loss.mean(), "sum": loss.sum()}[reduction]


@pytest.mark.parametrize("reduction", ["none", "mean", "sum"])
@pytest.mark.parametrize("shape", [(1, 2), (6, 9), (5, 33), (3, 1030)], ids=str)
def test_the_gradient_that_the_loss_takes_along(shape, reduction, dtype):
    b = Batch(*shape, dtype)
    weight = torch.rand(shape[0]).to(ops.acc_dtype(dtype))
    found = []
    for f in (general, lambda z, p, r: ops.soft_cross_entropy(z, p, reduction=r)):
        z = b.logits.clone().requires_grad_()
        loss = f(z, b.probs, reduction)
        (grad,) = torch.autograd.grad((loss * weight).sum(), z)
        found.append((loss.detach(), grad))
    assert found[1][1].dtype == dtype
    torch.testing.assert_close(found[1], found[0])


def test_rows_that_hold_no_number():
    b = Batch(6, 9)
    b.logits[1, 2], b.logits[3, 0] = float("nan"), float("-inf")
    z = b.logits.clone().requires_grad_()
    loss = ops.soft_cross_entropy(z, b.probs, reduction="none")
    loss.sum().backward()
    bad = torch.tensor([False, True, False, True, False, False])
    assert torch.equal(loss.isnan(), bad)
    assert torch.equal(z.grad.isnan().all(1), bad)
    assert torch.equal(z.grad.isnan().any(1), bad)


def test_second_derivatives_of_the_logits():
    b = Batch(4, 5, torch.float64)
    for reduction in ("none", "mean", "sum"):
        z = b.logits.clone().requires_grad_()
        loss = lambda z, r=reduction: ops.soft_cross_entropy(z, b.probs, reduction=r)  # noqa: E731
        assert torch.autograd.gradcheck(loss, z)
        assert torch.autograd.gradgradcheck(loss, z)


def test_backward_twice_and_after_a_change():
    b = Batch(6, 9)
    z = b.logits.clone().requires_grad_()
    x = z * 1
    loss = ops.soft_cross_entropy(x, b.probs)
    first, second = (torch.autograd.grad(loss, z, retain_graph=True)[0] for _ in range(2))
    assert torch.equal(first, second)
    first.zero_()  # the caller's own
    assert torch.equal(torch.autograd.grad(loss, z, retain_graph=True)[0], second)
    x.detach().add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()
    loss = ops.soft_cross_entropy(z, b.probs)
    loss.backward()
    with pytest.raises(RuntimeError, match="backward through the graph a second time"):
        loss.backward()


def test_a_large_gradient_is_not_kept():
    def saved(n, C):
        sizes = []
        pack = lambda t: sizes.append(t.nbytes) or t  # noqa: E731
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
            ops.soft_cross_entropy(torch.randn(n, C, requires_grad=True), torch.rand(n, C))
        return sum(sizes)

    n = KEPT // 64
    assert saved(n, 64) >= 3 * 4 * KEPT
    assert saved(n + 1, 64) < 2.1 * 4 * KEPT


def test_the_mean_of_nothing():
    z = torch.zeros(0, 3, requires_grad=True)
    loss = ops.soft_cross_entropy(z, torch.zeros(0, 3))
    assert loss.isnan()
    loss.backward()
    assert z.grad.shape == (0, 3)


def test_a_model_with_the_loss_can_be_copied():
    """Nothing of the short way hangs on the tensors."""
    layer = torch.nn.Linear(4, 3)
    loss = ops.soft_cross_entropy(layer(torch.randn(2, 4)), torch.rand(2, 3))
    loss.backward()
    copy.deepcopy(layer)
