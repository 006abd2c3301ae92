"""Seconds and memory of a checkpoint of a label table: in one process, and on the ranks of torchrun.

    OMP_NUM_THREADS=1 python benchmarks/rank_checkpoint.py
    OMP_NUM_THREADS=1 torchrun --standalone --nproc-per-node 2 benchmarks/rank_checkpoint.py

Each adds its figures to results/rank-checkpoint.json, under the number of processes, unless --no-json is given.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import threading
import time
from pathlib import Path

import torch

from fastmeta.bench.environment import record
from fastmeta.bench.result_files import replace
from fastmeta.distributed.launch import joined
from fastmeta.training.rundir import rank_files

FILE = Path(__file__).parent / "results" / "rank-checkpoint.json"


class Watched:
    """Seconds, and MiB of memory of the process's own that came on top, while something runs."""

    def __enter__(self) -> Watched:
        self._before = self._most = _own_memory()
        self._on, self._began = True, time.perf_counter()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()
        return self

    def _watch(self) -> None:
        while self._on:
            self._most = max(self._most, _own_memory())
            time.sleep(0.005)

    def __exit__(self, *_: object) -> None:
        self._on, self.seconds = False, time.perf_counter() - self._began
        self._thread.join()

    @property
    def figures(self) -> dict[str, float]:
        return {"seconds": self.seconds, "more_mib": self._most - self._before}

    def __str__(self) -> str:
        return f"{self.seconds:.2f} s, {self._most - self._before:,.0f} MiB more"


def _own_memory() -> float:
    status = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1024 for line in status if line.startswith("RssAnon"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--classes", type=int, default=100)
    parser.add_argument("--no-json", action="store_true")
    options = parser.parse_args()
    with joined() as ranks, tempfile.TemporaryDirectory() as own:
        folder = Path(ranks.told(own))
        first, last = ranks.share(options.rows)
        table = torch.randn(last - first, options.classes)
        path = folder / "checkpoint" / "state.safetensors"
        path.parent.mkdir(exist_ok=True)
        for _ in range(2):  # the first time imports
            with Watched() as save:
                rank_files.save(path, {"labels": table}, {"stage": None}, ranks, by_row={"labels"})
            with Watched() as load:
                found = rank_files.load(path, ranks)[0]["labels"]
                found.sum()  # of one process the file is mapped, and read here
            assert torch.equal(found, table)
            del found
        told = f"rank {ranks.rank} of {ranks.size}, {table.nbytes / 2**20:,.0f} MiB of rows: save {save}; load {load}"
        for line in ranks.each(told) if ranks.size > 1 else [told]:
            if ranks.first:
                print(line)
        figures = {"rows_mib": table.nbytes / 2**20, "save": save.figures, "load": load.figures}
        if ranks.first and not options.no_json:
            content = json.loads(FILE.read_text()) if FILE.exists() else {"schema": 1, "kind": "rank-checkpoint"}
            sizes = {"rows": options.rows, "classes": options.classes}
            here = {
                "environment": record(torch.device("cpu"), "benchmarks/rank_checkpoint.py"),
                **sizes,
                "rank0": figures,
            }
            replace(FILE, content | {f"{ranks.size}_processes": here})


if __name__ == "__main__":
    main()
