"""``fastmeta train``: flags and TOML into a TrainConfig, then fastmeta.train; errors of the user in one line."""

from __future__ import annotations

import contextlib
import os
import sys
from dataclasses import dataclass, field, fields, make_dataclass, replace
from typing import Annotated, Any, Literal

import tyro

from fastmeta import recipes
from fastmeta._text import printable_lines
from fastmeta._train import train
from fastmeta._trust import Untrusted, trusting_pickles
from fastmeta.cli import find_code_here
from fastmeta.cli.allocator import keep_freed_memory
from fastmeta.cli.config_flags import read_flags, value_of
from fastmeta.cli.config_help import config_help
from fastmeta.cli.parser import Parser, wrapped
from fastmeta.data import InputError, at_least, within
from fastmeta.distributed.launch import TIMEOUT, LaunchError, here, place
from fastmeta.meta import OutOfMemory
from fastmeta.methods import METHODS, NoOptions
from fastmeta.training import Interrupted, Listener, Run, TrainConfig, TrainingError
from fastmeta.training.config import NAMES_OF_CODE, is_code
from fastmeta.training.listener import Listeners

PROG = "fastmeta train"
DESCRIPTION = """Learn the labels of a training set by meta-gradients, beside baselines with fixed labels.

Without arguments: the handwritten digits that scikit-learn carries, 80% of their labels drawn at random (a tenth of
which come out right), 30 clean ones."""


@dataclass(frozen=True)
class _Arguments:
    run: Annotated[TrainConfig, tyro.conf.arg(name="")]
    config: str | None = None
    """TOML file with any of the values below; flags win over it, and auto takes a number back. A run directory's
    config.toml runs it again. Or the name of a recipe, a published setting; fastmeta compare --help lists them."""
    resume: str | None = None
    """Run directory to go on with where it stopped; it knows its own config, so only --trust-code and --trust-pickle
    go with it."""
    auto_resume: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """Begin the run in --out, or go on with it where it has begun there: one line for a scheduler to run again."""
    trust_code: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """Import and run the code package.module:name that a run directory or config file names; needed for no other, and
    not for what this line names."""
    trust_pickle: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """Load a pickle where --noise file:PATH or --dataset npz:PATH is one, which runs code of whoever wrote it."""
    seeds: int = 1
    """Runs of so many seeds, from --seed on, each in a folder of its own in --out, and what they come to: means and
    standard deviations. The same command goes on where it was stopped."""
    folds: int | None = None
    """Learn the labels of all training rows in so many folds, runs of their own in --out, average how they moved, and
    train a final model on all rows with them. The same command goes on where it was stopped."""
    replay: Literal["dynamic", "static"] | None = None
    """With --folds: the final model trains on labels as they moved, or as they were at the end; by default dynamic."""
    folds_at_once: int = 1
    """With --folds: how many folds are trained side by side, each in a process of its own. They share the device's
    memory; --dry-run tells what one takes."""
    log: Literal["none", "tensorboard"] = "none"
    """Log the figures of each epoch: tensorboard writes them into the run's folder tensorboard."""
    dry_run: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """Print the resolved config, the splits, memory and estimated time; train nothing, write nothing."""
    rank_timeout: float = TIMEOUT
    """Under torchrun: seconds that a process waits for the others before the run ends."""


def main(argv: list[str]) -> int:
    """The command; returns its exit code."""
    try:
        several = place() is not None
    except LaunchError as error:
        return _fail(2, str(error))
    if several:
        from fastmeta.cli import rank_process

        rank_process.leave(rank_process.run(PROG, _timeout(argv), lambda: (_main(argv), ""), _ended))
    try:
        return _main(argv)
    except (InputError, TrainingError, OutOfMemory, Interrupted) as error:
        code, text = _ended(error) or (1, "")
        return _fail(code, text)


