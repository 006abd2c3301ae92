"""What a figure depends on besides the code: recorded beside every result."""

from __future__ import annotations

import datetime
import os
import platform
import shutil
import subprocess
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

import fastmeta

_LIBRARIES = ("numpy", "torchvision", "triton", "higher", "torchopt", "liger-kernel")


def record(device: torch.device, command: str) -> dict[str, Any]:
    """Hardware, threads, versions, commit, date and command as a JSON-ready dict.

    `load_average` is that of the minute before: beyond the number of threads in use, something else was running.
    """
    return {
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "command": command,
        "fastmeta": fastmeta.__version__,
        **_commit(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "libraries": _versions(),
        "device": device.type,
        "cpu": {
            "model": _cpu_model(),
            "cores": os.cpu_count(),
            "usable_cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
            "capability": torch.backends.cpu.get_cpu_capability(),
            "threads": torch.get_num_threads(),
            "load_average": round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None,
        },
        "gpu": _gpu(device),
        "platform": f"{platform.system()} {platform.release()} {platform.machine()}",
    }


def _versions() -> dict[str, str]:
    found = {}
    for name in _LIBRARIES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def _commit() -> dict[str, Any]:
    """Commit of the source tree that the package is imported from; None for an installed package."""
    root = Path(fastmeta.__file__).parent.parent
    if not (root / ".git").exists():
        return {"commit": None, "dirty": None}
    commit = _output("git", "-C", str(root), "rev-parse", "HEAD")
    # a benchmark that writes its figures as it goes does not change what it measures
    sources = ["--", ".", ":!benchmarks/results", ":!docs"]
    changes = _output("git", "-C", str(root), "status", "--porcelain", "--untracked-files=no", *sources)
    return {"commit": commit, "dirty": None if changes is None else bool(changes)}


def _gpu(device: torch.device) -> dict[str, Any] | None:
    if device.type != "cuda":
        return None
    properties = torch.cuda.get_device_properties(device)
    driver = _output("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader")
    return {
        "name": properties.name,
        "memory_gib": round(properties.total_memory / 2**30, 1),
        "multiprocessors": properties.multi_processor_count,
        "l2_mib": properties.L2_cache_size / 2**20,
        "cuda": torch.version.cuda,
        "driver": driver.splitlines()[0] if driver else None,
        "cudnn": torch.backends.cudnn.version(),
    }


def _cpu_model() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.processor()


def _output(*command: str) -> str | None:
    if shutil.which(command[0]) is None:
        return None
    done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
    return done.stdout.strip() if done.returncode == 0 else None
