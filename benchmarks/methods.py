"""Every method of the registry beside plain training, three seeds: ``fastmeta compare`` on five sets.

    python benchmarks/methods.py                            # digits: what is missing in results/, then docs/methods.md
    FASTMETA_DATA=FOLDER python benchmarks/methods.py --set news cifar-worst fashion-pair fashion-instance
    python benchmarks/methods.py --only elr sop --again
    python benchmarks/methods.py --table                    # docs/methods.md from the files, and measure nothing

Each seed is a comparison of its own, whose runs lie in --work, so that whoever is stopped goes on in the middle of a
run; its rows go to results/methods.json, or to results/methods-SET.json. One thread. All rows of a set have the same
network and schedule. Methods have their default options, and nothing is tuned; rows with others are named by them.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import warnings
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from readme_table import write
from worth_ours import arrays
from worth_rivals import BATCH, DECAY, LR, MOMENTUM, cleanlab, network
from worth_sets import load, missing

import fastmeta
from fastmeta.bench.environment import record
from fastmeta.comparison import Comparison, Watcher
from fastmeta.comparison.figure import write_figure
from fastmeta.comparison.runs import FILE as COMPARISON
from fastmeta.comparison.standings import Row as Standing
from fastmeta.methods import METHODS
from fastmeta.training import Interrupted

RESULTS = Path(__file__).parent / "results"
PAGE = Path(__file__).parent.parent / "docs" / "methods.md"
WORK = Path("runs", "methods")
SEEDS = (0, 1, 2)
Row = dict[str, Any]

#: rows of plain training, which every comparison has
BESIDE = {
    "onehot": "`onehot`",
    "union": "onehot, given and clean together",
    "clean": "onehot, clean alone",
    "softened": "softened (0.4), never moved",
    "finetuned": "onehot, then fine-tuned on clean",
    "union_finetuned": "onehot, given and clean, then fine-tuned on clean",
}
#: a row that is no run of this package
CLEANLAB = "cleanlab"
#: rows of a method with other options than its defaults: which
SOFT, HALF_SOFT = {"labels.target_prob": 0.4}, {"labels.target_prob": 0.6}
OPTIONS: dict[str, tuple[str, dict[str, Any]]] = {
    "mentornet_learned": ("mentornet", {"method.curriculum": "learned"}),
    "mwnet_sgd": ("mwnet", {"method.normalise": "sum", "method.optimizer": "sgd"}),
    "mwnet_n": ("mwnet", {"method.normalise": "n", "method.optimizer": "adam"}),
    "mwnet_n_sgd": ("mwnet", {"method.normalise": "n", "method.optimizer": "sgd"}),
    "softened_half": ("softened", HALF_SOFT),
    "instance_labels_exact": ("instance_labels", SOFT),
    "instance_labels_exact_from_0.6": ("instance_labels", HALF_SOFT),
    "class_labels_soft": ("class_labels", SOFT),
    "class_labels_half_soft": ("class_labels", HALF_SOFT),
    # of chosen_steps.py
    "softened_tuned": ("softened", {"labels.target_prob": 0.3}),
    "instance_labels_exact_tuned": ("instance_labels", {"labels.target_prob": 0.4, "labels.label_step": 0.1}),
}
TITLES = {
    **BESIDE,
    CLEANLAB: "onehot without what cleanlab finds, and clean",
    "softened_half": "softened (0.6), never moved",
    "mentornet_learned": "`mentornet`, learned curriculum",
    "mwnet_sgd": "`mwnet` by sgd (published)",
    "mwnet_n": "`mwnet`, weights over n (published)",
    "mwnet_n_sgd": "`mwnet`, weights over n, by sgd",
    "instance_labels_exact": "`instance_labels`, exact steps from 0.4",
    "instance_labels_exact_from_0.6": "`instance_labels`, exact steps from 0.6",
    "class_labels_soft": "`class_labels` from 0.4",
    "class_labels_half_soft": "`class_labels` from 0.6",
    "softened_tuned": "softened (0.3, chosen), never moved",
    "instance_labels_exact_tuned": "`instance_labels`, exact steps of 0.1 from 0.4, chosen",
}
DISTILL = "[methods.distill.method]\ntemperature = 2.0\n"


@dataclass(frozen=True)
class Task:
    """A set with one noise: a column of a table."""

    name: str  # of the noise, or of a set of worth_sets.py
    of: str  # the choice of --set
    noisy_digits: bool = False
    starts: tuple[dict[str, float], ...] = ()  # of labels, beside the default one
    tuned: tuple[str, ...] = ()  # rows with options that were chosen on other draws, a comparison of their own

    @property
    def file(self) -> Path:
        return RESULTS / ("methods.json" if self.noisy_digits else f"methods-{self.of}.json")

    def missing(self) -> str:
        return "" if self.noisy_digits else missing(self.name)

    def grid(self, methods: Iterable[str]) -> dict[str, list[Any]]:
        """Options of `methods` that are tried, the defaults among them."""
        grid: dict[str, list[Any]] = {}
        if "mentornet" in methods:
            grid["method.curriculum"] = ["predefined", "learned"]
        if self.noisy_digits and "mwnet" in methods:
            grid |= {"method.normalise": ["sum", "n"], "method.optimizer": ["adam", "sgd"]}
        if self.starts:  # the softened start has them too
            grid["labels.target_prob"] = [None, *(start["labels.target_prob"] for start in self.starts)]
        return grid

    def names(self) -> list[str]:
        """Its rows."""
        grid = self.grid(METHODS)
        tried = [
            name
            for name, (_, point) in OPTIONS.items()
            if name in self.tuned or all(key in grid and value in grid[key] for key, value in point.items())
        ]
        without = {*OPTIONS, CLEANLAB} - {*tried, *([] if self.noisy_digits else [CLEANLAB])}
        return [name for name in names() if name not in without]

    def compare(
        self,
        seed: int,
        methods: list[str],
        out: Path,
        grid: Mapping[str, list[Any]],
        *,
        without: tuple[str, ...] = (),
        **options: Any,
    ) -> Comparison:
        """All images and texts, train, test and clean, are drawn anew for each seed.

        Arrays named by `without` are not given to the runs; `options` are laid over all of them.
        """
        over: dict[str, Any] = {"seed": seed, "data.split_seed": seed, **options}
        given: dict[str, Any] = {}
        if self.noisy_digits:
            text = f'dataset = "digits"\nnoise = "{self.name}"\n{DISTILL}'
        else:
            data = load(self.name, seed)
            known = {key: value for key, value in arrays(data).items() if key not in without}
            given = {"data": known, "model": network(data, seed)}
            wrong = float((data.y_given != data.y_true).mean())
            text = (
                f"epochs = {data.epochs}\nthreads = 1\n"
                f"[optim]\nlr = {LR}\nmomentum = {MOMENTUM}\nweight_decay = {DECAY}\n"
                f"[data]\nbatch_size = {BATCH}\nstandardise = false\n"
                f"[methods.coteaching.method]\nforget_rate = {wrong:.2f}\n{DISTILL}"
            )
        out.parent.mkdir(parents=True, exist_ok=True)
        recipe = out.with_suffix(".toml")
        recipe.write_text(text)
        return fastmeta.compare(recipe, out, methods=methods, seeds=1, grid=grid, over=over, watcher=Told(), **given)


TASKS = (
    Task("uniform:0.4", "digits", noisy_digits=True),
    Task("class:0.6", "digits", noisy_digits=True),
    Task("news-all", "news", starts=(SOFT, HALF_SOFT), tuned=("softened_tuned", "instance_labels_exact_tuned")),
    Task("cifar-worst", "cifar-worst", starts=(SOFT,)),
    Task("fashion-pair-45", "fashion-pair", starts=(SOFT,)),
    Task("fashion-instance-40", "fashion-instance", starts=(SOFT,)),
)
HEADINGS = {
    "digits": "",
    "news": "NoisyAG-News: 10,000 texts labelled by people, 100 of them clean; 256 singular vectors of TF-IDF, a "
    "network of 256 hidden units, 20 epochs.",
    "cifar-worst": "CIFAR-10 with the worst of three human labels: a subset of 3,000 images and 500 clean ones, a "
    "narrow network of three convolutions, 24 epochs: far from what the set allows.",
    "fashion-pair": "Fashion-MNIST, 3,800 images with pair noise of 45%, 200 clean ones, a network of 256 hidden "
    "units, 40 epochs.",
    "fashion-instance": "Fashion-MNIST, the same with instance noise of 40%.",
}


class Told(Watcher):
    def done(self, run: Any, done: Any) -> None:
        print(f"    {run.name}: {100 * done.summary['test_accuracy_last']:.1f}", flush=True)

    def failed(self, run: Any, message: str) -> None:
        print(f"    {run.name} failed: {message}", flush=True)


def names() -> list[str]:
    return [*BESIDE, CLEANLAB, *(name for name in METHODS if name not in BESIDE), *OPTIONS]


def name_of(row: Any) -> str:
    """Of a row of a comparison."""
    of = {name for name, (method, point) in OPTIONS.items() if (row.name, row.setting.point) == (method, point)}
    return next(iter(of), row.name)


# ---- the files ----


def read(file: Path) -> dict[str, Any]:
    if file.exists():
        return json.loads(file.read_text())
    return {"schema": 1, "kind": "methods", "environment": {}, "rows": []}


def key(row: Row) -> tuple[str, int, str]:
    return row["noise"], row["seed"], row["name"]


def put(file: Path, new: list[Row], command: str) -> None:
    """Merge rows into the file, whoever else has written to it meanwhile."""
    content = read(file)
    order = {name: i for i, name in enumerate(names())}
    rows = {key(r): r for r in (*content["rows"], *new)}
    content["rows"] = sorted(rows.values(), key=lambda r: (r["noise"], r["seed"], order.get(r["name"], 99)))
    content["environment"] = record(torch.device("cpu"), command)
    head = json.dumps({k: v for k, v in content.items() if k != "rows"}, indent=1)[:-2]
    lines = ",\n".join("  " + json.dumps(r) for r in content["rows"])
    part = file.with_suffix(".part")
    part.write_text(f'{head},\n "rows": [\n{lines}\n ]\n}}\n')
    os.replace(part, file)


def rows_of(found: Comparison, noise: str, seed: int) -> list[Row]:
    """One for each row of a comparison of one seed; those that failed have no figures."""
    rows = []
    for row in found.rows:
        figures = {k: row.mean(v) for k, v in (("test_accuracy_last", "last"), ("test_accuracy_best", "best"))}
        figures |= {k: row.mean(k) for k in ("nll", "ece", "seconds")}
        learned = {"label_accuracy": row.label_accuracy[0]} if row.label_accuracy else {}
        failed = {"failed": row.failed[0][1].partition(";")[0]} if row.failed else {}  # without where its state lies
        clean = {"clean_data": row.clean_data}
        rows.append({"noise": noise, "seed": seed, "name": name_of(row), **figures, **clean, **learned, **failed})
    return rows


# ---- the runs ----


def run(tasks: Iterable[Task], seeds: Iterable[int], wanted: list[str], work: Path, *, again: bool) -> None:
    for task in tasks:
        if reason := task.missing():
            print(f"{task.name} is left out: {reason}", flush=True)
            continue
        for seed in seeds:
            there = [r for r in read(task.file)["rows"] if (r["noise"], r["seed"]) == (task.name, seed)]
            done = set() if again else {r["name"] for r in there if "failed" not in r}
            methods = [name for name in wanted if name in task.names() and name not in done]
            if not methods:
                continue
            command = f"python benchmarks/methods.py --set {task.of}"
            if CLEANLAB in methods:
                methods.remove(CLEANLAB)
                put(task.file, [by_cleanlab(task.name, seed)], command)
            out = work / task.name.replace(":", "-") / f"seed{seed}"
            tuned = [name for name in methods if name in task.tuned]
            for these, folder in (([n for n in methods if n not in tuned], out), (tuned, Path(f"{out}-tuned"))):
                if not these:
                    continue
                if again:
                    shutil.rmtree(folder, ignore_errors=True)
                print(f"{task.name}, seed {seed} → {folder}", flush=True)
                asked = _all_of(folder, these)
                grid = _points(these) if these is tuned else task.grid(asked)
                rows = rows_of(task.compare(seed, asked, folder, grid), task.name, seed)
                put(task.file, [row for row in rows if these is not tuned or row["name"] in tuned], command)


def by_cleanlab(name: str, seed: int) -> Row:
    """As benchmarks/worth.py has it: its finder by logistic regression; the network sees what stays and clean rows."""
    data = load(name, seed)
    result = cleanlab(data, seed)
    right = float((result.labels == data.y_true).mean())
    figures = {"test_accuracy_last": result.test, "label_accuracy": right, "seconds": result.seconds}
    return {"noise": name, "seed": seed, "name": CLEANLAB, **figures, "clean_data": len(data.y_meta)}


def _all_of(out: Path, methods: list[str]) -> list[str]:
    """Methods for a comparison: those that have begun there too, and a teacher for who needs one."""
    begun = json.loads((out / COMPARISON).read_text())["plan"]["methods"] if (out / COMPARISON).exists() else []
    teacher = ["instance_labels"] if "distill" in methods else []
    own = [method for name in methods if (method := OPTIONS.get(name, (name,))[0]) in METHODS]
    return list(dict.fromkeys([*begun, *teacher, *own])) or ["onehot"]


def _points(names: Iterable[str]) -> dict[str, list[Any]]:
    """The grid that has the options of these rows alone."""
    grid: dict[str, list[Any]] = {}
    for name in names:
        for option, value in OPTIONS[name][1].items():
            grid.setdefault(option, [])
            grid[option] += [value] if value not in grid[option] else []
    return grid


# ---- the page ----


def cell(rows: list[Row], name: str, figure: str, scale: float = 100, digits: int = 1) -> str:
    of = [r for r in rows if r["name"] == name]
    found = [scale * r[figure] for r in of if r.get(figure) is not None]
    failed = sum("failed" in r for r in of) if figure == "test_accuracy_last" else 0
    if not found:
        return "failed" if failed else "–"
    if max(found) >= 1e4:  # the loss of a run whose logits have grown without end
        return f"up to {max(found):.0e}"
    spread = f" ± {statistics.stdev(found):.{digits}f}" if len(found) > 1 else ""
    return f"{statistics.mean(found):.{digits}f}{spread}" + (f" ({failed} failed)" if failed else "")


def uses_clean(rows: list[Row], name: str) -> str:
    """Of rows that were measured before it was told, by what the method is."""
    told = [r["clean_data"] for r in rows if r["name"] == name and r.get("clean_data") is not None]
    if told:
        return f"{max(told):,}" if max(told) else "no"
    if name in BESIDE:
        return "no" if name in ("onehot", "softened") else "yes"
    seen = name in ("distill", *OPTIONS) or METHODS[name].uses_clean(METHODS[name].Config())
    return "yes" if seen else "no"


def table(of: str, rows: list[Row]) -> list[str]:
    """The rows of one choice of --set: a column for each noise, and more figures where there is one."""
    tasks = [task for task in TASKS if task.of == of and any(r["noise"] == task.name for r in rows)]
    heads = [f"`{task.name}`" for task in tasks] if len(tasks) > 1 else ["test %", "NLL", "ECE", "labels right, %"]
    lines = [f"| | {' | '.join(heads)} | clean data | s |", "|---|" + "---|" * (len(heads) + 2)]
    for name in [*names(), *sorted({r["name"] for r in rows} - set(names()))]:
        if not any(r["name"] == name for r in rows):
            continue
        if len(tasks) > 1:
            cells = [cell([r for r in rows if r["noise"] == t.name], name, "test_accuracy_last") for t in tasks]
        else:
            cells = [cell(rows, name, "test_accuracy_last")]
            cells += [cell(rows, name, figure, 1, 3) for figure in ("nll", "ece")]
            cells.append(cell(rows, name, "label_accuracy"))
        seconds = cell(rows, name, "seconds", 1).partition(" ")[0]
        title = TITLES.get(name, f"`{name}`")
        lines.append(f"| {title} | {' | '.join(cells)} | {uses_clean(rows, name)} | {seconds} |")
    return lines


def picture(task: Task) -> Path:
    return PAGE.with_name(f"methods-{task.name.replace(':', '-')}")


def draw(task: Task) -> None:
    """The figure of a task, beside the page; none of one that has not been measured."""
    rows = [r for r in read(task.file)["rows"] if r["noise"] == task.name]
    shown = []
    for name in names():
        of = [r for r in rows if r["name"] == name and r.get("test_accuracy_last") is not None]
        if of:
            title = TITLES.get(name, name).replace("`", "")
            last = {"last": tuple(r["test_accuracy_last"] for r in of)}
            clean = {"clean_rows": of[0]["clean_data"]}
            shown.append(Standing(name, title, None, tuple(r["seed"] for r in of), last, clean))  # type: ignore[arg-type]
    for file in write_figure(picture(task), task.name, shown, []):
        if file.suffix != ".png":
            file.unlink()


def page() -> list[str]:
    lines: list[str] = []
    for of, heading in HEADINGS.items():
        file = next(task.file for task in TASKS if task.of == of)
        content = read(file)
        rows, machine = content["rows"], content["environment"]
        if not rows:
            continue
        if not lines:
            lines.append(
                "Test accuracy after the last epoch in %, mean ± standard deviation of "
                f"{len({r['seed'] for r in rows})} seeds. All rows of a table have the same images, network and "
                "schedule, and the same clean ones where they use them: 30 of the digits. Methods have their default "
                "options where a row names no others: none is tuned, but for rows that are called chosen."
            )
        seeds = {r["seed"] for r in rows}
        if len(seeds) < len(SEEDS):
            heading += f" {len(seeds)} of {len(SEEDS)} seeds."
        lines += ["", *([heading, ""] if heading else []), *table(of, rows), ""]
        for task in TASKS:
            if task.of == of:
                lines += [f"![Test accuracy of every method on {task.name}]({picture(task).name}.png)", ""]
        machine = f"{machine['cpu']['model']}, torch {machine['torch']}"
        lines.append(f"{machine}; `benchmarks/results/{file.name}` has every run.")
    return [
        *lines,
        "",
        "`distill` has the predictions of the `instance_labels` row's network at T = 2, without that run's seconds. "
        "Fine-tuning takes 100 steps; its seconds are with the training before. `coteaching` knows the share of wrong "
        "labels. Seconds were taken on a machine with other work: they tell what is dear, and no more.",
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--set", nargs="+", choices=list(HEADINGS), default=["digits"], metavar="SET")
    parser.add_argument("--only", nargs="+", choices=names(), default=names(), metavar="NAME", help="rows to measure")
    parser.add_argument("--seeds", nargs="+", type=int, default=list(SEEDS), metavar="SEED")
    parser.add_argument("--work", type=Path, default=WORK, metavar="DIR", help=f"folder of the runs (default: {WORK})")
    parser.add_argument("--again", action="store_true", help="measure what the files have already, too")
    parser.add_argument("--table", action="store_true", help="write docs/methods.md from the files, measure nothing")
    args = parser.parse_args()
    if not args.table:
        torch.set_num_threads(1)
        warnings.simplefilter("ignore")  # the health of labels, which the figures tell
        try:
            run([task for task in TASKS if task.of in args.set], args.seeds, args.only, args.work, again=args.again)
        except Interrupted as stop:
            raise SystemExit(f"{stop}; the same command goes on") from None
    for task in TASKS:
        draw(task)
    write(PAGE, page())


if __name__ == "__main__":
    main()
