"""``fastmeta --version -v``: what is installed here and which half of it is in use."""

from __future__ import annotations

import platform
from importlib import metadata

from fastmeta._text import printable

_LIBRARIES = ("torchvision", "numpy", "tyro", "safetensors", "matplotlib", "rich", "scikit-learn")


def version_text(*, verbose: bool = False) -> str:
    """One line, or versions, devices, compiled architectures, and why a half is not loaded."""
    import fastmeta

    first = f"fastmeta {fastmeta.__version__}"
    if not verbose:
        return first
    import torch

    from fastmeta.ops import build_info

    info = build_info()
    rows = [
        ("python", f"{platform.python_version()}, {platform.platform()}"),
        ("torch", f"{torch.__version__}, {torch.get_num_threads()} CPU threads"),
        *((name, _installed(name)) for name in _LIBRARIES),
        ("CPU half", f"loaded; built against torch {info['torch']} by {info['compiler']}; {info['cpu_features']}"),
    ]
    if info["cuda_absent"]:
        rows.append(("CUDA half", f"not loaded: {info['cuda_absent']}"))
    else:
        rows.append(("CUDA half", f"loaded; CUDA {info['cuda']}, architectures {info['cuda_archs']}"))
    for i in range(torch.cuda.device_count()):
        p = torch.cuda.get_device_properties(i)
        rows.append((f"cuda:{i}", f"{p.name}, sm_{p.major}{p.minor}, {p.total_memory / 2**30:.0f} GiB"))
    if not torch.cuda.device_count():
        why = "this torch is built without CUDA" if torch.version.cuda is None else "no device or no driver"
        rows.append(("devices", f"cpu alone ({why})"))
    return "\n".join([first, *(f"  {name:<13} {printable(value)}" for name, value in rows)])


def _installed(name: str) -> str:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return "not installed"
