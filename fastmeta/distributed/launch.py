"""The processes that torchrun has started, as ranks of one training: how they meet, and how they part.

torchrun gives each its place in the environment: RANK, WORLD_SIZE, LOCAL_RANK, LOCAL_WORLD_SIZE, MASTER_ADDR and
MASTER_PORT. What lies on a CUDA device goes by NCCL, all else by gloo; flags and objects have a gloo group of their
own.
"""

from __future__ import annotations

import json
import os
import time
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist

from fastmeta.distributed.ranks import ALONE, Ranks

#: seconds that ranks wait for each other, where nobody says otherwise
TIMEOUT = 600.0
_NAMES = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")


class LaunchError(ValueError):
    """Processes cannot become ranks of one training; in one line."""


@dataclass(frozen=True)
class Place:
    """Which of the processes this one is, and which of those of its machine."""

    rank: int
    size: int
    local: int
    local_size: int

    @property
    def command(self) -> list[str]:
        """How the processes were started, as far as this one knows; to be said on each machine."""
        each = f"--nproc-per-node {self.local_size}"
        if self.size == self.local_size:  # a port of its own: another run of this machine may have torchrun's usual one
            return ["torchrun", "--standalone", each]
        return ["torchrun", f"--nnodes {self.size // self.local_size}", each, "..."]


def place(environment: Mapping[str, str] = os.environ) -> Place | None:
    """By the environment; None for a process by itself, and for the only one of its kind.

    Raises:
        LaunchError: an environment that says half of it.
    """
    if environment.get("WORLD_SIZE", "1") == "1":
        return None
    if missing := [name for name in _NAMES if not environment.get(name)]:
        raise LaunchError(
            f"WORLD_SIZE is {environment['WORLD_SIZE']} and {missing[0]} is not set: start by torchrun, which sets "
            "both, or unset WORLD_SIZE to train in one process"
        )
    numbers = {name: environment[name] for name in (*_NAMES[:3], "MASTER_PORT")}
    numbers["LOCAL_WORLD_SIZE"] = environment.get("LOCAL_WORLD_SIZE", environment["WORLD_SIZE"])
    for name, text in numbers.items():
        if not text.isascii() or not text.isdecimal():
            raise LaunchError(f"{name} must be a number, got {text!r}: start by torchrun, which sets it")
    rank, size, local, local_size = (int(numbers[n]) for n in (*_NAMES[:3], "LOCAL_WORLD_SIZE"))
    if not (rank < size and local < max(local_size, 1) <= size):
        raise LaunchError(
            f"RANK must be below WORLD_SIZE and LOCAL_RANK below LOCAL_WORLD_SIZE, got {rank} of {size} and {local} of "
            f"{local_size}: start by torchrun, which sets them"
        )
    return Place(rank, size, local, local_size)


class Gone(RuntimeError):
    """A run cannot go on because another rank has ended, or does not answer; the text says what it has left."""


class Ends:
    """How each rank ends, told in a store that outlives lost connections: (exit code, text)."""

    def __init__(self, store: dist.Store, rank: int, size: int) -> None:
        self._store, self._rank, self._others = store, rank, [r for r in range(size) if r != rank]

    def tell(self, code: int, text: str) -> None:
        self._store.set(f"end of {self._rank}", json.dumps([code, text]))

    def why(self, seconds: float) -> str | None:
        """What a rank that has failed says, named; None where none does within so many seconds."""
        failed = {rank: text for rank, (code, text) in self.others(seconds).items() if code and text}
        return f"rank {(rank := min(failed))}: {failed[rank]}" if failed else None

    def others(self, seconds: float) -> dict[int, tuple[int, str]]:
        """Of the ranks that tell within so many seconds; it waits no longer than until all have."""
        found: dict[int, tuple[int, str]] = {}
        last = time.monotonic() + seconds
        while len(found) < len(self._others):
            for rank in self._others:
                if rank not in found and self._store.check([key := f"end of {rank}"]):
                    code, text = json.loads(self._store.get(key))
                    found[rank] = code, text
            if time.monotonic() > last:
                break
            time.sleep(0.05)
        return found


