"""soft_cross_entropy is differentiable in both arguments; nothing else pretends to be."""

import pytest
import torch
from torch.autograd import grad, gradcheck, gradgradcheck

from fastmeta import ops, reference
from tests.support.ops import Batch


def leaves(device: str, n: int = 4, num_classes: int = 5) -> tuple[torch.Tensor, torch.Tensor]:
    b = Batch(n, num_classes, torch.float64, device)
    probs = 1.5 * b.probs + 0.1  # rows that do not sum to one
    return b.logits.requires_grad_(), probs.requires_grad_()


@pytest.mark.parametrize("reduction", ["none", "mean", "sum"])
@pytest.mark.parametrize("needs", [(True, True), (True, False), (False, True)], ids=str)
def test_first_and_second_derivatives(device, reduction, needs):
    z, p = (x.detach().requires_grad_(need) for x, need in zip(leaves(device), needs, strict=True))

    def loss(z, p):
        return ops.soft_cross_entropy(z, p, reduction=reduction)

    assert gradcheck(loss, (z, p))
    assert gradgradcheck(loss, (z, p))


def test_third_derivatives(device):
    """Of a function in which the loss is followed by something that is not linear."""
    z, p = leaves(device)

    def third(module):
        loss = (module.soft_cross_entropy(z, p, reduction="none") ** 3).sum()
        (g,) = grad(loss, z, create_graph=True)
        (h,) = grad(g.pow(2).sum(), z, create_graph=True)
        return grad(h.sin().sum(), (z, p))

    for fused, plain in zip(third(ops), third(reference), strict=True):
        torch.testing.assert_close(fused, plain, rtol=1e-9, atol=1e-12)


def test_mixed_second_derivative(device):
    """The label gradient of Eq. (4) as autograd takes it: d/dp of <dL/dz, u>."""
    z, p = leaves(device)
    u = torch.randn_like(z)
    (g,) = grad(ops.soft_cross_entropy(z, p, reduction="sum"), z, create_graph=True)
    (label_grad,) = grad((g * u).sum(), p)
    torch.testing.assert_close(label_grad, -reference.soft_cross_entropy_label_grad(z, u))


def test_second_derivative_in_the_logits_alone_is_the_hvp(device):
    z, p = leaves(device)
    p, v = p.detach(), torch.randn_like(z)
    (g,) = grad(ops.soft_cross_entropy(z, p, reduction="sum"), z, create_graph=True)
    (product,) = grad(g, z, v)
    assert torch.equal(product, ops.soft_cross_entropy_hvp(z, v, p))


def test_under_torch_func(device):
    """Also of a function inside another's, and of an argument that outlived its transform."""
    z, p = (x.detach() for x in leaves(device))

    def of(module):
        first = torch.func.grad(module.soft_cross_entropy)
        mixed = torch.func.grad(lambda p: (first(z, p) ** 2).sum())
        _, pullback = torch.func.vjp(lambda z: module.soft_cross_entropy(z, p, reduction="none"), z)
        outlived = []
        torch.func.grad(lambda z: outlived.append(z) or z.sum())(z)
        return first(z, p), mixed(p), *pullback(p[:, 0]), module.soft_cross_entropy(outlived[0], p)

    for fused, plain in zip(of(ops), of(reference), strict=True):
        torch.testing.assert_close(fused, plain)


def test_gradients_keep_dtypes(dtype, device):
    b = Batch(6, 7, dtype, device)
    z, p = b.logits.requires_grad_(), b.probs.requires_grad_()
    g_z, g_p = grad(ops.soft_cross_entropy(z, p), (z, p), create_graph=True)
    assert (g_z.dtype, g_p.dtype) == (z.dtype, p.dtype)
    h_z, h_p = grad((g_z.double() ** 2).sum() + (g_p.double() ** 2).sum(), (z, p))
    assert (h_z.dtype, h_p.dtype) == (z.dtype, p.dtype)
    wide = [x.detach().double().requires_grad_() for x in (z, p)]
    e_z, e_p = grad(reference.soft_cross_entropy(*wide), wide, create_graph=True)
    w_z, w_p = grad((e_z**2).sum() + (e_p**2).sum(), wide)
    eps = torch.finfo(dtype).eps
    for got, expected in ((g_z, e_z), (g_p, e_p), (h_z, w_z), (h_p, w_p)):
        # one rounding of the first gradient and one of the second, at the size of the largest element
        torch.testing.assert_close(got.double(), expected, rtol=0, atol=3 * eps * expected.abs().max().item())


