"""Looking several steps ahead: `python benchmarks/lookahead_steps.py PART`, one of

    cost    FLOPs and seconds of a training step in windows of K, in train forwards F and in plain steps
    cosine  how the gradient of the first batch of a window lies to that of one step
    labels  runs of the trainer at K, with as many steps as K = 1 has, and with as much computing
    tables  what docs/lookahead-steps.md shows, written there from the file and from results/worth.json

Each but the last writes its part of results/lookahead-steps.json. The texts need FASTMETA_DATA, see worth_sets.py.
"""

from __future__ import annotations

import argparse
import copy
import json
import time
from dataclasses import replace
from functools import partial
from itertools import product
from pathlib import Path
from statistics import mean, median
from typing import Any

import torch
import worth_sets
from epoch_lookahead import Problem
from torch.nn.functional import cross_entropy
from worth import measured
from worth_ours import by_trainer
from worth_rivals import soft_start

import fastmeta
from fastmeta.bench.environment import record
from fastmeta.bench.flops import Flops
from fastmeta.meta import meta_gradient, window_gradient
from fastmeta.models import build
from fastmeta.training import LabelConfig

HERE = Path(__file__).parent
RESULT, WORTH = HERE / "results" / "lookahead-steps.json", HERE / "results" / "worth.json"
PAGE = HERE.parent / "docs" / "lookahead-steps.md"
SETS = ("digits-class-60", "digits-uniform-40", "news")
STEPS = (1, 2, 4, 8)
#: runs: K, and what they have as much of as those of K = 1
KINDS = (*((k, "steps") for k in STEPS), *((k, "computing") for k in STEPS[1:]))
RUN = "set", "seed", "steps", "equal"
#: name, classes, shape of a sample, n, m, the largest K
MODELS = (("mlp", 10, (1, 28, 28), 128, 256, 8), ("resnet20", 100, (3, 32, 32), 32, 64, 4))
RIVALS = {
    "given": "as given",
    "softened": "softened, never moved",
    "cleanlab": "cleanlab",
    "finetuned": "given, fine-tuned on clean",
    "default": "our default, the posterior",
}


# ---- cost ----


def cost(rounds: int) -> list[dict[str, Any]]:
    """Of eager steps; F is one forward of a train batch. Seconds are medians over rounds in which all take turns."""
    rows = []
    for name, classes, shape, n, m, most in MODELS:
        torch.manual_seed(0)
        model = build(name, num_classes=classes, input_shape=shape)
        size = n * most
        x, y = torch.randn(size, *shape), torch.randint(classes, (size,))
        batches = [(x[index], index) for index in torch.arange(size).split(n)]
        meta = torch.randn(m, *shape), torch.randint(classes, (m,))
        with torch.no_grad(), Flops() as forward:
            model(x[:n])
        steps = {0: plain(copy.deepcopy(model), x[:n], y[:n])}
        for k in (k for k in STEPS if k <= most):
            labels, own = fastmeta.InstanceLabels(y, classes), copy.deepcopy(model)
            optimizer = torch.optim.SGD(own.parameters(), lr=0.01, momentum=0.9)
            step = fastmeta.MetaStep(own, labels, optimizer, unique_index=True, lookahead_steps=k)
            steps[k] = windowed(step, batches[:k] if k > 1 else batches[0], meta)
        counts = {}
        for k, run in steps.items():
            run()
            with Flops() as counter:
                run()
            counts[k] = counter.get_total_flops() / max(k, 1) / forward.get_total_flops()
        times: dict[int, list[float]] = {k: [] for k in steps}
        for _ in range(rounds):
            for k, run in steps.items():
                began = time.process_time()
                run()
                times[k].append((time.process_time() - began) / max(k, 1))
        unit = median(times[0])
        for k in steps:
            seconds = median(times[k])
            rows.append({"model": name, "n": n, "m": m, "steps": k, "forwards": counts[k], "plain": seconds / unit})
    return rows


def plain(model: torch.nn.Module, x: torch.Tensor, y: torch.Tensor) -> Any:
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)

    def step() -> None:
        optimizer.zero_grad()
        cross_entropy(model(x), y).backward()
        optimizer.step()

    return step


def windowed(step: fastmeta.MetaStep, train: Any, meta: Any) -> Any:
    return lambda: step(train, meta)


# ---- how far the gradient turns ----


def cosine(seeds: int, epochs: tuple[int, ...] = (2, 10)) -> list[dict[str, Any]]:
    """At the beginning of some epochs of plain training, on labels that are held."""
    rows = []
    for name, seed in product(SETS, range(seeds)):
        p = Problem(name, seed)
        for epoch in range(1, max(epochs) + 1):
            order = list(p.batches())
            if epoch in epochs:
                window = [(p.x[index], index) for index in order[: max(STEPS)]]
                one = meta_gradient(p.model, p.labels, window[0], p.clean, lr=p.lr).grads["label_logits"]
                for k in STEPS[1:]:
                    made = window_gradient(p.model, p.labels, window[:k], p.clean, lr=p.lr).grads["label_logits"]
                    first = made[: len(one)]
                    near = float((first * one).sum() / first.norm() / one.norm())
                    size = float(first.norm() / one.norm())
                    rows.append({"set": name, "seed": seed, "epoch": epoch, "steps": k, "cosine": near, "size": size})
            for index in order:
                p.step(index)
    return rows


# ---- labels ----


