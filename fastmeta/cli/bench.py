"""``fastmeta bench ops|step|approx|scale``: parse, call, print."""

from __future__ import annotations

import argparse
import dataclasses
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from fastmeta import models
from fastmeta._text import printable, printable_lines, reason
from fastmeta.bench import approx_run, environment, ops_row, ops_run, result_files, scale_run, step_run
from fastmeta.bench.step_problem import DTYPES, StepConfig
from fastmeta.bench.step_variants import PRESETS, VARIANTS
from fastmeta.cli import find_code_here
from fastmeta.cli.allocator import keep_freed_memory
from fastmeta.cli.parser import Parser, integers, positive_float, positive_int, seed, threads, whole, wrapped


def _shared(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="Where it runs.")
    parser.add_argument("--threads", type=threads, metavar="N", help="CPU threads. (default: torch's own choice)")
    parser.add_argument(
        "--json", type=Path, metavar="FILE", help="Write figures and environment to FILE; its folder is made."
    )


def _limit(parser: argparse.ArgumentParser, what: str) -> None:
    parser.add_argument(
        "--limit",
        type=positive_float,
        metavar="SECONDS",
        help=f"Begin no further {what} after so many; those named first come first. (default: none)",
    )


def _sizes(
    parser: argparse.ArgumentParser, n: object, m: object, default: Any, of: str, kind: Callable[[str], int]
) -> None:
    """`n` and `m` are default sizes of batches, or words about them."""

    def told(value: object) -> dict[str, Any]:
        return {"default": value} if isinstance(value, int) else {}

    def words(text: str, value: object) -> str:
        return text if isinstance(value, int) else f"{text} (default: {value})"

    parser.add_argument("--batch", type=kind, metavar="n", help=words("Train samples of a step.", n), **told(n))
    parser.add_argument("--meta-batch", type=kind, metavar="m", help=words("Clean samples of a step.", m), **told(m))
    parser.add_argument("--classes", type=whole, default=default.classes, metavar="C", help="Number of classes.")
    parser.add_argument("--samples", type=whole, default=default.samples, metavar="N", help=of)
    parser.add_argument("--input-shape", type=integers(","), metavar="C,H,W", help="Of one sample. (default: by model)")


def _timing(parser: argparse.ArgumentParser, default: Any, of: str) -> None:
    parser.add_argument("--lr", type=positive_float, default=default.lr, metavar="NUMBER", help="Learning rate.")
    parser.add_argument("--seconds", type=positive_float, default=default.seconds, metavar="SECONDS", help=of)
    parser.add_argument("--rounds", type=whole, metavar="N", help="Exactly so many rounds, in place of --seconds.")
    parser.add_argument("--seed", type=seed, default=default.seed, metavar="N", help="Of weights and data.")


