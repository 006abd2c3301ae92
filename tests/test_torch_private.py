"""Every private name of torch that fastmeta uses: it is there, and does what is counted on, under this torch.

The list is held against the sources, so that a new one cannot come in without its test.
"""

import ast
import inspect
import sys
import warnings
from collections import OrderedDict
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.autograd import forward_ad
from torch.func import functional_call
from torch.optim import optimizer
from torch.utils import checkpoint

import fastmeta
from fastmeta.functional.recompute import tangents_pass
from fastmeta.meta.engines import inductor, inductor_start

SOURCES = Path(fastmeta.__file__).parent


def _below_autograd():
    """The guard under which an operator's own kernel runs, and not its Autograd key again."""
    x = torch.ones(2, requires_grad=True)
    with torch._C._AutoDispatchBelowADInplaceOrView():
        assert not (x * 2).requires_grad


def _lazy_graphs():
    """Graphs that are made inside write their code when it is asked for, and run by it."""
    from torch.fx._lazy_graph_module import _use_lazy_graph_module
    from torch.fx.experimental.proxy_tensor import make_fx

    with _use_lazy_graph_module(True):
        graph = make_fx(lambda x: x + 1, tracing_mode="fake")(torch.ones(2))
    assert type(graph).forward.__qualname__ == "_LazyGraphModule._lazy_forward"
    for node in graph.graph.find_nodes(op="call_function", target=torch.ops.aten.add.Tensor):
        node.update_arg(1, 5)
    graph.recompile()
    assert type(graph).forward.__qualname__ == "_LazyGraphModule._lazy_forward"
    assert torch.equal(graph(torch.ones(2)), torch.full((2,), 6.0))
    assert "add" in graph.code


def _layer_bases():
    assert issubclass(nn.Conv2d, nn.modules.conv._ConvNd)
    assert issubclass(nn.ConvTranspose1d, nn.modules.conv._ConvNd)
    for kind in (nn.BatchNorm1d, nn.BatchNorm3d, nn.SyncBatchNorm):
        assert issubclass(kind, nn.modules.batchnorm._BatchNorm)
    assert nn.InstanceNorm2d(3)._get_no_batch_dim() == 3


def _transforms():
    assert not torch._C._are_functorch_transforms_active()
    seen = []
    torch.func.grad(lambda x: (seen.append(torch._C._are_functorch_transforms_active()), x)[1])(torch.ones(()))
    assert seen == [True]


def _custom_functions():
    """`apply` of the base class of autograd.Function: the same without a look at the signature."""
    from torch._functorch.utils import unwrap_dead_wrappers

    class Twice(torch.autograd.Function):
        @classmethod
        def apply(cls, *args):
            return super(torch.autograd.Function, cls).apply(*unwrap_dead_wrappers(args))

        @staticmethod
        def forward(x):
            return 2 * x

        @staticmethod
        def setup_context(ctx, inputs, output):
            pass

        @staticmethod
        def backward(ctx, grad):
            return 2 * grad

    x = torch.ones(3, requires_grad=True)
    assert torch.autograd.grad(Twice.apply(x).sum(), x)[0].tolist() == [2.0] * 3


def _hooks():
    p = nn.Parameter(torch.ones(2))
    assert not p._backward_hooks
    p.register_hook(lambda g: g)
    assert p._backward_hooks
    sgd = torch.optim.SGD([p], lr=0.1)
    assert not sgd._optimizer_step_pre_hooks
    assert not sgd._optimizer_step_post_hooks
    sgd.register_step_pre_hook(lambda *_: None)
    sgd.register_step_post_hook(lambda *_: None)
    assert sgd._optimizer_step_pre_hooks
    assert sgd._optimizer_step_post_hooks
    module = optimizer
    assert isinstance(module._global_optimizer_pre_hooks, OrderedDict)
    assert isinstance(module._global_optimizer_post_hooks, OrderedDict)
    handle = module.register_optimizer_step_pre_hook(lambda *_: None)
    assert module._global_optimizer_pre_hooks
    handle.remove()


