"""Scaled-dot-product attention as plain maths, the only form with a double backward and a forward derivative.

``torch.nn.attention.sdpa_kernel(SDPBackend.MATH)`` turns switches of the whole process: other threads would run it too,
and two that turn them at once leave them turned. This is a mode of the thread, and of the backwards that it starts.
"""

from __future__ import annotations

from collections.abc import Callable
from types import FunctionType
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

# Private: torch has no other name for this form than the switches above. tests/test_torch_private.py watches over it.
_maths: Any = torch._scaled_dot_product_attention_math


def plain_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    """softmax(query key^T scale + mask) value, what ``F.scaled_dot_product_attention`` computes, under autocast too."""
    if attn_mask is not None and attn_mask.dtype == torch.bool:
        attn_mask = torch.zeros_like(attn_mask, dtype=query.dtype).masked_fill_(~attn_mask, float("-inf"))
    device = query.device.type
    if torch.is_autocast_enabled(device):
        dtype = torch.get_autocast_dtype(device)
        query, key, value = _narrow(query, dtype), _narrow(key, dtype), _narrow(value, dtype)
        attn_mask = None if attn_mask is None else _narrow(attn_mask, dtype)
        with torch.autocast(device, enabled=False):
            return _maths(query, key, value, attn_mask, dropout_p, is_causal, scale=scale, enable_gqa=enable_gqa)[0]
    return _maths(query, key, value, attn_mask, dropout_p, is_causal, scale=scale, enable_gqa=enable_gqa)[0]


def _narrow(t: Tensor, dtype: torch.dtype) -> Tensor:
    """As autocast does it, which lets float64 be."""
    return t if t.dtype == torch.float64 else t.to(dtype)


class PlainAttention(TorchFunctionMode):
    """Inside, on this thread and in backwards that it runs, attention is :func:`plain_attention`."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is F.scaled_dot_product_attention:
            for kind in types:
                if kind.__torch_function__ is not Tensor.__torch_function__:  # a mask of torch.nn.attention.bias
                    with self:
                        return kind.__torch_function__(func, types, args, kwargs)
            return plain_attention(*args, **kwargs)
        if func in _CALLERS:
            with self:
                return _CALLERS[func](*args, **kwargs)
        return func(*args, **kwargs)


def _unasked(function: Any) -> Callable[..., Any]:
    """A copy of a Python function of torch that no mode is asked about, so that a mode may stay on inside of it."""
    names = {**function.__globals__, "has_torch_function": lambda *_: False}
    copy = FunctionType(function.__code__, names, function.__name__, function.__defaults__, function.__closure__)
    copy.__kwdefaults__ = function.__kwdefaults__
    return copy


#: overridable functions of torch in which attention is called; what they call is otherwise hidden from a mode
_CALLERS = {f: _unasked(f) for f in (F.multi_head_attention_forward, torch.autograd.grad)}
