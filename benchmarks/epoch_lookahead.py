"""Labels that move once an epoch, beside exact steps: `python benchmarks/epoch_lookahead.py PART`, one of

    cosine  how the changes of an epoch's end lie to the exact dL/dp of its steps, summed over the epoch
    forms   other ways to move labels by a look-ahead on clean rows, by what becomes of labels and network
    classes rates of class labels
    cost    seconds and forwards of an epoch: plain, with the move at its end, of exact steps
    tables  what docs/epoch-lookahead.md shows, written there from the file

Each but the last writes its part of results/epoch-lookahead.json. The texts need FASTMETA_DATA, see worth_sets.py.
"""

from __future__ import annotations

import argparse
import copy
import json
import random
import time
from collections.abc import Callable, Iterator
from itertools import product
from pathlib import Path
from statistics import mean, median
from typing import Any

import numpy as np
import torch
import worth_sets
from sklearn.metrics import average_precision_score
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, one_hot

import fastmeta
from fastmeta.bench.environment import record

RESULT = Path(__file__).parent / "results" / "epoch-lookahead.json"
PAGE = Path(__file__).parents[1] / "docs" / "epoch-lookahead.md"
SETS = ("digits-uniform-80", "digits-class-60", "digits-pair-45", "news")
LR, MOMENTUM, WEIGHT_DECAY, BATCH, START = 0.1, 0.9, 5e-4, 64, 0.4
CLEAN_LR, LEAST_SHARE = 0.02, 0.05
Pairs = list[tuple[Tensor, Tensor]]


class Problem:
    """A set as tensors, an MLP of 256 units, SGD with a cosine, a table of labels."""

    def __init__(self, name: str, seed: int, start: float = START) -> None:
        data = worth_sets.load(name, seed)
        self.x, self.given, self.true = map(torch.from_numpy, (data.x_train, data.y_given, data.y_true))
        self.clean = torch.from_numpy(data.x_meta), torch.from_numpy(data.y_meta)
        self.test = torch.from_numpy(data.x_test), torch.from_numpy(data.y_test)
        self.classes, self.epochs = data.num_classes, data.epochs
        torch.manual_seed(seed)
        width = self.x[0].numel()
        self.model = nn.Sequential(nn.Flatten(), nn.Linear(width, 256), nn.ReLU(), nn.Linear(256, self.classes))
        self.optimizer = torch.optim.SGD(self.model.parameters(), LR, MOMENTUM, weight_decay=WEIGHT_DECAY)
        self.labels: Any = fastmeta.InstanceLabels(self.given, self.classes, start)
        self.order = torch.Generator().manual_seed(seed)
        self.steps = len(self.x) // BATCH
        self.schedule = torch.optim.lr_scheduler.CosineAnnealingLR(self.optimizer, self.epochs * self.steps)

    def batches(self) -> Iterator[Tensor]:
        yield from torch.randperm(len(self.x), generator=self.order)[: self.steps * BATCH].split(BATCH)

    @property
    def lr(self) -> float:
        return float(self.optimizer.param_groups[0]["lr"])

    @property
    def clean_lr(self) -> float:
        return CLEAN_LR * max(LEAST_SHARE, self.lr / LR)

    def step(self, index: Tensor, probs: Tensor | None = None) -> None:
        logits = self.model(self.x[index])
        loss = self.labels(logits, index).mean() if probs is None else cross_entropy(logits, probs)
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        self.schedule.step()

    def figures(self) -> dict[str, float]:
        probs = self.labels.probs()
        wrong = self.given != self.true
        score = 1 - probs.gather(1, self.given[:, None]).squeeze(1)
        with torch.no_grad():
            test = (self.model(self.test[0]).argmax(1) == self.test[1]).float().mean()
        return {
            "test": 100 * float(test),
            "labels": 100 * float((probs.argmax(1) == self.true).float().mean()),
            "ap": 100 * float(average_precision_score(wrong.numpy(), score.numpy())),
        }


# ---- how the changes lie to the exact gradient ----


def cosine(name: str, seed: int, at: tuple[int, ...] = (2, 5, 10, 15)) -> list[dict[str, Any]]:
    """Labels are held. For some epochs the exact u of every step's rows, and the changes at the epoch's end."""
    p, rows = Problem(name, seed), []
    for epoch in range(1, max(at) + 1):
        exact, seen = torch.zeros(len(p.x), p.classes), torch.zeros(len(p.x), dtype=torch.bool)
        for index in p.batches():
            if epoch in at:
                made = fastmeta.meta_gradient(p.model, p.labels, (p.x[index], index), p.clean, lr=p.lr)
                exact[index], seen[index] = -p.lr * made.tangent, True
            p.step(index)
        if epoch in at:
            row: dict[str, Any] = {"set": name, "seed": seed, "epoch": epoch}
            for steps in (1, 10, 30):
                lookahead = fastmeta.EpochLookahead(p.model, p.labels, steps=steps, lr=p.clean_lr)
                (made_at_end,) = lookahead.changes((p.x, torch.arange(len(p.x))), p.clean)
                a, b = (t[seen] - t[seen].mean(1, keepdim=True) for t in (exact, made_at_end.change))
                row[f"whole {steps}"] = float((a * b).sum() / a.norm() / b.norm())
                row[f"rows {steps}"] = float(torch.cosine_similarity(a, b, dim=1).mean())
                row[f"size {steps}"] = float(b.norm() / a.norm())
            rows.append(row)
    return rows