def runs(sets: tuple[str, ...], seeds: int, command: str) -> None:
    """Each by the trainer, as benchmarks/worth.py has exact steps; a run of as much computing has other epochs.

    What the file has already is left out.
    """
    done = {tuple(row[k] for k in RUN) for row in json.loads(RESULT.read_text()).get("labels", {}).get("rows", [])}
    for seed, name in product(range(seeds), sets):
        data = worth_sets.load(name, seed)
        for k, equal in KINDS:
            if (name, seed, k, equal) in done:
                continue
            epochs = data.epochs / of_one_step(k) if equal == "computing" else data.epochs
            given = replace(data, epochs=round(epochs))
            row = {"set": name, "seed": seed, "steps": k, "equal": equal, "epochs": given.epochs}
            row |= measured(given, by_trainer(partial(changes, k))(given, seed))
            print(json.dumps(row), flush=True)
            put("labels", [row], RUN, command)


def changes(k: int, data: worth_sets.Set) -> dict[str, Any]:
    labels = LabelConfig(update="exact", target_prob=soft_start(data.num_classes), lookahead_steps=k)
    return {"method": "instance_labels", "labels": labels}


def of_one_step(k: int) -> float:
    """Cost of a step in windows of k beside that of K = 1, by counted FLOPs of the MLP."""
    rows = json.loads(RESULT.read_text())["cost"]["rows"]
    forwards = {row["steps"]: row["forwards"] for row in rows if row["model"] == "mlp"}
    return forwards[k] / forwards[1]


# ---- the file and the page ----


def put(part: str, new: list[dict[str, Any]], keys: tuple[str, ...], command: str) -> None:
    content = json.loads(RESULT.read_text()) if RESULT.exists() else {"schema": 1, "kind": "lookahead-steps"}
    old = content.get(part, {}).get("rows", [])
    found = {tuple(row[k] for k in keys): row for row in (*old, *new)}
    rows = sorted(found.values(), key=lambda row: tuple(row[k] for k in keys))
    content[part] = {"environment": record(torch.device("cpu"), command), "rows": rows}
    RESULT.write_text(json.dumps(content, indent=1) + "\n")


def with_tables(page: str, content: dict[str, Any], worth: dict[str, Any]) -> str:
    tables = {
        "cost": cost_table(content["cost"]["rows"]),
        "cosine": cosine_table(content["cosine"]["rows"]),
        "labels": labels_table(content["labels"]["rows"], worth["rows"]),
    }
    for name, table in tables.items():
        begin, end = f"<!-- {name}:begin -->\n", f"<!-- {name}:end -->"
        before, rest = page.split(begin)
        page = before + begin + table + end + rest.split(end, 1)[1]
    return page


def cost_table(rows: list[dict[str, Any]]) -> str:
    found = {(row["model"], row["steps"]): row for row in rows}
    heads = [f"{name} {n}/{m}" for name, _, _, n, m, _ in MODELS]
    lines = ["| a training step | " + " | ".join(f"{h}: F | plain steps" for h in heads) + " |"]
    lines.append("|---" * (1 + 2 * len(heads)) + "|")
    titles = {0: "plain", 1: "K = 1, Algorithm 1"}
    for k in (0, *STEPS):
        cells = []
        for name, *_ in MODELS:
            row = found.get((name, k))
            cells.append(" | " if row is None else f"{row['forwards']:.1f} | {row['plain']:.1f}")
        lines.append(f"| {titles.get(k, f'K = {k}')} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def cosine_table(rows: list[dict[str, Any]]) -> str:
    lines = ["| | " + " | ".join(SETS) + " |", "|---" * (1 + len(SETS)) + "|"]
    for k in STEPS[1:]:
        cells = []
        for name in SETS:
            own = [row for row in rows if (row["set"], row["steps"]) == (name, k)]
            cells.append(", ".join(f"{mean(row[key] for row in own):.3f}" for key in ("cosine", "size")))
        lines.append(f"| K = {k} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def labels_table(ours: list[dict[str, Any]], rivals: list[dict[str, Any]]) -> str:
    lines = ["| | " + " | ".join(SETS) + " |", "|---" * (1 + len(SETS)) + "|"]

    def line(title: str, rows: list[dict[str, Any]]) -> None:
        cells = []
        for name in SETS:
            own = [row for row in rows if row["set"] == name]
            figures = [mean(100 * row[key] for row in own) for key in ("test", "labels_right", "average_precision")]
            cells.append(" / ".join(f"{figure:.1f}" for figure in figures))
        lines.append(f"| {title} | {' | '.join(cells)} |")

    for k, equal in KINDS:
        title = f"K = {k}" + (", as much computing as K = 1" if equal == "computing" else "")
        line(title, [row for row in ours if row["steps"] == k and row["equal"] == equal])
    for method, title in RIVALS.items():
        line(title, [row for row in rivals if row["method"] == method])
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=("cost", "cosine", "labels", "tables"))
    parser.add_argument("--sets", nargs="*", default=SETS)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--rounds", type=int, default=9)
    args = parser.parse_args()
    torch.set_num_threads(1)
    if args.part == "tables":
        content, worth = json.loads(RESULT.read_text()), json.loads(WORTH.read_text())
        PAGE.write_text(with_tables(PAGE.read_text(), content, worth))
    elif args.part == "cost":
        command = f"python benchmarks/lookahead_steps.py cost --rounds {args.rounds}"
        put("cost", cost(args.rounds), ("model", "steps"), command)
    elif args.part == "cosine":
        command = f"python benchmarks/lookahead_steps.py cosine --seeds {args.seeds}"
        put("cosine", cosine(args.seeds), ("set", "seed", "epoch", "steps"), command)
    else:
        runs(tuple(args.sets), args.seeds, f"python benchmarks/lookahead_steps.py labels --seeds {args.seeds}")


if __name__ == "__main__":
    main()
