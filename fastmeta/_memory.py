"""How much memory a process may still take: asked before an allocation whose size somebody else has chosen."""

from __future__ import annotations

from pathlib import Path

try:
    import resource
except ImportError:  # Windows
    resource = None  # type: ignore[assignment]


def free_memory() -> int | None:
    """Bytes that this process can still allocate and use, None where the system does not say.

    The least of what the machine has free, what its container may take, and what `ulimit -v` leaves.
    """
    known = [free for free in (_machine(), _container(), _limit()) if free is not None]
    return max(0, min(known)) if known else None


def check_room(needed: float, what: str) -> None:
    """ValueError where `needed` bytes for `what` are not free: a system may grant them, and kill who uses them."""
    free = free_memory()
    if free is not None and needed > free:
        raise ValueError(f"{what} would take {gibibytes(needed)}, and {gibibytes(free)} of memory are free")


def gibibytes(size: float) -> str:
    """For messages."""
    if size >= 2**60:
        return "more than a machine can have"
    return f"{size / 2**30:,.1f} GiB" if size >= 2**30 else f"{size / 2**20:,.1f} MiB"


def _machine() -> int | None:
    return _field("/proc/meminfo", "MemAvailable:", 1024)


def _container() -> int | None:
    for limit, used, stat, file in (
        ("memory.max", "memory.current", "memory.stat", "file"),  # cgroup v2, as a container sees itself
        ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes", "memory/memory.stat", "total_cache"),
    ):
        try:
            most, taken = (int(Path("/sys/fs/cgroup", name).read_text()) for name in (limit, used))
        except (OSError, ValueError):  # no container, or one without a limit: "max"
            continue
        return most - taken + (_field(f"/sys/fs/cgroup/{stat}", file, 1) or 0)  # cached files make way
    return None


def _limit() -> int | None:
    if resource is None:
        return None
    soft, _ = resource.getrlimit(resource.RLIMIT_AS)
    taken = _field("/proc/self/status", "VmSize:", 1024)
    return None if soft == resource.RLIM_INFINITY or taken is None else soft - taken


def _field(path: str, name: str, unit: int) -> int | None:
    """The number behind `name` in a file of the kernel's, a name and a number a line."""
    try:
        with open(path, encoding="ascii", errors="replace") as file:
            for line in file:
                words = line.split()
                if len(words) > 1 and words[0] == name:
                    return int(words[1]) * unit
    except (OSError, ValueError):
        pass
    return None
