"""What canaries say of labels against what became of these, and what their choice of a reading gains.

    FASTMETA_DATA=FOLDER python benchmarks/canary_coverage.py    # what is missing in results/canary-coverage.json
    python benchmarks/canary_coverage.py --table                 # the tables of docs/canaries.md from the file

A row is a run: a set, a seed, canaries whose wrong labels are drawn or known from before, and one of two ways to learn.
Sets are those of worth_sets.py, with more clean rows. Under class-conditional noise the intervals should hold the truth
in nine of ten cases; people's labels are harder than drawn ones, and the bias is told. One thread, some four minutes,
and as much again for cifar-worst.
"""

from __future__ import annotations

import argparse
import itertools
import json
import tempfile
import warnings
from collections.abc import Callable, Iterable
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

FILE = Path(__file__).parent / "results" / "canary-coverage.json"
PAGE = Path(__file__).parent.parent / "docs" / "canaries.md"
Row = dict[str, Any]

CLASS, INSTANCE, PEOPLE = "by class", "by sample", "people"


def _digits(noise: str) -> Callable[[str, int], Set]:
    return worth_sets.bundled("digits", noise, 240)


#: set -> its noise, its seeds, how it is loaded
SETS: dict[str, tuple[str, int, Callable[[str, int], Set]]] = {
    "digits-class-60": (CLASS, 4, _digits("class:0.6")),
    "digits-pair-30": (CLASS, 4, _digits("pair:0.3")),
    "digits-uniform-40": (CLASS, 4, _digits("uniform:0.4")),
    "digits-uniform-80": (CLASS, 4, _digits("uniform:0.8")),
    "digits-instance-40": (INSTANCE, 3, _digits("instance:0.4")),
    "news": (PEOPLE, 3, lambda name, seed: worth_sets.news(name, seed, 300)),
    "cifar-worst": (PEOPLE, 1, worth_sets.load),
}
ORIGINS = ("drawn", "before")
#: the default, and exact steps whose network is fine-tuned
WAYS: dict[str, dict[str, Any]] = {
    "default": {},
    "exact, 100 clean steps": {"labels": LabelConfig(update="exact"), "finetune_steps": 100},
}


def run(name: str, seed: int, origin: str, way: str) -> Row:
    data = SETS[name][2](name, seed)
    before = {"y_meta_given": data.y_meta_given} if origin == "before" else {}
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the health of labels, which the figures tell
        config = config_of(data, seed, out=f"{folder}/run", **WAYS[way])
        done = fastmeta.train(config, model=network(data, seed), data=arrays(data) | before)
        with np.load(f"{folder}/run/labels.npz") as table:  # as read, handed out or not
            learned = table["withheld" if "withheld" in table else "learned"]
    wrong, told = data.y_given != data.y_true, done.summary["canaries"]
    reading = done.summary["reading"]
    return {
        "set": name,
        "seed": seed,
        "origin": origin,
        "way": way,
        "put_right": told["put_right"] | {"truth": float((learned == data.y_true)[wrong].mean())},
        "spoiled": told["spoiled"] | {"truth": float((learned != data.y_true)[~wrong].mean())},
        "right_after": told["right_after"],
        "right": float((learned == data.y_true).mean()),
        "chosen": reading["chosen"],
        "readings": {key: figures["label_accuracy"] for key, figures in reading["readings"].items()},
    }


# ---- the file ----


def read() -> dict[str, Any]:
    return json.loads(FILE.read_text()) if FILE.exists() else {"kind": "canary-coverage", "environment": {}, "rows": []}


def key(row: Row) -> tuple[str, int, str, str]:
    return row["set"], row["seed"], row["origin"], row["way"]


