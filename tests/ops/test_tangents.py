"""An argument with a forward-AD tangent raises, wherever the dual was made: the tangent would be lost."""

import pytest
import torch
from torch.autograd import forward_ad
from torch.func import grad, jvp

from fastmeta import ops
from tests.support.ops import OPS, Batch

# ours, or torch's own of an autograd.Function, whichever stands first in the way
MATCH = "has no forward-mode derivative|You must implement the jvp function"
# Dynamo of torch 2.14 meets the level before it meets the function, and gives up there
MATCH += r"|AutogradFunctionVariable\(\) is not a constant"


@pytest.fixture
def z() -> torch.Tensor:
    return torch.randn(4, 5)


def differentiable(z: torch.Tensor) -> torch.Tensor:
    return ops.soft_cross_entropy(z, torch.full_like(z, 0.2))


def raw(z: torch.Tensor) -> torch.Tensor:
    return ops.row_dot(z, z).sum()


@pytest.fixture(params=[differentiable, raw], ids=lambda f: f.__name__)
def loss(request):
    return request.param


def compiled(f):
    torch._dynamo.reset()
    return torch.compile(f, backend="aot_eager")


def test_dual_level(z, loss):
    with forward_ad.dual_level(), pytest.raises(RuntimeError, match=MATCH):
        loss(forward_ad.make_dual(z, torch.ones_like(z)))


def test_jvp(z, loss):
    with pytest.raises(RuntimeError, match=MATCH):
        jvp(loss, (z,), (torch.ones_like(z),))


def test_jvp_of_grad(z):
    with pytest.raises(RuntimeError, match=MATCH):
        jvp(grad(differentiable), (z,), (torch.ones_like(z),))


def test_jvp_inside_compile(z, loss):
    with pytest.raises(Exception, match=MATCH):
        compiled(lambda z: jvp(loss, (z,), (torch.ones_like(z),)))(z)


def test_dual_level_inside_compile(z, loss):
    def f(z):
        with forward_ad.dual_level():
            return forward_ad.unpack_dual(loss(forward_ad.make_dual(z, torch.ones_like(z))))

    with pytest.raises(Exception, match=MATCH):
        compiled(f)(z)


@pytest.mark.parametrize("warm", [False, True], ids=["first call", "compiled before without a dual"])
def test_dual_outside_of_a_compiled_function(z, loss, warm):
    f = compiled(loss)
    if warm:
        f(z)
    with forward_ad.dual_level():
        dual = forward_ad.make_dual(z, torch.ones_like(z))
        with pytest.raises(Exception, match=MATCH):
            f(dual)


@pytest.mark.parametrize("op", OPS, ids=lambda op: op.name)
def test_every_floating_argument_of_every_operation(op):
    b = Batch(4, 5, torch.float64)
    floating = [x for x in vars(b).items() if isinstance(x[1], torch.Tensor) and x[1].is_floating_point()]
    used = 0
    for name, x in floating:
        with forward_ad.dual_level():
            setattr(b, name, forward_ad.make_dual(x, torch.ones_like(x)))
            if any(argument is getattr(b, name) for argument in op.arguments(b)):
                used += 1
                with pytest.raises(RuntimeError, match=MATCH):
                    op.fused(b)
        setattr(b, name, x)
    assert used >= 2


@pytest.mark.parametrize("transform", [torch.func.jacfwd, torch.func.hessian], ids=lambda f: f.__name__)
def test_forward_mode_over_a_batch_of_tangents(z, loss, transform):
    with pytest.raises(RuntimeError, match=MATCH + "|does not have vmap support"):
        transform(loss)(z)


def test_a_level_without_a_dual_is_no_reason_to_raise(z, loss):
    with forward_ad.dual_level():
        assert loss(z).isfinite()


def test_a_dual_in_a_list(z):
    with forward_ad.dual_level(), pytest.raises(RuntimeError, match=MATCH):
        ops.lookahead_update([z], [forward_ad.make_dual(z, torch.ones_like(z))], lr=0.1)
