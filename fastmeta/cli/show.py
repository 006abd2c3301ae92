"""``fastmeta show``: a finished run, or the runs in a folder, in the terminal and as report.html."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from fastmeta._text import printable, printable_lines
from fastmeta.cli.parser import Parser, wrapped
from fastmeta.data import InputError
from fastmeta.training.rundir import CONFIG, SUMMARY, user_path

PROG = "fastmeta show"
DESCRIPTION = """Print what a run has reached, and write report.html into it: the labels that changed most, where labels
went, how well wrong ones are found, curves, what canaries say, the config. Of a folder, a table of the runs in it and
below, of those too that are running or were stopped: where each stands, what is left, what it reached last. A run that
is not finished is only looked at."""
EPILOG = """
examples:
  fastmeta show runs/my-run
  fastmeta show runs/my-run --cleanlab       beside cleanlab's finder of wrong labels
  fastmeta show runs                         every run in the folder, means over seeds
  fastmeta show runs --json                  the same for a program

The page is one file without scripts that loads nothing. It holds samples of the data: look before you send it.
"""


def parser() -> Parser:
    p = Parser(prog=PROG, description=DESCRIPTION, epilog=EPILOG)
    p.add_argument("runs", nargs="+", metavar="RUN", help="A run directory, or a folder with some in it or below.")
    p.add_argument("--out", metavar="FILE", help="Of the page, for one RUN. (default: RUN/report.html)")
    p.add_argument("--no-page", action="store_true", help="Print alone.")
    p.add_argument("--json", action="store_true", help="Print every run as JSON, and nothing else; writes no page.")
    p.add_argument(
        "--cleanlab",
        action="store_true",
        help="Hold cleanlab's finder beside it, on logistic regression, where right labels are known.",
    )
    return p


def main(argv: list[str]) -> int:
    """0: shown; 2: something given is wrong."""
    p = parser()
    args = p.parse(argv)
    if args.out is not None and (len(args.runs) > 1 or args.no_page or args.json):
        none = ", and --no-page writes none" if args.no_page else ", and --json writes none" if args.json else ""
        p.error(f"--out names the page of one RUN{none}")
    if args.json and args.cleanlab:
        p.error("--cleanlab is about the page of a run, and --json writes none; leave one out")
    if args.json:
        return _print_json(args.runs)
    for name in args.runs:
        try:
            _show(name, args.out, page=not args.no_page, cleanlab=args.cleanlab)
        except (InputError, ImportError) as error:
            print(printable_lines(f"{PROG}: {error}"), file=sys.stderr)
            return 2
    return 0


def _print_json(names: list[str]) -> int:
    from fastmeta.report.run_folder import entries
    from fastmeta.training.rundir import to_json

    try:
        found = [entry.as_json() for name in names for entry in entries(_folder(name))]
    except InputError as error:
        print(printable_lines(f"{PROG}: {error}"), file=sys.stderr)
        return 2
    print(to_json(found, indent=2))
    return 0


def _folder(name: str) -> Path:
    path = user_path(name, "RUN")
    if not os.path.isdir(path):
        raise InputError(f"{path} is no folder" if os.path.lexists(path) else f"{path} is not there")
    return path


def _show(name: str, out: str | None, *, page: bool, cleanlab: bool) -> None:
    from rich.console import Console

    from fastmeta.report import folder_table, result_table, write_folder_report, write_report
    from fastmeta.report.run_folder import entries
    from fastmeta.training.rundir import run_labels

    console = Console(highlight=False)
    console.width = max(80, console.width)
    path = _folder(name)
    if os.path.isfile(path / CONFIG) and not os.path.isfile(path / SUMMARY):
        page = False  # nothing is written into a run that goes on
    if os.path.isfile(path / SUMMARY):
        labels = run_labels(path, force=True)
        console.print(result_table(labels.summary))
        written = write_report(path, out, cleanlab=cleanlab) if page else None
    elif cleanlab:
        what = "not finished" if os.path.isfile(path / CONFIG) else "a folder of them; name the run"
        raise InputError(f"--cleanlab is about one run, and {path} is {what}")
    else:
        console.print(folder_table(entries(path), console.width))
        written = write_folder_report(path, out) if page else None
    if written is not None:
        print(wrapped(printable(f"page in {written}")))
