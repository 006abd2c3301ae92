"""Signals that end a process, as a wish that a run hears at its next step boundary."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

from fastmeta.distributed import ALONE, Ranks
from fastmeta.training.config import TrainConfig
from fastmeta.training.rundir.layout import resume_command

#: Ctrl-C, the wish of a scheduler, and a terminal that went away (where the system has such)
SIGNALS = [signal.Signals[name] for name in ("SIGINT", "SIGTERM", "SIGHUP") if name in signal.Signals.__members__]


class Interrupted(KeyboardInterrupt):
    """A signal stopped the run: the first one at a step boundary, after its state was saved; a second one at once."""

    def __init__(self, path: Path, signum: int, where: str, config: TrainConfig) -> None:
        super().__init__(f"stopped by {signal.Signals(signum).name} {where} in {path}")
        self.path, self.signum = path, signum
        self.way = resume_command(path, config)  #: what to type to go on


class Stop:
    """The signal that asked the run to stop, once one has."""

    signum: int | None = None  # that the run obeys; of several ranks, once all have agreed on it
    _heard: int | None = None

    def __init__(self, heard: Sequence[signal.Signals], ranks: Ranks = ALONE) -> None:
        self.heard, self.ranks = heard, ranks

    def __call__(self, signum: int, frame: FrameType | None) -> None:
        self._heard = signum
        if self.ranks.size == 1:
            self.signum = signum
        # a second one ends the process at once
        for s in self.heard:
            signal.signal(s, signal.default_int_handler if s == signal.SIGINT else signal.SIG_DFL)

    def asked(self) -> bool:
        return self.signum is not None

    def agree(self, due: bool) -> bool:
        """At a step boundary, where all ranks call it: what one has heard all obey; whether rank 0 finds a save due.

        One small all-reduce on the host says both.
        """
        if self.ranks.size == 1:
            return due
        signum, due_there = self.ranks.most([self._heard or 0, self.ranks.first and due])
        self.signum = signum or None
        return bool(due_there)


@contextmanager
def stop_signals(ranks: Ranks = ALONE) -> Iterator[Stop]:
    """Inside, these signals are noted and not obeyed at once; off the main thread nothing changes.

    One that the process was started to ignore (nohup, a shell's background job) stays ignored.
    """
    if threading.current_thread() is not threading.main_thread():
        yield Stop((), ranks)
        return
    before = {s: signal.getsignal(s) for s in SIGNALS}
    heard = [s for s in SIGNALS if before[s] != signal.SIG_IGN]
    stop = Stop(heard, ranks)
    for s in heard:
        signal.signal(s, stop)
    try:
        yield stop
    finally:
        for s in heard:
            signal.signal(s, before[s])