def _ended(error: BaseException) -> tuple[int, str] | None:
    """Exit code and message of what ends a run; None of what is nobody's to expect."""
    if isinstance(error, InputError):
        return 2, str(error)
    if isinstance(error, TrainingError | OutOfMemory):
        return 1, str(error)
    if isinstance(error, Interrupted):
        return 128 + error.signum, f"{error}\ngo on with: {error.way}"
    return None


def _timeout(argv: list[str]) -> float:
    """Of --rank-timeout, which is read before all else; what is none is refused where all is."""
    with contextlib.suppress(TypeError, ValueError):
        return max(1.0, float(value_of(argv, "--rank-timeout") or TIMEOUT))
    return TIMEOUT


def _fail(code: int, text: str) -> int:
    print(printable_lines(f"{PROG}: {text}"), file=sys.stderr)
    return code


def _main(argv: list[str]) -> int:
    arguments = parse(argv)
    config = arguments.run
    if arguments.replay is not None and arguments.folds is None:
        raise InputError(f"replay={arguments.replay} is about the final run of --folds; give both, or leave it out")
    if arguments.folds_at_once != 1:
        if arguments.folds is None:
            raise InputError(f"folds_at_once={arguments.folds_at_once} is about --folds; give both, or leave it out")
        at_least("folds_at_once", arguments.folds_at_once, 1)
    if here().size > 1:
        from fastmeta.cli import rank_process

        rank_process.refuse(
            [
                (arguments.seeds != 1, f"seeds={arguments.seeds}"),
                (arguments.folds is not None, f"folds={arguments.folds}"),
                (arguments.dry_run, "dry_run"),
            ]
        )
    within("rank_timeout", arguments.rank_timeout, 1, 10**6)
    if arguments.dry_run:
        with trusting_pickles(arguments.trust_pickle):
            print(wrapped(printable_lines(_dry_run(arguments)), 10 * " "))
        return 0
    keep_freed_memory()
    from fastmeta.cli.progress import ConsoleListener
    from fastmeta.cli.several_seeds import run_seeds

    pickles = arguments.trust_pickle

    def heard(console: ConsoleListener) -> Listener:
        if arguments.log == "none":
            return console
        from fastmeta.report.tensorboard_log import TensorBoardLog

        return Listeners(console, TensorBoardLog())

    def one(config: TrainConfig, console: ConsoleListener) -> Run:
        return train(config, auto_resume=True, listener=heard(console), trust_pickle=pickles)

    def in_folds(config: TrainConfig, console: ConsoleListener) -> Run:
        from fastmeta.cli.in_folds import run_in_folds

        assert arguments.folds is not None
        # code that this line or its file names is trusted by now, and a process of its own has it from a file
        flags = [*(["--trust-code"] if config.names_code() else []), *(["--trust-pickle"] if pickles else [])]
        flags += ["--log", arguments.log]
        with trusting_pickles(pickles):
            return run_in_folds(config, arguments.folds, arguments.replay, argv, one, arguments.folds_at_once, flags)

    if arguments.seeds != 1:
        return run_seeds(config, arguments.seeds, argv, one if arguments.folds is None else in_folds)
    if arguments.folds is not None:
        in_folds(config, ConsoleListener())
        return 0
    if not here().first:  # rank 0 speaks
        console, listener = None, Listener()
    else:
        console = ConsoleListener()
        listener = heard(console)
    try:
        if arguments.resume is not None:
            train(resume=arguments.resume, trust_code=arguments.trust_code, listener=listener, trust_pickle=pickles)
        else:
            train(config, auto_resume=arguments.auto_resume, listener=listener, trust_pickle=pickles)
    finally:
        if console is not None:
            console.close()
    return 0


