"""Every method of the registry on the digits, three seeds, beside plain training on what there is.

    python benchmarks/methods.py                       # what is missing in results/methods.json, then docs/methods.md
    python benchmarks/methods.py --only elr sop --again
    python benchmarks/methods.py --table               # docs/methods.md from the file, and measure nothing

One row per (noise, seed, name), written as soon as it is there, so that a stopped run goes on. One thread. All rows
have the digits' preset network and schedule; methods have their default options, and nothing is tuned.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from readme_table import write

from fastmeta.bench.environment import record
from fastmeta.methods import METHODS
from fastmeta.training import DataConfig, TrainConfig, train

FILE = Path(__file__).parent / "results" / "methods.json"
PAGE = Path(__file__).parent.parent / "docs" / "methods.md"
NOISES, SEEDS = ("uniform:0.4", "class:0.6"), (0, 1, 2)
FINETUNE_STEPS = 100
Row = dict[str, Any]

#: rows that are no method by themselves: what they are, and whether they see the clean set
BESIDE = {
    "union": ("onehot, given and clean together", True),
    "clean": ("onehot, clean alone", True),
    "softened": ("softened (0.4), never moved", False),
    "finetuned": ("onehot, then fine-tuned on clean", True),
    "mentornet_learned": ("`mentornet`, learned curriculum", True),
}
SOFTENED = "main_job_rivals:Softened"
#: rows of a method with other options: which
OPTIONS = {"mentornet_learned": ("mentornet", {"curriculum": "learned"})}


def names() -> list[str]:
    first = ["onehot", *BESIDE]
    return [*first, *(name for name in METHODS if name not in first)]


def uses_clean(name: str) -> bool:
    """Whether a row has seen the clean set: its method does, or its teacher has."""
    if name in BESIDE:
        return BESIDE[name][1]
    return name == "distill" or METHODS[name].uses_clean(METHODS[name].Config())


def figures(stage: dict[str, Any]) -> Row:
    return {k: stage.get(k) for k in ("test_accuracy_last", "test_accuracy_best", "nll", "ece", "seconds")}


def of_onehot(config: Callable[..., TrainConfig]) -> Iterator[tuple[str, Row]]:
    """As given, the same fine-tuned, and both baselines that see clean rows: one run."""
    plan = config("onehot", baselines="union,clean", finetune_steps=FINETUNE_STEPS)
    summary = train(plan).summary
    yield "onehot", figures(summary)
    tuned = summary["finetuned"]
    yield "finetuned", figures(tuned | {"test_accuracy_last": tuned["test_accuracy"]})
    for name in ("union", "clean"):
        yield name, figures(summary["baselines"][name])


def of_labels(config: Callable[..., TrainConfig]) -> Iterator[tuple[str, Row]]:
    """Instance labels, and a second network that learns from the first one's predictions."""
    run = train(config("instance_labels"))
    yield "instance_labels", figures(run.summary) | {"label_accuracy": run.summary["label_accuracy_final"]}
    distilled = train(config("distill", options={"teacher": str(run.path), "temperature": 2.0}))
    yield "distill", figures(distilled.summary)


def of_one(name: str) -> Callable[[Callable[..., TrainConfig]], Iterator[tuple[str, Row]]]:
    def rows(config: Callable[..., TrainConfig]) -> Iterator[tuple[str, Row]]:
        method, options = OPTIONS.get(name, (SOFTENED if name == "softened" else name, None))
        summary = train(config(method, options=options)).summary
        learned = {"label_accuracy": summary["label_accuracy_final"]} if summary["learns_labels"] else {}
        yield name, figures(summary) | learned

    return rows


#: rows that one run gives together
TOGETHER = {("onehot", "finetuned", "union", "clean"): of_onehot, ("instance_labels", "distill"): of_labels}


def read() -> dict[str, Any]:
    if FILE.exists():
        return json.loads(FILE.read_text())
    return {"schema": 1, "kind": "methods", "environment": {}, "rows": []}


def key(row: Row) -> tuple[str, int, str]:
    return row["noise"], row["seed"], row["name"]