def _forward_hooks():
    layer = nn.Linear(2, 2)
    layer.register_forward_pre_hook(hook := lambda *_: None)
    layer.register_forward_hook(hook)
    assert [*layer._forward_pre_hooks.values(), *layer._forward_hooks.values()] == [hook, hook]
    assert not layer.weight._post_accumulate_grad_hooks
    layer.weight.register_post_accumulate_grad_hook(hook)
    assert layer.weight._post_accumulate_grad_hooks


def _schedules():
    """A schedule warns unless the optimizer says that it has stepped."""
    for stepped in (False, True):
        sgd = torch.optim.SGD([nn.Parameter(torch.ones(2))], lr=0.1)
        schedule = torch.optim.lr_scheduler.StepLR(sgd, 1)
        if stepped:
            sgd._opt_called = True
        with warnings.catch_warnings(record=True) as seen:
            warnings.simplefilter("always")
            schedule.step()
        assert any("optimizer.step()" in str(w.message) for w in seen) != stepped


def _holders():
    """What stands in these dicts is what a module runs on, also recurrent ones, which keep flat weights beside them."""
    layer, x = nn.BatchNorm1d(3).eval(), torch.ones(2, 3)
    before = layer._parameters["weight"], layer._buffers["running_mean"]
    layer._parameters["weight"], layer._buffers["running_mean"] = torch.full((3,), 2.0), torch.ones(3)
    assert torch.equal(layer(x), torch.zeros(2, 3))
    layer._parameters["weight"], layer._buffers["running_mean"] = before
    assert not torch.equal(layer(x), torch.zeros(2, 3))
    lstm, x = nn.LSTM(3, 4), torch.randn(5, 2, 3)
    other = {k: torch.randn_like(p) for k, p in lstm.named_parameters()}
    truth = functional_call(lstm, other, (x,))[0]
    own = dict(lstm._parameters)
    lstm._parameters.update(other)
    assert torch.equal(lstm(x)[0], truth)
    lstm._parameters.update(own)
    assert not torch.equal(lstm(x)[0], truth)


def _lasting_buffers():
    """Which buffers are not in the state_dict."""
    layer = nn.Linear(2, 2)
    layer.register_buffer("a", torch.ones(2))
    layer.register_buffer("b", torch.ones(2), persistent=False)
    assert layer._non_persistent_buffers_set == {"b"}
    layer._non_persistent_buffers_set.clear()
    assert "b" in layer.state_dict()


def _parametrize_cache():
    cache = nn.utils.parametrize
    assert not cache._cache_enabled
    with cache.cached():
        assert cache._cache_enabled
    assert not cache._cache_enabled


def _storages():
    x = torch.ones(4)
    assert x.untyped_storage()._cdata == x[1:].untyped_storage()._cdata != torch.ones(4).untyped_storage()._cdata


def _dual_levels():
    assert forward_ad._current_level == -1
    with forward_ad.dual_level():
        assert forward_ad._current_level == 0
    seen = []
    torch.func.jvp(lambda x: (seen.append(forward_ad._current_level), x)[1], (torch.ones(2),), (torch.ones(2),))
    assert seen[0] >= 0
    assert forward_ad._current_level == -1


def _flat_tensors():
    from torch._utils import _flatten_dense_tensors, _unflatten_dense_tensors

    parts = [torch.arange(4.0).view(2, 2), torch.ones(3)]
    back = _unflatten_dense_tensors(_flatten_dense_tensors(parts), parts)
    assert all(torch.equal(a, b) for a, b in zip(back, parts, strict=True))


def _foreach():
    xs, ys = [torch.ones(2), torch.full((3,), 2.0)], [torch.ones(2), torch.ones(3)]
    assert torch._foreach_add(xs, ys, alpha=-0.5)[1].tolist() == [1.5] * 3
    assert torch._foreach_sub(xs, ys)[1].tolist() == [1.0] * 3
    assert torch._foreach_mul(xs, torch.tensor(3.0))[0].tolist() == [3.0] * 2
    assert float(torch._foreach_norm(ys)[0]) == pytest.approx(2**0.5)
    torch._foreach_copy_(xs, ys)
    torch._foreach_add_(xs, ys, alpha=-1.0)
    assert not any(t.any() for t in xs)


