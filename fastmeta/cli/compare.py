"""``fastmeta compare``: methods of a recipe beside plain training, over seeds and a grid; one table, one figure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, is_dataclass, make_dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, get_origin

from fastmeta._text import printable, printable_lines
from fastmeta.cli import find_code_here
from fastmeta.cli.allocator import keep_freed_memory
from fastmeta.cli.config_flags import read_flags
from fastmeta.cli.config_help import config_help
from fastmeta.cli.ended import ended
from fastmeta.cli.parser import MOST, Parser, at_least, wrapped
from fastmeta.data import InputError
from fastmeta.methods import NoOptions
from fastmeta.training import TrainConfig
from fastmeta.training.config import NAMES_OF_CODE, is_code
from fastmeta.training.option_names import names_of
from fastmeta.training.values import hints_of

if TYPE_CHECKING:
    from argparse import Namespace

    from fastmeta.comparison.planned_runs import Plan

PROG = "fastmeta compare"
DESCRIPTION = """Train methods beside plain training, on the same data, network and schedule, and put what they reach
into one table and one figure. Always there: labels as given, the same fine-tuned on the clean set, given and clean
together, clean alone, and given labels softened and never moved. A row tells how much clean data it has used.

The same command goes on where it was stopped, leaves finished runs as they are, and tries failed ones again. Methods,
seeds and points of the grid may become more later; all else wants another --out."""
EPILOG = """
examples:
  fastmeta compare cifar10-a --data.root DIR
  fastmeta compare my.toml --methods instance_labels,elr,l2rw --seeds 5
  fastmeta compare my.toml --methods instance_labels --grid labels.target_prob=0.3,0.6 --data.val-fraction 0.1

Exit codes: 0 all rows have figures, 1 a run failed (the table says which), 2 something given is wrong.
"""
#: options of a run that a comparison decides itself
WITHOUT = ("method", "out", "baselines")


def parser() -> Parser:
    from fastmeta import recipes

    p = Parser(prog=PROG, description=DESCRIPTION, epilog=EPILOG, allow_abbrev=False)
    known = ", ".join(recipes.names())
    p.add_argument("recipe", metavar="RECIPE", help=f"A shipped recipe ({known}), or a config file in TOML.")
    p.add_argument(
        "--methods",
        metavar="NAME,...",
        help="Methods to compare, or all but replay; your own as package.module:Class. By default the recipe's.",
    )
    p.add_argument(
        "--seeds", type=at_least(1, MOST), metavar="N", help="How many, from --seed on. By default as the recipe says."
    )
    p.add_argument(
        "--grid",
        action="append",
        metavar="OPTION=V1,V2",
        help="Values to try of an option of the runs, such as optim.lr, labels.target_prob or method.beta. May be "
        "given again: each point of the product is a row of every method that has these options. Validation chooses "
        "among them (--data.val-fraction), or nobody.",
    )
    p.add_argument("--out", metavar="DIR", help="Folder of the comparison. (default: runs/compare-RECIPE)")
    p.add_argument("--new-splits", action="store_true", help="Draw what is held out anew for each seed.")
    p.add_argument("--dry-run", action="store_true", help="Print which runs there are; train nothing, write nothing.")
    p.add_argument("--trust-code", action="store_true", help="Import and run the code that the recipe's file names.")
    p.add_argument(
        "--trust-pickle", action="store_true", help="Load a pickle, which runs code, where noise or data are one."
    )
    return p


def main(argv: list[str]) -> int:
    """The command; returns its exit code."""
    return ended("compare", argv, lambda: _main(argv))


def _main(argv: list[str]) -> int:
    given, over = parse(argv)
    from fastmeta import recipes
    from fastmeta.cli.watching import ConsoleWatcher
    from fastmeta.comparison import compare
    from fastmeta.comparison.planned_runs import make_plan
    from fastmeta.comparison.written import in_terminal

    methods = None if given.methods is None else [name.strip() for name in given.methods.split(",")]
    code = [*(methods or []), *(str(v) for k, v in over.items() if k in NAMES_OF_CODE and is_code(k, v))]
    if given.trust_code or any(":" in name for name in code):
        find_code_here()
    recipe = recipes.read(given.recipe)
    options: dict[str, Any] = {"methods": methods, "seeds": given.seeds, "grid": given.grid, "over": over}
    options |= {"new_splits": given.new_splits, "trust_code": given.trust_code}
    if given.dry_run:
        print(wrapped(printable_lines(_told(make_plan(recipe, **options)))))
        return 0
    keep_freed_memory()
    out = given.out if given.out is not None else str(Path("runs", f"compare-{recipe.name}"))
    watcher = ConsoleWatcher()
    try:
        found = compare(recipe, out, trust_pickle=given.trust_pickle, watcher=watcher, **options)
    finally:
        watcher.close()
    watcher.console.print(in_terminal(found.rows, found.published))
    print(wrapped(printable(found.leaders)))
    for line in found.failures:
        print(wrapped(line, "  "))
    names = ("comparison.json", "table.md", "table.csv", "comparison.png", "report.html")
    written = ", ".join(name for name in names if (found.path / name).is_file())
    print(wrapped(printable(f"wrote {found.path}: {written}")))
    return 1 if found.failures else 0


def _told(plan: Plan) -> str:
    lines = [f"{len(plan.settings)} settings × {len(plan.seeds)} seeds = {len(plan.settings) * len(plan.seeds)} runs"]
    for setting in plan.settings:
        gives = " (as given, fine-tuned, with clean, clean alone)" if setting.kind == "plain" else ""
        teacher = f", learns from {setting.teacher}" if setting.teacher else ""
        lines.append(f"  {setting.name}{gives}{teacher}" + (f": refused: {setting.refused}" * bool(setting.refused)))
    return "\n".join(lines)


# -- the line ---------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Nothing:
    """The parser has this command's own options already."""


