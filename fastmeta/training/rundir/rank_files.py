"""The state of a run that several ranks train: rows that are spread over them, what each has for itself, and the rest.

checkpoint/state.safetensors                what rank 0 has, but for rows; it names the folder beside it
checkpoint/ranks-TOKEN/rows/*.safetensors   rows, each rank's in a file, by torch.distributed.checkpoint
checkpoint/ranks-TOKEN/rank-1.safetensors   what this rank has otherwise than rank 0

A save has a folder of its own, and state.safetensors moves into place behind it: that is what makes the save count.
So a run that is killed at any moment has the old state or the new one. One process has no such folder.
"""

from __future__ import annotations

import contextlib
import os
import re
import secrets
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fastmeta.data import InputError
from fastmeta.distributed import ALONE, Ranks
from fastmeta.training.rundir import checkpoint
from fastmeta.training.rundir.files import is_sealed, new_digest, seal_of, sync_directory, write_atomically
from fastmeta.training.rundir.rank_folders import rank_folder, remove_other_folders
from fastmeta.training.rundir.schema import each, one_of, record, table, text, whole
from fastmeta.training.rundir.spread_rows import DTYPES, Whole, check_rows, check_whole, read_rows, write_rows
from fastmeta.training.rundir.summary import SEAL_FORM

#: of the values of a state, what each rank may have for itself
OWN = "stage"
_NOTE = "ranks"
_ROWS = "rows"
_FILE = re.compile(rf"rank-\d+\.safetensors|{_ROWS}/[\w-]+\.safetensors")
_ROWS_FORM = record({"shape": each(whole()), "dtype": one_of(*DTYPES)})
_FORM = record({"size": whole(2), "token": text, "files": table(SEAL_FORM), "rows": table(_ROWS_FORM)})


def save(
    path: Path,
    tensors: Mapping[str, Tensor],
    values: dict[str, Any],
    ranks: Ranks = ALONE,
    *,
    by_row: Collection[str] = (),
    max_shard_mb: float | None = None,
) -> None:
    """The state of an unfinished run, written by all ranks together.

    Args:
        path: of state.safetensors.
        tensors: of this rank, under the same names on all of them.
        values: as JSON holds them; those of rank 0 count, but for `stage`.
        by_row: names of tensors of which this rank has its `share` of the rows; of others too, which there are not.
        max_shard_mb: of what rank 0 writes by itself.

    Raises:
        OSError: of whichever rank, on all of them; what was saved before stays.
    """
    if ranks.size == 1:
        checkpoint.save(path, dict(tensors), values, max_shard_mb)
        remove_other_folders(path)
        return
    token = ranks.told(secrets.token_hex(16))
    folder = rank_folder(path, token)
    try:
        _save(path, folder, tensors, values, ranks, by_row, max_shard_mb)
    except BaseException:
        if ranks.first:
            remove_leftovers(path)
        raise


def _save(
    path: Path,
    folder: Path,
    tensors: Mapping[str, Tensor],
    values: dict[str, Any],
    ranks: Ranks,
    by_row: Collection[str],
    max_shard_mb: float | None,
) -> None:
    rows = {name: t for name, t in tensors.items() if name in by_row}
    wholes = check_whole(rows, ranks)
    alike = {name: t.detach().cpu().contiguous() for name, t in tensors.items() if name not in rows}
    digests = ranks.each({name: _digest(t) for name, t in alike.items()})

    def make() -> None:
        if ranks.first:
            (folder / _ROWS).mkdir(parents=True)

    ranks.together(make)
    write_rows(folder / _ROWS, rows, wholes, ranks)

    def seal() -> dict[str, dict[str, Any]]:
        """Of the files that this rank has written, which are on the disk then."""
        found = [f"{_ROWS}/{name}" for name in _written(folder / _ROWS, ranks)]
        for name in found:
            _sync(folder / name)
        if not ranks.first:
            differ = {name: t for name, t in alike.items() if digests[0].get(name) != digests[ranks.rank][name]}
            lacks = sorted(digests[0].keys() - alike.keys())
            file = _own_file(folder, ranks.rank)
            write_atomically(file, checkpoint.pack(differ, {OWN: values.get(OWN), "lacks": lacks}))
            found.append(file.name)
        return {name: seal_of(folder / name) for name in found}

    files = {name: s for of_rank in ranks.each(ranks.together(seal)) for name, s in of_rank.items()}
    note = {
        "size": ranks.size,
        "token": folder.name.removeprefix("ranks-"),
        "files": files,
        "rows": {name: {"shape": w.shape, "dtype": w.dtype} for name, w in wholes.items()},
    }

    def commit() -> None:
        if ranks.first:
            for place in (folder / _ROWS, folder, path.parent):
                sync_directory(place)
            checkpoint.save(path, alike, values | {_NOTE: note}, max_shard_mb)
            remove_other_folders(path, folder.name)

    ranks.together(commit)


