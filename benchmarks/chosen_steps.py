"""How far exact steps should move labels of the news, and from where: chosen without a right label but the clean set's.

    FASTMETA_DATA=FOLDER python benchmarks/chosen_steps.py

A search on three draws of the clean texts that are not reported: a fifth of the training rows is held out with its
labels as people gave them, a fifth of which are wrong, and the point that predicts them best is chosen. The softened
start that never moves is chosen in the same way. Writes results/chosen-steps.json; benchmarks/methods.py has the rows.
"""

from __future__ import annotations

import argparse
import json
import statistics
import warnings
from pathlib import Path

import torch
from methods import RESULTS, TASKS

from fastmeta.bench.environment import record

SEEDS = (20, 21, 22)
GRID = {"labels.target_prob": [0.3, 0.4, 0.5, 0.6, 0.7], "labels.label_step": [0.1, 0.2, 0.3]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", nargs="+", type=int, default=list(SEEDS), metavar="SEED")
    parser.add_argument("--work", type=Path, default=Path("runs", "chosen"), metavar="DIR", help="folder of the runs")
    args = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")  # the health of labels
    task = next(task for task in TASKS if task.of == "news")
    found: dict[str, list[dict[str, float]]] = {}
    for seed in args.seeds:
        # y_true away, so that validation rows have the labels that people gave
        out = args.work / f"seed{seed}"
        options = {"data.val_fraction": 0.2, "labels.update": "exact"}
        result = task.compare(seed, ["instance_labels"], out, GRID, without=("y_true",), **options)
        for row in result.rows:
            if row.setting.point:
                figures = {"seed": seed, "validation": row.mean("val_last"), "test": row.mean("last")}
                found.setdefault(row.title, []).append(figures)
    rows = [
        {"row": title, "validation": statistics.mean(r["validation"] for r in runs), "runs": runs}
        for title, runs in found.items()
    ]
    rows.sort(key=lambda row: -row["validation"])
    content = {
        "schema": 1,
        "kind": "chosen-steps",
        "environment": record(torch.device("cpu"), "python benchmarks/chosen_steps.py"),
        "rows": rows,
    }
    (RESULTS / "chosen-steps.json").write_text(json.dumps(content, indent=1) + "\n")
    for row in rows:
        tests = ", ".join(f"{100 * r['test']:.1f}" for r in row["runs"])
        print(f"{100 * row['validation']:.2f} {row['row']} (test {tests})")


if __name__ == "__main__":
    main()