# ---- other forms ----


def changes(p: Problem, steps: int) -> Tensor:
    lookahead = fastmeta.EpochLookahead(p.model, p.labels, steps=steps, lr=p.clean_lr)
    (made,) = lookahead.changes((p.x, torch.arange(len(p.x))), p.clean)
    return made.change


def changes_along_training(p: Problem, steps: int) -> Tensor:
    """Two copies take the same steps on training rows under the labels as they are, one of them on clean rows too."""
    ends = []
    for clean in (False, True):
        ahead = copy.deepcopy(p.model)
        optimizer = torch.optim.SGD(ahead.parameters(), p.clean_lr, MOMENTUM)
        order = torch.Generator().manual_seed(0)
        for _ in range(steps):
            index = torch.randint(len(p.x), (BATCH,), generator=order)
            loss = p.labels(ahead(p.x[index]), index).mean()
            if clean:
                loss = loss + cross_entropy(ahead(p.clean[0]), p.clean[1])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        with torch.no_grad():
            ends.append(ahead(p.x))
    return ends[1] - ends[0]


def trained(
    name: str,
    seed: int,
    *,
    steps: int = 10,
    eta: float = 0.3,
    with_p: bool = False,
    along: bool = False,
    warm: float = 0.1,
    warm_on: str = "start",
    start: float = START,
    last: bool = False,
) -> dict[str, float]:
    """A run whose labels move once an epoch. `with_p`: as the softmax table has it, l <- l + eta p (dz - <p, dz>)."""
    p = Problem(name, seed, start)
    warm_up = max(1, int(warm * p.epochs))
    smoothed = 0.9 * one_hot(p.given, p.classes).float() + 0.1 / p.classes
    for epoch in range(1, p.epochs + 1):
        for index in p.batches():
            p.step(index, smoothed[index] if warm_on == "given" and epoch <= warm_up else None)
        if warm_up <= epoch < p.epochs + last:
            change = (changes_along_training if along else changes)(p, steps)
            probs = p.labels.probs()
            move = change - (probs * change).sum(1, keepdim=True)
            p.labels.label_logits += eta * (probs * move if with_p else move)
    return p.figures()


def exact(name: str, seed: int, start: float = START) -> dict[str, float]:
    """The exact steps of the paper, at the family's default rate for this many epochs."""
    p = Problem(name, seed, start)
    rate = p.labels.default_label_lr(LR, BATCH, p.epochs)
    step = fastmeta.MetaStep(p.model, p.labels, p.optimizer, label_lr=rate, unique_index=True)
    for _ in range(p.epochs):
        for index in p.batches():
            step((p.x[index], index), p.clean)
            p.schedule.step()
    return p.figures()


FORMS: dict[str, dict[str, Any]] = {
    "K 10, eta 0.3": {},
    "K 10, eta 0.1": {"eta": 0.1},
    "K 10, eta 1": {"eta": 1.0},
    "K 30, eta 0.1": {"steps": 30, "eta": 0.1},
    "K 30, eta 0.3": {"steps": 30},
    "K 30, eta 1": {"steps": 30, "eta": 1.0},
    "factor p, K 10, eta 0.3": {"with_p": True},
    "factor p, K 10, eta 1": {"with_p": True, "eta": 1.0},
    "factor p, K 10, eta 3": {"with_p": True, "eta": 3.0},
    "along training, K 10, eta 0.3": {"along": True},
    "along training, K 30, eta 0.3": {"along": True, "steps": 30},
    "warm-up on given labels, smoothed": {"warm_on": "given"},
    "no warm-up": {"warm": 0.0},
    "warm-up of a quarter": {"warm": 0.25},
    "a move behind the last epoch too": {"last": True},
    "start 0.6": {"start": 0.6},
    "start 0.9": {"start": 0.9},
}


# ---- class labels ----