def load(path: Path, ranks: Ranks = ALONE) -> tuple[dict[str, Tensor], dict[str, Any], int]:
    """What :func:`save` wrote, and by how many ranks. All ranks load together; InputError as of `checkpoint.load`.

    Of rows, this rank gets its share. Of what every rank has for itself it gets its own where there are as many ranks
    as there were; else floats are averaged, and all others are those of rank 0.

    What one process has saved is whole: whoever knows which tensors have rows takes this rank's.
    """
    try:
        tensors, values = ranks.together(lambda: checkpoint.load(path))
        if (note := values.pop(_NOTE, None)) is None:
            return tensors, values, 1
        folder, wholes = ranks.together(lambda: _checked(path, note, ranks))
        tensors |= read_rows(folder / _ROWS, wholes, ranks)
        if note["size"] == ranks.size:
            return *ranks.together(lambda: _own(folder, tensors, values, ranks.rank)), note["size"]
        return tensors | ranks.together(lambda: _averages(folder, tensors, note["size"])), values, note["size"]
    except InputError:
        raise
    except (OSError, ValueError, LookupError, TypeError, RuntimeError) as error:
        said = (error.strerror if isinstance(error, OSError) else None) or str(error) or type(error).__name__
        raise checkpoint.damaged(path, said.splitlines()[0]) from error


def own_rows(tensors: Mapping[str, Tensor], by_row: Collection[str], ranks: Ranks) -> dict[str, Tensor]:
    """`tensors` that have all rows, with this rank's share of those that are by row."""
    return {name: t[slice(*ranks.share(len(t)))] if name in by_row else t for name, t in tensors.items()}


def _own(
    folder: Path, tensors: dict[str, Tensor], values: dict[str, Any], rank: int
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """What the rank had, from what it shares with rank 0."""
    if rank == 0:
        return tensors, values
    differ, own = checkpoint.unpack(_own_file(folder, rank))
    return {k: t for k, t in (tensors | differ).items() if k not in own["lacks"]}, values | {OWN: own[OWN]}


def _averages(folder: Path, first: Mapping[str, Tensor], size: int) -> dict[str, Tensor]:
    """The mean over all ranks of each float tensor of rank 0's that another has otherwise, in the same shape."""
    own, found = [checkpoint.unpack(_own_file(folder, rank))[0] for rank in range(1, size)], {}
    for name in sorted(first.keys() & {name for of in own for name in of}):
        t = first[name]
        every = [t, *(of.get(name, t) for of in own)]
        if t.is_floating_point() and all(other.shape == t.shape for other in every):
            found[name] = torch.stack([other.double() for other in every]).mean(0).to(t.dtype)
    return found


def _checked(path: Path, note: Any, ranks: Ranks) -> tuple[Path, dict[str, Whole]]:
    """The folder of a save and what its rows are; ValueError unless its files are there and as they were written.

    Each rank looks at a part of them.
    """
    _FORM(note, _NOTE)
    folder = rank_folder(path, note["token"])
    if not all(map(_FILE.fullmatch, note["files"])):
        raise ValueError("it names files that no run writes")
    for name in list(note["files"])[ranks.rank :: ranks.size]:
        try:
            sealed = is_sealed(folder / name, note["files"][name])
        except OSError as error:
            raise ValueError(f"its part {folder.name}/{name}: {error.strerror}") from error
        if not sealed:
            raise ValueError(f"its part {folder.name}/{name} has changed since it was written")
    wholes = {name: Whole(tuple(form["shape"]), form["dtype"]) for name, form in note["rows"].items()}
    if wholes:
        check_rows(wholes, ranks, sum(seal["bytes"] for seal in note["files"].values()))
        others = {f"{_ROWS}/{name}" for name in os.listdir(folder / _ROWS)} - note["files"].keys()
        if others:
            raise ValueError(f"{folder.name}/{min(others)} is none of its parts; move it away")
    return folder, wholes


def _own_file(folder: Path, rank: int) -> Path:
    return folder / f"rank-{rank}.safetensors"


def _written(folder: Path, ranks: Ranks) -> list[str]:
    """Files of this rank: torch numbers them from 1."""
    return sorted(name for name in os.listdir(folder) if name.startswith(f"shard-{ranks.rank + 1:05d}-"))


def _sync(path: Path) -> None:
    file = os.open(path, os.O_RDONLY)
    try:
        os.fsync(file)
    finally:
        os.close(file)


def _digest(t: Tensor) -> str:
    content = new_digest(repr((str(t.dtype), tuple(t.shape))).encode())
    content.update(t.flatten().view(torch.uint8).numpy().data)
    return content.hexdigest()


def remove_leftovers(path: Path) -> None:
    """Take away what `path` does not list: of a save before it, or of one that was not finished."""
    checkpoint.remove_leftovers(path)
    with contextlib.suppress(OSError, ValueError):  # what cannot be read may name one
        note = checkpoint.header(path)[1].get(_NOTE) if path.exists() else None
        remove_other_folders(path, None if note is None else f"ranks-{note['token']}")