def _tracing():
    """A traced step: merged where two calls are the same, and batch norms whose schema says what they write."""
    from torch.fx.experimental.proxy_tensor import make_fx

    aten = torch.ops.aten
    assert not aten.native_batch_norm.default._schema.is_mutable
    legit = aten._native_batch_norm_legit.default._schema
    written = [a.name for a in legit.arguments if a.alias_info and a.alias_info.is_write]
    assert written == ["running_mean", "running_var"]
    functional = aten._native_batch_norm_legit_functional.default._schema
    assert not functional.is_mutable
    assert [a.name for a in functional.arguments] == [a.name for a in legit.arguments]
    assert len(functional.returns) == len(legit.returns) + 2
    assert not aten._native_batch_norm_legit.no_stats._schema.is_mutable
    held = torch.ones(3)
    graph = make_fx(lambda x: x.sin() * held, tracing_mode="fake", _allow_non_fake_inputs=True)(held)
    assert [n.target for n in graph.graph.nodes if n.op == "get_attr"]
    assert aten._has_same_storage_numel.default(held, held) is True  # what dual numbers ask, and nobody hears
    assert not aten._has_same_storage_numel.default._schema.is_mutable
    assert aten._to_copy.default(held, dtype=torch.float64).dtype == torch.float64


def _inductor():
    """Options, and the trial of vector units: ours stands for that of torch 2.11 alone."""
    from torch._inductor import codecache, cpu_vec_isa

    assert callable(torch._inductor.standalone_compile)
    assert callable(codecache._precompile_header)
    asked = inspect.getsource(codecache.CppCodeCache.load_async)  # where the source's path is a local
    assert asked.index("key, main_path = write(") < asked.index("_precompile_header(")
    with torch._inductor.config.patch(inductor._CPU):
        assert all(getattr(torch._inductor.config, name) for name in inductor._CPU)
    usual = cpu_vec_isa.VecISA._avx_py_load
    assert usual.split() == inductor_start._TORCH_2_11.split() or hasattr(cpu_vec_isa.VecISA, "_probe_load")
    assert callable(cpu_vec_isa.valid_vec_isa_list)
    assert cpu_vec_isa.subprocess.DEVNULL == inductor_start._Trials().DEVNULL
    assert callable(vars(codecache.FxGraphCachePickler)["debug_lines"])
    from torch._inductor.codegen.common import KernelTemplate
    from torch._inductor.runtime import triton_compat

    assert isinstance(vars(KernelTemplate)["_template_from_string"], staticmethod)
    assert callable(getattr(codecache, "triton_key", None) or triton_compat.triton_key)


def _compiled_modules():
    net = nn.Linear(2, 2)
    wrapped = torch.compile(net)
    assert isinstance(wrapped, sys.modules["torch._dynamo"].OptimizedModule)
    assert wrapped._orig_mod is net
    assert callable(sys.modules["torch._dynamo"].reset)


def _fakes():
    from torch._subclasses.fake_tensor import FakeTensorMode

    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        y = nn.functional.relu(mode.from_tensor(torch.ones(3, requires_grad=True)))
        assert tuple(y.shape) == (3,)
        assert y.grad_fn is not None


def _checks():
    """torch's guide to custom operations takes it for public."""
    torch._check(True, lambda: "not read")
    with pytest.raises(RuntimeError, match=r"^read$"):
        torch._check(False, lambda: "read")


def _trees():
    from torch.utils._pytree import TreeSpec, tree_flatten, tree_leaves, tree_map, tree_unflatten

    leaves, spec = tree_flatten({"a": [1, (2,)], "b": None})
    assert isinstance(spec, TreeSpec)
    assert spec == tree_flatten({"a": [5, (6,)], "b": None})[1]
    assert tree_unflatten(leaves, spec) == {"a": [1, (2,)], "b": None}
    assert tree_leaves([1, (2,)]) == [1, 2]
    assert tree_map(lambda v: v + 1, [1, (2,)]) == [2, (3,)]


