"""A small network's step beside what a user would write: MLP 256-256-4, n = m = 100, where label cleaning on features
and tables lives.

    python benchmarks/small_step.py [--seconds 5] [--json FILE]

One CPU thread, paired: the variants take turns. `naive` is plain autograd through the look-ahead, `plain` a step
without labels. The goals are ratios to naive: the eager step at most 0.8, "full" at most 0.5.
"""

from __future__ import annotations

import argparse
import json
import platform
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

import fastmeta
from fastmeta.measure import interleave

ROWS, FEATURES, HIDDEN, CLASSES, SAMPLES = 100, 256, 256, 4, 2000
LR, LABEL_LR, MARGIN = 0.1, 10.0, 3.0
GOALS = {"eager": 0.8, "full": 0.5}


class Problem:
    """The same start for each variant."""

    def __init__(self) -> None:
        torch.manual_seed(0)
        self.model = nn.Sequential(nn.Linear(FEATURES, HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, CLASSES))
        self.targets, self.y_meta = torch.randint(CLASSES, (SAMPLES,)), torch.randint(CLASSES, (ROWS,))
        self.x, self.x_meta = torch.randn(SAMPLES, FEATURES), torch.randn(ROWS, FEATURES)
        self.index = torch.arange(ROWS)
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=LR, momentum=0.9)


def plain() -> Callable[[], Any]:
    p = Problem()

    def step() -> None:
        p.optimizer.zero_grad()
        nn.functional.cross_entropy(p.model(p.x[p.index]), p.targets[p.index]).backward()
        p.optimizer.step()

    return step


def naive() -> Callable[[], Any]:
    """Autograd through the look-ahead, then the model under the moved labels."""
    p = Problem()
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


def ours(**options: Any) -> Callable[[], Any]:
    p = Problem()
    labels = fastmeta.InstanceLabels(p.targets, CLASSES)
    step = fastmeta.MetaStep(p.model, labels, p.optimizer, label_lr=LABEL_LR, **options)
    return lambda: step((p.x[p.index], p.index), (p.x_meta, p.y_meta))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=5.0, help="of measurement")
    parser.add_argument("--json", type=Path, help="where the figures go")
    parser.add_argument("--variants", nargs="+", default=["plain", "naive", "eager", "trace", "full"])
    args = parser.parse_args()
    torch.set_num_threads(1)
    made = {
        "plain": plain,
        "naive": naive,
        "eager": ours,
        "trace": lambda: ours(compile="trace"),
        "full": lambda: ours(compile="full"),
    }
    bodies = {name: [made[name]()] for name in dict.fromkeys(["naive", *args.variants])}
    for (body,) in bodies.values():
        for _ in range(5):
            body()
    timings = interleave(bodies, torch.device("cpu"), seconds=args.seconds)
    rows = []
    for name, timing in timings.items():
        ratio, goal = timing.ratio_to(timings["naive"]), GOALS.get(name)
        rows.append({"variant": name, "milliseconds": timing.median * 1e3, "to_naive": ratio, "goal": goal})
        wanted = "" if goal is None else f"  (goal {goal:g})"
        print(f"{name:<8}{timing.median * 1e3:8.2f} ms{ratio:8.2f} of naive{wanted}")
    if args.json is not None:
        shape = {"rows": ROWS, "meta_rows": ROWS, "features": FEATURES, "hidden": HIDDEN, "classes": CLASSES}
        where = {"torch": torch.__version__, "machine": platform.machine(), "threads": 1}
        args.json.write_text(json.dumps({"kind": "small step", **shape, "environment": where, "rows": rows}, indent=2))


if __name__ == "__main__":
    main()