def _dry_run(arguments: _Arguments) -> str:
    """Of one run, and how many such there are."""
    from fastmeta.cli.several_seeds import configs
    from fastmeta.training.estimate import dry_run
    from fastmeta.training.fold_runs import cost, plan_folds

    first = arguments.run if arguments.seeds == 1 else configs(arguments.run, arguments.seeds)[1][0]
    if arguments.folds is None:
        lines = [dry_run(first)]
    else:
        plan = plan_folds(first, arguments.folds, replay=arguments.replay)
        open_ones = [run for run in plan.runs if not os.path.exists(str(run.out))]
        lines = [*(dry_run(run) for run in open_ones[:1]), *cost(plan)]
        if arguments.folds_at_once > 1:
            lines.append(f"{arguments.folds_at_once} folds at once, each of which takes the memory of a run")
    if arguments.seeds > 1:
        such = "runs" if arguments.folds is None else "sets of folds"
        lines.append(f"{arguments.seeds} seeds: {arguments.seeds} such {such}, one after the other")
    return "\n".join(lines)


def parse(argv: list[str]) -> _Arguments:
    """Flags over the file of --config over the defaults. InputError in one line for whatever is wrong."""
    trust = "--trust-code" in argv
    if trust or any(is_code(name, value_of(argv, f"--{name}")) for name in NAMES_OF_CODE):
        find_code_here()
    default = TrainConfig()
    file = value_of(argv, "--config")
    if file is not None:
        default = _of_file(file, value_of(argv, "--method"))
        default = default.trusted() if trust else default
    kind, start = _with_options(default, value_of(argv, "--method"))
    if {"-h", "--help"} & set(argv):
        print(_help(start.run))
        raise SystemExit(0)
    no_other = "--resume goes on with the run's own config: give no other flag with it"
    try:
        arguments = read_flags(kind, start, argv, prog=PROG, help_text=lambda: _help(start.run))
    except InputError as error:
        raise error if value_of(argv, "--resume") is None else InputError(f"{no_other} ({error})") from None
    run = TrainConfig(**{f.name: getattr(arguments.run, f.name) for f in fields(TrainConfig)})
    arguments = _Arguments(run, **{f.name: getattr(arguments, f.name) for f in fields(_Arguments) if f.name != "run"})
    with_it = {name: getattr(arguments, name) for name in ("resume", "trust_code", "trust_pickle", "rank_timeout")}
    alone = replace(_Arguments(TrainConfig()), **with_it)
    if arguments.resume is not None and arguments != alone:
        raise InputError(no_other)
    return arguments


def _of_file(file: str, method: str | None) -> TrainConfig:
    """The config of a file or a shipped recipe, with what a recipe has for the method that a flag names."""
    recipe = recipes.read(file)
    if method is None or recipe.plain or (method not in METHODS and ":" not in method):
        return recipe.config()
    return recipe.config(method)


def _with_options(default: TrainConfig, method: str | None) -> tuple[type, Any]:
    """`_Arguments` whose config has the options of its method as flags, and what stands there without any flag."""
    named = default.method if method is None else method
    if isinstance(named, Untrusted) and named not in METHODS:  # a run of it is refused
        options: Any = NoOptions()
    elif method in (None, default.method):
        options = default.options
    else:
        options = TrainConfig(method=named).options
    flags: Any = Annotated[type(options), tyro.conf.arg(name="method")]
    own = [("options", flags, field(default=options, metadata={"flags": "method"}))]
    run: Any = make_dataclass("TrainConfig", own, bases=(TrainConfig,), frozen=True)
    of_run: Any = Annotated[run, tyro.conf.arg(name="")]
    kind: Any = make_dataclass("_Arguments", [("run", of_run)], bases=(_Arguments,), frozen=True)
    # not through __init__: what a file and half of a line say need not fit each other yet
    start = object.__new__(run)
    vars(start).update({**vars(default), "options": options})
    arguments = object.__new__(kind)
    vars(arguments).update({**vars(_Arguments(default)), "run": start})
    return kind, arguments


def _help(default: TrainConfig) -> str:
    """In the style of the other commands; tyro's own frames its options."""
    return config_help(Parser(prog=PROG, description=DESCRIPTION), _Arguments(default), default)