def test_large_logits_have_accurate_gradients(device):
    """lse is rounded at |z|: were exp(z - lse) taken for q, this gradient would be wrong by 5e-4."""
    b = Batch(16, 50, device=device)
    z = (1e4 + b.logits).requires_grad_()
    (g,) = grad(ops.soft_cross_entropy(z, b.probs, reduction="sum"), z)
    expected = z.detach().double().softmax(-1) - b.probs.double()
    assert (g.double() - expected).abs().max() < 2 * torch.finfo(torch.float32).eps


def test_others_carry_no_graph(device):
    b = Batch(4, 5, device=device)
    for x in (b.logits, b.u, b.table, b.alpha, b.weight):
        x.requires_grad_()
    results = [
        *ops.instance_loss(b.logits, b.table, b.index, b.weight),
        *ops.class_loss(b.logits, b.alpha, b.targets, b.weight),
        ops.soft_cross_entropy_hvp(b.logits, b.u),
        ops.soft_cross_entropy_label_grad(b.logits, b.u),
        ops.row_dot(b.logits, b.u),
    ]
    assert not any(r.requires_grad for r in results)


STEPS = {
    "instance": lambda b: (b.table, lambda: ops.instance_label_step_(b.table, b.index, b.logits, b.u, 0.1, 1.0)),
    "class": lambda b: (b.alpha, lambda: ops.class_label_step_(b.alpha, b.targets, b.logits, b.u, 0.1, 1.0)),
}


@pytest.mark.parametrize("mode", [torch.enable_grad, torch.no_grad, torch.inference_mode])
@pytest.mark.parametrize("step", STEPS.values(), ids=STEPS)
def test_in_place_steps_show_in_the_version_counter(device, step, mode):
    labels, move = step(Batch(4, 5, device=device))
    x = torch.ones(labels.shape, device=device, requires_grad=True)
    product = (x * labels).sum()
    with mode():
        move()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        product.backward()


@pytest.mark.parametrize("step", STEPS.values(), ids=STEPS)
def test_tensors_of_inference_mode_are_written(device, step):
    with torch.inference_mode():
        labels, move = step(Batch(4, 5, device=device))
        before = labels.clone()
        move()
    assert not torch.equal(labels, before)


def test_what_is_saved_for_backward(device):
    """The arguments as they are and lse, one number per row; no probabilities."""
    b, saved = Batch(6, 9, device=device), []
    z, p = b.logits.requires_grad_(), b.probs.requires_grad_()
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t) or t, lambda t: t):
        ops.soft_cross_entropy(z, p, reduction="none")
    others = [t for t in saved if t.data_ptr() not in (z.data_ptr(), p.data_ptr())]
    assert len(saved) == 3
    (lse,) = others
    torch.testing.assert_close(lse, z.detach().logsumexp(-1))


@pytest.mark.parametrize("transform", ["grad", "vjp"])
def test_a_function_that_dynamo_takes_apart_raises(transform):
    """Torch 2.11 differentiates the `forward`, not the `backward`, where torch.func is inside: the gradient
    would be zero. Later ones take the `backward`."""
    b = Batch(4, 5)
    torch._dynamo.reset()

    def gradient(z):
        if transform == "grad":
            return torch.func.grad(ops.soft_cross_entropy)(z, b.probs)
        return torch.func.vjp(lambda z: ops.soft_cross_entropy(z, b.probs), z)[1](torch.ones(()))[0]

    compiled = torch.compile(gradient, backend="aot_eager")
    if torch.__version__ < "2.13":
        with pytest.raises(Exception, match="has no derivative of its own and got an argument that requires one"):
            compiled(b.logits)
    else:
        torch.testing.assert_close(compiled(b.logits), gradient(b.logits))


def test_forward_mode_over_a_network_stays_outside(device):
    """The tangent of the logits is plain torch; the operations get its detached parts."""
    b = Batch(4, 5, device=device)
    z, u = torch.func.jvp(lambda x: (x**2).sin(), (b.logits,), (b.u,))
    torch.testing.assert_close(ops.soft_cross_entropy_label_grad(z, u), reference.soft_cross_entropy_label_grad(z, u))
