"""Why an operation falls short of the memory: a GPU's own counters for the loss and the step of instance labels.

    ncu --csv --page raw SECTIONS -k regex:instance_ python benchmarks/op_counters.py launch >counters.csv
    python benchmarks/op_counters.py read counters.csv --json benchmarks/results/op-counters-cuda.json

`launch` launches each case once; SECTIONS are those of ``python benchmarks/op_counters.py sections``. Add
``--clock-control none`` where the card's clocks are not yours. Launches take longer than `fastmeta bench ops` says:
ncu empties the caches and lets nothing overlap.
"""

from __future__ import annotations

import argparse
import csv
import json
import math
from pathlib import Path
from typing import Any

SECTIONS = (
    "SpeedOfLight",
    "Occupancy",
    "WarpStateStats",
    "LaunchStats",
    "InstructionStats",
    "SchedulerStats",
    "ComputeWorkloadAnalysis",
)
DTYPES, CLASSES, OPERATIONS = (
    ("float32", "bfloat16"),
    (10, 100, 10_000, 50_257, 65_536),
    ("instance_loss", "instance_label_step_"),
)
ELEMENTS = 64 * 2**20
CASES = [(dtype, C, name) for dtype in DTYPES for C in CLASSES for name in OPERATIONS]
_STALL = "smsp__average_warps_issue_stalled_"


def launch() -> None:
    import torch

    from fastmeta import ops
    from fastmeta.bench.ops_catalog import DTYPES as TYPES
    from fastmeta.bench.ops_catalog import OPERATIONS as CATALOG
    from fastmeta.bench.ops_catalog import Inputs

    for dtype in DTYPES:
        for C in CLASSES:
            inputs = Inputs.random(math.ceil(ELEMENTS / C), C, TYPES[dtype], torch.device("cuda"), seed=0)
            for name in OPERATIONS:
                operation = CATALOG[name]
                arguments = [getattr(inputs, k) for k in operation.arguments]
                getattr(ops, name)(*arguments, **operation.options, **operation.fused_options)
                torch.cuda.synchronize()


def rows(path: Path) -> list[dict[str, Any]]:
    """One for each launch, in the order of CASES."""
    lines = [line for line in path.read_text().splitlines() if not line.startswith("==")]
    table = list(csv.reader(lines))
    top = next(i for i, row in enumerate(table) if row and row[0] == "ID")
    names, found = table[top], table[top + 2 :]
    if len(found) != len(CASES):
        raise SystemExit(f"{path} holds {len(found)} launches, expected {len(CASES)}: one for each case of `launch`")
    out = []
    for (dtype, C, name), row in zip(CASES, found, strict=True):
        value = {k: x.replace(",", "") for k, x in zip(names, row, strict=True)}
        stalls = {k.removeprefix(_STALL).split("_per_")[0]: float(x) for k, x in value.items() if k.startswith(_STALL)}
        of_warps = sum(stalls.values())
        out.append(
            {
                "operation": name,
                "C": C,
                "dtype": dtype,
                "instructions_per_element": float(value["inst_executed"]) * 32 / ELEMENTS,
                "issue_slots": float(value["sm__inst_issued.avg.per_cycle_active"]) / 4,
                "dram": float(value["gpu__dram_throughput.avg.pct_of_peak_sustained_elapsed"]) / 100,
                "registers": int(value["launch__registers_per_thread"]),
                "warps_active": float(value["sm__warps_active.avg.pct_of_peak_sustained_active"]) / 100,
                # of the time of a warp between two of its instructions
                "waiting_for": {k: x / of_warps for k, x in sorted(stalls.items(), key=lambda i: -i[1])[:5]},
            }
        )
    return out


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    modes = parser.add_subparsers(dest="mode", required=True)
    modes.add_parser("launch")
    modes.add_parser("sections")
    read = modes.add_parser("read")
    read.add_argument("file", type=Path)
    read.add_argument("--json", type=Path)
    args = parser.parse_args()
    if args.mode == "launch":
        launch()
    elif args.mode == "sections":
        print(" ".join(f"--section {name}" for name in SECTIONS))
    else:
        found = rows(args.file)
        for row in found:
            waits = ", ".join(f"{k} {x:.0%}" for k, x in row["waiting_for"].items())
            case = f"{row['operation']:21} {row['C']:6} {row['dtype']:9}"
            count = f"{row['instructions_per_element']:6.1f} instructions an element"
            print(f"{case} {count}, issue {row['issue_slots']:.0%}, DRAM {row['dram']:.0%}; {waits}")
        if args.json:
            document = {"kind": "op-counters", "command": "python benchmarks/op_counters.py launch, under ncu"}
            args.json.write_text(json.dumps({**document, "rows": found}, indent=1) + "\n")


if __name__ == "__main__":
    main()
