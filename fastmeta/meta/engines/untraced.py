"""What dual numbers and autograd leave behind in a trace, a quarter of all calls: names for a tensor, and questions.

Neither becomes a node. A name is traced as the tensor itself, so that a write through it is a write into that; a
question is answered by the shapes. Copies stay: what is written into one must not be written into the other.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.fx.experimental.proxy_tensor import (
    disable_proxy_modes_tracing,
    get_proxy_mode,
    get_proxy_slot,
    set_proxy_slot,
)

aten = torch.ops.aten


def _named(operation: Any) -> Callable[[Tensor], Any]:
    """`operation`, of which the trace sees nothing; NotImplemented for a tensor that it does not know."""

    def name(tensor: Tensor) -> Any:
        mode = get_proxy_mode()
        assert mode is not None
        node = get_proxy_slot(tensor, mode.tracer, None)
        if node is None:
            return NotImplemented
        with disable_proxy_modes_tracing():
            other = operation(tensor)
        set_proxy_slot(other, mode.tracer, node)
        return other

    return name


def _size_of_storage(tensor: Tensor) -> int:
    return tensor.untyped_storage().nbytes() // tensor.itemsize


#: for ``make_fx(decomposition_table=...)``
UNTRACED: dict[Any, Callable[..., Any]] = {
    aten.detach.default: _named(aten.detach.default),
    aten.alias.default: _named(aten.alias.default),
    aten.is_same_size.default: lambda a, b: a.shape == b.shape,
    aten._has_same_storage_numel.default: lambda a, b: _size_of_storage(a) == _size_of_storage(b),
}