def class_labels(name: str, seed: int, eta: float | None, start: float) -> dict[str, float]:
    """One smoothing value per class; `eta` None: by exact steps at the family's default rate."""
    p = Problem(name, seed)
    p.labels = labels = fastmeta.ClassLabels(p.given, p.classes, start)
    step = None
    if eta is None:
        rate = labels.default_label_lr(LR, BATCH, p.epochs)
        step = fastmeta.MetaStep(p.model, labels, p.optimizer, label_lr=rate, unique_index=True)
    for epoch in range(1, p.epochs + 1):
        for index in p.batches():
            if step is None:
                p.step(index)
            else:
                step((p.x[index], index), p.clean)
                p.schedule.step()
        if eta and p.epochs // 10 <= epoch < p.epochs:
            lookahead = fastmeta.EpochLookahead(p.model, labels, steps=10, lr=p.clean_lr, eta=eta)
            lookahead.update((p.x, torch.arange(len(p.x))), p.clean)
    return p.figures()


# ---- cost ----


def cost(rounds: int = 3) -> list[dict[str, Any]]:
    """CPU seconds of one thread. Epochs of each kind take turns; ratios are medians of those within a round."""
    rows = []
    for name, count, clean_rows, width, classes in (
        ("mlp 256, 1,400 rows", 1400, 30, 64, 10),
        ("mlp 256, 6,400 rows", 6400, 256, 256, 10),
        ("resnet20, 256 images", 256, 20, 0, 10),
    ):
        torch.manual_seed(0)
        images = not width
        shape = (3, 32, 32) if images else (width,)
        x, y = torch.randn(count, *shape), torch.randint(classes, (count,))
        clean = torch.randn(clean_rows, *shape), torch.randint(classes, (clean_rows,))
        size, steps = (64, 10)
        model: nn.Module = (
            fastmeta_model("resnet20", classes, shape)
            if images
            else nn.Sequential(nn.Linear(width, 256), nn.ReLU(), nn.Linear(256, classes))
        )
        labels = fastmeta.InstanceLabels(y, classes, 0.5)
        optimizer = torch.optim.SGD(model.parameters(), 0.01, 0.9)
        batches = [(x[i], i) for i in torch.arange(count).split(size)]
        step = fastmeta.MetaStep(model, labels, optimizer, unique_index=True)
        lookahead = fastmeta.EpochLookahead(model, labels, steps=steps, lr=1e-3)
        chunks: Pairs = [(x[i], i) for i in torch.arange(count).split(256)]
        told: list[Any] = []

        def plain(
            model: nn.Module = model, labels: Any = labels, optimizer: Any = optimizer, batches: Pairs = batches
        ) -> None:
            for xb, index in batches:
                loss = labels(model(xb), index).mean()
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()

        def with_move(
            plain: Any = plain, told: Any = told, lookahead: Any = lookahead, chunks: Any = chunks, clean: Any = clean
        ) -> None:
            plain()
            told.append(lookahead.update(chunks, clean))

        def exact_steps(step: Any = step, batches: Pairs = batches, clean: Any = clean) -> None:
            for xb, index in batches:
                step((xb, index), clean)

        kinds: dict[str, Callable[[], None]] = {"plain": plain, "epoch": with_move, "exact": exact_steps}
        seconds: dict[str, list[float]] = {kind: [] for kind in kinds}
        for kind in kinds.values():
            kind()
        for round_number in range(rounds):
            for kind in random.Random(round_number).sample(list(kinds), len(kinds)):
                began = time.process_time()
                kinds[kind]()
                seconds[kind].append(time.process_time() - began)
        ratio = {k: median(a / b for a, b in zip(v, seconds["plain"], strict=True)) for k, v in seconds.items()}
        forwards = 3 * count
        rows.append(
            {
                "case": name,
                "clean_rows": clean_rows,
                "steps": steps,
                "plain_seconds": median(seconds["plain"]),
                "epoch_ratio": ratio["epoch"],
                "exact_ratio": ratio["exact"],
                "epoch_forwards": (forwards + told[-1].row_forwards) / forwards,
            }
        )
    return rows


def fastmeta_model(name: str, classes: int, shape: tuple[int, ...]) -> nn.Module:
    from fastmeta import models

    return models.build(name, num_classes=classes, input_shape=shape)


# ---- the file ----


def write(part: str, rows: list[dict[str, Any]], command: str) -> None:
    content = json.loads(RESULT.read_text()) if RESULT.exists() else {"schema": 1, "kind": "epoch look-ahead"}
    content[part] = {"environment": record(torch.device("cpu"), command), "rows": rows}
    RESULT.write_text(json.dumps(content, indent=1) + "\n")
    print(json.dumps(rows[-1]), flush=True)


