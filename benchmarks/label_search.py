"""What `--labels.label-lr search` gains over exact steps by default, what it costs, and how long its trials should be.

    FASTMETA_DATA=FOLDER python benchmarks/label_search.py    # what is missing in results/label-search.json
    python benchmarks/label_search.py --table                 # the table of docs/training.md from the file

A row is a run of a set of worth_sets.py under a seed: without a search (budget 0), or with one of a budget. On the
digits, whose trials are cheapest, there are three budgets: trials of half of the epochs, of two thirds (the default)
and of all. Networks and schedules are those of worth.py. One thread, some six minutes.
"""

from __future__ import annotations

import argparse
import itertools
import json
import tempfile
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from statistics import mean
from typing import Any

import numpy as np
import torch
import worth_sets
from readme_table import write
from worth_ours import arrays, config_of
from worth_rivals import network
from worth_sets import Set

import fastmeta
from fastmeta.bench.environment import record
from fastmeta.training import LabelConfig
from fastmeta.training.search import settings_in_words

FILE = Path(__file__).parent / "results" / "label-search.json"
PAGE = Path(__file__).parent.parent / "docs" / "training.md"
Row = dict[str, Any]

#: budgets: no search, trials of half of the epochs, of two thirds, of all
NONE, HALF, DEFAULT, WHOLE = 0.0, 3.0, 4.0, 6.0


@dataclass(frozen=True)
class Case:
    title: str  # in the table
    load: Callable[[int], Set]  # by seed
    seeds: int = 3
    budgets: tuple[float, ...] = (NONE, DEFAULT)
    canaries: str = "auto"
    before: bool = False  # whether it is known what the labels of the clean rows were before somebody checked them


def _news(seed: int) -> Set:
    return worth_sets.news("news", seed, 300)


CASES = {
    "digits-uniform-40": Case(
        "digits, 40% uniform, 240 clean",
        lambda seed: worth_sets.bundled("digits", "uniform:0.4", 240)("digits-uniform-40", seed),
        budgets=(NONE, HALF, DEFAULT, WHOLE),
    ),
    "news": Case("news, labels of people, 300 clean", _news),
    "news-before": Case("the same, with `y_meta_given`", _news, before=True),
    "weak-18-drawn": Case(
        "weak texts, 18% wrong, 120 clean", lambda seed: worth_sets.load("weak-18-drawn", seed), seeds=2, canaries="60"
    ),
}


def run(name: str, seed: int, budget: float) -> Row:
    case = CASES[name]
    data = case.load(seed)
    given = arrays(data) | ({"y_meta_given": data.y_meta_given} if case.before else {})
    labels = LabelConfig(update="exact", canaries=case.canaries)
    if budget:
        labels = LabelConfig(label_lr="search", search_budget=budget, canaries=case.canaries)
    began = time.process_time()
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the health of labels, which the figures tell
        # as learned, where canaries withhold them
        config = config_of(data, seed, out=f"{folder}/run", labels=labels, force=True)
        done = fastmeta.train(config, model=network(data, seed), data=given)
        with np.load(f"{folder}/run/labels.npz") as table:
            handed_out = table["learned"]
    summary = done.summary
    found = summary.get("search", {"candidates": [], "cost": 0.0, "chosen": None})
    return {
        "set": name,
        "seed": seed,
        "budget": budget,
        "test": summary["test_accuracy_last"],
        "given_right": float((data.y_given == data.y_true).mean()),
        "labels_right": float((handed_out == data.y_true).mean()),
        "table_right": summary["reading"]["readings"]["table"]["label_accuracy"],
        "read": summary["reading"]["chosen"],
        "chosen": found["chosen"],
        "cost": found["cost"],
        "candidates": found["candidates"],
        "cpu_seconds": time.process_time() - began,
    }


# ---- the file ----


def read() -> dict[str, Any]:
    return json.loads(FILE.read_text()) if FILE.exists() else {"kind": "label-search", "environment": {}, "rows": []}


def measure() -> None:
    done = {(row["set"], row["seed"], row["budget"]) for row in read()["rows"]}
    for name, case in CASES.items():
        if reason := worth_sets.missing(name):
            print(f"{name} is left out: {reason}", flush=True)
            continue
        for seed, budget in itertools.product(range(case.seeds), case.budgets):
            if (name, seed, budget) in done:
                continue
            row, content = run(name, seed, budget), read()
            rows = sorted([*content["rows"], row], key=lambda r: (list(CASES).index(r["set"]), r["seed"], r["budget"]))
            content["environment"] = record(torch.device("cpu"), "python benchmarks/label_search.py")
            head = json.dumps({k: v for k, v in content.items() if k != "rows"}, indent=1)[:-2]
            lines = ",\n".join("  " + json.dumps(r) for r in rows)
            FILE.write_text(f'{head},\n "rows": [\n{lines}\n ]\n}}\n')
            print(name, seed, budget, chosen(row), f"{row['test']:.3f} {row['labels_right']:.3f}", flush=True)


# ---- the page ----


def chosen(row: Row) -> str:
    settings = next((c["settings"] for c in row["candidates"] if c["name"] == row["chosen"]), None)
    return "" if settings is None else settings_in_words(settings)


def page(rows: list[Row]) -> list[str]:
    lines = [
        "Means of seeds, %; cost is that of all trials, in runs, and in CPU time that of all beside the run alone:",
        "",
        "| set | budget | test | labels right, given → handed out | in the table | chosen | cost | CPU time |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for name, case in CASES.items():
        title = case.title
        alone = mean(r["cpu_seconds"] for r in rows if (r["set"], r["budget"]) == (name, NONE))
        for budget in case.budgets:
            found = [r for r in rows if (r["set"], r["budget"]) == (name, budget)]
            test, given, right, table = (
                f"{100 * mean(r[key] for r in found):.1f}"
                for key in ("test", "given_right", "labels_right", "table_right")
            )
            choices = [chosen(r) for r in found]
            told = "; ".join(f"{c} ({choices.count(c)})" for c in dict.fromkeys(choices)) if budget else "–"
            cost = f"{mean(r['cost'] for r in found):.1f}" if budget else "–"
            times = f"{mean(r['cpu_seconds'] for r in found) / alone:.1f}×"
            way = f"{budget:g}" if budget else "no search"
            lines.append(f"| {title} | {way} | {test} | {given} → {right} | {table} | {told} | {cost} | {times} |")
            title = ""
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--table", action="store_true", help="write docs/training.md from the file, measure nothing")
    args = parser.parse_args()
    if not args.table:
        torch.set_num_threads(1)
        measure()
    write(PAGE, page(read()["rows"]))


if __name__ == "__main__":
    main()
