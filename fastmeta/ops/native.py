"""Loads the native libraries and says what was loaded: ``_C`` always, ``_C_cuda`` where it fits this torch."""

from __future__ import annotations

import importlib.machinery
from pathlib import Path

import torch

try:
    import fastmeta._C as _C
except ImportError as error:
    raise ImportError(
        f"fastmeta's native library does not load ({error}); build it for this Python with "
        "`pip install --no-build-isolation -e .` in the repository, or install the package"
    ) from error


def _load_cuda() -> str:
    """Register the CUDA kernels: empty on success, else the reason why they are absent."""
    folder = Path(_C.__file__).parent
    files = [folder / f"_C_cuda{suffix}" for suffix in importlib.machinery.EXTENSION_SUFFIXES]
    library = next((f for f in files if f.exists()), None)
    if library is None:
        return _C.build_info()["cuda_absent"] or "the CUDA half was not built"
    if torch.version.cuda is None:
        return f"torch {torch.__version__} is built without CUDA"
    try:
        torch.ops.load_library(library)
    except OSError as error:
        return str(error)
    return ""


_cuda_absent = _load_cuda()


def build_info() -> dict[str, str]:
    """What the native libraries were compiled from and which of them are loaded.

    Keys: ``torch`` (compiled against), ``cuda``, ``cuda_archs`` (compiled architectures, empty without CUDA),
    ``cuda_absent`` (why the CUDA half is not loaded, empty when it is), ``cpu_features``, ``compiler``.
    """
    return {**_C.build_info(), "cuda_absent": _cuda_absent}