def measure(sets: Iterable[str]) -> None:
    done = {key(row) for row in read()["rows"]}
    for name in sets:
        if reason := worth_sets.missing(name):
            print(f"{name} is left out: {reason}", flush=True)
            continue
        for seed, origin, way in itertools.product(range(SETS[name][1]), ORIGINS, WAYS):
            if (name, seed, origin, way) in done or (name == "cifar-worst" and way != "default"):
                continue
            row, content = run(name, seed, origin, way), read()
            rows = [*content["rows"], row]
            order = list(SETS)
            rows.sort(key=lambda r: (order.index(r["set"]), r["seed"], r["origin"], r["way"]))
            content["environment"] = record(torch.device("cpu"), "python benchmarks/canary_coverage.py")
            head = json.dumps({k: v for k, v in content.items() if k != "rows"}, indent=1)[:-2]
            lines = ",\n".join("  " + json.dumps(r) for r in rows)
            FILE.write_text(f'{head},\n "rows": [\n{lines}\n ]\n}}\n')
            print(name, seed, origin, way, row["chosen"], f"{row['right']:.3f}", flush=True)


# ---- the page ----


def held(share: dict[str, Any]) -> bool:
    return share["low"] <= share["truth"] <= share["high"]


def covered(rows: list[Row]) -> tuple[int, int]:
    """How many intervals hold the truth under noise that goes by the class, and of how many."""
    shares = [r[k] for r in rows if SETS[r["set"]][0] == CLASS for k in ("put_right", "spoiled")]
    return sum(map(held, shares)), len(shares)


def page(rows: list[Row]) -> list[str]:
    def some(**wanted: str) -> list[Row]:
        return [r for r in rows if all(r[k] == v for k, v in wanted.items())]

    count, of = covered(rows)
    lines = [
        f"Under noise that goes by the class, {count} of {of} intervals ({100 * count / of:.0f}%) hold the truth. In "
        "points, what canaries say less what became of the training rows, means of seeds:",
        "",
        "| set | noise | wrong labels | put right | spoiled | right in all | intervals that hold the truth |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, origin in itertools.product(SETS, ORIGINS):
        if not (found := some(set=name, origin=origin)):
            continue
        shares = [r[k] for r in found for k in ("put_right", "spoiled")]
        bias = [mean(r[k]["rate"] - r[k]["truth"] for r in found) for k in ("put_right", "spoiled")]
        bias += [mean(r["right_after"] - r["right"] for r in found)]
        cells = " | ".join(f"{100 * value:+.1f}" for value in bias)
        lines.append(f"| {name} | {SETS[name][0]} | {origin} | {cells} | {sum(map(held, shares))} of {len(shares)} |")
    lines += ["", "Labels right, %, means of seeds and of both kinds of canaries:", ""]
    lines += ["| set | learned by | table | network | product | chosen | how often |", "|---|---|---|---|---|---|---|"]
    for name, way in itertools.product(SETS, WAYS):
        if not (found := some(set=name, way=way)):
            continue
        right = [100 * mean(r["readings"][k] for r in found) for k in ("table", "network", "product")]
        cells = " | ".join(f"{value:.1f}" for value in [*right, 100 * mean(r["right"] for r in found)])
        chosen = [r["chosen"] for r in found]
        often = ", ".join(f"{k} {chosen.count(k)}" for k in ("table", "network", "product") if k in chosen)
        lines.append(f"| {name} | {way} | {cells} | {often} |")
    worst = min(rows, key=lambda r: r["right"] - r["readings"]["table"])
    loss = 100 * (worst["right"] - worst["readings"]["table"])
    lines += ["", f"Against the table, the worst of {len(rows)} choices is {loss:+.1f} points."]
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sets", nargs="+", choices=list(SETS), default=list(SETS), metavar="SET")
    parser.add_argument("--table", action="store_true", help="write docs/canaries.md from the file, measure nothing")
    args = parser.parse_args()
    if not args.table:
        torch.set_num_threads(1)
        measure(args.sets)
    write(PAGE, page(read()["rows"]))


if __name__ == "__main__":
    main()
