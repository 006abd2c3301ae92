"""How long the first compiled step takes: with nothing on disk, with inductor's headers alone, and in the next process.

    python benchmarks/compile_time.py        # ResNet-20, 32/64, one thread; writes results/compile-resnet20-cpu.json

Each is a process of its own; the step's seconds are from its call to its end: the choice of the tangent, the trace, the
compile and one step. CPU seconds are of the process and of the compilers that it starts. `new` has an empty temporary
folder, where inductor also keeps the headers that it has compiled, of which one copy serves all caches; `cold` has an
empty cache alone; `warm` finds what `cold` has left, and is the median of five processes by their CPU seconds.
`step_after` is the second step, in which Python may look through all that the first has made; `import_fastmeta` is
what fastmeta adds to ``import torch``.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

RESULTS = Path(__file__).parent / "results"


class Clock:
    """Seconds since the clock was made, on the wall and of the CPU."""

    def __init__(self) -> None:
        self._start = self._now()

    @staticmethod
    def _now() -> tuple[float, float, float]:
        own, others = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
        return time.perf_counter(), own.ru_utime + own.ru_stime, others.ru_utime + others.ru_stime

    def read(self) -> dict[str, float]:
        wall, own, others = (now - start for now, start in zip(self._now(), self._start, strict=True))
        return {"wall_s": round(wall, 3), "cpu_s": round(own + others, 3), "cpu_of_compilers_s": round(others, 3)}


def one(args: argparse.Namespace) -> dict[str, Any]:
    """The figures of this process."""
    whole, clock = Clock(), Clock()
    import torch

    imports = clock.read()
    clock = Clock()
    import fastmeta  # noqa: F401

    ours = clock.read()
    from torch._dynamo.utils import counters

    from fastmeta.bench.step_problem import Problem, StepConfig
    from fastmeta.bench.step_variants import fastmeta_variant

    torch.set_num_threads(1)
    sizes = {"batch": args.batch, "meta_batch": args.meta_batch, "classes": args.classes}
    variant = fastmeta_variant(Problem(StepConfig(model=args.model, **sizes), torch.float32), compile="full")
    clock = Clock()
    variant.step()
    first, process = clock.read(), whole.read()
    steps = []
    for _ in range(5):
        clock = Clock()
        variant.step()
        steps.append(clock.read()["cpu_s"])
    return {
        "import_torch": imports,
        "import_fastmeta": ours,
        "first_step": first,
        "process": process,
        "step_after_cpu_s": steps[0],
        "step_cpu_s": median(steps),
        "found_on_disk": bool(counters["inductor"]["fxgraph_cache_hit"]),
    }


def measure(argv: list[str], folder: Path, tmp: Path | None) -> dict[str, Any]:
    environment = os.environ | {"TORCHINDUCTOR_CACHE_DIR": str(folder), "OMP_NUM_THREADS": "1"}
    if tmp is not None:
        environment["TMPDIR"] = str(tmp)
    command = [sys.executable, __file__, *argv, "--one"]
    return json.loads(subprocess.run(command, env=environment, check=True, stdout=subprocess.PIPE).stdout)


def main(argv: list[str]) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="resnet20")
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--meta-batch", type=int, default=64)
    parser.add_argument("--classes", type=int, default=100)
    parser.add_argument("--json", type=Path, help="default: benchmarks/results/compile-MODEL-cpu.json")
    parser.add_argument("--one", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    if args.one:
        print(json.dumps(one(args)))
        return
    import torch

    from fastmeta.bench.environment import record

    rows = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for kind, cache, tmp in (("new", "new", folder), ("cold", "cold", None), ("warm", "cold", None)):
            runs = [measure(argv, folder / cache, tmp) for _ in range(5 if kind == "warm" else 1)]
            rows[kind] = sorted(runs, key=lambda run: run["first_step"]["cpu_s"])[len(runs) // 2]
            print(kind, json.dumps(rows[kind]), flush=True)
    content = {
        "schema": 1,
        "kind": "compile-time",
        "environment": record(torch.device("cpu"), " ".join(["python benchmarks/compile_time.py", *argv])),
        "model": args.model,
        "batch": args.batch,
        "meta_batch": args.meta_batch,
        "classes": args.classes,
        "threads": 1,
        "rows": rows,
    }
    path = args.json or RESULTS / f"compile-{args.model}-cpu.json"
    path.write_text(json.dumps(content, indent=1) + "\n")


if __name__ == "__main__":
    main(sys.argv[1:])
