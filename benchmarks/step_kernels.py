"""Which kernels a step consists of on a GPU: time by kind, and what lies between them.

    python benchmarks/step_kernels.py --model resnet18 --json benchmarks/results/step-kernels-cuda.json

The variants take turns in one process, as in `fastmeta bench step`; then each is run under torch's profiler. `busy` is
the time that kernels took, `ms` the step's.
"""

from __future__ import annotations

import argparse
import collections
import json
import sys
from pathlib import Path
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

from fastmeta.bench.environment import record
from fastmeta.bench.step_check import build
from fastmeta.bench.step_problem import Problem, StepConfig
from fastmeta.bench.step_variant import Variant
from fastmeta.measure import interleave

VARIANTS = ("sgd:captured", "sgd:compiled-captured", "fastmeta:full")
#: kind of a kernel by a part of its name, the first that is found
KINDS = (
    ("triton", "inductor"),
    ("wgrad", "convolution, weights"),
    ("dgrad", "convolution, input"),
    ("fprop", "convolution, forward"),
    ("batch_norm", "batch norm"),
    ("gemm", "matrix product"),
    ("fastmeta", "fastmeta"),
    ("memset", "memset"),
)


def kind(name: str) -> str:
    return next((k for part, k in KINDS if part in name.lower()), "other")


def kernels(variant: Variant, cycles: int = 3) -> list[dict[str, Any]]:
    for _ in range(3):
        variant.cycle()
    torch.cuda.synchronize()
    with profile(activities=[ProfilerActivity.CUDA]) as seen:
        for _ in range(cycles):
            variant.cycle()
        torch.cuda.synchronize()
    steps = cycles * variant.period
    time, calls = collections.Counter[str](), collections.Counter[str]()
    for event in seen.events():
        if event.device_type == torch.autograd.DeviceType.CUDA:
            time[event.name] += event.time_range.elapsed_us()
            calls[event.name] += 1
    return [{"name": k[:160], "microseconds": us / steps, "calls": calls[k] / steps} for k, us in time.most_common()]


def summary(ms: float, found: list[dict[str, Any]]) -> dict[str, Any]:
    kinds: dict[str, list[float]] = {}
    for one in found:
        both = kinds.setdefault(kind(one["name"]), [0.0, 0.0])
        both[0] += one["microseconds"] / 1e3
        both[1] += one["calls"]
    return {
        "ms": ms,
        "busy": sum(one["microseconds"] for one in found) / 1e3,
        "launches": sum(one["calls"] for one in found),
        "kinds": {k: {"ms": v[0], "launches": v[1]} for k, v in sorted(kinds.items(), key=lambda i: -i[1][0])},
        "longest": found[:10],
    }


def say(name: str, row: dict[str, Any]) -> None:
    print(f"{name:24} {row['ms']:.2f} ms, busy {row['busy']:.2f}, {row['launches']:.0f} launches")
    for k, v in row["kinds"].items():
        print(f"    {k:22} {v['ms']:.2f} ms in {v['launches']:.0f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="resnet18")
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--meta-batch", type=int, default=256)
    parser.add_argument("--classes", type=int, default=100)
    parser.add_argument("--variants", nargs="+", default=VARIANTS)
    parser.add_argument("--seconds", type=float, default=12.0)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    config = StepConfig(
        model=args.model,
        batch=args.batch,
        meta_batch=args.meta_batch,
        classes=args.classes,
        dtype="bfloat16",
        device="cuda",
    )
    problem = Problem(config, torch.float32)
    variants: dict[str, Variant] = {}
    for name in args.variants:
        built = build(name, problem)
        if isinstance(built, str):
            print(f"skipped {name}: {built}")
            continue
        for _ in range(2):
            built.cycle()
        variants[name] = built
    timings = interleave({k: v.bodies for k, v in variants.items()}, problem.device, seconds=args.seconds, rounds=None)
    found = {k: summary(timings[k].median * 1e3, kernels(v)) for k, v in variants.items()}
    for name, row in found.items():
        say(name, row)
    if args.json:
        document = {"kind": "step-kernels", "environment": record(problem.device, " ".join(sys.argv))}
        args.json.write_text(json.dumps({**document, "variants": found}, indent=1) + "\n")


if __name__ == "__main__":
    main()
