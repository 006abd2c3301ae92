"""Less memory: the same step, with the graphs of at most so many rows held at once (`micro_batch`).

The whole step holds the graph of the train batch while that of the meta batch is there too, n + m rows. Where that is
too much, the train graph is dropped after the look-ahead and built again for the last backward, and a batch that is too
large alone is taken in pieces: the training gradient and the meta gradient are sums over rows, the tangent u has a row
of its own for each. Both are exact, up to the order of additions, but for pieces in which a row's logits depend on the
other rows. That is train-mode BatchNorm: its statistics are then those of each piece, and its running statistics move
once per piece, in order.

It costs, beside the whole step's work, 1 F (train forwards) for the second train graph; the reverse tangent
builds it and J'v once more, 3 F. A batch that is whole costs nothing the forward one, which needs a second
forward anyhow: where that one can leave the graph (`TangentPlan.leaves_graph`), eager steps do so unasked.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.modules.batchnorm import _BatchNorm

from fastmeta.functional.network import Network, Tensors, is_out_of_memory
from fastmeta.meta.doubts import repeats
from fastmeta.meta.rows import take
from fastmeta.meta.tangents import (
    arithmetic_of,
)


class Cut(NamedTuple):
    """How a step is cut: graphs of at most `max_rows` rows at once, and what of x and x_meta is per row."""

    max_rows: int | None = None
    per_row: Any = None
    per_row_meta: Any = None


WHOLE = Cut()


def pieces_of(count: int, max_rows: int | None) -> list[slice]:
    """The fewest runs of at most `max_rows` rows, whose sizes differ by one at most: no piece of a single odd row."""
    number = 1 if max_rows is None else -(-count // max_rows)
    return [slice(count * i // number, count * (i + 1) // number) for i in range(number)]


def fits(train: Any, meta: Any, max_rows: int | None) -> bool:
    """Whether the graphs of both batches (pairs whose second has the rows) may be held at once."""
    return max_rows is None or len(train[1]) + len(meta[1]) <= max_rows


def add_up(total: Tensors, names: list[str], grads: Sequence[Tensor | None]) -> None:
    """Add `grads` to the sums by name; None is a parameter that this piece does not reach."""
    for name, g in zip(names, grads, strict=True):
        if g is not None:
            # out of place: autograd may hand out one tensor for two parameters
            total[name] = total[name] + g if name in total else g


def couples_rows(network: Network) -> bool:
    """Whether a train-mode BatchNorm makes the logits of a row depend on the others."""
    return any(isinstance(m, _BatchNorm) and (m.training or m.running_mean is None) for m in network.model.modules())


def check_pieces(network: Network, x: Any, n: int, m: int, cut: Cut) -> str:
    """Before batches of n and m rows are cut: a warning, or ""; a ValueError where pieces of x are not alone."""
    if cut.max_rows is None or max(n, m) <= cut.max_rows:
        return ""
    if couples_rows(network):
        return (
            "micro_batch: the model has BatchNorm in training mode, whose statistics will be those of each "
            f"piece and not of the batch; for the whole batch's, take micro_batch={max(n, m)} or more"
        )
    if n > cut.max_rows:
        refuse_coupled_rows(network, x, n, cut)
    return ""


def refuse_coupled_rows(network: Network, x: Any, count: int, cut: Cut) -> None:
    """ValueError where a piece of x has other logits alone than in the whole batch; nothing changes.

    A model that draws random numbers is not asked, nor one that has no room for the whole forward.
    """
    like, rows = next(iter(network.params.values())), pieces_of(count, cut.max_rows)[-1]
    piece, state = take(x, rows, count, cut.per_row), network.random_state(like.device)
    try:
        with torch.no_grad():
            alone = network(network.params, network.state(), piece)
            whole = network(network.params, network.state(), x)
        drawn = state.has_drawn()
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
        return
    finally:
        state.restore()
    size = rows.stop - rows.start
    alike = len(whole) == count and alone.shape == whole[rows].shape
    if not alike or not (drawn or bool(repeats(whole[rows], alone, arithmetic_of(like)))):
        got = f"other logits than among all {count}" if alike else f"logits of shape {tuple(alone.shape)}"
        raise ValueError(
            f"micro_batch: {size} rows of x alone give {got}: the model mixes the rows of a "
            "batch, they do not lie along the first dimension, or something is cut that all rows share; give x with "
            "rows first, say what is per row (per_row=), or leave micro_batch out"
        )


def check_logits(logits: Tensor, count: int, num_classes: int | None) -> None:
    """Raise a ValueError unless `logits` are (count, num_classes); None takes any number of classes."""
    if logits.shape[0] == count and num_classes in (None, logits.shape[1]):
        return
    classes = "classes" if num_classes is None else num_classes
    raise ValueError(
        f"logits must have shape ({count}, {classes}) for this index and these labels, "
        f"got {tuple(logits.shape)}; x and index must belong together"
        + ("" if num_classes is None else ", and the model must have num_classes outputs")
    )
