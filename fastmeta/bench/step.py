"""The whole meta step against a plain SGD step and against what a user would write instead."""

from __future__ import annotations

import gc
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from fastmeta.bench.memory import peak_bytes
from fastmeta.bench.problem import Problem, Sizes, StepConfig, sizes
from fastmeta.bench.results import Verdict, number, table
from fastmeta.bench.timing import Timing, interleave
from fastmeta.bench.variants import PLAIN, REFERENCE, VARIANTS, Variant

# Against the reference in float64: what rounding makes of a step, with room for networks of any depth.
CHECK_TOLERANCE = 1e-8


@dataclass(frozen=True)
class StepRow:
    variant: str
    skipped: str | None = None  # why it was not timed
    note: str = ""  # the way of the tangent
    milliseconds: float | None = None  # median
    quartiles: tuple[float, float] | None = None  # of the milliseconds
    samples_per_second: float | None = None  # train samples
    ratio_to_plain: float | None = None  # paired
    ratio_to_reference: float | None = None
    flops: int | None = None
    forwards: float | None = None  # FLOPs in units of one train forward
    peak_bytes: int | None = None  # over the model, the labels and the batches
    error: float | None = None  # of the label step in float64, relative to the reference's


class WrongStep(AssertionError):
    """An exact variant disagrees with the reference: nothing is timed."""


def _one_line(error: Exception) -> str:
    return f"{type(error).__name__}: {(str(error) or 'no message').splitlines()[0]}"


def _build(name: str, problem: Problem) -> Variant | str:
    try:
        return VARIANTS[name](problem)
    except (RuntimeError, NotImplementedError) as error:
        return _one_line(error)


def _moved(name: str, problem: Problem) -> tuple[Tensor, list[Tensor]] | str | None:
    """One step: the change of the batch's label rows and of the parameters. None for the plain step."""
    variant = _build(name, problem)
    if isinstance(variant, str):
        return variant
    if variant.table is None:
        return None
    rows = variant.table[problem.index].clone()
    before = [p.detach().clone() for p in variant.model.parameters()]
    try:
        variant.step()
    except (RuntimeError, NotImplementedError) as error:
        return _one_line(error)
    after = [p.detach() for p in variant.model.parameters()]
    return variant.table[problem.index] - rows, [a - b for a, b in zip(after, before, strict=True)]


def _relative(a: list[Tensor], b: list[Tensor]) -> float:
    difference, size = torch._foreach_norm(torch._foreach_sub(a, b)), torch._foreach_norm(b)
    return float(torch.stack(list(difference)).norm() / torch.stack(list(size)).norm())


def check(names: list[str], config: StepConfig) -> tuple[dict[str, float], dict[str, str]]:
    """Relative error of the label step of each variant in float64, and the variants that failed, with the reason.

    Raises WrongStep where an exact variant's labels or parameters are not the reference's.
    """
    problem = Problem(config, torch.float64)
    truth = _moved(REFERENCE, problem)
    if truth is None or isinstance(truth, str):
        raise WrongStep(f"the reference itself cannot run this model: {truth}")
    errors, failed = {}, {}
    for name in names:
        moved = _moved(name, problem)
        gc.collect()
        if isinstance(moved, str):
            failed[name] = moved
        elif moved is not None:
            labels, parameters = _relative([moved[0]], [truth[0]]), _relative(moved[1], truth[1])
            errors[name] = labels
            exact = not name.endswith(":difference")
            if exact and not max(labels, parameters) <= CHECK_TOLERANCE:
                raise WrongStep(
                    f"{name} differs from the reference in float64: labels by {labels:.1e}, parameters by "
                    f"{parameters:.1e}, allowed {CHECK_TOLERANCE:.0e}; nothing was timed. A model with random layers "
                    "draws anew in the reference: pass --no-check"
                )
    return errors, failed


