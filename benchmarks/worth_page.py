"""The tables of docs/worth.md from results/worth.json, and whether the goals are met."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable
from typing import Any

from worth_ours import OURS
from worth_rivals import RIVALS
from worth_sets import SETS

Row = dict[str, Any]
Value = Callable[[Row], float | None]

TITLES = {
    "given": "as given",
    "union": "given and clean together",
    "clean": "clean rows alone",
    "softened": "softened (0.4), never moved",
    "early": "as given, stopped early by the clean rows",
    "finetuned": "as given, then fine-tuned on the clean rows",
    "cleanlab": "what cleanlab finds left out, with the clean rows",
    "classical-given": "kernel SVM (texts: logistic regression)",
    "classical-union": "the same, given and clean together",
    "exact": "**learned per sample, exact steps (0.4)**",
    "epoch": "**learned per sample, once an epoch (0.4)**",
    "default": "**learned, defaults of `fastmeta train`**",
}
#: ours that the goals speak of
JUDGED = "default"
#: the rival of the goals is the best of these on average: one method on all sets, with the network of ours
RIVALS_OF_THE_NETWORK = ("given", "union", "clean", "softened", "early", "finetuned", "cleanlab")


class Table:
    """Means over seeds of the rows of a file."""

    def __init__(self, rows: list[Row]) -> None:
        self.rows = rows
        self.sets = [name for name in SETS if any(r["set"] == name for r in rows)]
        self.methods = [m for m in (*RIVALS, *OURS) if any(r["method"] == m for r in rows)]
        #: those that read out other labels than the given ones
        self.relabel = [m for m in self.methods if any(r["corrected"] + r["spoiled"] for r in self.of(m))]

    def of(self, method: str, name: str | None = None) -> list[Row]:
        return [r for r in self.rows if r["method"] == method and name in (None, r["set"])]

    def mean(self, name: str, method: str, value: Value) -> float | None:
        known = [v for r in self.of(method, name) if (v := value(r)) is not None]
        return statistics.mean(known) if known else None

    def fewer(self, method: str, name: str) -> int | None:
        """Seeds of a row of a set; None where it has as many as others."""
        count = len(self.of(method, name))
        return count if count < max(len(self.of(m, name)) for m in self.methods) else None

    def whole(self, method: str, value: Value, sets: list[str] | None = None) -> float | None:
        """Mean over sets; None where one is missing or has fewer seeds: means of different rows would not compare."""
        sets = self.sets if sets is None else sets
        found = [None if self.fewer(method, name) else self.mean(name, method, value) for name in sets]
        known = [v for v in found if v is not None]
        return statistics.mean(known) if known and len(known) == len(found) else None

    def lines(
        self, title: str, value: Value, methods: Iterable[str], sets: list[str] | None = None, unit: float = 100
    ) -> list[str]:
        sets = self.sets if sets is None else sets

        def cell(number: float | None, seeds: int | None = None) -> str:
            few = "" if seeds is None else f" ({seeds} seed{'s' * (seeds > 1)})"
            return "–" if number is None else f"{unit * number:.1f}{few}"

        out = ["", f"**{title}**", "", f"| | mean | {' | '.join(sets)} |", "|---|---|" + "---|" * len(sets)]
        for method in methods:
            cells = [cell(self.mean(name, method, value), self.fewer(method, name)) for name in sets]
            if set(cells) != {"–"}:
                whole = cell(self.whole(method, value, sets))
                out.append(f"| {TITLES.get(method, method)} | {whole} | {' | '.join(cells)} |")
        return out


def test(row: Row) -> float | None:
    return row["test"]


def labels_right(row: Row) -> float:
    return row["labels_right"]


def precision(row: Row) -> float:
    return row["average_precision"]


def classical(row: Row) -> float | None:
    """Of the classical model on the labels as read out; where they are the given ones, the same as on those."""
    return row["test"] if row["method"] == "classical-given" else row["classical_on_labels"]


# ---- goals ----


def goals(table: Table, ours: str = JUDGED) -> list[str]:
    """A line per goal: what was wanted, what came out, whether that meets it. Empty until all is measured."""
    rivals = {m: v for m in RIVALS_OF_THE_NETWORK if (v := table.whole(m, test)) is not None}
    if table.whole(ours, test) is None or len(rivals) < len(RIVALS_OF_THE_NETWORK):
        return []
    best = max(rivals, key=lambda m: rivals[m])

    def points(name: str, other: str, value: Value) -> float:
        return 100 * ((table.mean(name, ours, value) or 0) - (table.mean(name, other, value) or 0))

    by_set = {name: points(name, best, test) for name in table.sets}
    worst = min(by_set, key=lambda name: by_set[name])
    ahead = statistics.mean(by_set.values())

    # where no label changed, the classical model is that of the given labels
    on_given = {name: table.mean(name, "classical-given", test) or 0 for name in table.sets}
    gains = [100 * ((table.mean(n, ours, classical) or on_given[n]) - on_given[n]) for n in table.sets]
    svm = statistics.mean(gains)

    def lost(rows: list[Row]) -> float:
        return 100 * statistics.mean(r["labels_right"] - r["labels_given"] for r in rows)

    spoiled_sets = [n for n in table.sets if lost(table.of(ours, n)) < -0.5]
    failing = [f"{r['set']} {r['seed']}" for r in table.of(ours) if lost([r]) < -0.5]
    right = [100 * (table.whole(m, labels_right) or 0) for m in (ours, "finetuned")]
    ranks = {m: 100 * (table.whole(m, precision) or 0) for m in (ours, "finetuned", "cleanlab")}
    cifar = table.mean("cifar-worst", ours, precision)
    bad_ratio = []
    for name in table.sets:
        wrong, good, bad = (sum(r[k] for r in table.of(ours, name)) for k in ("wrong", "corrected", "spoiled"))
        if good >= 0.2 * wrong and good < 4 * bad:
            bad_ratio.append(f"{name} {good / max(bad, 1):.1f}")
    rows = [
        (f"test accuracy above the best rival ({best}), mean", "≥ 1", f"{ahead:+.1f}", ahead >= 1),
        ("the same, worst set", "≥ −1.5", f"{by_set[worst]:+.1f} ({worst})", by_set[worst] >= -1.5),
        ("classical model on learned labels above given ones, mean", "≥ 3", f"{svm:+.1f}", svm >= 3),
        ("labels right: sets that lose more than 0.5", "none", ", ".join(spoiled_sets) or "none", not spoiled_sets),
        ("labels right, mean, and fine-tuned's", "above", f"{right[0]:.1f} / {right[1]:.1f}", right[0] > right[1]),
        (
            "average precision, and fine-tuned's and cleanlab's",
            "≥ both",
            " / ".join(f"{v:.1f}" for v in ranks.values()),
            ranks[ours] >= max(ranks.values()),
        ),
        (
            "average precision on cifar-worst",
            "≥ 75",
            "–" if cifar is None else f"{100 * cifar:.1f}",
            cifar is not None and cifar >= 0.75,
        ),
        ("corrected : spoiled where ≥ 20% are corrected", "≥ 4 : 1", ", ".join(bad_ratio) or "all", not bad_ratio),
    ]
    head = ["", "**Goals**", "", "| | wanted | measured | |", "|---|---|---|---|"]
    lines = [f"| {what} | {wanted} | {got} | {'met' if met else 'missed'} |" for what, wanted, got, met in rows]
    return [*head, *lines, "", f"Seeds whose labels lose more than 0.5 points: {', '.join(failing) or 'none'}."]


def page(content: dict[str, Any]) -> list[str]:
    rows, machine = content["rows"], content["environment"]
    table = Table(rows)

    def ratio(method: str) -> str:
        good, bad = (sum(r[k] for r in table.of(method)) for k in ("corrected", "spoiled"))
        return f"{TITLES.get(method, method)} {good:,} : {bad:,}"

    rare = [name for name in table.sets if name.startswith("weak")]
    of_labels = ["given", *table.relabel]
    by_classical = ["classical-given", *(m for m in table.relabel if not m.startswith("classical"))]
    seeds = {name: len({r["seed"] for r in rows if r["set"] == name}) for name in table.sets}
    fewer = "".join(f"; {name}: {n} alone" for name, n in seeds.items() if n < max(seeds.values()))
    return [
        f"Means of {max(seeds.values())} seeds{fewer}; in %, {len(rows)} runs.",
        *goals(table),
        *table.lines("Test accuracy", test, table.methods),
        *table.lines(
            "Test accuracy, mean over the classes', where one is rare",
            lambda r: r.get("test_by_class"),
            table.methods,
            rare,
        ),
        *table.lines("Training labels right, as read out", labels_right, of_labels),
        *table.lines("Average precision of wrong labels", precision, table.methods),
        *table.lines("Test accuracy of the classical model on the labels as read out", classical, by_classical),
        *table.lines("CPU seconds of one thread", lambda r: r.get("cpu_seconds"), table.methods, unit=1),
        "",
        "Rows corrected : rows spoiled, over all sets and seeds: " + "; ".join(map(ratio, table.relabel)) + ".",
        "",
        f"{machine['cpu']['model']}, torch {machine['torch']}; `benchmarks/results/worth.json` has every run.",
    ]