def _versions():
    x = torch.ones(2)
    before = x._version
    x.add_(1)
    assert x._version == before + 1


def _dispatch_modes():
    from torch.utils._python_dispatch import TorchDispatchMode

    class Writes(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            for place, argument in enumerate(func._schema.arguments):
                if argument.alias_info is not None and argument.alias_info.is_write:
                    found.append(args[place])
            return func(*args, **(kwargs or {}))

    p, found = nn.Parameter(torch.ones(2)), []
    assert torch._C._len_torch_dispatch_stack() == 0
    with Writes():
        assert torch._C._len_torch_dispatch_stack() == 1
        p.data.mul_(2)  # of which the parameter's version tells nothing
        p * 2
        torch._foreach_add_([p.data], 1.0)
    written = [t for value in found for t in (value if isinstance(value, list) else [value])]
    assert [t.untyped_storage()._cdata for t in written] == [p.untyped_storage()._cdata] * 2


def _attention():
    """Attention as plain maths, differentiable twice, where the function of torch is not."""
    q = torch.randn(1, 1, 3, 4, dtype=torch.float64, requires_grad=True)
    out = torch._scaled_dot_product_attention_math(q, q, q, None, 0.0, True, scale=0.5)[0]
    truth = F.scaled_dot_product_attention(q, q, q, is_causal=True, scale=0.5)
    assert torch.allclose(out, truth, rtol=1e-12, atol=1e-12)
    (grad,) = torch.autograd.grad(out.sum(), q, create_graph=True)
    torch.autograd.grad(grad.sum(), q)


def _collectives():
    """A sum over ranks that a graph holds as operations without writes, which inductor knows."""
    from torch.distributed import _functional_collectives as functional
    from torch.fx.experimental.proxy_tensor import make_fx

    dist = torch.distributed
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        group = dist.group.WORLD

        def total(t):
            return functional.all_reduce(t, "sum", group)

        graph = make_fx(total, tracing_mode="fake")(torch.ones(3))
        calls = [node.target for node in graph.graph.nodes if node.op == "call_function"]
        assert [str(call) for call in calls] == [
            "_c10d_functional.all_reduce.default",
            "_c10d_functional.wait_tensor.default",
        ]
        assert not any(call._schema.is_mutable for call in calls)
        x = torch.ones(3)
        assert torch.equal(graph(x), x)
    finally:
        dist.destroy_process_group()


NAMES = {
    "_AutoDispatchBelowADInplaceOrView": _below_autograd,
    "_BatchNorm": _layer_bases,
    "_ConvNd": _layer_bases,
    "_allow_non_fake_inputs": _tracing,
    "_are_functorch_transforms_active": _transforms,
    "_backward_hooks": _hooks,
    "_buffers": _holders,
    "_cache_enabled": _parametrize_cache,
    "_cdata": _storages,
    "_check": _checks,
    "_current_level": _dual_levels,
    "_dynamo": _compiled_modules,
    "_flatten_dense_tensors": _flat_tensors,
    "_foreach_add": _foreach,
    "_foreach_add_": _foreach,
    "_foreach_copy_": _foreach,
    "_foreach_mul": _foreach,
    "_foreach_norm": _foreach,
    "_foreach_sub": _foreach,
    "_forward_hooks": _forward_hooks,
    "_forward_pre_hooks": _forward_hooks,
    "_functional_collectives": _collectives,
    "_functorch": _custom_functions,
    "_get_no_batch_dim": _layer_bases,
    "_global_optimizer_post_hooks": _hooks,
    "_global_optimizer_pre_hooks": _hooks,
    "_has_same_storage_numel": _tracing,
    "_inductor": _inductor,
    "_lazy_graph_module": _lazy_graphs,
    "_len_torch_dispatch_stack": _dispatch_modes,
    "_native_batch_norm_legit": _tracing,
    "_native_batch_norm_legit_functional": _tracing,
    "_non_persistent_buffers_set": _lasting_buffers,
    "_opt_called": _schedules,
    "_optimizer_step_post_hooks": _hooks,
    "_optimizer_step_pre_hooks": _hooks,
    "_orig_mod": _compiled_modules,
    "_parameters": _holders,
    "_post_accumulate_grad_hooks": _forward_hooks,
    "_python_dispatch": _dispatch_modes,
    "_precompile_header": _inductor,
    "_pytree": _trees,
    "_scaled_dot_product_attention_math": _attention,
    "_schema": _tracing,
    "_subclasses": _fakes,
    "_template_from_string": _inductor,
    "_to_copy": _tracing,
    "_unflatten_dense_tensors": _flat_tensors,
    "_use_lazy_graph_module": _lazy_graphs,
    "_utils": _flat_tensors,
    "_version": _versions,
}


@pytest.mark.parametrize("check", dict.fromkeys(NAMES.values()), ids=lambda check: check.__name__.strip("_"))
def test_private_names_of_torch_do_what_is_counted_on(check):
    check()


def _of_others(tree, own):
    """Private names in a file that no file of the package has made."""
    for node in ast.walk(tree):
        names = []
        if isinstance(node, ast.Attribute):
            names = [node.attr]
        elif isinstance(node, ast.keyword):
            names = [node.arg or ""]
        elif isinstance(node, ast.ImportFrom) and node.module not in ("__future__", None):
            if not node.module.startswith("fastmeta"):
                names = [*node.module.split("."), *(alias.name for alias in node.names)]
        elif isinstance(node, ast.Import):
            names = [part for alias in node.names for part in alias.name.split(".")]
        yield from (n for n in names if n.startswith("_") and not n.startswith("__") and n not in own)


def _made(tree):
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            yield node.name
        elif isinstance(node, ast.arg):
            yield node.arg
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            yield node.id
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
            yield from [node.attr] if isinstance(node.value, ast.Name) and node.value.id in ("self", "cls") else []


def test_the_list_is_whole():
    trees = [ast.parse(path.read_text()) for path in sorted(SOURCES.rglob("*.py"))]
    own = {name for tree in trees for name in _made(tree)} | {"_C"}
    own |= {"_asdict", "_fields", "_make", "_replace"}  # of Python's named tuples
    own |= {"_add_item", "_prog"}  # of its argparse, which has no other way to a usage line of one's own
    own |= {"_exit"}  # of its os: threads of gloo may abort a process that shuts down
    own |= {"_current_frames"}  # of its sys: where a thread stands that compiles
    assert {name for tree in trees for name in _of_others(tree, own)} == set(NAMES)


def test_names_that_are_not_private_but_no_promise_either():
    """Of the graph: the node of reentrant checkpointing, and what a leaf's node calls its leaf."""
    layer, x = nn.Linear(2, 2), torch.ones(3, 2, requires_grad=True)
    assert type(checkpoint.checkpoint(layer, x, use_reentrant=True).grad_fn).__name__ == "CheckpointFunctionBackward"
    following = [n for n, _ in layer(x).grad_fn.next_functions]
    assert any(getattr(n, "variable", None) is layer.bias for n in following)


def test_tangents_pass_through_checkpointed_parts():
    """By a rule that a class of torch gets for a while, `_NoopSaveInputs`, which is gone in torch 2.14."""

    def tangent():
        with torch.no_grad(), forward_ad.dual_level():
            x = forward_ad.make_dual(torch.ones(3), torch.ones(3))
            return forward_ad.unpack_dual(checkpoint.checkpoint(torch.sin, x, use_reentrant=False)).tangent

    with tangents_pass():
        assert torch.allclose(tangent(), torch.ones(3).cos())
    if hasattr(checkpoint, "_NoopSaveInputs"):
        with pytest.raises(NotImplementedError, match="jvp"):  # torch has a rule of its own by now: drop ours
            tangent()


@pytest.mark.parametrize("function", [F.multi_head_attention_forward, torch.autograd.grad])
def test_functions_of_which_attention_has_a_copy_ask_modes_by_this_name(function):
    names = function.__code__.co_names
    assert "has_torch_function" in names
    assert function.__globals__["has_torch_function"] is torch.overrides.has_torch_function
    assert not {"has_torch_function_unary", "has_torch_function_variadic"} & set(names)