def run(config: StepConfig, say: Callable[[str], None] = print) -> tuple[dict[str, Any], list[Verdict]]:
    """Count, check, then time; the content for the JSON, and the goals with their figures."""
    names = list(dict.fromkeys(config.variants or VARIANTS))
    for name in names:
        if name not in VARIANTS:
            raise ValueError(f"unknown variant {name!r}: expected some of {', '.join(VARIANTS)}")
    if config.threads:
        torch.set_num_threads(config.threads)
    counted = sizes(config)
    say(describe(config, counted))
    errors, skipped = check(names, config) if config.check else ({}, {})

    problem = Problem(config, torch.float64 if config.dtype == "float64" else torch.float32)
    # the counter of FLOPs breaks forward AD under autocast: float32 has the same count
    counting = Problem(replace(config, dtype="float32"), torch.float32) if config.dtype == "bfloat16" else problem
    variants: dict[str, Variant] = {}
    flops: dict[str, int | None] = {}
    for name in names:
        built = skipped.get(name) or _build(name, problem)
        if isinstance(built, str):
            skipped[name] = built
            continue
        try:
            for _ in range(2):  # chooses the tangent, fills caches
                built.step()
        except (RuntimeError, NotImplementedError) as error:
            skipped[name] = _one_line(error)
            continue
        variants[name], flops[name] = built, _flops(built if counting is problem else _build(name, counting))

    timings = interleave(
        {k: [v.step] for k, v in variants.items()}, problem.device, seconds=config.seconds, rounds=config.rounds
    )
    peaks = {k: peak_bytes(v.step, problem.device) for k, v in variants.items()} if config.memory else {}
    for name, variant in variants.items():
        if not variant.finite():
            raise WrongStep(f"{name}: a timed step was not finite and left out its updates; lower --lr or --label-lr")

    def row(name: str) -> StepRow:
        if name in skipped:
            return StepRow(name, skipped=skipped[name])
        t = timings[name]
        low, high = t.quartiles
        count, forward = flops[name], counted.forward_flops
        return StepRow(
            name,
            note=variants[name].note(),
            milliseconds=t.median * 1e3,
            quartiles=(low * 1e3, high * 1e3),
            samples_per_second=config.batch / t.median,
            ratio_to_plain=_ratio(t, timings.get(PLAIN)),
            ratio_to_reference=_ratio(t, timings.get(REFERENCE)),
            flops=count,
            forwards=count / forward if count and forward else None,
            peak_bytes=peaks.get(name),
            error=errors.get(name),
        )

    rows = [row(name) for name in names]
    say("\n" + table(HEADER, [cells(r) for r in rows if r.skipped is None]))
    for r in rows:
        if r.skipped is not None:
            say(f"skipped {r.variant}: {r.skipped}")
    content = {
        "config": asdict(config),
        "sizes": asdict(counted),
        "rounds": len(next(iter(timings.values())).seconds) if timings else 0,
        "rows": [asdict(r) for r in rows],
    }
    return content, verdicts(config, rows)


def _flops(variant: Variant | str) -> int | None:
    """FLOPs of one step after a first that chooses the tangent."""
    if isinstance(variant, str):
        return None
    try:
        variant.step()
        with FlopCounterMode(display=False) as counter:
            variant.step()
    except (RuntimeError, NotImplementedError):
        return None
    return counter.get_total_flops()


def _ratio(t: Timing, unit: Timing | None) -> float | None:
    return None if unit is None else t.ratio_to(unit)


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
            f"floor           {3 * counted.floor:.2f} F for the exact step, 3 F for a plain one: {counted.floor:.2f}x",
            f"device          {config.device}, {torch.get_num_threads()} threads",
        ]
    )


HEADER = ("variant", "tangent", "ms", "samples/s", "x plain", "x reference", "F", "peak MiB", "error")


def cells(row: StepRow) -> list[str]:
    return [
        row.variant,
        row.note or "-",
        number(row.milliseconds),
        number(row.samples_per_second, 0),
        number(row.ratio_to_plain),
        number(row.ratio_to_reference),
        number(row.forwards),
        number(None if row.peak_bytes is None else row.peak_bytes / 2**20, 1),
        "-" if row.error is None else f"{row.error:.0e}",
    ]


# (model, batch, meta batch, classes) on one CPU thread in float32: most times of an eager plain step
_CPU_GOALS = {("mlp", 128, 256, 10): 4.2, ("resnet20", 32, 64, 100): 5.3}


def verdicts(config: StepConfig, rows: list[StepRow]) -> list[Verdict]:
    """The project's goals that this run speaks to."""
    if (config.device, config.threads, config.dtype) != ("cpu", 1, "float32"):
        return []
    found = {r.variant: r for r in rows}
    ours, truth = found.get("fastmeta"), found.get(REFERENCE)
    out: list[Verdict] = []
    case = f"{config.model} {config.batch}/{config.meta_batch}, C={config.classes}, 1 thread"
    wanted = _CPU_GOALS.get((config.model, config.batch, config.meta_batch, config.classes))
    if wanted and ours and ours.ratio_to_plain is not None:
        out.append(Verdict(f"{case}: times a plain step", "<=", wanted, ours.ratio_to_plain))
    if wanted and config.model == "resnet20" and ours and truth and ours.peak_bytes and truth.peak_bytes:
        share = ours.peak_bytes / truth.peak_bytes
        out.append(Verdict(f"{case}: peak memory by the reference's", "<=", 0.75, share))
    return out
