"""What labels are worth, beside the strongest simple rivals, on the sets of worth_sets.py.

    FASTMETA_DATA=FOLDER python benchmarks/worth.py --methods rivals    # what is missing in results/worth.json
    python benchmarks/worth.py --methods exact default --again          # ours anew, after a change
    python benchmarks/worth.py --merge OTHER.json                       # the rows of another machine's file
    python benchmarks/worth.py --table                                  # docs/worth.md from the file

One row per (set, seed, method), written as soon as it is there, so that a stopped run goes on. One thread.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from readme_table import write
from worth_ours import OURS
from worth_page import page
from worth_rivals import RIVALS, Method, Result, classical_test
from worth_sets import SETS, Set, load, missing

from fastmeta.bench.environment import record

FILE = Path(__file__).parent / "results" / "worth.json"
PAGE = Path(__file__).parent.parent / "docs" / "worth.md"
METHODS: dict[str, Method] = {**RIVALS, **OURS}
Row = dict[str, Any]


def measured(data: Set, result: Result) -> Row:
    """What a result is worth; the truth is looked at here alone."""
    from sklearn.metrics import average_precision_score

    wrong, right = data.y_given != data.y_true, result.labels == data.y_true
    changed = not np.array_equal(result.labels, data.y_given)
    return {
        "test": result.test,
        "labels_given": float(1 - wrong.mean()),
        "labels_right": float(right.mean()),
        "average_precision": float(average_precision_score(wrong, result.scores)),
        "wrong": int(wrong.sum()),
        "corrected": int((wrong & right).sum()),
        "spoiled": int((~wrong & ~right).sum()),
        "classical_on_labels": classical_test(data, result.labels) if changed else None,
        "cpu_seconds": round(result.seconds, 2),
        **result.more,
    }


# ---- the file ----


def read() -> dict[str, Any]:
    if FILE.exists():
        return json.loads(FILE.read_text())
    return {"schema": 1, "kind": "worth", "environment": {}, "rows": []}


def key(row: Row) -> tuple[str, int, str]:
    return row["set"], row["seed"], row["method"]


def put(new: list[Row], environment: dict[str, Any]) -> None:
    """Merge rows into the file, whoever else has written to it meanwhile."""
    content = read()
    rows = {key(r): r for r in (*content["rows"], *new)}
    order = {name: i for i, name in enumerate([*SETS, *METHODS])}
    content["rows"] = sorted(
        rows.values(), key=lambda r: (order.get(r["set"], 99), r["seed"], order.get(r["method"], 99))
    )
    content["environment"] = environment
    head = json.dumps({k: v for k, v in content.items() if k != "rows"}, indent=1)[:-2]
    lines = ",\n".join("  " + json.dumps(r) for r in content["rows"])
    part = FILE.with_suffix(".part")
    part.write_text(f'{head},\n "rows": [\n{lines}\n ]\n}}\n')
    os.replace(part, FILE)


# ---- the run ----


def run(sets: Iterable[str], seeds: Iterable[int], methods: Iterable[str], *, again: bool, command: str) -> None:
    done = set() if again else {key(row) for row in read()["rows"]}
    for name in sets:
        if reason := missing(name):
            print(f"{name} is left out: {reason}", flush=True)
            continue
        for seed in seeds:
            wanted = [m for m in methods if (name, seed, m) not in done]
            if not wanted:
                continue
            data = load(name, seed)
            for method in wanted:
                began = time.perf_counter()
                row = {"set": name, "seed": seed, "method": method, **measured(data, METHODS[method](data, seed))}
                put([row], record(torch.device("cpu"), command))
                took = time.perf_counter() - began
                test = "–" if row["test"] is None else f"{100 * row['test']:.1f}"
                print(
                    f"{name:22} {seed} {method:16} test {test}  labels {100 * row['labels_given']:.1f} → "
                    f"{100 * row['labels_right']:.1f}  AP {100 * row['average_precision']:.1f}  {took:.1f} s",
                    flush=True,
                )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sets", nargs="+", choices=list(SETS), default=list(SETS), metavar="SET")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2], metavar="SEED")
    parser.add_argument(
        "--methods",
        nargs="+",
        choices=["rivals", "ours", *METHODS],
        default=["rivals", "ours"],
        metavar="METHOD",
        help=f"rivals, ours, or some of {', '.join(METHODS)}",
    )
    parser.add_argument("--again", action="store_true", help="measure what the file has already, too")
    parser.add_argument("--table", action="store_true", help="write docs/worth.md from the file and measure nothing")
    parser.add_argument(
        "--merge", type=Path, metavar="FILE", help="take over the rows of another file, and measure nothing"
    )
    args = parser.parse_args()
    if args.merge:
        other = json.loads(args.merge.read_text())
        return put(other["rows"], other["environment"])
    if args.table:
        return write(PAGE, page(read()))
    torch.set_num_threads(1)
    groups = {"rivals": list(RIVALS), "ours": list(OURS)}
    methods = [m for name in args.methods for m in groups.get(name, [name])]
    command = f"python benchmarks/worth.py --methods {' '.join(args.methods)}"
    run(args.sets, args.seeds, dict.fromkeys(methods), again=args.again, command=command)


if __name__ == "__main__":
    main()
