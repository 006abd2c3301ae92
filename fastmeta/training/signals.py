"""Signals that end a process, as a wish that a run hears at its next step boundary."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

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

    signum: int | None = None

    def __init__(self, heard: Sequence[signal.Signals]) -> None:
        self.heard = heard

    def __call__(self, signum: int, frame: FrameType | None) -> None:
        self.signum = signum
        # a second one ends the process at once
        for s in self.heard:
            signal.signal(s, signal.default_int_handler if s == signal.SIGINT else signal.SIG_DFL)

    def asked(self) -> bool:
        return self.signum is not None


@contextmanager
def stop_signals() -> Iterator[Stop]:
    """Inside, these signals are noted and not obeyed at once; off the main thread nothing changes.

    One that the process was started to ignore (nohup, a shell's background job) stays ignored.
    """
    if threading.current_thread() is not threading.main_thread():
        yield Stop(())
        return
    before = {s: signal.getsignal(s) for s in SIGNALS}
    heard = [s for s in SIGNALS if before[s] != signal.SIG_IGN]
    stop = Stop(heard)
    for s in heard:
        signal.signal(s, stop)
    try:
        yield stop
    finally:
        for s in heard:
            signal.signal(s, before[s])
