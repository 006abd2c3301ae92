"""What a label table costs on the host and in a file, beside a dense one that fits."""

from __future__ import annotations

import tempfile
import time
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

from fastmeta.bench.result_files import number, table
from fastmeta.bench.scale_problem import BATCH, Learner
from fastmeta.losses import HostTable, MmapTable

#: classes, rows: each table some ten MB, all of whose rows are visited twice
SIZES = ((21_841, 1_024), (1_000, 5_120))
_MOST = 10**6
#: epochs from one checkpoint to the next: in the first of them old rows are journaled
_PERIOD = 3
#: of a step: its rows were never written, are overwritten for the first time since a checkpoint, or were so before
PHASES = ("first visit", "journaled", "between")


def measure(seconds: float, device: str = "cpu") -> dict[str, Any]:
    """Steps in turns in one process: all pay the same for what else the machine does.

    On CUDA also tables that do not hear of the next batch, whose rows are fetched when a step asks for them.
    """
    return {"batch": BATCH, "device": device, "sizes": [_size(*size, seconds / len(SIZES), device) for size in SIZES]}


def _size(classes: int, rows: int, seconds: float, device: str) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        kinds: dict[str, tuple[Any, bool]] = {"device": (None, True)}
        for prefetch in (True, False) if device == "cuda" else (True,):
            name, file = ("", "labels.rows") if prefetch else (" without prefetch", "others.rows")
            kinds[f"host{name}"] = HostTable, prefetch
            kinds[f"mmap{name}"] = partial(MmapTable, path=Path(folder, file)), prefetch
        learners = {name: Learner(rows, classes, kind, _MOST, device, p) for name, (kind, p) in kinds.items()}
        times: dict[str, list[float]] = {name: [] for name in learners}
        saves: dict[str, list[float]] = {name: [] for name in learners}
        names, end = list(learners), time.perf_counter() + seconds
        phases: list[str] = []
        epoch = learners["device"].batches
        while time.perf_counter() < end or len(phases) < epoch + 10:
            done = len(phases)
            number, begins = done // epoch, done % epoch == 0
            if begins and number % _PERIOD == 1:
                for name, learner in learners.items():
                    saves[name].append(learner.checkpoint()[1])
            phases.append(PHASES[0] if number == 0 else PHASES[1] if number % _PERIOD == 1 else PHASES[2])
            turn = done % len(names)
            for name in (*names[turn:], *names[:turn]):
                times[name].append(learners[name]())
        stores = {name: _store(times[name], times["device"], phases, saves[name]) for name in names}
    return {"classes": classes, "rows": rows, "steps": len(phases), "stores": stores}


def _store(own: list[float], device: list[float], phases: list[str], saves: list[float]) -> dict[str, Any]:
    pairs = [(phase, a, b) for phase, a, b in zip(phases, own, device, strict=True)][3:]
    over = {}
    for phase in PHASES:
        some = [a / b for at, a, b in pairs if at == phase]
        over[phase] = median(some) - 1 if some else None
    return {
        "step_seconds": median(own),
        "over_device": median(a / b for _, a, b in pairs) - 1,
        "over_device_by_phase": over,
        "checkpoint_seconds": median(saves) if saves else None,
    }


def told(result: dict[str, Any]) -> str:
    lines = []
    for size in result["sizes"]:
        rows = [
            (
                name,
                number(1e3 * store["step_seconds"]),
                number(100 * store["over_device"], 1),
                *(number(None if v is None else 100 * v, 1) for v in store["over_device_by_phase"].values()),
            )
            for name, store in size["stores"].items()
        ]
        head = (
            f"{size['rows']:,} rows × {size['classes']:,}",
            "step ms",
            "over %",
            *(f"{phase} %" for phase in PHASES),
        )
        lines.append(table(head, rows))
    return "\n\n".join(lines)