def tables(content: dict[str, Any]) -> dict[str, str]:
    """Each part as a table in Markdown."""
    made: dict[str, list[str]] = {}
    rows = content["cosine"]["rows"]
    made["cosine"] = ["| set | K 1 | K 10 | K 30 |", "|---|---|---|---|"]
    for name in dict.fromkeys(row["set"] for row in rows):
        own = [row for row in rows if row["set"] == name]
        cells = (
            f"{mean(r[f'whole {k}'] for r in own):.3f}, {mean(r[f'rows {k}'] for r in own):.3f}" for k in (1, 10, 30)
        )
        made["cosine"].append(f"| {name} | {' | '.join(cells)} |")
    rows = content["forms"]["rows"]
    names, forms = (list(dict.fromkeys(row[key] for row in rows)) for key in ("set", "form"))
    made["forms"] = [f"| | {' | '.join(names)} |", "|---" * (len(names) + 1) + "|"]
    for form in forms:
        found = {r["set"]: f"{r['test']:.1f} / {r['labels']:.1f} / {r['ap']:.1f}" for r in rows if r["form"] == form}
        made["forms"].append(f"| {form} | {' | '.join(found.get(name, '') for name in names)} |")
    rows = content["classes"]["rows"]
    etas = list(dict.fromkeys(row["eta"] for row in rows))
    head = " | ".join("exact" if e is None else f"η {e:g}" if e else "never moved" for e in etas)
    made["classes"] = [f"| set, start | {head} |", "|---" * (len(etas) + 1) + "|"]
    for name, start in dict.fromkeys((row["set"], row["start"]) for row in rows):
        own = {r["eta"]: r for r in rows if (r["set"], r["start"]) == (name, start)}
        cells = (f"{own[eta]['test']:.1f}" for eta in etas)
        made["classes"].append(f"| {name}, {start:g} | {' | '.join(cells)} |")
    made["cost"] = [
        "| an epoch of | plain, s | with the move | by counted forwards | exact steps |",
        "|---|---|---|---|---|",
    ]
    made["cost"] += [
        f"| {r['case']}, {r['steps']} × {r['clean_rows']} clean | {r['plain_seconds']:.2g} | {r['epoch_ratio']:.2f} | "
        f"{r['epoch_forwards']:.2f} | {r['exact_ratio']:.2f} |"
        for r in content["cost"]["rows"]
    ]
    return {part: "\n".join(lines) for part, lines in made.items()}


def with_tables(page: str, content: dict[str, Any]) -> str:
    """`page` with each table between the marks of its part."""
    for part, table in tables(content).items():
        before, begin, rest = page.partition(f"<!-- {part}:begin -->\n")
        _, end, after = rest.partition(f"<!-- {part}:end -->")
        page = f"{before}{begin}{table}\n{end}{after}"
    return page


def summed_up(runs: list[dict[str, float]]) -> dict[str, float]:
    return {key: round(mean(run[key] for run in runs), 2) for key in runs[0]}


def replaced(rows: list[dict[str, Any]], row: dict[str, Any], keys: tuple[str, ...]) -> list[dict[str, Any]]:
    """`rows` with `row` in the place of that of the same keys, or at the end."""
    return [r for r in rows if any(r[k] != row[k] for k in keys)] + [row]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=("cosine", "forms", "classes", "cost", "tables"))
    parser.add_argument("--sets", nargs="*", default=SETS)
    parser.add_argument("--forms", nargs="*", default=["exact", *FORMS])
    parser.add_argument("--seeds", type=int, default=3)
    args = parser.parse_args()
    if args.part == "tables":
        PAGE.write_text(with_tables(PAGE.read_text(), json.loads(RESULT.read_text())))
        return
    torch.set_num_threads(1)
    np.seterr(all="ignore")
    command = f"python benchmarks/epoch_lookahead.py {args.part} --seeds {args.seeds}"
    rows = json.loads(RESULT.read_text()).get(args.part, {}).get("rows", []) if RESULT.exists() else []
    seeds = range(args.seeds)
    if args.part == "cost":
        write("cost", cost(), command)
    elif args.part == "cosine":
        for name in args.sets:
            rows = [row for row in rows if row["set"] != name] + [row for seed in seeds for row in cosine(name, seed)]
            write("cosine", rows, command)
    elif args.part == "classes":
        for name, start, eta in product(SETS[:2], (0.9, 0.4), (None, 0.0, 0.01, 0.03, 0.1, 0.3)):
            runs = [class_labels(name, seed, eta, start) for seed in seeds]
            row = {"set": name, "start": start, "eta": eta, "seeds": args.seeds, **summed_up(runs)}
            rows = replaced(rows, row, ("set", "start", "eta"))
            write("classes", rows, command)
    else:
        for name, form in product(args.sets, args.forms):
            runs = [exact(name, s) if form == "exact" else trained(name, s, **FORMS[form]) for s in seeds]
            row = {"set": name, "form": form, "seeds": args.seeds, **summed_up(runs)}
            rows = replaced(rows, row, ("set", "form"))
            write("forms", rows, command)


if __name__ == "__main__":
    main()
