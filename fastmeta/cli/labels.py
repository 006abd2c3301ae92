"""``fastmeta labels noise|export|apply``: commands about labels, one module each; errors of the user in one line."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from types import ModuleType

from fastmeta._text import printable
from fastmeta.cli import label_apply, label_export, label_noise
from fastmeta.cli.parser import Parser

PROG = "fastmeta labels"
#: a module per sub-command: WHAT it does, add_options(parser), and run(args) -> exit code, which raises InputError for
#: what the user got wrong
_COMMANDS: dict[str, ModuleType] = {"noise": label_noise, "export": label_export, "apply": label_apply}


def _parsers() -> tuple[Parser, dict[str, argparse.ArgumentParser]]:
    """The parser of the command, and those of its sub-commands."""
    parser = Parser(prog=PROG, description="Files of labels: what goes into training, and what comes out of it.")
    commands = parser.add_subparsers(
        title="commands", dest="command", required=True, metavar="|".join(_COMMANDS), prog=PROG
    )
    made: dict[str, argparse.ArgumentParser] = {}
    for name, module in _COMMANDS.items():
        epilog = getattr(module, "EPILOG", None)
        made[name] = commands.add_parser(name, help=module.WHAT, description=module.WHAT, epilog=epilog)
        module.add_options(made[name])
    return parser, made


def parse(argv: Sequence[str]) -> argparse.Namespace:
    parser, commands = _parsers()
    return parser.parse(argv, commands)


def main(argv: list[str]) -> int:
    """0: done; 2: something given is wrong."""
    args = parse(argv)
    try:
        return int(_COMMANDS[args.command].run(args))
    except (ValueError, ImportError) as error:
        print(printable(f"{PROG} {args.command}: {error}"), file=sys.stderr)
        return 2