def put(new: list[Row], command: str) -> None:
    """Merge rows into the file, whoever else has written to it meanwhile."""
    content = read()
    order = {name: i for i, name in enumerate(names())}
    rows = {key(r): r for r in (*content["rows"], *new)}
    content["rows"] = sorted(rows.values(), key=lambda r: (r["noise"], r["seed"], order.get(r["name"], 99)))
    content["environment"] = record(torch.device("cpu"), command)
    head = json.dumps({k: v for k, v in content.items() if k != "rows"}, indent=1)[:-2]
    lines = ",\n".join("  " + json.dumps(r) for r in content["rows"])
    part = FILE.with_suffix(".part")
    part.write_text(f'{head},\n "rows": [\n{lines}\n ]\n}}\n')
    os.replace(part, FILE)


def run(wanted: list[str], *, again: bool, noises: tuple[str, ...] = NOISES, seeds: tuple[int, ...] = SEEDS) -> None:
    done = set() if again else {key(row) for row in read()["rows"]}
    made = {name for group in TOGETHER for name in group}
    groups = {**TOGETHER, **{(name,): of_one(name) for name in names() if name not in made}}
    for seed in seeds:
        for noise in noises:
            for group, rows_of in groups.items():
                if not any(name in wanted and (noise, seed, name) not in done for name in group):
                    continue
                with tempfile.TemporaryDirectory() as folder:

                    def config(
                        method: str, folder: str = folder, noise: str = noise, seed: int = seed, **more: Any
                    ) -> TrainConfig:
                        out = f"{folder}/{method.rpartition(':')[2]}"
                        data = DataConfig(split_seed=seed)  # train, test and clean images are drawn anew too
                        own = {"method": method, "noise": noise, "seed": seed, "out": out, "data": data}
                        return TrainConfig(**{**own, "baselines": "none", **more})

                    began = time.perf_counter()
                    for name, row in rows_of(config):
                        put([{"noise": noise, "seed": seed, "name": name, **row}], "python benchmarks/methods.py")
                        print(f"{noise} {seed} {name:20} {100 * row['test_accuracy_last']:.1f}", flush=True)
                    print(f"    {time.perf_counter() - began:.1f} s", flush=True)


def table(content: dict[str, Any]) -> list[str]:
    rows, machine = content["rows"], content["environment"]
    noises = [noise for noise in NOISES if any(r["noise"] == noise for r in rows)]

    def cell(name: str, noise: str) -> str:
        found = [100 * r["test_accuracy_last"] for r in rows if (r["name"], r["noise"]) == (name, noise)]
        if not found:
            return "–"
        return f"{statistics.mean(found):.1f}" + (f" ± {statistics.stdev(found):.1f}" if len(found) > 1 else "")

    def seconds(name: str) -> str:
        found = [r["seconds"] for r in rows if r["name"] == name and r["seconds"] is not None]
        return f"{statistics.mean(found):.1f}" if found else "–"

    lines = [
        f"Test accuracy after the last epoch in %, mean ± standard deviation of {len({r['seed'] for r in rows})} "
        "seeds. All rows have the same images, network and schedule, and the same 30 clean ones where they use them. "
        "Methods have their default options: none is tuned.",
        "",
        f"| | {' | '.join(f'`{n}`' for n in noises)} | clean data | s |",
        "|---|" + "---|" * (len(noises) + 2),
    ]
    for name in names():
        if not any(r["name"] == name for r in rows):
            continue
        title = BESIDE[name][0] if name in BESIDE else f"`{name}`"
        clean = "yes" if uses_clean(name) else "no"
        lines.append(f"| {title} | {' | '.join(cell(name, n) for n in noises)} | {clean} | {seconds(name)} |")
    return [
        *lines,
        "",
        "`distill` has the predictions of the `instance_labels` row's network at T = 2, without that run's seconds. "
        f"Fine-tuning takes {FINETUNE_STEPS} steps, and its seconds are of these alone. Seconds were taken on a "
        "machine with other work: they tell what is dear, and no more.",
        "",
        f"{machine['cpu']['model']}, torch {machine['torch']}; `benchmarks/results/methods.json` has every run.",
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=names(), default=names(), metavar="NAME", help="rows to measure")
    parser.add_argument("--again", action="store_true", help="measure what the file has already, too")
    parser.add_argument("--table", action="store_true", help="write docs/methods.md from the file and measure nothing")
    args = parser.parse_args()
    if not args.table:
        torch.set_num_threads(1)
        run(args.only, again=args.again)
    write(PAGE, table(read()))


if __name__ == "__main__":
    main()
