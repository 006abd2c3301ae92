"""Tensors whose rows are spread over ranks, as plain safetensors files that any number of ranks can read.

`torch.distributed.checkpoint` writes and reads them. A DTensor says there which rows a rank has, and is for nothing
else: training never sees one.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fastmeta._memory import check_room
from fastmeta.distributed import Ranks

#: that safetensors holds
DTYPES = {
    str(dtype).removeprefix("torch."): dtype
    for dtype in (
        *(torch.float64, torch.float32, torch.float16, torch.bfloat16),
        *(torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8, torch.bool),
    )
}


class Whole(NamedTuple):
    """What a tensor is with the rows of all ranks."""

    shape: tuple[int, ...]
    dtype: str  # of DTYPES

    def share(self, ranks: Ranks) -> tuple[int, ...]:
        """Shape of what this rank has of it."""
        first, last = ranks.share(self.shape[0])
        return (last - first, *self.shape[1:])


def check_whole(tensors: Mapping[str, Tensor], ranks: Ranks) -> dict[str, Whole]:
    """Of tensors of which each rank has its rows. ValueError where these are not as `Ranks.share` gives them."""
    mine = {name: (tuple(t.shape), str(t.dtype).removeprefix("torch.")) for name, t in tensors.items()}
    every = ranks.each(mine)
    found = {}
    for name, (shape, dtype) in mine.items():
        theirs = [of.get(name) for of in every]
        if not shape or dtype not in DTYPES:
            raise ValueError(f"{name} has no rows that can be saved: it is {dtype} of shape {shape}")
        if any(other is None or (other[0][1:], other[1]) != (shape[1:], dtype) for other in theirs):
            raise ValueError(f"{name} differs in dtype or shape from rank to rank: {theirs}")
        counts = [other[0][0] for other in theirs if other is not None]
        found[name] = Whole((sum(counts), *shape[1:]), dtype)
        if counts != [last - first for first, last in ranks.shares(sum(counts))]:
            raise ValueError(
                f"{name} has {counts} rows on the ranks, and not what Ranks.share gives of {sum(counts):,}"
            )
    if any(of.keys() != mine.keys() for of in every):
        raise ValueError(f"other tensors have rows on other ranks: {[sorted(of) for of in every]}")
    return found


def write_rows(folder: Path, tensors: Mapping[str, Tensor], wholes: Mapping[str, Whole], ranks: Ranks) -> None:
    """Write this rank's rows into a file of its own; `folder` is there. OSError of any rank on all of them."""
    if not tensors:
        return
    from torch.distributed.checkpoint import HuggingFaceStorageWriter, save

    with _of_dcp():
        save(
            {name: _dressed(t.detach().cpu().contiguous(), wholes[name], ranks) for name, t in tensors.items()},
            storage_writer=HuggingFaceStorageWriter(path=str(folder), save_distributed=True),
            process_group=ranks.side,
        )


def check_rows(wholes: Mapping[str, Whole], ranks: Ranks, most: int) -> None:
    """ValueError where files of `most` bytes cannot hold them, or memory not this rank's."""
    if sum(math.prod(w.shape) * DTYPES[w.dtype].itemsize for w in wholes.values()) > most:
        raise ValueError("it lists more rows than its files have")
    check_room(sum(math.prod(w.share(ranks)) * DTYPES[w.dtype].itemsize for w in wholes.values()), "its rows")


def read_rows(folder: Path, wholes: Mapping[str, Whole], ranks: Ranks) -> dict[str, Tensor]:
    """This rank's rows of what :func:`write_rows` of any number of ranks has written."""
    if not wholes:
        return {}
    from torch.distributed.checkpoint import HuggingFaceStorageReader, load

    tensors = {name: torch.zeros(w.share(ranks), dtype=DTYPES[w.dtype]) for name, w in wholes.items()}
    alone = ranks.size == 1
    with _of_dcp():
        load(
            {name: t if alone else _dressed(t, wholes[name], ranks) for name, t in tensors.items()},
            storage_reader=HuggingFaceStorageReader(path=str(folder)),
            process_group=ranks.side,
            no_dist=alone,
        )
    return tensors


def _dressed(rows: Tensor, of: Whole, ranks: Ranks) -> Any:
    from torch.distributed.device_mesh import DeviceMesh
    from torch.distributed.tensor import DTensor, Shard

    assert ranks.side is not None
    mesh = DeviceMesh.from_group(ranks.side, "cpu")
    stride = torch.empty(of.shape, device="meta").stride()
    shape = torch.Size(of.shape)
    return DTensor.from_local(rows, mesh, [Shard(0)], run_check=False, shape=shape, stride=stride)


@contextmanager
def _of_dcp() -> Iterator[None]:
    """The failure of a rank as what it was there: torch raises one that is no Exception."""
    from torch.distributed.checkpoint.api import CheckpointException

    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="torch.distributed is disabled")  # one process is all there is
            yield
    except CheckpointException as failed:
        error, _ = next(iter(failed.failures.values()))
        raise error from None