def _parsers() -> tuple[Parser, dict[str, argparse.ArgumentParser]]:
    """The parser of the command, and those of its sub-commands."""
    parser = Parser(prog="fastmeta bench", description="Operations and whole steps, timed in turns, medians.")
    commands = parser.add_subparsers(
        title="commands", dest="command", required=True, metavar="ops|step|approx|scale", prog="fastmeta bench"
    )
    made: dict[str, argparse.ArgumentParser] = {}

    def command(name: str, what: str) -> argparse.ArgumentParser:
        made[name] = commands.add_parser(name, help=what, description=what)
        return made[name]

    p = command("ops", "Each fused operation against its plain-torch twin, eager and compiled.")
    _shared(p)
    listed = ", ".join(ops_row.NAMES)
    p.add_argument(
        "--ops",
        nargs="+",
        metavar="OP",
        default=list(ops_row.NAMES),
        help=f"{listed}. (default: all)",
    )
    p.add_argument(
        "--sizes", nargs="+", type=integers("x", 2), metavar="nxC", help="Such as 128x100. (default: by device)"
    )
    p.add_argument(
        "--dtype", nargs="+", metavar="DTYPE", default=["float32", "bfloat16"], help=f"{', '.join(ops_row.DTYPES)}."
    )
    p.add_argument(
        "--seconds",
        type=positive_float,
        default=1.0,
        metavar="SECONDS",
        help="Timing one case.",
    )
    _limit(p, "case")
    p.add_argument("--no-compile", action="store_true", help="Leave torch.compile of the twins out.")
    p.add_argument("--no-graph", action="store_true", help="CUDA: time launches from the host, not graph replays.")

    default = StepConfig()
    p = command("step", "The meta step against plain SGD steps and what one would write instead.")
    _shared(p)
    p.add_argument(
        "--model", default=default.model, metavar="NAME", help=f"{', '.join(models.NAMES)}, {models.OTHERS}."
    )
    p.add_argument(
        "--inputs",
        metavar="PKG:FUNCTION",
        help="function(batch) -> model input, in place of random images: a tensor, a dict or a tuple.",
    )
    _sizes(p, default.batch, default.meta_batch, default, "Rows of the label table.", whole)
    p.add_argument(
        "--dtype",
        choices=DTYPES,
        default=default.dtype,
        help="bfloat16: autocast over float32 parameters; tf32: float32 as CUDA's tensor cores round it.",
    )
    presets = "; ".join(f"{name}, {meaning}" for name, meaning in PRESETS.items())
    p.add_argument(
        "--variants",
        nargs="+",
        metavar="VARIANT",
        default=list(default.variants),
        help=f"Some of {', '.join(VARIANTS)}. Or a preset: {presets}.",
    )
    p.add_argument(
        "--label-lr",
        type=positive_float,
        default=default.label_lr,
        metavar="NUMBER",
        help="Learning rate of the labels.",
    )
    _timing(p, default, "Timing all of it.")
    _limit(p, "variant")
    p.add_argument("--no-check", action="store_true", help="Do not compare with the reference in float64 first.")
    p.add_argument("--no-memory", action="store_true", help="Do not measure peak memory.")

    rough = approx_run.ApproxConfig()
    p = command("approx", "What each approximation of the step saves, and how far it is from exact.")
    _shared(p)
    p.add_argument("--models", nargs="+", metavar="NAME", default=list(rough.models), help="As --model of bench step.")
    p.add_argument(
        "--approximations",
        nargs="+",
        metavar="APPROX",
        default=list(rough.approximations),
        help="delayed, every:K, last:L, difference.",
    )
    p.add_argument(
        "--moments",
        nargs="+",
        type=whole,
        metavar="STEPS",
        default=list(rough.moments),
        help="Exact steps of a short training after which they are compared.",
    )
    _sizes(p, "128 for mlp, else 32", "256 for mlp, else 64", rough, "Rows of the training set.", positive_int)
    _timing(p, rough, "Timing a model.")

    large = scale_run.ScaleConfig()
    p = command("scale", "What large runs are made of: label tables beyond memory, ranks, data.")
    p.add_argument(
        "--part",
        type=lambda text: tuple(text.split(",")),
        metavar="PART,...",
        default=large.parts,
        help=f"Some of {', '.join(large.parts)}. (default: all)",
    )
    p.add_argument("--threads", type=threads, metavar="N", help="CPU threads. (default: torch's own choice)")
    p.add_argument(
        "--seconds", type=positive_float, default=large.seconds, metavar="SECONDS", help="Timing one part, about."
    )
    p.add_argument(
        "--out",
        "--json",
        dest="json",
        type=Path,
        metavar="FILE",
        help="Write figures and environment to FILE; its folder is made.",
    )
    p.add_argument(
        "--device", choices=("cpu", "cuda"), default=large.device, help=f"cuda: for {', '.join(scale_run.ON_CUDA)}."
    )
    return parser, made


def parse(argv: Sequence[str]) -> argparse.Namespace:
    parser, commands = _parsers()
    return parser.parse(argv, commands)


