"""``fastmeta train --folds K --folds-at-once N``: up to N folds side by side, each in a process of its own."""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from fastmeta._text import printable
from fastmeta.training import Interrupted, Listener, TrainConfig, TrainingError
from fastmeta.training.fold_runs import Folds
from fastmeta.training.rundir import SUMMARY, is_held
from fastmeta.training.signals import stop_signals

#: seconds between two looks at the processes
_LOOK = 0.2
#: seconds to wait for a process that saves its state, because whoever began it was killed
_PATIENCE = 30.0
_PR_SET_PDEATHSIG = 1


class _Fold:
    """A fold that is trained by a process; what it says goes to OUT/foldK.log."""

    def __init__(self, number: int, config: TrainConfig, folder: str, flags: Sequence[str]) -> None:
        self.name, self.log = f"fold{number}", Path(f"{config.out}.log")
        file = Path(folder, f"{self.name}.toml")
        file.write_bytes(replace(config, out=None).to_toml().encode())
        words = ["train", "--config", str(file), "--out", str(config.out), "--auto-resume", *flags]
        libc = ctypes.CDLL(None) if sys.platform == "linux" else None

        def dies_with_us() -> None:  # kill -9 of this process stops its folds, which save their state
            if libc is not None:
                libc.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)

        with open(self.log, "ab") as log:
            # in a session of its own, so that Ctrl-C comes once, from here: a second one would end it unsaved
            self.process = subprocess.Popen(
                [sys.executable, "-m", "fastmeta", *words],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                preexec_fn=dies_with_us if libc is not None else None,
            )

    def last_line(self) -> str:
        lines = self.log.read_text("utf-8", "replace").splitlines()
        last = next((line for line in reversed(lines) if line.strip()), "nothing was said")
        return last.removeprefix("fastmeta train: ")


def train_at_once(plan: Folds, most: int, flags: Sequence[str], listener: Listener) -> None:
    """Train the folds of `plan` that are not finished, up to `most` at a time. What is finished is left as it is.

    Args:
        flags: for each process, beside the fold's config: ``--trust-code``, ``--log``.

    Raises:
        TrainingError: a fold has failed; the others were trained to their ends.
        Interrupted: a signal; each process has saved its state.
    """
    waiting = [(k, config) for k, config in enumerate(plan.runs) if not os.path.isfile(plan.path(k) / SUMMARY)]
    running: list[_Fold] = []
    failed: list[str] = []
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as folder, stop_signals() as stop:
        while waiting or running:
            patient = time.monotonic() < began + _PATIENCE
            while waiting and len(running) < most and not failed:
                number, config = waiting[0]
                if patient and is_held(plan.path(number)):
                    break
                waiting.pop(0)
                running.append(_Fold(number, config, folder, flags))
                listener.note(f"{running[-1].name}: in {config.out}, what it says is in {running[-1].log}")
            time.sleep(_LOOK)
            if stop.signum is not None:
                for fold in running:
                    fold.process.send_signal(signal.SIGTERM)
                for fold in running:
                    fold.process.wait()
                raise Interrupted(plan.folder, stop.signum, f"in {len(running)} folds", plan.runs[0])
            for fold in [fold for fold in running if fold.process.poll() is not None]:
                running.remove(fold)
                if fold.process.returncode:
                    failed.append(printable(f"{fold.name}: {fold.last_line()}"))
                else:
                    listener.note(f"{fold.name}: done")
                    fold.log.unlink(missing_ok=True)
            if failed and not running:
                raise TrainingError("; ".join(sorted(failed)))
