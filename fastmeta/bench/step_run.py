"""The whole meta step against plain SGD steps and against what a user would write instead."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import torch

from fastmeta._text import reason as one_line
from fastmeta.bench.flops import Flops
from fastmeta.bench.rates import matrix_rate
from fastmeta.bench.result_files import number, table
from fastmeta.bench.step_check import Check, Unchecked, WrongStep, build
from fastmeta.bench.step_launches import launches
from fastmeta.bench.step_problem import Problem, Sizes, StepConfig, sizes
from fastmeta.bench.step_row import StepRow, best_plain
from fastmeta.bench.step_variant import Variant
from fastmeta.bench.step_variants import PLAIN, chosen, is_compiled, is_plain, truth_of
from fastmeta.functional.precision import float32_products
from fastmeta.measure import MAX_ROUNDS, Stopped, held_by_graphs, interleave, peak_bytes

__all__ = ["run"]


def run(config: StepConfig, say: Callable[[str], None] = print) -> dict[str, Any]:
    """Count, check, then time; the content for the JSON.

    A variant whose step is wrong stands under "failures" instead of having figures; the others have theirs. Ctrl-C ends
    the timing, and the rounds before it count, with "stopped".
    """
    device = torch.device(config.device)
    if config.dtype == "tf32" and device.type != "cuda":
        say("tf32 is about CUDA: on a CPU it is float32")
    with float32_products(device, tf32=config.dtype == "tf32"):
        return _run(config, say)


def _run(config: StepConfig, say: Callable[[str], None]) -> dict[str, Any]:
    names = chosen(config.variants, config.device)
    if config.threads:
        torch.set_num_threads(config.threads)
    counted = sizes(config)
    say(describe(config, counted))
    problem = Problem(config, torch.float64 if config.dtype == "float64" else torch.float32)
    prepared = _prepare(names, config, problem, say)
    variants, skipped, failures = prepared.variants, prepared.skipped, prepared.failures
    stopped = False
    try:
        timings = interleave(
            {k: v.bodies for k, v in variants.items()}, problem.device, seconds=config.seconds, rounds=config.rounds
        )
    except Stopped as interrupt:
        timings, stopped = interrupt.timings, True
    arithmetic = torch.float32 if config.dtype == "tf32" else getattr(torch, config.dtype)
    rate = matrix_rate(problem.device, arithmetic, seconds=min(0.5, config.seconds), rounds=config.rounds)
    say(f"matrix rate     {rate / 1e9:.0f} GFLOP/s, a large {config.dtype} product in this run")
    rows = []
    for name, variant in variants.items():
        if not variant.finite():
            failures[name] = "a timed step was not finite and left out its updates; lower --lr or --label-lr"
            continue
        flops, calls = _count(name, variant, config, problem)
        t = timings[name]
        low, high = t.quartiles
        rows.append(
            StepRow(
                name,
                note=variant.note(),
                milliseconds=t.median * 1e3,
                quartiles=(low * 1e3, high * 1e3),
                samples_per_second=config.batch / t.median,
                naive=None if is_plain(name) else truth_of(name),
                ratios={k: t.ratio_to(other) for k, other in timings.items()},
                flops=flops,
                forwards=flops / counted.forward_flops if flops and counted.forward_flops else None,
                share_of_matrix_rate=flops / t.median / rate if flops else None,
                launches=calls,
                peak_bytes=_peak(variant, problem.device, prepared.graphs[name]) if config.memory else None,
                error=prepared.errors.get(name),
            )
        )

    unit = best_plain(rows)
    rounds = len(next(iter(timings.values())).seconds) if timings else 0
    if rows:
        most = " (the most; --rounds N takes more)" if config.rounds is None and rounds == MAX_ROUNDS else ""
        say(f"rounds          {rounds}{most}")
        say("\n" + tables(rows, unit) + "\n")
    if unit is not None:
        say(f"x best: by the best plain step, {unit}; x naive: by the naive step of the same loss")
        say(f"launches: {LAUNCHES[problem.device.type]}")
    for name, reason in skipped.items():
        say(f"skipped {name}: {reason}")
    rows += [StepRow(name, skipped=reason) for name, reason in (skipped | failures).items()]
    rows.sort(key=lambda r: names.index(r.variant))
    return {
        "config": asdict(config),
        "sizes": asdict(counted),
        "rounds": rounds,
        "matrix_gflop_per_s": rate / 1e9,
        "best_plain": unit,
        "rows": [asdict(r) for r in rows],
        "failures": [f"{name}: {reason}" for name, reason in failures.items()],
        "stopped": stopped,
    }


@dataclass
class _Prepared:
    """What is there to be timed, and by variant what is known of it already."""

    variants: dict[str, Variant] = field(default_factory=dict)  # built, checked and warmed up
    errors: dict[str, float] = field(default_factory=dict)  # of those that were checked
    graphs: dict[str, int] = field(default_factory=dict)  # bytes that its captured graphs hold
    skipped: dict[str, str] = field(default_factory=dict)  # why it cannot run
    failures: dict[str, str] = field(default_factory=dict)  # how it is wrong


def _prepare(names: list[str], config: StepConfig, problem: Problem, say: Callable[[str], None]) -> _Prepared:
    out, start = _Prepared(), time.perf_counter()
    check = Check(config, problem) if config.check else None
    for name in names:
        spent = time.perf_counter() - start
        if config.limit is not None and spent > config.limit:
            out.skipped[name] = f"not begun: {spent:.0f} s had gone by, --limit {config.limit:g}"
            continue
        say(f"preparing       {name}" + (": inductor, a minute where it is not cached" if is_compiled(name) else ""))
        held = held_by_graphs(problem.device)
        try:
            built = build(name, problem)
            error = None if isinstance(built, str) or check is None or name == PLAIN else check.of(name, built)
        except Unchecked as reason:
            say(f"not checked     {reason}")
            check = error = None
        except Exception as wrong:  # of a compiler, too: the others still have their figures
            out.failures[name] = str(wrong) if isinstance(wrong, WrongStep) else one_line(wrong)
            continue
        if isinstance(built, str) or isinstance(error, str):
            out.skipped[name] = built if isinstance(built, str) else str(error)
            continue
        if error is not None:
            out.errors[name] = error
        try:
            for _ in range(2):  # chooses the tangent, fills caches
                built.cycle()
        except (RuntimeError, NotImplementedError) as failure:
            out.skipped[name] = one_line(failure)
            continue
        except Exception as wrong:
            out.failures[name] = one_line(wrong)
            continue
        out.variants[name] = built
        out.graphs[name] = held_by_graphs(problem.device) - held
    gc.collect()
    return out


def _peak(variant: Variant, device: torch.device, graphs: int) -> int | None:
    with suppress(torch.OutOfMemoryError):  # beside all that the other variants hold
        return peak_bytes(variant.cycle, device) + graphs
    return None


def _count(name: str, variant: Variant, config: StepConfig, problem: Problem) -> tuple[float | None, float | None]:
    """FLOPs and launches per step; None for what cannot be counted."""
    counted: Variant | str = variant
    if config.dtype == "bfloat16" and variant.visible is None:
        # the counter breaks forward AD under autocast: float32 has the same count
        counted = build(name, Problem(replace(config, dtype="float32"), torch.float32))
    flops = calls = None
    with suppress(RuntimeError, NotImplementedError):
        if isinstance(counted, Variant):
            flops = flops_of(counted)
    with suppress(RuntimeError, NotImplementedError):  # forward AD under autocast again
        calls = launches(variant.cycle, problem.device) / variant.period
    return flops, calls


def flops_of(variant: Variant) -> float:
    """FLOPs per step, after a first that chooses the tangent."""
    variant.cycle()
    with Flops() as counter:
        (variant.visible or variant.cycle)()
    return counter.get_total_flops() / variant.period


def _mib(value: int | None) -> str:
    return "not counted" if value is None else f"{value / 2**20:.1f} MiB"


def describe(config: StepConfig, counted: Sizes) -> str:
    flops = counted.forward_flops
    forward = "not counted (the model does not run on meta tensors)" if flops is None else f"{flops / 1e9:.3f} GFLOP"
    return "\n".join(
        [
            f"model           {config.model}, {counted.parameters:,} parameters, {_mib(counted.parameter_bytes)}",
            f"batches         {config.batch} train, {config.meta_batch} meta, {config.classes} classes, {config.dtype}",
            f"label table     {config.samples:,} x {config.classes}, {_mib(counted.label_table_bytes)}",
            f"forward F       {forward}, keeps {_mib(counted.saved_bytes)} for its backward",
            f"general count   {3 * counted.floor:.2f} F for the exact step, 3 F for a plain one: {counted.floor:.2f}x; "
            "few layers take less, for nothing is asked of the input",
            f"device          {config.device}, {torch.get_num_threads()} threads",
        ]
    )


LAUNCHES = {
    "cpu": "operations below autograd but views and allocations, and inductor's loops",
    "cuda": "kernels and copies on the device",
}


def tables(rows: Sequence[StepRow], unit: str | None) -> str:
    """Times, and below them what the steps consist of: each in 80 columns."""
    times = [
        [
            row.variant,
            row.note or "-",
            number(row.milliseconds),
            number(row.samples_per_second, 0),
            number(row.ratio_to(PLAIN)),
            number(row.ratio_to(unit)),
            number(row.ratio_to(row.naive)),
        ]
        for row in rows
    ]
    work = [
        [
            row.variant,
            number(row.forwards),
            "-" if row.share_of_matrix_rate is None else f"{row.share_of_matrix_rate:.0%}",
            number(row.launches, 0),
            number(None if row.peak_bytes is None else row.peak_bytes / 2**20, 1),
            "-" if row.error is None else f"{row.error:.0e}",
        ]
        for row in rows
    ]
    return "\n\n".join(
        (
            table(("variant", "tangent", "ms", "samples/s", "x plain", "x best", "x naive"), times),
            table(("variant", "F", "of matrix rate", "launches", "peak MiB", "error"), work),
        )
    )
