"""Limits of torch that fastmeta works around: each still stands on this torch.

A failure here is good news. Its message says which work-around may go, once the oldest torch that is supported has lost
the limit too.
"""

import threading

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.autograd import forward_ad
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.overrides import TorchFunctionMode
from torch.utils.checkpoint import CheckpointPolicy, checkpoint, create_selective_checkpoint_contexts

F64 = torch.float64
VERSION = tuple(int(part) for part in torch.__version__.split(".")[:2])


def lifted(limit, goes):
    return f"torch {torch.__version__} has lost a limit: {limit}. What may go: {goes}"


def twice(function, *inputs):
    """The error of differentiating twice, or ""; inputs that are not floating stay as they are."""
    leaves = [t.detach().clone().requires_grad_(t.is_floating_point()) for t in inputs]
    wanted = [t for t in leaves if t.requires_grad]
    try:
        out = function(*leaves)
        grads = torch.autograd.grad(out.square().sum(), wanted, create_graph=True, allow_unused=True)
        torch.autograd.grad(sum(g.sum() for g in grads if g is not None), wanted, allow_unused=True)
    except (RuntimeError, NotImplementedError) as error:
        return str(error) or "an error"
    return ""


def tangent(function, *inputs):
    """The tangent along ones of all floating inputs, None for none, or the error's text."""
    try:
        with torch.no_grad(), forward_ad.dual_level():
            duals = [forward_ad.make_dual(t, torch.ones_like(t)) if t.is_floating_point() else t for t in inputs]
            return forward_ad.unpack_dual(function(*duals)).tangent
    except (RuntimeError, NotImplementedError) as error:
        return str(error) or "an error"


def refuses(function, words=""):
    """Whether it raises a RuntimeError that says so."""
    try:
        function()
    except RuntimeError as error:
        return words in str(error)
    return False


def attention(q):
    return F.scaled_dot_product_attention(q, q, q)


def bag(weight, index):
    return F.embedding_bag(index, weight)


def grid(x, places):
    return F.grid_sample(x, places, align_corners=False)


GRID = (torch.rand(1, 2, 4, 4, dtype=F64), torch.rand(1, 3, 3, 2, dtype=F64) * 2 - 1)
BAG = (torch.rand(5, 3, dtype=F64), torch.tensor([[0, 1], [2, 4]]))
NO_ATTENTION = "fastmeta.functional.attention, math_attention of plans and steps, the second round of plan_tangent"
DIFFERENCES = "the mention of this layer; where no other one is left, differences as the last resort of plan_tangent"


@pytest.mark.parametrize(
    ("function", "inputs", "goes"),
    [
        (attention, (torch.rand(1, 1, 3, 4, dtype=F64),), NO_ATTENTION),
        (bag, BAG, DIFFERENCES),
        pytest.param(grid, GRID, DIFFERENCES, marks=pytest.mark.skipif(VERSION >= (2, 14), reason="lifted in 2.14")),
        (F.hardsigmoid, (torch.rand(4, dtype=F64),), "the remark that MobileNetV3 needs the forward way"),
    ],
    ids=["attention", "embedding_bag", "grid_sample", "hardsigmoid"],
)
def test_no_second_derivative(function, inputs, goes):
    assert twice(function, *inputs), lifted(f"{function.__name__} is differentiable twice", goes)


@pytest.mark.parametrize(
    ("function", "inputs", "goes"),
    [
        (attention, (torch.rand(1, 1, 3, 4, dtype=F64),), NO_ATTENTION),
        (bag, BAG, DIFFERENCES),
        (grid, GRID, DIFFERENCES),
        (torch._weight_norm, (torch.rand(3, 2, dtype=F64), torch.rand(3, 1, dtype=F64)), "the order of ways"),
    ],
    ids=["attention", "embedding_bag", "grid_sample", "weight_norm"],
)
def test_no_forward_derivative(function, inputs, goes):
    assert isinstance(tangent(function, *inputs), str), lifted(f"a forward derivative of {goes}", goes)


def test_custom_operators_lose_tangents_without_an_error():
    """So a way is never trusted unseen, and raw operations of ours raise for a tangent."""

    @torch.library.custom_op("fastmeta_limits::cube", mutates_args=())
    def cube(x: torch.Tensor) -> torch.Tensor:
        return x**3

    assert tangent(cube, torch.ones(2)) is None, lifted(
        "custom operators without a forward rule raise, or have one", "the tangent check of fastmeta.ops.guard"
    )


