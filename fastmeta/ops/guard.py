"""What the raw operations need besides their kernels: a guard below autograd, and what no kernel takes.

The raw operations (``torch.ops.fastmeta.*``) have no derivative: their results are detached. A forward-AD tangent on
an argument would be dropped without a word, so a kernel at the ``Autograd`` dispatch key raises for one. Of the places
where it could stand this is the one that also sees a jvp of a grad, and duals inside or outside of ``torch.compile``.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

from fastmeta.ops import native  # the schemas must be there before anything is registered for them

#: every operation that is guarded
NAMES: list[str] = []

_library = torch.library.Library("fastmeta", "IMPL")
_cpu_library = torch.library.Library("fastmeta_cpu", "IMPL")


def _tensors(args: tuple[Any, ...]) -> Iterator[Any]:
    for arg in args:
        yield from arg if isinstance(arg, list | tuple) else (arg,)


def plain(*tensors: Any) -> bool:
    """Tensors on the CPU whose tangents, transforms and tracing nobody has to look after.

    Then ``torch.ops.fastmeta_cpu``, the same kernels without a guard, is called: dispatch goes straight to them, which
    saves 3 us of 6.
    """
    if torch.compiler.is_compiling():  # the first thing that Dynamo meets
        return False
    for t in tensors:
        if type(t) is not Tensor or not t.is_cpu:
            return False
    return (
        forward_ad._current_level < 0
        and not torch._C._are_functorch_transforms_active()
        and torch._C._len_torch_dispatch_stack() == 0  # make_fx and fake tensors; no public name says so
    )


def guarded(name: str, *, inside: bool = False) -> Any:
    """``torch.ops.fastmeta.NAME``, with its guard. To be called once for each name.

    `inside`: it is called inside of an autograd.Function alone, where gradients are not recorded.
    """
    NAMES.append(name)
    _guard(name, inside)
    _refuse(name)
    return getattr(torch.ops.fastmeta, name)


def unguarded(name: str) -> Any:
    """``torch.ops.fastmeta_cpu.NAME``, for `plain` tensors. To be called once for each name."""
    op = getattr(torch.ops.fastmeta_cpu, name).default
    _cpu_library.impl(name, torch.library.fallthrough_kernel, "Autograd")
    _refuse_without_kernel(_cpu_library, name, op)
    return op


def _guard(name: str, inside: bool) -> None:
    op = getattr(torch.ops.fastmeta, name).default
    mutates = name.endswith("_")

    def below(*args: Any) -> Any:
        with torch._C._AutoDispatchBelowADInplaceOrView():
            result = op(*args)
        if mutates:
            torch.autograd.graph.increment_version(args[0])
        return result

    def kernel(*args: Any) -> Any:
        # Dynamo, where it meets torch.func.grad, takes the `forward` of an autograd.Function for all of it
        if inside and torch.is_grad_enabled() and any(isinstance(a, Tensor) and a.requires_grad for a in args):
            raise RuntimeError(
                f"fastmeta::{name} has no derivative of its own and got an argument that requires one, which would be "
                "lost; call fastmeta.ops.soft_cross_entropy, and torch.func.grad or vjp of it outside of torch.compile"
            )
        # no tensor has a tangent outside of a dual level, which func.jvp opens too; looking for one costs 3 us each
        for arg in _tensors(args) if forward_ad._current_level >= 0 else ():
            if isinstance(arg, Tensor) and forward_ad.unpack_dual(arg, level=0).tangent is not None:
                raise RuntimeError(
                    f"fastmeta::{name} has no forward-mode derivative and got an argument with a tangent, which would "
                    "be lost; keep it outside of dual_level and jvp, and pass tensor.detach()"
                )
        return below(*args)

    _library.impl(name, kernel, "Autograd")
    if mutates:  # in inference mode, where a graph made outside of it may still hold the tensor that is written
        _library.impl(name, below, "ADInplaceOrView")


def _refuse(name: str) -> None:
    """One line in place of torch's page for tensors that have no kernel, and for views that it cannot write through."""
    op = getattr(torch.ops.fastmeta, name).default
    first = op._schema.arguments[0].name

    def with_bits(*args: Any) -> Any:
        if args[0].is_neg() or args[0].is_conj():
            raise RuntimeError(
                f"{first} is written in place and cannot be a view that negates or conjugates when it is read; "
                f"pass {first}.resolve_neg() or .resolve_conj()"
            )
        return op(*(t.resolve_conj().resolve_neg() if isinstance(t, Tensor) else t for t in args))

    _refuse_without_kernel(_library, name, op)
    if name.endswith("_"):
        _library.impl(name, with_bits, "Negative")
        _library.impl(name, with_bits, "Conjugate")


def _refuse_without_kernel(library: torch.library.Library, name: str, op: Any) -> None:
    names = [argument.name for argument in op._schema.arguments]

    def without_kernel(*args: Any) -> Any:
        for argument, given in zip(names, args, strict=False):
            for t in given if isinstance(given, list | tuple) else (given,):
                if isinstance(t, Tensor) and (problem := unfit(t)):
                    raise RuntimeError(f"{argument} {problem}")
        raise RuntimeError(f"fastmeta::{name} has no kernel for these tensors")

    for key in ("CompositeExplicitAutograd", "NestedTensorCPU", "NestedTensorCUDA", "NestedTensorMeta"):
        library.impl(name, without_kernel, key)


def unfit(t: Tensor) -> str:
    """Why no kernel takes this tensor, empty where one does."""
    if t.is_nested:
        return "must be a dense tensor, got a nested one; pad it with torch.nested.to_padded_tensor"
    if t.is_quantized:
        return f"must be a dense tensor, got {t.dtype}; use .dequantize()"
    if t.layout != torch.strided:
        return f"must be a dense tensor, got layout {t.layout}; use .to_dense()"
    if t.is_cuda:
        return f"is on {t.device}, but fastmeta's CUDA half is not loaded: {native.build_info()['cuda_absent']}"
    return (
        "" if t.is_cpu or t.is_meta else f"is on {t.device}, but fastmeta has kernels for CPU and CUDA; move it there"
    )


def acc_dtype(dtype: torch.dtype) -> torch.dtype:
    """The type of every sum and row statistic: float64 for float64, else float32."""
    return torch.float64 if dtype == torch.float64 else torch.float32
