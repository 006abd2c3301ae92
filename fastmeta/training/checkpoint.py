"""The state of an unfinished run in one file, written in one move: either the old one stands there or the new one."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from torch import Tensor

from fastmeta.data import InputError

VERSION = 3
_KEY = "fastmeta"


def write_atomically(path: Path, content: bytes) -> None:
    """`path` holds either what it held or all of `content`, even if the machine stops now."""
    path.parent.mkdir(parents=True, exist_ok=True)
    scratch = path.with_name(f".{path.name}.{os.getpid()}")
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
    """Tensors as safetensors, with `values` as JSON beside them: the same content gives the same bytes.

    Copies, because tied weights share memory, which the format refuses; one key, because its order of several differs
    from process to process.
    """
    from safetensors.torch import save

    content = {k: v.detach().cpu().contiguous().clone() for k, v in tensors.items()}
    return save(content, {_KEY: json.dumps(values)})


def save(path: Path, tensors: dict[str, Tensor], values: dict[str, Any]) -> None:
    write_atomically(path, pack(tensors, {"version": VERSION, **values}))


def load(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """What :func:`save` wrote. InputError for a file that is missing, broken or of another version."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            values = json.loads((file.metadata() or {}).get(_KEY, "{}"))
            if values.get("version") != VERSION:
                raise InputError(
                    f"{path} has checkpoint version {values.get('version')}, this fastmeta reads {VERSION}; "
                    "finish the run with the version that began it"
                )
            return {key: file.get_tensor(key) for key in file.keys()}, values  # noqa: SIM118
    except InputError:
        raise
    except (OSError, SafetensorError, ValueError) as error:
        raise InputError(f"{path} is no checkpoint that can be read ({error}); start a new run") from error
