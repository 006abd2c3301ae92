"""A small network's step beside what a user would write: n = m = 100 rows of 256 features in 4 classes, where label
cleaning on features and tables lives.

    python benchmarks/small_step.py [--models mlp head module] [--seconds 5] [--json FILE]

`mlp` is an nn.Sequential 256-256-4 and `head` a single nn.Linear, whose steps are products in closed form; `module`
is the same network with a forward of its own, whose steps are autograd's. `naive` is plain autograd through the
look-ahead, `plain` a step without labels. One CPU thread and its own CPU time, which other processes are not in;
paired: the variants take turns in random order, step by step. The goals are ratios to naive: the eager step of the mlp
at most 0.8, "full" at most 0.5.
"""

from __future__ import annotations

import argparse
import random
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

import fastmeta
from fastmeta.bench import environment, result_files

ROWS, FEATURES, HIDDEN, CLASSES, SAMPLES = 100, 256, 256, 4, 2000
LR, LABEL_LR, MARGIN = 0.1, 10.0, 3.0
GOALS = {"eager": 0.8, "full": 0.5}


class Module(nn.Module):
    """The network as users write it."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(FEATURES, HIDDEN), nn.Linear(HIDDEN, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        return self.second(torch.relu(self.first(x)))


MODELS: dict[str, Callable[[], nn.Module]] = {
    "mlp": lambda: nn.Sequential(nn.Linear(FEATURES, HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, CLASSES)),
    "head": lambda: nn.Linear(FEATURES, CLASSES),
    "module": Module,
}


class Problem:
    """The same start for each variant."""

    def __init__(self, model: str) -> None:
        torch.manual_seed(0)
        self.model = MODELS[model]()
        self.targets, self.y_meta = torch.randint(CLASSES, (SAMPLES,)), torch.randint(CLASSES, (ROWS,))
        self.x, self.x_meta = torch.randn(SAMPLES, FEATURES), torch.randn(ROWS, FEATURES)
        self.index = torch.arange(ROWS)
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=LR, momentum=0.9)


def plain(model: str) -> Callable[[], Any]:
    p = Problem(model)

    def step() -> None:
        p.optimizer.zero_grad()
        nn.functional.cross_entropy(p.model(p.x[p.index]), p.targets[p.index]).backward()
        p.optimizer.step()

    return step


def naive(model: str) -> Callable[[], Any]:
    """Autograd through the look-ahead, then the model under the moved labels."""
    p = Problem(model)
    table = torch.zeros(SAMPLES, CLASSES).scatter_(1, p.targets.unsqueeze(1), MARGIN)

    def loss(rows: Tensor) -> Tensor:
        return -(rows.softmax(1) * p.model(p.x[p.index]).log_softmax(1)).sum(1).mean()

    def step() -> None:
        params = dict(p.model.named_parameters())
        rows = table[p.index].requires_grad_()
        grads = torch.autograd.grad(loss(rows), list(params.values()), create_graph=True)
        ahead = {k: t - LR * g for (k, t), g in zip(params.items(), grads, strict=True)}
        meta_loss = nn.functional.cross_entropy(functional_call(p.model, ahead, (p.x_meta,)), p.y_meta)
        (grad,) = torch.autograd.grad(meta_loss, rows)
        table[p.index] = rows.detach() - LABEL_LR * grad
        p.optimizer.zero_grad()
        loss(table[p.index]).backward()
        p.optimizer.step()

    return step


def ours(model: str, **options: Any) -> Callable[[], Any]:
    p = Problem(model)
    labels = fastmeta.InstanceLabels(p.targets, CLASSES)
    step = fastmeta.MetaStep(p.model, labels, p.optimizer, label_lr=LABEL_LR, **options)
    return lambda: step((p.x[p.index], p.index), (p.x_meta, p.y_meta))


VARIANTS: dict[str, Callable[[str], Callable[[], Any]]] = {
    "plain": plain,
    "naive": naive,
    "eager": ours,
    "trace": lambda model: ours(model, compile="trace"),
    "full": lambda model: ours(model, compile="full"),
}


def measure(model: str, variants: list[str], seconds: float) -> list[dict[str, Any]]:
    bodies = {name: VARIANTS[name](model) for name in dict.fromkeys(["naive", *variants])}
    for body in bodies.values():
        for _ in range(10):
            body()
    times: dict[str, list[float]] = {name: [] for name in bodies}
    order, shuffle, start = list(bodies), random.Random(0).shuffle, time.thread_time()
    while time.thread_time() < start + seconds:
        shuffle(order)
        for name in order:
            before = time.thread_time()
            bodies[name]()
            times[name].append(time.thread_time() - before)
    return [
        {
            "model": model,
            "variant": name,
            "rounds": len(seconds_of),
            "milliseconds": statistics.median(seconds_of) * 1e3,
            "to_naive": statistics.median(a / b for a, b in zip(seconds_of, times["naive"], strict=True)),
            "goal": GOALS.get(name) if model == "mlp" else None,
        }
        for name, seconds_of in times.items()
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", choices=list(MODELS), default=list(MODELS))
    parser.add_argument("--variants", nargs="+", choices=list(VARIANTS), default=list(VARIANTS))
    parser.add_argument("--seconds", type=float, default=5.0, help="of measurement, for each model")
    parser.add_argument("--json", type=Path, help="where the figures go")
    args = parser.parse_args()
    torch.set_num_threads(1)
    rows = [row for model in args.models for row in measure(model, args.variants, args.seconds)]
    shown = [
        [r["model"], r["variant"], f"{r['milliseconds']:.2f}", f"{r['to_naive']:.2f}", result_files.number(r["goal"])]
        for r in rows
    ]
    print(result_files.table(["model", "step", "ms", "of naive", "goal"], shown))
    if args.json is not None:
        sizes = {"rows": ROWS, "meta_rows": ROWS, "features": FEATURES, "hidden": HIDDEN, "classes": CLASSES}
        command = f"python benchmarks/small_step.py --seconds {args.seconds:g}"
        content = {"environment": environment.record(torch.device("cpu"), command), "sizes": sizes, "rows": rows}
        result_files.write(args.json, "small step", content)


if __name__ == "__main__":
    main()
