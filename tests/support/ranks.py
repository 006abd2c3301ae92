"""Runs one function in several processes that form a process group, and never hangs.

Each rank has its own log, in which a fault handler writes the stack of every thread when the rank crashes or is too
slow. The first rank that fails ends all of them, and the error has its name, its exit code and the end of its log.
"""

from __future__ import annotations

import faulthandler
import importlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
#: between asking a rank for its stacks and killing it
_GRACE = 5.0


class RankError(AssertionError):
    """A rank failed or was too slow; the message has the end of its log."""


def run_ranks(
    function: Callable[..., None], size: int, folder: Path, *args: Any, seconds: float = 120, backend: str = "gloo"
) -> None:
    """``function(rank, size, *args)`` in `size` processes, behind ``init_process_group(backend)``.

    Args:
        function: of a test module's top level; it writes what it finds out into files of `folder`.
        folder: for the rendezvous and the logs, ``rank0.log`` and so on.
        args: what JSON can hold.
        seconds: from the start of the ranks to their end; then all of them are killed.

    Raises:
        RankError: a rank raised, crashed or was too slow.
    """
    folder = Path(folder)
    (folder / "rendezvous").unlink(missing_ok=True)
    job = json.dumps([function.__module__, function.__qualname__, str(folder), size, backend, seconds, list(args)])
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join([str(ROOT), *sys.path])}
    ranks, logs = [], [folder / f"rank{rank}.log" for rank in range(size)]
    try:
        for rank, log in enumerate(logs):
            with open(log, "wb") as output:
                command = [sys.executable, "-m", "tests.support.ranks", str(rank), job]
                ranks.append(subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT, env=environment))
        _wait(ranks, logs, seconds)
    finally:
        for process in ranks:
            process.kill()
            process.wait()


def _wait(ranks: list[subprocess.Popen[bytes]], logs: list[Path], seconds: float) -> None:
    end = time.monotonic() + seconds
    while True:
        codes = [process.poll() for process in ranks]
        failed = [rank for rank, code in enumerate(codes) if code]
        if failed:
            time.sleep(0.2)  # the log's last lines
            # the rank that failed by itself is named, not one that lost its peer in the same moment
            raise RankError("\n".join(_report(rank, ranks[rank].poll(), logs[rank]) for rank in failed))
        if all(code == 0 for code in codes):
            return
        if time.monotonic() > end:
            slow = [rank for rank, code in enumerate(codes) if code is None]
            for rank in slow:
                ranks[rank].send_signal(signal.SIGABRT)  # its fault handler writes the stacks
            grace = time.monotonic() + _GRACE
            while time.monotonic() < grace and any(ranks[rank].poll() is None for rank in slow):
                time.sleep(0.05)
            reports = "\n".join(_report(rank, None, logs[rank]) for rank in slow)
            raise RankError(f"not done after {seconds:g} s:\n{reports}")
        time.sleep(0.02)


def _report(rank: int, code: int | None, log: Path) -> str:
    how = "is still running" if code is None else f"ended with code {code}"
    return f"rank {rank} {how}:\n{log.read_text(errors='replace')[-4000:]}"


def _main(rank: int, job: str) -> None:
    faulthandler.enable(all_threads=True)
    module, name, folder, size, backend, seconds, args = json.loads(job)
    # a rank whose parent was killed must not outlive it for long
    faulthandler.dump_traceback_later(seconds + 2 * _GRACE, exit=True)
    import torch
    import torch.distributed as dist

    import fastmeta  # noqa: F401  (before there is a group: torch's optimizers would keep it, and its threads)

    torch.set_num_threads(1)
    dist.init_process_group(backend, init_method=f"file://{folder}/rendezvous", rank=rank, world_size=size)
    getattr(importlib.import_module(module), name)(rank, size, *args)
    # All files are written. A thread of gloo may still hold the tensors of a collective; where it drops them while the
    # interpreter shuts down, the process aborts (rarely, on a busy machine). So there is no shutting down, and none
    # leaves before all are here.
    dist.barrier()
    dist.destroy_process_group()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)


if __name__ == "__main__":
    _main(int(sys.argv[1]), sys.argv[2])
