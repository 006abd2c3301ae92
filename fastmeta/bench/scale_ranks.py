"""From one process to two: steps of ranks with rows of their own, and what talking to each other takes of them."""

from __future__ import annotations

import faulthandler
import json
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from fastmeta import InstanceLabels, MetaStep, models

CLASSES, ROWS = 10, 4096
#: of the network, shape of a sample, samples of a step in one process (as many clean ones)
NETWORKS: dict[str, tuple[tuple[int, ...], int]] = {
    "mlp": ((3, 32, 32), 256),
    "fastmeta.models.narrow:narrow_resnet": ((3, 32, 32), 32),
}
WARM, LEAST = 3, 6
#: seconds beyond those that are measured, in which a process must have started, warmed up and ended
PATIENCE = 90.0


@dataclass(frozen=True)
class Job:
    """What each of `size` processes does; `batch` is of one of them."""

    model: str
    shape: tuple[int, ...]
    batch: int
    size: int
    seconds: float


def measure(seconds: float) -> dict[str, Any]:
    """Median seconds of a step of one process with one thread, and of two such, by gloo on this machine.

    Weak scaling keeps the batch of each process, strong scaling the batch of all. ``reduction`` is the share of a step
    that rank 0 spends in collectives, waiting for the other rank included, with calls and bytes of a step.
    """
    each, found = seconds / (3 * len(NETWORKS)), dict[str, Any]()
    for model, (shape, batch) in NETWORKS.items():
        one = _run(Job(model, shape, batch, 1, each))
        weak = _run(Job(model, shape, batch, 2, each))
        strong = _run(Job(model, shape, batch // 2, 2, each))
        found[model] = {
            "batch": batch,
            "one_process": one,
            "weak": weak | {"efficiency": one["step_seconds"] / weak["step_seconds"]},
            "strong": strong | {"speed_up": one["step_seconds"] / strong["step_seconds"]},
        }
    return {"what": "MetaStep, InstanceLabels, own_rows, one thread a process, gloo", "networks": found}


def told(result: dict[str, Any]) -> str:
    lines = [result["what"]]
    for name, found in result["networks"].items():
        one, weak, strong = (found[kind] for kind in ("one_process", "weak", "strong"))
        lines.append(
            f"{name.rpartition(':')[2]}: {1000 * one['step_seconds']:.1f} ms with one process; weak "
            f"{weak['efficiency']:.1%}, strong {strong['speed_up']:.2f}x; in collectives {weak['reduction']:.1%} and "
            f"{strong['reduction']:.1%} of a step, {weak['bytes'] / 2**20:,.2f} MiB"
        )
    return "\n".join(lines)


def _run(job: Job) -> dict[str, Any]:
    """What rank 0 finds. RuntimeError with the end of a rank's log where one fails or is too slow."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    with tempfile.TemporaryDirectory() as folder:
        ranks, logs = [], [Path(folder, f"rank{rank}.log") for rank in range(job.size)]
        try:
            for rank, log in enumerate(logs):
                command = [
                    sys.executable,
                    "-m",
                    "fastmeta.bench.scale_ranks",
                    folder,
                    str(rank),
                    json.dumps(asdict(job)),
                ]
                with open(log, "wb") as out:
                    pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": out, "stderr": subprocess.STDOUT}
                    ranks.append(subprocess.Popen(command, env=environment, **pipes))
            end = time.monotonic() + job.seconds + PATIENCE
            while None in (codes := [process.poll() for process in ranks]) or any(codes):
                late = time.monotonic() > end
                if late or any(codes):
                    why = "is too slow" if late else "failed"
                    raise RuntimeError(f"a rank {why}:\n" + "\n".join(log.read_text()[-2000:] for log in logs))
                time.sleep(0.05)
        finally:
            for process in ranks:
                process.kill()
                process.communicate()
        return json.loads(Path(folder, "found.json").read_text())


def _rank(folder: str, rank: int, job: Job) -> None:
    faulthandler.dump_traceback_later(job.seconds + PATIENCE, exit=True)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=job.size)
    group = dist.group.WORLD if job.size > 1 else None
    generator = torch.Generator().manual_seed(rank)
    torch.manual_seed(0)
    model = models.build(job.model, num_classes=CLASSES, input_shape=job.shape)
    labels = InstanceLabels(torch.randint(CLASSES, (ROWS,), generator=generator), CLASSES, 0.7)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
    step = MetaStep(model, labels, optimizer, label_lr=1.0, process_group=group, own_rows=group is not None)
    x, x_meta = (torch.randn(job.batch, *job.shape, generator=generator) for _ in range(2))
    y_meta = torch.randint(CLASSES, (job.batch,), generator=generator)

    def one() -> float:
        index = torch.randperm(ROWS, generator=generator)[: job.batch]
        begin = time.perf_counter()
        step((x, index), (x_meta, y_meta))
        return time.perf_counter() - begin

    warm = min(one() for _ in range(WARM))
    count = torch.tensor(max(LEAST, int(job.seconds / warm)))
    dist.broadcast(count, 0)  # all take as many steps
    spent = _watched()
    times = [one() for _ in range(int(count))]
    if rank == 0:
        steps = len(times)
        about = {"step_seconds": statistics.median(times), "steps": steps}
        if group is not None:
            about |= {
                "reduction": spent["seconds"] / sum(times),
                "collectives": spent["calls"] / steps,
                "bytes": spent["bytes"] / steps,
            }
        Path(folder, "found.json").write_text(json.dumps(about))
    dist.barrier()
    os._exit(0)  # threads of gloo may abort a process that shuts down


def _end_with_parent() -> None:
    """Whatever ends the process that began this one, SIGKILL too, closes its end of the pipe."""
    os.read(0, 1)
    os._exit(1)


def _watched() -> dict[str, float]:
    """Seconds, calls and bytes of all-reduces from now on."""
    spent, reduce = {"seconds": 0.0, "calls": 0, "bytes": 0.0}, dist.all_reduce

    def all_reduce(tensor: Tensor, *args: Any, **options: Any) -> Any:
        begin = time.perf_counter()
        done = reduce(tensor, *args, **options)
        spent["seconds"] += time.perf_counter() - begin
        spent["calls"] += 1
        spent["bytes"] += tensor.numel() * tensor.element_size()
        return done

    dist.all_reduce = all_reduce
    return spent


if __name__ == "__main__":
    asked = json.loads(sys.argv[3])
    _rank(sys.argv[1], int(sys.argv[2]), Job(**{**asked, "shape": tuple(asked["shape"])}))
