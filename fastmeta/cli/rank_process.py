"""``fastmeta train`` in one of the processes of torchrun: rank 0 speaks for all, and all end together.

Every rank tells how it ends in a store that outlives lost connections. What all say alike rank 0 prints once; what one
rank says alone it prints itself, with its number, and the others, who only find it gone, end with its exit code.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
from collections.abc import Callable, Sequence

import torch.distributed as dist

from fastmeta._text import printable_lines, reason
from fastmeta.data import InputError
from fastmeta.distributed import launch

#: seconds in which ranks that fail together are all heard
_GRACE = 5.0
#: exit code and text of a command
End = tuple[int, str]


def run(prog: str, seconds: float, command: Callable[[], End], ended: Callable[[BaseException], End | None]) -> int:
    """The exit code of `command`, which every rank carries out; `ended` says how an error of it ends a command."""
    try:
        with launch.joined(seconds) as ranks:
            ends = launch.ends()
            assert ends is not None
            end, gone = _outcome(command, ended)
            # what torchrun does to those who are left must not end them before they have spoken
            for name in ("SIGTERM", "SIGINT", "SIGHUP"):
                signal.signal(getattr(signal, name), signal.SIG_IGN)
            ends.tell(end[0], "" if gone else end[1])
            if gone or end[0] not in (0, 2):
                _hang_up(ranks.side)
            code = _said(prog, ranks.rank, ranks.size, end, gone, ends)
    except launch.LaunchError as error:
        return _print(prog, 2, str(error))
    return code


def _outcome(command: Callable[[], End], ended: Callable[[BaseException], End | None]) -> tuple[End, bool]:
    try:
        return command(), False
    except SystemExit as stop:
        return (stop.code if isinstance(stop.code, int) else 1, ""), False
    except BaseException as error:
        if launch.lost(error) and not isinstance(error, InputError):
            return (1, str(error) if isinstance(error, launch.Gone) else reason(error)), True
        found = ended(error)
        if found is None:
            if not isinstance(error, KeyboardInterrupt):
                sys.excepthook(type(error), error, error.__traceback__)
            found = (130, "stopped") if isinstance(error, KeyboardInterrupt) else (1, reason(error))
        return found, False


def _said(prog: str, rank: int, size: int, own: End, gone: bool, ends: launch.Ends) -> int:
    """Print what is this rank's to say; the exit code."""
    others = ends.others(_GRACE if own[0] or gone else 0.0)
    if own[0] == 0 and not gone:
        return 0
    told = {r: end for r, end in others.items() if end[1]}
    if gone:
        if told:
            return told[min(told)][0]
        silent = sorted(set(range(size)) - {rank} - others.keys())
        if rank != min(set(range(size)) - set(silent)):
            return own[0]
        who = ", ".join(map(str, silent)) or "unknown"
        return _print(
            prog,
            own[0],
            f"rank {who} is gone or does not answer (it was killed, its machine is gone, or it took longer than "
            f"--rank-timeout): {own[1]}",
        )
    alike = len(told) == size - 1 and all(end == own for end in told.values())
    if alike:
        return _print(prog, *own) if rank == 0 else own[0]
    return _print(prog, own[0], f"rank {rank}: {own[1]}")


def _hang_up(group: dist.ProcessGroup | None) -> None:
    """So that nobody waits for this rank any longer."""
    with contextlib.suppress(Exception):
        dist.destroy_process_group(group)


def _print(prog: str, code: int, text: str) -> int:
    if text:
        print(printable_lines(f"{prog}: {text}"), file=sys.stderr, flush=True)
    return code


def leave(code: int) -> None:
    """End the process at once: a thread of gloo that is cut off while Python shuts down would abort it."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def refuse_command(name: str) -> None:
    """End each of several processes that torchrun has started, for a command that is for one; rank 0 says so."""
    with contextlib.suppress(launch.LaunchError):  # half an environment makes no ranks
        if launch.place() is not None:
            why = f"{name} is for one process, and torchrun has started several; start it as fastmeta {name} ..."
            leave(run(f"fastmeta {name}", launch.TIMEOUT, lambda: (2, why), lambda _: None))


def refuse(words: Sequence[tuple[bool, str]]) -> None:
    """InputError for the first of options that several processes cannot have."""
    for asked, name in words:
        if asked:
            raise InputError(f"{name} is for one process, and torchrun has started several; leave one of them out")