def parse(argv: Sequence[str]) -> tuple[Namespace, dict[str, Any]]:
    """This command's own options, and those of a run, as table.option, that are laid over the recipe."""
    own, of_run, names = _divided(argv)
    p = parser()
    if {"-h", "--help"} & set(own):
        print(_help())
        raise SystemExit(0)
    given, rest = p.parse_known_args(own)
    if rest:
        from fastmeta.cli.near_miss import flags_of, unknown_option

        p.error(unknown_option(rest, flags_of(_help())))
    return given, _over(of_run, names)


def _help() -> str:
    return config_help(parser(), _Nothing(), TrainConfig(), without=WITHOUT)


def _divided(argv: Sequence[str]) -> tuple[list[str], list[str], list[str]]:
    """Words of this command, words of options of a run, and the names of these options."""
    takes = {}
    for name in names_of(TrainConfig):
        table, _, option = name.rpartition(".")
        hint = hints_of(hints_of(TrainConfig)[table] if table else TrainConfig)[option]
        flag = name.replace("_", "-")
        switch = hint in (bool, bool | None)
        takes[flag] = (name, 0 if switch else -1 if get_origin(hint) is tuple else 1)
        if switch:
            takes[f"{table}.no-{option}".lstrip(".").replace("_", "-")] = (name, 0)
    own: list[str] = []
    of_run: list[str] = []
    names: list[str] = []
    words = list(argv)
    while words:
        word = words.pop(0)
        flag, equals, _ = word.partition("=")
        plain = flag[2:].replace("_", "-") if flag.startswith("--") else ""
        if plain.startswith("method."):
            raise InputError(f"{flag} is about one method; say it as a grid of one value: --grid {flag[2:]}=VALUE")
        if plain in ("method", "baselines"):
            way = "name --methods" if plain == "method" else "plain training always stands beside"
            raise InputError(f"{flag} is decided by the comparison; {way}")
        if plain not in takes or plain in WITHOUT:
            own.append(word)
            continue
        name, count = takes[plain]
        names.append(name)
        of_run.append(word)
        while not equals and words and count and not (count < 0 and words[0].startswith("--")):
            of_run.append(words.pop(0))
            count = max(count - 1, -1)
    return own, of_run, names


def _over(words: Sequence[str], names: Sequence[str]) -> dict[str, Any]:
    """Values of the options `names`, which `words` give."""
    flags: Any = Annotated[NoOptions, "of several methods"]
    own = [("options", flags, field(default=NoOptions(), metadata={"flags": "method"}))]

    def unchecked(self: Any) -> None:
        """What goes together is for the config of each method to say."""

    kind: Any = make_dataclass(
        "TrainConfig", own, bases=(TrainConfig,), frozen=True, namespace={"__post_init__": unchecked}
    )
    start = kind()
    found = read_flags(kind, start, words, prog=PROG, help_text=_help)

    def value(name: str) -> Any:
        at: Any = found
        for part in name.split("."):
            at = getattr(at, part)
        assert not is_dataclass(at)
        return at

    return {name: value(name) for name in names}
