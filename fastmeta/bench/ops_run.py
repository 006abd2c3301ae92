"""Every fused operation against its plain-torch twin, eager and compiled: outputs first, then time.

GB/s counts the bytes that the operation cannot avoid, whatever an implementation moves: 5 n C elements for
``instance_label_step_``, which reads logits, u and label rows and writes label rows and v.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from functools import partial
from typing import Any

import torch
from torch import Tensor

from fastmeta import ops, reference
from fastmeta._text import reason
from fastmeta.bench import ops_images, ops_lookahead
from fastmeta.bench.ops_catalog import DTYPES, OPERATIONS, Inputs, Operation
from fastmeta.bench.ops_row import (
    IMAGES,
    LOOKAHEAD,
    OpsConfig,
    OpsRow,
    Prepared,
    WrongResult,
    deviations,
    slots_needed,
    timed,
)
from fastmeta.bench.rates import copy_bandwidth
from fastmeta.bench.result_files import number
from fastmeta.measure import Body

CLASSES_CUDA = (10, 100, 256, 1000, 10_000, 21_841, 50_257, 65_536)
#: elements of logits from which bandwidth is the measure on a GPU
LARGE = 64 * 2**20
SIZES = {
    "cpu": ((128, 10), (128, 100), (128, 1000), (4096, 100), (4096, 1000), (256, 21_841)),
    "cuda": tuple((n, C) for C in CLASSES_CUDA for n in (128, math.ceil(LARGE / C))),
}


def _tensors(result: Any) -> tuple[Tensor, ...]:
    return (result,) if isinstance(result, Tensor) else tuple(result)


def _outputs(operation: Operation, f: Callable[..., Any], inputs: Inputs) -> tuple[Tensor, ...]:
    """Results on a copy of the inputs, with what was changed in place behind them."""
    inputs = inputs.clone()
    results = _tensors(f(*(getattr(inputs, name) for name in operation.arguments)))
    return (*results, getattr(inputs, operation.mutates)) if operation.mutates else results


def compare(name: str, variants: dict[str, Callable[..., Any]], inputs: Inputs) -> dict[str, float]:
    """Worst relative error of every variant that is the same maths.

    The fused one may be as wrong as the eager twin plus 32 roundings to its output's dtype, else WrongResult: the truth
    has roundings of its own where all are float64, and v - <q, v> cancels. The operations' own tests allow less.
    """
    operation = OPERATIONS[name]
    twin = operation.wrap(partial(getattr(reference, name), **operation.options))
    truth = _outputs(operation, twin, inputs.double())
    outputs = {k: _outputs(operation, f, inputs) for k, f in variants.items()}
    errors = {k: deviations(out, truth) for k, out in outputs.items()}
    for i, (fused, eager) in enumerate(zip(errors["fused"], errors["eager"], strict=True)):
        allowed = eager + 32 * torch.finfo(outputs["fused"][i].dtype).eps
        if not fused <= allowed:
            n, C = inputs.logits.shape
            raise WrongResult(
                f"{name} at n={n}, C={C}, {inputs.logits.dtype}: output {i} is off by {fused:.2e} relative to float64, "
                f"allowed {allowed:.2e} (its eager twin: {eager:.2e}); not timed"
            )
    return {k: max(e) for k, e in errors.items()}


def variants_of(name: str, config: OpsConfig) -> dict[str, Callable[..., Any]]:
    operation = OPERATIONS[name]
    fused = partial(getattr(ops, name), **operation.options, **operation.fused_options)
    eager = partial(getattr(reference, name), **operation.options)
    variants = {"fused": operation.wrap(fused), "eager": operation.wrap(eager)}
    if config.compile:
        torch._dynamo.reset()  # every size is compiled for itself: without this the later ones would run eagerly
        variants["compiled"] = operation.wrap(torch.compile(eager, dynamic=False, fullgraph=True))
    return variants


def _bodies(f: Callable[..., Any], arguments: Sequence[str], slots: Sequence[Inputs]) -> list[Body]:
    return [partial(f, *(getattr(i, name) for name in arguments)) for i in slots]


def prepare(name: str, n: int, C: int, dtype: str, config: OpsConfig) -> Prepared:
    """Inputs, variants and the comparison of their outputs for one case."""
    operation, device = OPERATIONS[name], torch.device(config.device)
    inputs = Inputs.random(n, C, DTYPES[dtype], device, seed=0)
    variants, notes = variants_of(name, config), {}
    if "compiled" in variants:
        try:
            _outputs(operation, variants["compiled"], inputs)
        except Exception as error:  # a compiler's; the fused operation is measured all the same
            del variants["compiled"]
            notes["compiled"] = f"skipped, {reason(error)}"
    arguments = dict.fromkeys(variants, operation.arguments)
    same = dict(variants)
    for peer, (load, peer_arguments, same_maths) in operation.peers.items():
        f = load()
        if isinstance(f, str):
            notes[peer] = f"skipped, {f}"
            continue
        variants[peer], arguments[peer] = f, peer_arguments
        if same_maths:
            same[peer] = f
    errors = compare(name, same, inputs)

    size, label_size = inputs.logits.element_size(), inputs.label_logits.element_size()
    moved = n * C * (operation.moved[0] * size + operation.moved[1] * label_size)
    count = slots_needed(moved, device)
    slots = [inputs, *(Inputs.random(n, C, DTYPES[dtype], device, seed=1 + i) for i in range(count - 1))]
    bodies = {k: _bodies(f, arguments[k], slots) for k, f in variants.items()}
    for calls in bodies.values():
        calls[0]()
    return Prepared(bodies, errors, moved, notes)


def measure(name: str, n: int, C: int, dtype: str, config: OpsConfig, copy: float) -> OpsRow:
    """One row of the table; `copy` is the device's copy bandwidth in bytes per second."""
    return timed(prepare(name, n, C, dtype, config), name, n, C, dtype, config=config, copy=copy)


