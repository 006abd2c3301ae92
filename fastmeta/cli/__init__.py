"""The ``fastmeta`` command: finds the sub-command, hands it the rest of the line, passes its exit code on.

Exit codes: 0 done, 1 it ran and the answer is bad (a wrong gradient, a diverged run), 2 something given is wrong,
128 + N stopped by signal N.
"""

from __future__ import annotations

import contextlib
import difflib
import importlib
import io
import os
import sys
import warnings
from traceback import format_exception
from types import TracebackType

from fastmeta._text import printable_lines, shown
from fastmeta.cli.log_lines import on_stderr

#: sub-command -> what it does; each is a module of the same name here with main(argv) -> int, imported when called
COMMANDS = {
    "train": "learn the labels of a training set and compare with fixed labels",
    "compare": "methods beside plain training, in one table",
    "reproduce": "tables and figures of the paper, trained and measured here",
    "labels": "learned labels for other tools, and noise as a file",
    "show": "what a run, or each run of a folder, has reached; a report",
    "check": "is the meta-gradient of a model right, and what does it cost",
    "bench": "time the operations, or whole steps of a model",
}

EXAMPLES = """examples:
  fastmeta train                bundled digits, 80% of labels redrawn; a minute
  fastmeta train --dataset npz:my.npz --epochs 60
  fastmeta check --model torchvision:resnet50
  fastmeta bench ops"""


#: which Windows' signal module lacks
SIGPIPE = 13


def stdout_to_nowhere() -> None:
    """For a stdout that is broken: or Python complains about what is left in its buffer when it ends."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, sys.stdout.fileno())
    os.close(nowhere)


def find_code_here() -> None:
    """Let a package.module:factory that the user trusts be found in the current folder, behind all that is installed.

    A folder with data of others must not be where ``import statistics`` looks first, nor look at all without need.
    """
    with contextlib.suppress(OSError):  # a folder that is gone
        if os.getcwd() not in sys.path:
            sys.path.append(os.getcwd())


def usage() -> str:
    lines = ["usage: fastmeta COMMAND [OPTIONS]", "", "Each command has its own --help.", ""]
    lines += [f"  {name:<10} {what}" for name, what in COMMANDS.items()]
    lines += ["", "  --version  the version; with -v also libraries and devices", ""]
    return "\n".join([*lines, EXAMPLES])


def main(argv: list[str] | None = None) -> int:
    """Run one command line; returns the exit code."""
    for stream in (sys.stdout, sys.stderr):  # a terminal that has no arrow gets a question mark
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")
    args = sys.argv[1:] if argv is None else list(argv)
    if argv is None:  # the process is ours
        sys.excepthook = _say_error
    form = warnings.formatwarning
    warnings.formatwarning = lambda *told, **options: printable_lines(form(*told, **options))
    try:
        with on_stderr():
            code = _main(args)
        if sys.stdout is not None:
            sys.stdout.flush()  # so that a reader who left is noticed here
        return code
    except BrokenPipeError:  # `| head`: nobody wants the rest; training goes on all the same, see progress.py
        stdout_to_nowhere()
        return 128 + SIGPIPE
    finally:
        warnings.formatwarning = form


# Warnings and tracebacks repeat what models and files of others say: a terminal must not obey it.
def _say_error(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    print(printable_lines("".join(format_exception(kind, error, trace)).rstrip()), file=sys.stderr)


def _main(args: list[str]) -> int:
    if not args or args[0] in ("-h", "--help", "help"):
        print(usage())
        return 0
    if args[0] in ("--version", "-V"):
        from fastmeta.cli.version import version_text

        print(version_text(verbose=bool({"-v", "--verbose"} & set(args[1:]))))
        return 0
    if args[0] not in COMMANDS:
        close = difflib.get_close_matches(args[0], COMMANDS, n=1)
        hint = f"; did you mean {close[0]}?" if close else ""
        print(
            f"fastmeta: unknown command {shown(args[0])}, expected one of {', '.join(COMMANDS)}{hint}", file=sys.stderr
        )
        return 2
    if args[0] != "train" and os.environ.get("WORLD_SIZE", "1") != "1":
        from fastmeta.cli import rank_process

        rank_process.refuse_command(args[0])
    try:
        return int(importlib.import_module(f"fastmeta.cli.{args[0]}").main(args[1:]) or 0)
    except KeyboardInterrupt:  # a run that can go on has said so already; this one had nothing to save
        print(f"fastmeta {args[0]}: stopped", file=sys.stderr)
        return 130
