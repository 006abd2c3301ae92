"""Steps on a label table in a file, from ten thousand rows to fourteen million of 21,841 classes."""

from __future__ import annotations

import os
import tempfile
import time
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

from fastmeta.bench.result_files import number, table
from fastmeta.bench.scale_problem import BATCH, Learner, written
from fastmeta.losses import MmapTable

CLASSES, ROWS = 21_841, (10_000, 100_000, 1_000_000, 14_000_000)
#: steps of each, at most: every row that moves takes up 87 kB of disk
_MOST = 150


def measure(seconds: float) -> dict[str, Any]:
    """Files beside each other in a temporary folder, steps in turns."""
    with tempfile.TemporaryDirectory() as folder:
        files = {rows: Path(folder, f"{rows}.rows") for rows in ROWS}
        learners = {rows: Learner(rows, CLASSES, partial(MmapTable, path=files[rows]), 2 * _MOST) for rows in ROWS}
        firsts = {rows: learner() for rows, learner in learners.items()}
        for learner in learners.values():
            for _ in range(3):
                learner()
        before, times = _resident(), {rows: list[float]() for rows in ROWS}
        end, order = time.perf_counter() + seconds, list(ROWS)
        while (time.perf_counter() < end or len(times[ROWS[0]]) < 10) and len(times[ROWS[0]]) < _MOST:
            turn = len(times[ROWS[0]]) % len(order)
            for rows in (*order[turn:], *order[:turn]):
                times[rows].append(learners[rows]())
        growth = _resident() - before
        found = [_of(rows, learners.pop(rows), firsts[rows], times, files[rows]) for rows in ROWS]
    return {"classes": CLASSES, "batch": BATCH, "resident_growth_bytes": growth, "sizes": found}


def _of(rows: int, learner: Learner, first: float, times: dict[int, list[float]], file: Path) -> dict[str, Any]:
    state, seconds = learner.checkpoint()
    kept = written(state)
    learner()  # ahead of the state
    began = time.perf_counter()
    learner.labels.load_state_dict(kept)
    restored = time.perf_counter() - began
    stat = os.stat(file)
    return {
        "rows": rows,
        "steps": len(times[rows]),
        "start_seconds": learner.start_seconds,
        "first_step_seconds": first,
        "step_seconds": median(times[rows]),
        "over_fewest_rows": median(a / b for a, b in zip(times[rows], times[ROWS[0]], strict=True)) - 1,
        "file_bytes": stat.st_size,
        "disk_bytes": 512 * stat.st_blocks,
        "checkpoint_seconds": seconds,
        "restore_seconds": restored,
    }


def _resident() -> int:
    """Bytes of memory that this process has now."""
    with open("/proc/self/statm", encoding="ascii") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def told(result: dict[str, Any]) -> str:
    rows = [
        (
            f"{size['rows']:,}",
            number(1e3 * size["step_seconds"]),
            number(100 * size["over_fewest_rows"], 1),
            number(size["start_seconds"]),
            number(size["file_bytes"] / 1e9, 1),
            number(size["disk_bytes"] / 1e9),
            number(size["checkpoint_seconds"]),
            number(size["restore_seconds"]),
        )
        for size in result["sizes"]
    ]
    head = ("rows", "step ms", "over %", "start s", "file GB", "disk GB", "save s", "restore s")
    growth = result["resident_growth_bytes"] / 2**20
    return f"{table(head, rows)}\nresident memory grew by {growth:.1f} MiB over these steps"
