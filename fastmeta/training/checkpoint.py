"""Tensors and values in one file, written in one move and signed with a digest of all that it holds.

So a file is the old one or the new one, never half of one, and damage that the format itself would not see (a flipped
bit in a weight) is found when the file is read.
"""

from __future__ import annotations

import hashlib
import json
import os
import shlex
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fastmeta.data import InputError

VERSION = 4
_KEY = "fastmeta"


def write_atomically(path: Path, content: bytes) -> None:
    """`path` holds either what it held or all of `content`, even if the machine stops now."""
    path.parent.mkdir(parents=True, exist_ok=True)
    # one name for all processes: what a killed one has left is written over, and only one at a time has a run
    scratch = path.with_name(f".{path.name}.part")
    try:
        with open(scratch, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(scratch, path)
    except BaseException:
        scratch.unlink(missing_ok=True)
        raise


def pack(tensors: dict[str, Tensor], values: dict[str, Any]) -> bytes:
    """Tensors as safetensors, with `values` and the digest as JSON beside them: the same content gives the same bytes.

    Copies, because tied weights share memory, which the format refuses; one key, because its order of several differs
    from process to process.
    """
    from safetensors.torch import save

    content = {k: v.detach().cpu().contiguous().clone() for k, v in tensors.items()}
    return save(content, {_KEY: json.dumps({"digest": _digest(content, values), "values": values})})


def unpack(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """What :func:`pack` made of tensors and values.

    Raises:
        OSError: no such file.
        ValueError: anything but what was written; the message says how that was seen.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            note = json.loads((file.metadata() or {}).get(_KEY, "{}"))
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    except SafetensorError as error:
        raise ValueError(str(error)) from error
    if not isinstance(note, dict) or not {"digest", "values"} <= note.keys():
        raise ValueError("it has no digest: another program wrote it, or another version")
    if note["digest"] != _digest(tensors, note["values"]):
        raise ValueError("its content and its digest differ: it has changed since it was written")
    return tensors, note["values"]


def _digest(tensors: dict[str, Tensor], values: dict[str, Any]) -> str:
    """Of names, dtypes, shapes, bytes and values."""
    digest = hashlib.blake2b(json.dumps(values).encode(), digest_size=16)
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
    anew = shlex.join(["fastmeta", "train", "--config", str(path.parents[1] / "config.toml")])
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