def cases(config: OpsConfig) -> Iterator[tuple[str, Callable[[float], OpsRow]]]:
    """Every case by name, and what measures it beside the copy bandwidth."""
    for name in config.operations:
        for dtype in config.dtypes:
            if name in (LOOKAHEAD, IMAGES):
                measured = ops_lookahead if name == LOOKAHEAD else ops_images
                yield (
                    f"{name} {dtype}",
                    partial(measured.measure, dtype, config),
                )
                continue
            for n, C in config.sizes or SIZES[config.device]:
                yield f"{name} {n}x{C} {dtype}", partial(measure, name, n, C, dtype, config)


HEADER = ("n", "C", "µs", "GB/s", "of copy", "eager", "compiled")
_WIDTHS = (9, 10, 10, 9, 9, 9, 9)


def line(texts: Sequence[str]) -> str:
    """One line of the table: printed as soon as it is measured, so the widths are fixed."""
    return "  ".join(text.rjust(width) for text, width in zip(texts, _WIDTHS, strict=True))


def cells(row: OpsRow) -> list[str]:
    return [
        str(row.n),
        str(row.C),
        f"{row.microseconds['fused']:.1f}",
        f"{row.gigabytes_per_second:.1f}",
        f"{row.share_of_copy:.0%}",
        *(f"{number(row.speedup.get(k))}x" if k in row.speedup else "-" for k in ("eager", "compiled")),
    ]


def others(row: OpsRow) -> str:
    """What other libraries take, or ""."""
    told = [f"{k} {v:.2f}x" for k, v in row.speedup.items() if k not in ("eager", "compiled")]
    return f"{'':>9}  others: {', '.join(told)}" if told else ""


def run(config: OpsConfig, say: Callable[[str], None] = print) -> dict[str, Any]:
    """Measure everything in `config`; the content for the JSON.

    A case that is wrong or cannot run stands under "failures" instead of having a row. Ctrl-C ends the measuring, and
    what was measured before is given back with "stopped".
    """
    device = torch.device(config.device)
    if config.threads:
        torch.set_num_threads(config.threads)
    copy = copy_bandwidth(device, seconds=min(0.5, config.seconds))
    say(
        f"copy bandwidth of this {device.type}: {copy / 1e9:.1f} GB/s read + written, {torch.get_num_threads()} threads"
    )
    say(line(HEADER))
    heading = ""
    measured: list[OpsRow] = []
    failures: list[str] = []
    left_out: list[str] = []
    stopped = False
    start = time.perf_counter()
    for case, take in cases(config):
        if stopped or (config.limit is not None and time.perf_counter() - start > config.limit):
            left_out.append(case)
            continue
        try:
            row = take(copy)
        except KeyboardInterrupt:
            if not measured:
                raise
            stopped = True
            left_out.append(case)
            continue
        except Exception as error:  # of a compiler, too: the other cases still have their figures
            failures.append(f"{case}: {str(error) or type(error).__name__}")
            say(f"{case}: FAILED, {failures[-1].splitlines()[0]}")
            continue
        measured.append(row)
        if heading != f"{row.operation} {row.dtype}":
            heading = f"{row.operation} {row.dtype}"
            say(heading)
        say("\n".join(filter(None, (line(cells(row)), others(row)))))
    say("eager, compiled, others: how many times longer they take than the fused operation, paired")
    for peer, note in sorted({item for r in measured for item in r.notes.items()}):
        say(f"{peer}: {note}")
    if left_out:
        why = "stopped before the end of" if stopped else f"not begun within --limit {config.limit:g}"
        say(f"{why}: {', '.join(left_out)}")
    return {
        "config": asdict(config),
        "copy_gb_per_s": copy / 1e9,
        "rows": [asdict(r) for r in measured],
        "failures": failures,
        "left_out": left_out,
        "stopped": stopped,
    }
