"""How far each approximation of the step is from the exact one in the course of a training, and what a look costs.

    python benchmarks/distance.py            # trains on the digits, times looks: about two minutes of one core
    python benchmarks/distance.py page       # docs/distance.png, and the tables of docs/exact-and-approximate.md

The runs are ``fastmeta train --approx ... --watch-every 10`` on the bundled digits, instance labels, one seed; the
exact one is beside them for what it reaches. A look is timed as steps with ``watch_every=1`` less steps without, in
turns, by the CPU time of one thread.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
import warnings
from pathlib import Path
from typing import Any

import torch
from matplotlib.figure import Figure

import fastmeta
from fastmeta.bench import environment, result_files
from fastmeta.bench.step_problem import StepConfig, build_model, input_shape_of
from fastmeta.meta.approximation import Approximation
from fastmeta.report.style import dress, line
from fastmeta.training import TrainConfig
from fastmeta.training.config import WATCH_EVERY
from fastmeta.training.distances import KEYS
from fastmeta.training.listener import Silent

ROOT = Path(__file__).parents[1]
FILE, PAGE = ROOT / "benchmarks" / "results" / "distance.json", ROOT / "docs" / "exact-and-approximate.md"
APPROXIMATIONS = ("delayed", "every:4", "last:1", "last:2", "difference")
EPOCHS, LOOK_EVERY, ROUNDS = 30, 10, 5
#: model -> rows of a train and of a meta batch
TIMED = {"mlp": (128, 256), "resnet20": (32, 64)}
BEGIN, END = "<!-- benchmarks/distance.py page -->", "<!-- end -->"


def trained(approx: str, folder: Path) -> dict[str, Any]:
    """What a run by `approx` reaches, and its distances by epoch."""
    watch_every = None if approx == "none" else LOOK_EVERY
    config = TrainConfig(
        epochs=EPOCHS, approx=approx, watch_every=watch_every, baselines="none", out=str(folder / approx), threads=1
    )
    run = fastmeta.train(config, listener=Silent())
    lines = [json.loads(text) for text in (run.path / "metrics.jsonl").read_text().splitlines()]
    reached = {k: run.summary[k] for k in ("test_accuracy_last", "label_accuracy_initial", "label_accuracy_final")}
    epochs = [{k: record[k] for k in ("epoch", *KEYS.values())} for record in lines if record.get(KEYS["looks"])]
    return {"approx": approx, **reached, "distance": run.summary.get("distance"), "epochs": epochs}


def look_cost(model: str, approx: str) -> dict[str, Any]:
    """CPU time of a step and of a look, of a period of `approx`."""
    n, m = TIMED[model]
    config = StepConfig(model=model, batch=n, meta_batch=m, classes=10, samples=1024)
    shape, period = input_shape_of(config), Approximation.parse(approx).period
    torch.manual_seed(0)
    network, targets = build_model(config), torch.randint(10, (1024,))
    train = torch.randn(n, *shape), torch.arange(n)
    meta = torch.randn(m, *shape), torch.randint(10, (m,))

    def step_of(watch_every: int | None) -> fastmeta.MetaStep:
        optimizer = torch.optim.SGD(network.parameters(), lr=1e-4)
        labels = fastmeta.InstanceLabels(targets, 10)
        return fastmeta.MetaStep(
            network, labels, optimizer, label_lr=1.0, approx=approx, watch_every=watch_every, unique_index=True
        )

    steps, seconds = (step_of(None), step_of(1)), ([], [])
    for number in range(ROUNDS + 1):
        for step, found in zip(steps, seconds, strict=True):
            began = time.thread_time()
            for _ in range(period):
                step(train, meta)
            if number:  # the first one chooses the tangent
                found.append(time.thread_time() - began)
    plain, watched = map(statistics.median, seconds)
    each = plain / period
    share = (watched - plain) / (WATCH_EVERY * period * each)
    return {"model": model, "approx": approx, "step": each, "look": watched - plain, "share_by_default": share}


def measure() -> None:
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")  # that differences are inexact
    with tempfile.TemporaryDirectory() as folder:
        runs = [trained(approx, Path(folder)) for approx in ("none", *APPROXIMATIONS)]
    costs = [look_cost(model, a) for model in TIMED for a in APPROXIMATIONS if a != "last:2"]
    record = environment.record(torch.device("cpu"), "python benchmarks/distance.py")
    sizes = {"epochs": EPOCHS, "watch_every": LOOK_EVERY, "default": WATCH_EVERY, "timed": TIMED, "rounds": ROUNDS}
    result_files.write(FILE, "distance", {"environment": record, "sizes": sizes, "runs": runs, "costs": costs})


def tables(content: dict[str, Any]) -> str:
    """Of the page, from the file."""
    rows = ["| steps | cosine, mean | worst | length | error | labels right, % | test, % |", "|---" * 7 + "|"]
    start = 100 * content["runs"][0]["label_accuracy_initial"]
    for run in content["runs"]:
        told, name = run["distance"], f"`{run['approx']}`" if run["distance"] else "exact"
        four = [f"{told[k]:.3f}" for k in ("cosine", "least", "length", "error")] if told else ["1", "1", "1", "0"]
        reached = [f"{100 * run[k]:.1f}" for k in ("label_accuracy_final", "test_accuracy_last")]
        rows.append("| " + " | ".join([name, *four, f"{start:.1f} → {reached[0]}", reached[1]]) + " |")
    by_approx: dict[str, list[str]] = {}
    for cost in content["costs"]:
        steps = f"{cost['look'] / cost['step']:.1f} steps, {100 * cost['share_by_default']:.1f}%"
        by_approx.setdefault(cost["approx"], []).append(steps)
    head = " | ".join(content["sizes"]["timed"])
    costs = [f"| a look costs, and by default adds | {head} |", "|---" * (1 + len(content["sizes"]["timed"])) + "|"]
    costs += [f"| `{approx}` | {' | '.join(cells)} |" for approx, cells in by_approx.items()]
    return "\n".join([*rows, "", *costs])


def draw(content: dict[str, Any]) -> None:
    figure = Figure(figsize=(9.6, 3.9), layout="constrained")
    panels = figure.subplots(1, 2)
    titles = {"cosine": "Cosine to the exact step", "length": "Length by that of the exact step"}
    for axes, (key, title) in zip(panels, titles.items(), strict=True):
        dress(axes, "epoch", "", title)
        for number, run in enumerate(r for r in content["runs"] if r["distance"] and r["approx"] != "difference"):
            found = run["epochs"]
            line(axes, number, [r["epoch"] for r in found], [r[KEYS[key]] for r in found], run["approx"])
        axes.set_ylim(bottom=0)
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=4, frameon=False)
    figure.savefig(PAGE.parent / "distance.png", dpi=100, metadata={"Software": None})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", nargs="?", choices=["measure", "page"], default="measure")
    if parser.parse_args().what == "measure":
        measure()
    content, text = json.loads(FILE.read_text()), PAGE.read_text()
    before, rest = text.split(BEGIN)
    PAGE.write_text(f"{before}{BEGIN}\n{tables(content)}\n{END}{rest.split(END)[1]}")
    draw(content)


if __name__ == "__main__":
    main()