def _approx_config(args: argparse.Namespace) -> approx_run.ApproxConfig:
    names = {field.name for field in dataclasses.fields(approx_run.ApproxConfig)}
    values: dict[str, Any] = {name: getattr(args, name) for name in names}
    for name in ("models", "approximations", "moments"):
        values[name] = tuple(values[name])
    return approx_run.ApproxConfig(**values)


def _step_config(args: argparse.Namespace) -> StepConfig:
    names = {field.name for field in dataclasses.fields(StepConfig)} - {"check", "memory", "variants"}
    return StepConfig(
        **{name: getattr(args, name) for name in names},
        variants=tuple(args.variants),
        check=not args.no_check,
        memory=not args.no_memory,
    )


def _ops_config(args: argparse.Namespace) -> ops_row.OpsConfig:
    return ops_row.OpsConfig(
        device=args.device,
        operations=tuple(args.ops),
        sizes=None if args.sizes is None else tuple(args.sizes),
        dtypes=tuple(args.dtype),
        threads=args.threads,
        seconds=args.seconds,
        compile=not args.no_compile,
        graph=not args.no_graph,
        limit=args.limit,
    )


def _say(text: str) -> None:
    print(wrapped(printable_lines(text), "  "), flush=True)


_COMMANDS: dict[str, tuple[Callable[[argparse.Namespace], Any], Callable[[Any], Any]]] = {
    "ops": (_ops_config, lambda config: ops_run.run(config, _say)),
    "step": (_step_config, lambda config: step_run.run(config, _say)),
    "scale": (
        lambda args: scale_run.ScaleConfig(args.part, args.seconds, args.threads, args.device),
        lambda config: scale_run.run(config, _say),
    ),
    "approx": (_approx_config, lambda config: approx_run.run(config, _say)),
}


def main(argv: list[str]) -> int:
    """0: measured; 1: an output was wrong; 2: an argument cannot be used; 130: stopped, with figures."""
    args = parse(argv)
    try:
        if args.device == "cuda" and not torch.cuda.is_available():
            raise ValueError(f"--device cuda: torch {torch.__version__} finds no CUDA device; use --device cpu")
        if args.json is not None and args.json.is_dir():
            raise ValueError(f"--json must name a file, got the directory {args.json}")
        if args.json is not None:
            result_files.check_writable(args.json)  # now, and not behind minutes of measuring
        named = [getattr(args, "model", None), getattr(args, "inputs", None), *getattr(args, "models", [])]
        if any(name is not None and models.names_code(name) for name in named):
            find_code_here()
        make, run = _COMMANDS[args.command]
        config = make(args)
        recorded = environment.record(torch.device(args.device), " ".join(["fastmeta bench", *argv]))
        # steps as in a training process; single operations as in anybody's
        recorded["cpu"]["keeps_freed_memory"] = args.command != "ops" and keep_freed_memory()
        content = run(config)
    except (ValueError, ImportError) as error:
        print(printable(f"fastmeta bench: {error}"), file=sys.stderr)
        return 2
    except (RuntimeError, MemoryError) as error:  # torch has no kind of its own for memory that a CPU has not
        print(printable(f"fastmeta bench: this cannot be measured here: {reason(error)}"), file=sys.stderr)
        return 2
    if args.json is not None:
        recorded["cpu"]["threads"] = torch.get_num_threads()  # as the run has set them
        result_files.write(args.json, args.command, {"environment": recorded, **content})
        _say(f"wrote {args.json}")
    failures = content.get("failures", [])
    for failure in failures:
        print(printable(f"fastmeta bench: {failure}"), file=sys.stderr)
    if content["stopped"]:
        print("fastmeta bench: stopped; the figures so far are above", file=sys.stderr)
        return 130
    if not failures and args.command == "step" and all(row["skipped"] for row in content["rows"]):
        print("fastmeta bench: nothing was timed, for the reasons above", file=sys.stderr)
        return 2
    return 1 if failures else 0