def test_once_differentiable_functions_lose_second_derivatives_in_a_sum():
    class Once(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            ctx.save_for_backward(x)
            return x**3

        @staticmethod
        @torch.autograd.function.once_differentiable
        def backward(ctx, grad):
            return 3 * ctx.saved_tensors[0] ** 2 * grad

    x = torch.ones((), requires_grad=True)
    (grad,) = torch.autograd.grad(Once.apply(x) + x**2, x, create_graph=True)
    assert torch.autograd.grad(grad, x)[0] == 2, lifted(  # 6 + 2
        "a second derivative of once_differentiable raises in a sum too", "a reason of the adjoint test"
    )


def test_one_dual_level_for_the_whole_process():
    seen = []

    def other():
        try:
            with forward_ad.dual_level():
                pass
        except RuntimeError as error:
            seen.append(error)

    with forward_ad.dual_level():
        thread = threading.Thread(target=other)
        thread.start()
        thread.join()
    assert seen, lifted("threads have dual levels of their own", "fastmeta.functional.turns.dual_level")


def test_the_backend_of_attention_is_a_switch_of_the_process():
    seen = []
    with sdpa_kernel(SDPBackend.MATH):
        thread = threading.Thread(target=lambda: seen.append(torch.backends.cuda.flash_sdp_enabled()))
        thread.start()
        thread.join()
    assert seen == [False], lifted(
        "sdpa_kernel is of the thread", "fastmeta.functional.attention, for sdpa_kernel again"
    )


def test_modes_do_not_see_into_functions_of_torch():
    seen = set()

    class Sees(TorchFunctionMode):
        def __torch_function__(self, func, types, args=(), kwargs=None):
            seen.add(func)
            return func(*args, **(kwargs or {}))

    x = torch.rand(1, 3, 4)
    with Sees():
        nn.MultiheadAttention(4, 1, batch_first=True)(x, x, x, need_weights=False)
    assert F.multi_head_attention_forward in seen
    assert F.scaled_dot_product_attention not in seen, lifted(
        "function modes see what overridable functions call", "_CALLERS and _unasked in fastmeta.functional.attention"
    )


def test_the_random_generator_is_the_processs():
    torch.manual_seed(0)
    first = torch.rand(1)
    torch.manual_seed(0)
    seen = []
    thread = threading.Thread(target=lambda: seen.append(torch.rand(1)))
    thread.start()
    thread.join()
    assert torch.equal(seen[0], first), lifted("threads have generators of their own", "turns of whole steps")


def test_tracing_changes_modules_of_the_whole_process():
    from torch.fx.experimental.proxy_tensor import make_fx

    before, seen = nn.Module.__call__, []
    make_fx(lambda x: (seen.append(nn.Module.__call__), x)[1])(torch.ones(1))
    assert seen[0] is not before, lifted(
        "the tracer leaves nn.Module alone", "the turn of fastmeta.meta.engines.graph.trace"
    )
    assert nn.Module.__call__ is before


def test_reentrant_checkpointing_cannot_be_differentiated_by_name():
    x = torch.ones(2, requires_grad=True)
    out = checkpoint(torch.sin, x, use_reentrant=True).sum()
    assert refuses(lambda: torch.autograd.grad(out, x), "heckpoint"), lifted(
        "autograd.grad goes through reentrant checkpointing", "fastmeta.functional.recompute"
    )


def test_a_checkpointed_part_runs_again_on_what_the_model_holds_then():
    layer, x = nn.Linear(2, 2, bias=False).to(F64), torch.ones(1, 2, dtype=F64, requires_grad=True)
    own = layer.weight
    layer._parameters["weight"] = (2 * own.detach()).requires_grad_()
    out = checkpoint(lambda t: layer(layer(t)), x, use_reentrant=False).sum()
    layer._parameters["weight"] = own
    (grad,) = torch.autograd.grad(out, x)
    held = 2 * own.detach()
    assert not torch.allclose(grad, torch.ones(1, 2, dtype=F64) @ held @ held), lifted(
        "checkpointing keeps the weights that its part ran on", "Network.held around backwards"
    )


def test_a_checkpointed_forward_with_tangents_has_no_backward():
    layer = nn.Linear(2, 2)

    def gradient():
        with forward_ad.dual_level():
            x = forward_ad.make_dual(torch.ones(1, 2, requires_grad=True), torch.ones(1, 2))
            out, _ = forward_ad.unpack_dual(checkpoint(lambda t: layer(t).sin(), x, use_reentrant=False))
        torch.autograd.grad(out.sum(), list(layer.parameters()))

    assert refuses(gradient), lifted("the graph of a checkpointed dual forward is good", "Probe._graph_failure")


def test_selective_checkpointing_bears_one_backward():
    x = torch.ones(2, requires_grad=True)

    def contexts():
        return create_selective_checkpoint_contexts(lambda *_a, **_k: CheckpointPolicy.MUST_SAVE)

    out = checkpoint(lambda t: t.sin().cos(), x, use_reentrant=False, context_fn=contexts).sum()
    torch.autograd.grad(out, x, retain_graph=True)
    assert refuses(lambda: torch.autograd.grad(out, x), "extra time"), lifted(
        "selective checkpointing bears a second backward", "TangentPlan.once"
    )


def test_batch_norm_writes_without_saying_so():
    mutable = torch.ops.aten.native_batch_norm.default._schema.is_mutable
    mean, var, x = torch.zeros(3), torch.ones(3), torch.rand(4, 3)
    torch.native_batch_norm(x, None, None, mean, var, True, 0.5, 1e-5)
    assert mean.any()
    assert not mutable, lifted(
        "native_batch_norm declares its writes", "_name_batch_norm_writes in fastmeta.meta.engines.graph"
    )


def test_dual_numbers_move_running_statistics():
    norm = nn.BatchNorm1d(3)
    tangent(norm, torch.rand(4, 3))
    assert int(norm.num_batches_tracked) == 1, lifted(
        "dual forwards leave buffers alone", "scratch buffers of tangents"
    )


def test_compiled_outputs_are_differentiable_once():
    compiled = torch.compile(lambda x: x.sin() * x, backend="aot_eager")
    assert twice(compiled, torch.ones(3)), lifted(
        "what torch.compile returned has a second derivative", "functional_module's way into compiled models"
    )


def test_the_cache_of_autocast_outlives_an_update_in_place():
    weight, x = nn.Parameter(torch.ones(2, 2)), torch.ones(1, 2)
    with torch.autocast("cpu", torch.bfloat16):
        before = F.linear(x, weight).clone()
        with torch.no_grad():
            weight.mul_(2)
        after = F.linear(x, weight)
    assert torch.equal(before, after), lifted("autocast sees that a weight has moved", "the flag in recorded()")


def test_the_cache_of_autocast_is_a_switch_of_the_thread():
    """What recorded() turns, other threads do not see; this one is to stay."""
    seen, cached = [], torch.is_autocast_cache_enabled()
    torch.set_autocast_cache_enabled(False)
    try:
        thread = threading.Thread(target=lambda: seen.append(torch.is_autocast_cache_enabled()))
        thread.start()
        thread.join()
    finally:
        torch.set_autocast_cache_enabled(cached)
    assert seen == [True]


def test_functionalisation_refuses_an_operator_that_writes_and_returns():
    @torch.library.custom_op("fastmeta_limits::grow", mutates_args=("x",))
    def grow(x: torch.Tensor) -> torch.Tensor:
        x.add_(1)
        return x * 2

    grow.register_fake(torch.empty_like)
    assert refuses(lambda: torch.func.functionalize(lambda x: grow(x))(torch.ones(2))), lifted(
        "functionalize takes operators that write and return", "the rows-in, rows-out twins of label steps"
    )


def test_custom_functions_look_at_a_signature_in_each_call():
    """Up to 2.13: then `apply` is no more Python's. What may go with the last of these is _Function beside the loss."""
    in_python = hasattr(torch.autograd.Function.apply, "__func__")
    assert in_python == (VERSION < (2, 14)), lifted(
        "Function.apply binds no default arguments in Python", "_Function in fastmeta.ops.soft_cross_entropy"
    )


def test_one_set_of_tf32_switches_cannot_be_read_where_the_other_was_turned():
    before = torch.backends.cuda.matmul.fp32_precision
    torch.backends.cuda.matmul.fp32_precision = "ieee" if before == "tf32" else "tf32"
    try:
        assert refuses(torch.get_float32_matmul_precision), lifted(
            "both sets of TF32 switches can be read", "the detour of fastmeta.functional.precision"
        )
    finally:
        torch.backends.cuda.matmul.fp32_precision = before
