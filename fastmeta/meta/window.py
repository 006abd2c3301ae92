"""A window: the K train batches of a look-ahead of K steps. What a step is given for one, and what does not go with it.

The mathematics is in :mod:`fastmeta.meta.engines.several_steps`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

from torch import Tensor

from fastmeta._numbers import as_whole, shown
from fastmeta.losses import LearnableLoss
from fastmeta.meta.gradient import check_train
from fastmeta.meta.lookahead import LookAheadChoice


class TrainBatch(NamedTuple):
    """A train batch: input, rows of the training set (n,), and constant weights (n,) of these."""

    x: Any
    rows: Tensor
    weight: Tensor | None = None


def is_window(train: Any) -> bool:
    """Whether `train` is a list of batches ``(x, index)`` and not one of them."""
    return isinstance(train, tuple | list) and len(train) > 0 and all(map(_is_batch, train))


def _is_batch(value: Any) -> bool:
    return isinstance(value, tuple | list) and len(value) == 2 and isinstance(value[1], Tensor)


def check_window(loss: LearnableLoss, train: Any, weight: Any, most: int) -> list[TrainBatch]:
    """The batches of `train`, a pair ``(x, index)`` or a list of up to `most` pairs; a ValueError for others."""
    usual = isinstance(train, tuple) and len(train) == 2 and isinstance(train[1], Tensor)  # seen without a call
    if usual or not is_window(train):
        if most > 1 and isinstance(train, list) and any(map(_is_batch, train)):
            place = next(k for k, batch in enumerate(train) if not _is_batch(batch))
            raise ValueError(f"train is a list of batches, of which number {place} is no pair (x, index)")
        if most > 1 and not (isinstance(train, tuple) and len(train) == 2):
            raise ValueError(
                f"train must be a pair (x, index) or, for lookahead_steps={most}, a list of 1 to {most} of them, got "
                f"{f'a list of {len(train)}' if isinstance(train, list) else type(train).__name__}"
            )
        return [TrainBatch(*check_train(loss, train, weight), weight)]
    if most == 1 and len(train) > 1:
        raise ValueError(
            f"train is a list of {len(train)} batches, which a look-ahead of as many steps takes; give one pair "
            f"(x, index), or lookahead_steps={len(train)} where the step is made"
        )
    if len(train) > most:
        raise ValueError(
            f"lookahead_steps={most} takes at most {most} train batches at once, got {len(train)}; give fewer, or "
            "raise lookahead_steps"
        )
    weights = [None] * len(train) if weight is None else weight
    if not isinstance(weights, Sequence) or len(weights) != len(train):
        got = f"{len(weights)} of them" if isinstance(weights, Sequence) else type(weights).__name__
        raise ValueError(
            f"weight must be None or a list with the weights (n,) of each of the {len(train)} train batches, got {got}"
        )
    batches = []
    for place, (batch, w) in enumerate(zip(train, weights, strict=True)):
        try:
            batches.append(TrainBatch(*check_train(loss, batch, w), w))
        except ValueError as error:
            raise ValueError(f"train batch {place} of 0 to {len(train) - 1}: {error}") from None
    return batches


def steps_ahead(
    value: Any,
    loss: LearnableLoss,
    *,
    lookahead: LookAheadChoice,
    tangent: str,
    compile: str,
    approx: str | None,
    micro_batch: int | None,
    ranks: int,
    sharded: bool,
) -> int:
    """`lookahead_steps` as a number, 1 for Algorithm 1; a ValueError that names what does not go with more."""
    steps = as_whole(value)
    if steps is None or steps < 1:
        raise ValueError(f"lookahead_steps must be a whole number from 1 on, got {shown(value)}")
    if steps == 1:
        return 1
    for wrong, why in (
        (lookahead == "optimizer", "lookahead='optimizer': its steps are plain SGD; take 'sgd' or a rate"),
        (tangent not in ("auto", "reverse"), f"tangent={tangent!r}: it goes back by double-vjp; take 'auto'"),
        (compile != "off", f"compile={compile!r}: it runs eagerly; take 'off'"),
        (approx is not None, f"approx={approx!r}: it is exact; take None"),
        (micro_batch is not None, f"micro_batch={micro_batch}: it holds the graphs of whole batches; take None"),
        (ranks > 1, f"a process group of {ranks}: it runs in one process; leave process_group out"),
        (sharded, "a model under fully_shard, of which each rank holds a part; take the whole model"),
        (loss.for_one_step, f"{type(loss).__name__}, which is made anew in each step; take another loss"),
    ):
        if wrong:
            raise ValueError(f"lookahead_steps={steps} does not go with {why}, or lookahead_steps=1")
    return steps


@contextmanager
def by_double_vjp(steps: int) -> Iterator[None]:
    """An error about the tangent says what asked for it."""
    try:
        yield
    except RuntimeError as error:
        if steps == 1 or "tangent='reverse'" not in str(error):
            raise
        raise RuntimeError(
            f"lookahead_steps={steps} goes back by double-vjp, and there the model fails; take lookahead_steps=1: "
            + str(error).replace('Use tangent="auto", or run', "Run")
        ) from error
