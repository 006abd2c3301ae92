"""What a step reads as one list of tensors, and back.

torch's own tree_flatten takes any structure, at 5 us for each of its parts; here nearly all parts are tensors and lists
of tensors, and every step flattens them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_unflatten

#: of each part: None for a tensor, the length of a list of tensors, the TreeSpec of anything else
Form = tuple[Any, ...]


def flat_of(parts: Sequence[Any]) -> tuple[list[Tensor], Form]:
    """All leaves in order, and what :func:`rebuilt` makes `parts` of; forms are equal for equal structures."""
    leaves: list[Any] = []
    form: list[Any] = []
    for part in parts:
        if type(part) is Tensor:
            leaves.append(part)
            form.append(None)
        elif type(part) is list and all(type(t) is Tensor for t in part):
            leaves += part
            form.append(len(part))
        else:
            more, spec = tree_flatten(part)
            leaves += more
            form.append(spec)
    return leaves, tuple(form)


def rebuilt(leaves: Sequence[Tensor], form: Form) -> list[Any]:
    parts: list[Any] = []
    at = 0
    for kind in form:
        size = 1 if kind is None else kind if isinstance(kind, int) else kind.num_leaves
        piece = list(leaves[at : at + size])
        parts.append(piece[0] if kind is None else piece if isinstance(kind, int) else tree_unflatten(piece, kind))
        at += size
    return parts
