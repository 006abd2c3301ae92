"""Tensors and values in one file, written in one move and signed with a digest of all that it holds.

So a file is the old one or the new one, never half of one, and damage that the format itself would not see (a flipped
bit in a weight) is found when the file is read. Where files have a limit of size, what is larger lies in several, and
the one file is their index: see `shards.py`.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fastmeta.data import InputError
from fastmeta.training.rundir.files import (
    MOST_TEXT,
    check_memory,
    is_sealed,
    new_digest,
    read_head,
    write_atomically,
)
from fastmeta.training.rundir.layout import CONFIG, command
from fastmeta.training.rundir.schema import each, record, table, text, whole
from fastmeta.training.rundir.shards import MB, alike, divided, remove_others, shard_path, size_of, split_shapes

VERSION = 8
_KEY = "fastmeta"
_SHARDS = "shards"


def _file_form(value: Any, name: str) -> None:
    if not isinstance(value, list) or len(value) != 2 or not isinstance(value[0], str):
        raise ValueError(f"{name} must be a digest and a size")
    whole()(value[1], f"{name}[1]")


_INDEX_FORM = record({"files": each(_file_form), "split": table(each(whole())), "same": table(text)})


def pack(tensors: dict[str, Tensor], values: dict[str, Any]) -> bytes:
    """Tensors as safetensors, with `values` and the digest as JSON beside them: the same content gives the same bytes.

    Copies, because tied weights share memory, which the format refuses; one key, because its order of several differs
    from process to process.
    """
    from safetensors.torch import save

    content = {k: v.clone() for k, v in _on_host(tensors).items()}
    return save(content, {_KEY: json.dumps({"digest": _digest(content, values), "values": values})})


def write(path: Path, tensors: dict[str, Tensor], values: dict[str, Any], max_shard_mb: float | None = None) -> None:
    """Write `path`, in one move; with a limit, as an index of files of at most so many MB where it would be larger."""
    digests: list[str] = []
    if max_shard_mb is None or size_of(tensors) + len(json.dumps(json.dumps(values))) <= max_shard_mb * MB:
        write_atomically(path, pack(tensors, values))
    else:
        try:
            digests = _write_shards(path, tensors, values, max_shard_mb)
        except BaseException:
            remove_leftovers(path)
            raise
    remove_others(path, digests)


def _write_shards(path: Path, tensors: dict[str, Tensor], values: dict[str, Any], max_shard_mb: float) -> list[str]:
    """The digests of the files, behind their index."""
    from safetensors.torch import save

    content, most = _on_host(tensors), int(max_shard_mb * MB)
    same, files = alike(content), list[tuple[str, int]]()
    own = {k: t for k, t in content.items() if k not in same}
    for part in divided(own, most):
        blob = save({k: t.clone() for k, t in part.items()})
        digest = new_digest(blob).hexdigest()
        write_atomically(shard_path(path, digest), blob)
        files.append((digest, len(blob)))
    note = {"files": files, "split": split_shapes(own, most), "same": same}
    index = save({}, {_KEY: json.dumps({"digest": _digest(content, values), "values": values, _SHARDS: note})})
    write_atomically(path, index)
    return [digest for digest, _ in files]


def header(path: Path) -> tuple[dict[str, tuple[int, ...]], dict[str, Any]]:
    """Shape of each tensor in the file, and the values; raises as :func:`unpack` does. Reads no tensor."""
    with _opened(path) as file:
        note = _note(file)
        shapes = _shapes(file)
    if _SHARDS in note:
        files, split, same = _index(note)
        for digest, _ in files:
            with _shard(path, digest) as file:
                shapes |= _shapes(file)
        shapes |= {name: tuple(shape) for name, shape in split.items() if name in shapes}
        shapes |= {name: shapes[original] for name, original in same.items() if original in shapes}
    return shapes, note["values"]


def unpack(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """What :func:`write` or :func:`pack` made of tensors and values.

    Raises:
        OSError: no such file, or no regular one.
        ValueError: anything but what was written, or more than fits into memory; the message says which.
    """
    with _opened(path) as file:
        note = _note(file)
        tensors = _tensors(file)
    if _SHARDS in note:
        tensors |= _gathered(path, note)
    if note["digest"] != _digest(tensors, note["values"]):
        raise ValueError("its content and its digest differ: it has changed since it was written")
    return tensors, note["values"]


def check_room(path: Path, max_shard_mb: float | None) -> None:
    """InputError where the index of the files of `path` has not much room to grow below the limit."""
    size, files = read_head(path, 0)[0], len(_digests(path))
    if max_shard_mb is not None and files and 4 * size > max_shard_mb * MB:
        raise InputError(
            f"max_shard_mb={max_shard_mb:g} makes {files:,} files, and the index of them alone has {size / MB:.3f} MB; "
            f"take {4 * size / MB:.1f} or more"
        )


def check_shards(path: Path) -> None:
    """ValueError unless the files that `path` is an index of are there and as they were written, if it is one."""
    with _opened(path) as file:
        note = _note(file)
    for digest, size in _index(note)[0]:
        _check_shard(path, digest, size)


def _gathered(path: Path, note: dict[str, Any]) -> dict[str, Tensor]:
    """The tensors of the files of an index."""
    files, split, same = _index(note)
    check_memory(sum(size for _, size in files))
    pieces: dict[str, list[Tensor]] = {}
    for digest, size in files:
        _check_shard(path, digest, size)
        with _shard(path, digest) as file:
            for name, t in _tensors(file).items():
                pieces.setdefault(name, []).append(t)
    try:
        tensors = {name: torch.cat(ts) if len(ts) > 1 else ts[0] for name, ts in pieces.items()}
        tensors |= {name: tensors[name].reshape(shape) for name, shape in split.items()}
        return tensors | {name: tensors[original].clone() for name, original in same.items()}
    except (LookupError, TypeError, RuntimeError) as error:
        raise ValueError(f"its index and its files do not fit ({type(error).__name__})") from error


def _index(note: dict[str, Any]) -> tuple[list[list[Any]], dict[str, list[int]], dict[str, str]]:
    """Digest and size of each file, shapes of tensors that lie in several, and which tensor is as which other."""
    shards = note.get(_SHARDS, {"files": [], "split": {}, "same": {}})
    try:
        _INDEX_FORM(shards, "index")
    except ValueError as error:
        raise ValueError(f"its index is none of a run ({error})") from error
    return shards["files"], shards["split"], shards["same"]


def remove_leftovers(path: Path) -> None:
    """Take away files of an index that `path` does not list: of one before it, or of one that was not finished."""
    with suppress(OSError, ValueError):  # what cannot be read may list them
        remove_others(path, [] if not path.exists() else _digests(path))


def _digests(path: Path) -> list[str]:
    """Of the files that `path` lists, if it is an index."""
    with _opened(path) as file:
        return [digest for digest, _ in _index(_note(file))[0]]


def _check_shard(path: Path, digest: str, size: int) -> None:
    file = shard_path(path, digest)
    try:
        if is_sealed(file, {"bytes": size, "digest": digest}):
            return
    except OSError as error:
        raise ValueError(f"its part {file.name}: {error.strerror}") from error
    raise ValueError(f"its part {file.name} has changed since it was written")


@contextmanager
def _shard(path: Path, digest: str) -> Iterator[Any]:
    file = shard_path(path, digest)
    try:
        with _opened(file) as opened:
            yield opened
    except OSError as error:
        raise ValueError(f"its part {file.name}: {error.strerror or error}") from error


def _shapes(file: Any) -> dict[str, tuple[int, ...]]:
    return {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118


def _tensors(file: Any) -> dict[str, Tensor]:
    return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118


def _on_host(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {k: v.detach().cpu().contiguous() for k, v in tensors.items()}


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    """A safetensors file whose header is of a sane size. Whatever its bytes make others raise is a ValueError."""
    from safetensors import safe_open

    size, head = read_head(path, 8)
    check_memory(size)
    if int.from_bytes(head, "little") > MOST_TEXT:
        raise ValueError(f"its header has {int.from_bytes(head, 'little'):,} bytes, expected at most {MOST_TEXT:,}")
    try:
        with _named(path) as name, safe_open(name, framework="pt") as file:
            yield file
    except (OSError, ValueError):
        raise
    except Exception as error:  # SafetensorError, and of torch whatever a dtype or shape of others makes it raise
        raise ValueError(str(error) or type(error).__name__) from error


@contextmanager
def _named(path: Path) -> Iterator[str]:
    """A name in UTF-8 for a file, as safetensors wants it; where its own is none, the number that it is open under."""
    name = str(path)
    if all(not "\ud800" <= c <= "\udfff" for c in name):
        yield name
    else:
        with open(path, "rb") as file:
            yield f"/dev/fd/{file.fileno()}"


def _note(file: Any) -> dict[str, Any]:
    note = json.loads((file.metadata() or {}).get(_KEY, "{}"))
    if not isinstance(note, dict) or not isinstance(note.get("values"), dict) or "digest" not in note:
        raise ValueError("it has no digest: another program wrote it, or another version")
    return note


def _digest(tensors: dict[str, Tensor], values: dict[str, Any]) -> str:
    """Of names, dtypes, shapes, bytes and values."""
    digest = new_digest(json.dumps(values).encode())
    for name in sorted(tensors):
        t = tensors[name]
        digest.update(repr((name, str(t.dtype), tuple(t.shape))).encode())
        digest.update(t.flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def save(path: Path, tensors: dict[str, Tensor], values: dict[str, Any], max_shard_mb: float | None = None) -> None:
    """The state of an unfinished run."""
    write(path, tensors, {"version": VERSION, **values}, max_shard_mb)


def damaged(path: Path, why: object) -> InputError:
    """Of a state that cannot be read, in words."""
    return InputError(f"{path} is no checkpoint that can be read ({why}); begin the run anew: {_anew(path)}")


def _anew(path: Path) -> str:
    return command("--config", str(path.parents[1] / CONFIG))


def load(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """What :func:`save` wrote. InputError for a file that is missing, damaged or of another version."""
    try:
        tensors, values = unpack(path)
    except (OSError, ValueError) as error:
        raise damaged(path, error) from error
    if values.get("version") != VERSION:
        raise InputError(
            f"{path} has checkpoint version {values.get('version')}, this fastmeta reads {VERSION}; "
            f"finish the run with the version that began it, or begin it anew: {_anew(path)}"
        )
    return tensors, values
