"""Inner products of rows."""

from __future__ import annotations

from torch import Tensor

from fastmeta.ops.arguments import check, columns
from fastmeta.ops.guard import guarded, plain, unguarded
from fastmeta.ops.shapes import Batch, fake

_row_dot = guarded("row_dot")
_row_dot_of_plain = unguarded("row_dot")


def row_dot(a: Tensor, b: Tensor) -> Tensor:
    """<a_i, b_i>: (n, C), (n, C) of one dtype T to (n,) in acc(T). Not differentiable."""
    if plain(a, b):
        return _row_dot_of_plain(columns(a), columns(b))
    check(a, "a", b=b)
    return _row_dot(columns(a), columns(b))


# ---------------------------------------------------------------------------------------------------------
# Shapes
# ---------------------------------------------------------------------------------------------------------


@fake("row_dot")
def _(a: Tensor, b: Tensor) -> Tensor:
    batch = Batch(a, "a", 1)
    batch.same(b, "b")
    return batch.values()
