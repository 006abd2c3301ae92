"""Tensors and values in one file, written in one move and signed with a digest of all that it holds.

So a file is the old one or the new one, never half of one, and damage that the format itself would not see (a flipped
bit in a weight) is found when the file is read.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fastmeta.data import InputError
from fastmeta.training.rundir.files import MOST_TEXT, check_memory, new_digest, read_head, write_atomically
from fastmeta.training.rundir.layout import CONFIG, command

VERSION = 8
_KEY = "fastmeta"


def pack(tensors: dict[str, Tensor], values: dict[str, Any]) -> bytes:
    """Tensors as safetensors, with `values` and the digest as JSON beside them: the same content gives the same bytes.

    Copies, because tied weights share memory, which the format refuses; one key, because its order of several differs
    from process to process.
    """
    from safetensors.torch import save

    content = {k: v.detach().cpu().contiguous().clone() for k, v in tensors.items()}
    return save(content, {_KEY: json.dumps({"digest": _digest(content, values), "values": values})})


def header(path: Path) -> tuple[dict[str, tuple[int, ...]], dict[str, Any]]:
    """Shape of each tensor in the file, and the values; raises as :func:`unpack` does. Reads no tensor."""
    with _opened(path) as file:
        return {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}, _note(file)["values"]  # noqa: SIM118


def unpack(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """What :func:`pack` made of tensors and values.

    Raises:
        OSError: no such file, or no regular one.
        ValueError: anything but what was written, or more than fits into memory; the message says which.
    """
    with _opened(path) as file:
        note = _note(file)
        tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
        if note["digest"] != _digest(tensors, note["values"]):
            raise ValueError("its content and its digest differ: it has changed since it was written")
    return tensors, note["values"]


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


def save(path: Path, tensors: dict[str, Tensor], values: dict[str, Any]) -> None:
    """The state of an unfinished run."""
    write_atomically(path, pack(tensors, {"version": VERSION, **values}))


def load(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """What :func:`save` wrote. InputError for a file that is missing, damaged or of another version."""
    anew = command("--config", str(path.parents[1] / CONFIG))
    try:
        tensors, values = unpack(path)
    except (OSError, ValueError) as error:
        raise InputError(f"{path} is no checkpoint that can be read ({error}); begin the run anew: {anew}") from error
    if values.get("version") != VERSION:
        raise InputError(
            f"{path} has checkpoint version {values.get('version')}, this fastmeta reads {VERSION}; "
            f"finish the run with the version that began it, or begin it anew: {anew}"
        )
    return tensors, values