_here: Ranks | None = None
_ends: Ends | None = None


def ends() -> Ends | None:
    """Inside of :func:`joined`, where it has formed the group."""
    return _ends


def lost(error: BaseException) -> bool:
    """Whether it says that another rank is gone, or does not answer: gloo's own errors are plain RuntimeErrors."""
    if type(error) is RuntimeError:  # an error of ours may have a path of that name in its text
        return "gloo" in str(error) or "Connection closed by peer" in str(error)
    return isinstance(error, Gone | dist.DistError)


def here() -> Ranks:
    """The ranks inside of :func:`joined`; a process by itself outside."""
    return ALONE if _here is None else _here


@contextmanager
def joined(seconds: float = TIMEOUT) -> Iterator[Ranks]:
    """Inside, the processes that were started together are ranks, and none waits for another longer than `seconds`.

    A process group that is there already is used, and stays; inside of itself it gives what there is.

    Raises:
        LaunchError: the environment is wrong, or the other processes did not come in time.
    """
    global _here, _ends
    given = dist.is_available() and dist.is_initialized()
    where = None if given else place()
    if _here is not None or (where is None and not given):
        yield here()
        return
    wait = timedelta(seconds=seconds)
    if where is not None:
        _ends = Ends(_meet(where, wait), where.rank, where.size)
    local = int(os.environ.get("LOCAL_RANK", dist.get_rank())) if where is None else where.local
    side = dist.new_group(backend="gloo", timeout=wait)
    _here = Ranks(dist.group.WORLD, side, local)
    try:
        yield _here
    finally:
        _here = _ends = None
        dist.destroy_process_group(side if given else None)


def of_this_start(store: dist.Store, rank: int, size: int, seconds: float) -> dist.Store:
    """The part of `store` that this start of the ranks has for itself.

    torchrun keeps one store when it starts all ranks again (--max-restarts), and addresses of ranks that are gone stand
    in it. So each rank asks by a name that no process before it had, until the first rank answers with the part's name.
    """
    own = uuid.uuid4().hex
    if rank:
        store.set(f"asks {rank}", own)
        part = store.get(f"answer to {own}").decode()
        store.set(f"{part} heard by {rank}", "")
        return dist.PrefixStore(part, store)
    missing, last = list(range(1, size)), time.monotonic() + seconds
    while missing:
        for other in filter(lambda r: store.check([f"asks {r}"]), missing):
            store.set(f"answer to {store.get(f'asks {other}').decode()}", own)
        missing = [r for r in missing if not store.check([f"{own} heard by {r}"])]
        if missing and time.monotonic() > last:
            raise RuntimeError(f"rank {', '.join(map(str, missing))} did not come")
        time.sleep(0.02 if missing else 0.0)
    return dist.PrefixStore(own, store)


def _meet(where: Place, wait: timedelta) -> dist.Store:
    """Form the group of all; a store beside its own."""
    if not dist.is_available():
        raise LaunchError(f"WORLD_SIZE is {where.size}, and this torch has no torch.distributed; train in one process")
    cuda = torch.cuda.is_available() and dist.is_nccl_available()
    how: dict[str, Any] = {"rank": where.rank, "world_size": where.size, "timeout": wait}
    try:
        store, _, _ = next(iter(dist.rendezvous("env://", where.rank, where.size, timeout=wait)))
        store.set_timeout(wait)
        store = of_this_start(store, where.rank, where.size, wait.total_seconds())
        groups = dist.PrefixStore("groups", store)
        dist.init_process_group("cpu:gloo,cuda:nccl" if cuda else "gloo", store=groups, **how)
        return dist.PrefixStore("ends", store)
    except (RuntimeError, OSError) as error:  # DistError too
        reason = str(error).strip().splitlines() or [type(error).__name__]
        raise LaunchError(
            f"rank {where.rank}: the {where.size} processes that WORLD_SIZE tells of have not all met at "
            f"{os.environ['MASTER_ADDR']}:{os.environ['MASTER_PORT']} within {wait.total_seconds():g} s ({reason[0]}); "
            "one has ended, or was never started"
        ) from error
