"""Tensors over several files of a limited size: how they are divided, what the files are called, which are left over.

The files of ``NAME.safetensors`` are ``NAME-DIGEST.safetensors`` beside it, by the digest of their own content, so a
new set never writes over the files of the old one. NAME.safetensors is their index then: it lists them in order, and
its move into place is what makes them count. A tensor that one file cannot hold is divided by rows, or by elements
where a row is too large: its pieces lie in several files, in their order, under its own name.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from fastmeta.training.rundir.files import new_digest

MB = 10**6
#: bytes of a safetensors file beside tensors: the length of its header, its braces, what fills it up
_BARE = 32
#: bytes of an entry of the header beside name and shape: words, the dtype, two offsets
_ENTRY = 128
_DIGEST = re.compile("[0-9a-f]{32}")
#: tensors below this size are written as often as they come
_WORTH_A_LOOK = 2**16


def shard_path(index: Path, digest: str) -> Path:
    """Where the file of this digest lies; ValueError for what is no digest: an index may be anybody's."""
    if not isinstance(digest, str) or not _DIGEST.fullmatch(digest):
        raise ValueError("its index names a file that no run writes")
    return index.with_name(f"{index.stem}-{digest}{index.suffix}")


def is_shard(index: Path, name: str) -> bool:
    """Whether a file of this name is one of the index, now or before, or was on its way to be."""
    own = re.escape(index.stem) + f"-{_DIGEST.pattern}" + re.escape(index.suffix)
    return re.fullmatch(rf"{own}|\.{own}\.part", name) is not None


def remove_others(index: Path, digests: Collection[str] = ()) -> None:
    """Take away the files of the index but for those of these digests. One that cannot be removed stays."""
    kept = {shard_path(index, digest).name for digest in digests}
    with contextlib.suppress(OSError):
        for name in os.listdir(index.parent):
            if is_shard(index, name) and name not in kept:
                with contextlib.suppress(OSError):
                    os.unlink(index.parent / name)


def size_of(tensors: Mapping[str, Tensor]) -> int:
    """No fewer bytes than a safetensors file of them has."""
    return _BARE + sum(_entry(name, t) + t.nbytes for name, t in tensors.items())


def _entry(name: str, t: Tensor) -> int:
    return len(json.dumps(name)) + len(str(list(t.shape))) + _ENTRY


def alike(tensors: Mapping[str, Tensor]) -> dict[str, str]:
    """Tensors that hold what one before them does, by its name: it is written once."""
    first: dict[tuple[str, tuple[int, ...], str], str] = {}
    same = {}
    for name in sorted(tensors):
        t = tensors[name]
        if t.nbytes >= _WORTH_A_LOOK:
            digest = new_digest()
            digest.update(t.flatten().view(torch.uint8).numpy().data)
            content = digest.hexdigest()
            original = first.setdefault((str(t.dtype), tuple(t.shape), content), name)
            if original != name:
                same[name] = original
    return same


def divided(tensors: Mapping[str, Tensor], most: int) -> Iterator[dict[str, Tensor]]:
    """In files of at most `most` bytes each."""
    part: dict[str, Tensor] = {}
    left = most - _BARE
    for name in sorted(tensors):
        t, entry = tensors[name], _entry(name, tensors[name])
        room = most - _BARE - entry
        for piece in [t] if t.nbytes <= room else _pieces(t, room):
            # two pieces of a tensor never fit into one file, or they would be one
            if part and entry + piece.nbytes > left:
                yield part
                part, left = {}, most - _BARE
            part[name] = piece
            left -= entry + piece.nbytes
    if part:
        yield part


def _pieces(t: Tensor, room: int) -> Sequence[Tensor]:
    if len(t) * room < t.nbytes:  # not even a row
        t = t.flatten()
    return t.split(max(1, room * len(t) // t.nbytes))


def split_shapes(tensors: Mapping[str, Tensor], most: int) -> dict[str, list[int]]:
    """Of the tensors that one file cannot hold."""
    return {name: list(t.shape) for name, t in tensors.items() if t.nbytes > most - _BARE - _entry(name, t)}
