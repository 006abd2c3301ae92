"""``fastmeta reproduce``: tables and figures of the paper, its published numbers beside those measured here."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fastmeta._text import printable, printable_lines
from fastmeta.cli.allocator import keep_freed_memory
from fastmeta.cli.ended import ended
from fastmeta.cli.parser import MOST, Parser, at_least, wrapped
from fastmeta.cli.watching import OneRun
from fastmeta.paper.carry_out import Made, Plan, Watcher, carry_out, make_plan, tune
from fastmeta.paper.registry import ARTEFACTS
from fastmeta.paper.scale import NAMES
from fastmeta.report.numbers import percent
from fastmeta.training.rundir import SUMMARY, command, read, read_summary

if TYPE_CHECKING:
    from argparse import Namespace

    from fastmeta.training import Listener, TrainConfig

PROG = "fastmeta reproduce"
DESCRIPTION = """Train what a table or a figure of the paper is made of, and put its published numbers beside those
measured here: a table, a figure, a report, and what each claim of the paper comes to.

Scales: full is the paper's setting. short takes about 20 minutes of a GPU. cpu trains narrow networks on 4,000 images
of CIFAR-10, on one core. smoke takes seconds, on scikit-learn's digits, and asserts one sign of each artefact.

The same command goes on where it was stopped. Runs lie in DIR/runs, and artefacts share those that are the same. Seeds
may become more later; another scale wants another --out."""
EPILOG = """
examples:
  fastmeta reproduce all --scale smoke
  fastmeta reproduce table6 --scale cpu --data cifar10.npz --out runs/paper-cpu
  fastmeta reproduce table1 table3 --scale full --data-root FOLDER --out paper

Exit codes: 0 all is there, 1 a run failed or a sign was missed at scale smoke, 2 something given is wrong.
"""
ALL = "all"


def parser() -> Parser:
    p = Parser(prog=PROG, description=DESCRIPTION, epilog=EPILOG)
    p.add_argument("names", metavar="NAME", nargs="+", help=f"{', '.join(ARTEFACTS)}, or {ALL}.")
    p.add_argument("--scale", metavar="SCALE", default="smoke", help=f"One of {', '.join(NAMES)}.")
    p.add_argument("--out", metavar="DIR", help="Folder of all that is written. (default: runs/paper-SCALE)")
    p.add_argument(
        "--data",
        action="append",
        default=None,
        metavar="FILE",
        help="An npz file with all images of CIFAR-10 or CIFAR-100: x_train, y_train, x_test, y_test, class_names. "
        "Give it again for the other.",
    )
    p.add_argument("--data-root", metavar="FOLDER", help="Or the folder of torchvision's files.")
    p.add_argument(
        "--seeds", type=at_least(1, MOST), metavar="N", help="How many. By default 3; 1 at scales short and smoke."
    )
    p.add_argument("--seed", type=at_least(0, MOST), default=0, metavar="N", help="The first of them.")
    p.add_argument(
        "--tune",
        action="store_true",
        help="Train none of these runs: try how far labels move and where they start, on another seed, by validation, "
        "and write DIR/tuning.",
    )
    p.add_argument(
        "--dry-run", action="store_true", help="Print which runs there are and what they cost; train nothing."
    )
    return p


def main(argv: list[str]) -> int:
    """The command; returns its exit code."""
    return ended("reproduce", argv, lambda: _main(parser().parse(argv), command(*argv, of="reproduce")))


def _main(given: Namespace, line: str) -> int:
    from fastmeta.paper.data_parts import named_data

    names = list(ARTEFACTS) if given.names == [ALL] else given.names
    out = given.out if given.out is not None else str(Path("runs", f"paper-{given.scale}"))
    plan = make_plan(
        names,
        given.scale,
        out,
        data=named_data(given.data or ()),
        root=given.data_root,
        seeds=given.seeds,
        first_seed=given.seed,
    )
    if given.dry_run:
        print(wrapped(printable_lines(_told(plan))))
        return 0
    keep_freed_memory()
    watcher = ConsoleWatcher()
    try:
        if given.tune:
            for file in tune(plan, watcher):
                print(wrapped(printable(f"wrote {file}")))
            return 0
        made = carry_out(plan, watcher, line)
    finally:
        watcher.close()
    bad = False
    for one in made:
        for path, text in one.failures.items():
            print(wrapped(printable(f"{one.artefact.name}: {path} failed: {text}"), "  "))
        for text in one.missed(plan.scale):
            print(wrapped(printable(f"{one.artefact.name}: not reproduced: {text}"), "  "))
        bad |= bool(one.failures or one.missed(plan.scale))
    return int(bad)


def _told(plan: Plan) -> str:
    from fastmeta.paper.cost import clock, run_costs

    left = [one for seed, one in plan.runs if not one.is_finished(plan.scale.out / "runs", seed)]
    costs = run_costs(left)
    done = len(plan.runs) - len(left)
    already = f", {done} finished already" if done else ""
    lines = [f"{len(plan.runs)} runs{already}, about {clock(costs.total)} on this machine's {costs.device}"]
    for one in plan.artefacts:
        lines.append(f"{one.name}: {one.title}")
        for name, wanted in plan.wanted[one.name].items():
            lines.append(f"  {name}: runs/{wanted.key}, {len(plan.seeds)} seeds, about {clock(costs.of(wanted))} each")
    return "\n".join(lines)


class ConsoleWatcher(Watcher):
    """A line for each run, its bar while it trains, and the table behind each artefact."""

    def __init__(self) -> None:
        self._said: set[str] = set()
        self._listener = OneRun(self._said)

    def begin(self, path: Path, finished: int, total: int) -> None:
        already = f", {finished} finished already" if finished else ""
        print(printable(f"{total} runs{already} → {path}"), flush=True)

    def run(self, number: int | None, total: int, name: str, config: TrainConfig) -> Listener:
        self.close()
        self._listener = OneRun(self._said)
        print(printable(name if number is None else f"{number}/{total} {name}"), flush=True)
        return self._listener

    def done(self, path: Path) -> None:
        self.close()
        if not (path / SUMMARY).is_file():
            return
        told: Mapping[str, Any] = read(path / SUMMARY, read_summary)
        test = told["test_accuracy_last"]
        words = "no test set" if test is None else f"test {percent(test)}%"
        seconds = told["seconds"] + sum(s["seconds"] for s in told["baselines"].values())
        print(f"    {words}, {seconds:.1f} s", flush=True)

    def failed(self, message: str) -> None:
        self.close()
        print(printable(f"    failed: {message}"), file=sys.stderr, flush=True)

    def artefact(self, made: Made) -> None:
        self.close()
        from fastmeta.paper.in_terminal import in_terminal

        self._listener.console.print(in_terminal(made.artefact, made.reading))
        names = ("result.json", "table.md", "table.csv", "report.html")
        written = ", ".join(name for name in names if (made.path / name).is_file())
        print(wrapped(printable(f"wrote {made.path}: {written}")), flush=True)

    def warning(self, text: str) -> None:
        self._listener.warning(text)

    def close(self) -> None:
        self._listener.close()
