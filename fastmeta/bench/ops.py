"""Every fused operation against its plain-torch twin, eager and compiled: outputs first, then time.

GB/s counts the bytes that the operation cannot avoid, whatever an implementation moves: 5 n C elements for
``instance_label_step_``, which reads logits, u and label rows and writes label rows and v.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from fastmeta import ops, reference
from fastmeta.bench.peers import liger_cross_entropy
from fastmeta.bench.results import Verdict, number
from fastmeta.bench.timing import Body, Timing, copy_bandwidth, interleave, replayed

DTYPES = {
    "float64": torch.float64,
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
}
CLASSES_CUDA = (10, 100, 256, 1000, 10_000, 21_841, 50_257, 65_536)
LARGE = 64 * 2**20  # elements from which bandwidth is the measure on a GPU
SIZES = {
    "cpu": ((128, 10), (128, 100), (128, 1000), (4096, 100), (4096, 1000), (256, 21_841)),
    "cuda": tuple((n, C) for C in CLASSES_CUDA for n in (128, math.ceil(LARGE / C))),
}


@dataclass
class Inputs:
    """Arguments of every operation under the names of their parameters."""

    logits: Tensor  # (n, C)
    u: Tensor  # (n, C) float32 beside low-precision logits, as the meta step has it
    v: Tensor  # (n, C)
    probs: Tensor  # (n, C)
    label_logits: Tensor  # (n, C)
    index: Tensor  # (n,) a permutation
    alpha: Tensor  # (C,)
    targets: Tensor  # (n,)
    scale: float
    label_lr: float

    @classmethod
    def random(cls, n: int, C: int, dtype: torch.dtype, device: torch.device, seed: int) -> Inputs:
        generator = torch.Generator(device).manual_seed(seed)
        acc = torch.float64 if dtype == torch.float64 else torch.float32

        def normal(scale: float, dtype: torch.dtype) -> Tensor:
            return (scale * torch.randn(n, C, device=device, generator=generator)).to(dtype)

        targets = torch.randint(C, (n,), device=device, generator=generator)
        alpha = (0.2 * torch.rand(C, device=device, generator=generator)).to(acc)
        index = torch.randperm(n, device=device, generator=generator)
        probs = normal(1, acc).softmax(-1).to(dtype)
        logits, u, v, label_logits = normal(3, dtype), normal(1, acc), normal(1, dtype), normal(3, acc)
        # steps this small leave the labels as they are over thousands of timed calls
        return cls(logits, u, v, probs, label_logits, index, alpha, targets, scale=1e-3 / n, label_lr=1e-3)

    def double(self) -> Inputs:
        """A float64 copy."""
        return self._each(lambda t: t.double() if t.is_floating_point() else t.clone())

    def clone(self) -> Inputs:
        return self._each(Tensor.clone)

    def _each(self, f: Callable[[Tensor], Tensor]) -> Inputs:
        tensors = {k: f(x) for k, x in vars(self).items() if isinstance(x, Tensor)}
        return replace(self, **tensors)  # type: ignore[arg-type]  # a name is either a tensor or a number

    def nbytes(self, names: Sequence[str]) -> int:
        return sum(t.nbytes for name in names if isinstance(t := getattr(self, name), Tensor))


def _with_backward(loss: Callable[..., Tensor]) -> Callable[..., tuple[Tensor, Tensor]]:
    def both(logits: Tensor, *rest: Tensor) -> tuple[Tensor, Tensor]:
        logits = logits.detach().requires_grad_()
        value = loss(logits, *rest)
        return value.detach(), torch.autograd.grad(value, logits)[0]

    return both


def _identity(f: Callable[..., Any]) -> Callable[..., Any]:
    return f


@dataclass(frozen=True)
class Operation:
    """How to call one operation and its twin, which take the same arguments."""

    arguments: tuple[str, ...]
    moved: tuple[int, int]  # n C elements read and written: in the dtype of logits and v, in that of labels and u
    options: dict[str, Any] = field(default_factory=dict)  # of both
    fused_options: dict[str, Any] = field(default_factory=dict)
    wrap: Callable[[Callable[..., Any]], Callable[..., Any]] = _identity
    mutates: str | None = None
    #: what others offer for it: name -> (function or the reason why not, its arguments, whether it is the same maths)
    peers: dict[str, tuple[Callable[[], Callable[..., Any] | str], tuple[str, ...], bool]] = field(default_factory=dict)


def _torch_cross_entropy() -> Callable[..., Any]:
    return _with_backward(partial(F.cross_entropy, reduction="mean"))


_HARD_LABELS: dict[str, Any] = {
    "torch cross_entropy": (_torch_cross_entropy, ("logits", "targets"), False),
    "liger": (liger_cross_entropy, ("logits", "targets"), False),
}

OPERATIONS = {
    "instance_loss": Operation(("logits", "label_logits", "index"), (2, 1), peers=_HARD_LABELS),
    "instance_label_step_": Operation(
        ("label_logits", "index", "logits", "u", "scale", "label_lr"),
        (2, 3),
        fused_options={"unique": True},
        mutates="label_logits",
    ),
    "class_loss": Operation(("logits", "alpha", "targets"), (2, 0), peers=_HARD_LABELS),
    "class_label_step_": Operation(("alpha", "targets", "logits", "u", "scale", "label_lr"), (2, 1), mutates="alpha"),
    "soft_cross_entropy": Operation(
        ("logits", "probs"),
        (5, 0),  # forward and the gradient for the logits
        options={"reduction": "mean"},
        wrap=_with_backward,
        peers={"torch cross_entropy": (_torch_cross_entropy, ("logits", "probs"), True)},
    ),
    "soft_cross_entropy_hvp": Operation(("logits", "v"), (3, 0)),
    "soft_cross_entropy_label_grad": Operation(("logits", "v"), (3, 0)),
    "row_dot": Operation(("logits", "v"), (2, 0)),
}


#: of many parameters instead of rows, in a file of its own
LOOKAHEAD, IMAGES = "lookahead_update", "load_images"
NAMES = (*OPERATIONS, LOOKAHEAD, IMAGES)


@dataclass(frozen=True)
class OpsConfig:
    device: str = "cpu"
    operations: tuple[str, ...] = NAMES
    sizes: tuple[tuple[int, int], ...] | None = None  # (n, C); default by device
    dtypes: tuple[str, ...] = ("float32", "bfloat16")
    threads: int | None = None
    seconds: float = 1.0  # per operation, size and dtype
    compile: bool = True
    graph: bool = True  # CUDA: replay captured graphs instead of timing launches from the host
    limit: float | None = None  # seconds after which no further case is begun

    def __post_init__(self) -> None:
        for name in self.operations:
            if name not in NAMES:
                raise ValueError(f"unknown operation {name!r}: expected some of {', '.join(NAMES)}")
        for name in self.dtypes:
            if name not in DTYPES:
                raise ValueError(f"unknown dtype {name!r}: expected some of {', '.join(DTYPES)}")
        for n, C in self.sizes or ():
            if n < 1 or C < 2:
                raise ValueError(f"sizes must be n x C with n >= 1 and C >= 2, got {n}x{C}")
        for name, value in (("seconds", self.seconds), ("limit", self.limit)):
            if value is not None and value <= 0:
                raise ValueError(f"{name} must be positive, got {value}")


@dataclass(frozen=True)
class OpsRow:
    operation: str
    n: int
    C: int
    dtype: str
    microseconds: dict[str, float]  # variant -> median
    speedup: dict[str, float]  # variant -> its time by the fused one's, paired
    gigabytes_per_second: float  # of the fused variant
    share_of_copy: float
    error: dict[str, float]  # variant -> max |output - float64 truth| / max |truth|, worst output
    notes: dict[str, str]  # peer -> why it is absent, or was not timed like the others


class WrongResult(AssertionError):
    """A fused operation disagrees with its twin: it is not timed."""


def _tensors(result: Any) -> tuple[Tensor, ...]:
    return (result,) if isinstance(result, Tensor) else tuple(result)


def _outputs(operation: Operation, f: Callable[..., Any], inputs: Inputs) -> tuple[Tensor, ...]:
    """Results on a copy of the inputs, with what was changed in place behind them."""
    inputs = inputs.clone()
    results = _tensors(f(*(getattr(inputs, name) for name in operation.arguments)))
    return (*results, getattr(inputs, operation.mutates)) if operation.mutates else results


def _errors(outputs: Sequence[Tensor], truth: Sequence[Tensor]) -> list[float]:
    """Largest deviation of every output, relative to the truth's largest entry."""
    return [
        float((a.double() - b).abs().max() / b.abs().max().clamp_min(1e-30))
        for a, b in zip(outputs, truth, strict=True)
    ]


def compare(name: str, variants: dict[str, Callable[..., Any]], inputs: Inputs) -> dict[str, float]:
    """Worst relative error of every variant that is the same maths.

    The fused one may be as wrong as the eager twin plus 32 roundings to its output's dtype, else WrongResult: the truth
    has roundings of its own where all are float64, and v - <q, v> cancels. The operations' own tests allow less.
    """
    operation = OPERATIONS[name]
    twin = operation.wrap(partial(getattr(reference, name), **operation.options))
    truth = _outputs(operation, twin, inputs.double())
    outputs = {k: _outputs(operation, f, inputs) for k, f in variants.items()}
    errors = {k: _errors(out, truth) for k, out in outputs.items()}
    for i, (fused, eager) in enumerate(zip(errors["fused"], errors["eager"], strict=True)):
        allowed = eager + 32 * torch.finfo(outputs["fused"][i].dtype).eps
        if not fused <= allowed:
            n, C = inputs.logits.shape
            raise WrongResult(
                f"{name} at n={n}, C={C}, {inputs.logits.dtype}: output {i} is off by {fused:.2e} relative to float64, "
                f"allowed {allowed:.2e} (its eager twin: {eager:.2e}); not timed"
            )
    return {k: max(e) for k, e in errors.items()}


def _variants(name: str, config: OpsConfig) -> dict[str, Callable[..., Any]]:
    operation = OPERATIONS[name]
    fused = partial(getattr(ops, name), **operation.options, **operation.fused_options)
    eager = partial(getattr(reference, name), **operation.options)
    variants = {"fused": operation.wrap(fused), "eager": operation.wrap(eager)}
    if config.compile:
        torch._dynamo.reset()  # every size is compiled for itself: without this the later ones would run eagerly
        variants["compiled"] = operation.wrap(torch.compile(eager, dynamic=False, fullgraph=True))
    return variants


def _slots(moved_bytes: int, device: torch.device) -> int:
    """Copies of the inputs to rotate through: twice the L2 cache of a GPU, at most 16."""
    if device.type != "cuda":
        return 1
    l2 = torch.cuda.get_device_properties(device).L2_cache_size
    return min(16, max(1, math.ceil(2 * l2 / moved_bytes)))


def _bodies(f: Callable[..., Any], arguments: Sequence[str], slots: Sequence[Inputs]) -> list[Body]:
    return [partial(f, *(getattr(i, name) for name in arguments)) for i in slots]


@dataclass(frozen=True)
class Prepared:
    """Variants of one case, compared and called once, ready for timing."""

    bodies: dict[str, list[Body]]
    errors: dict[str, float]
    notes: dict[str, str]
    moved_bytes: int


def prepare(name: str, n: int, C: int, dtype: str, config: OpsConfig) -> Prepared:
    """Inputs, variants and the comparison of their outputs for one case."""
    operation, device = OPERATIONS[name], torch.device(config.device)
    inputs = Inputs.random(n, C, DTYPES[dtype], device, seed=0)
    variants, notes = _variants(name, config), {}
    if "compiled" in variants:
        try:
            _outputs(operation, variants["compiled"], inputs)
        except Exception as error:  # a compiler's; the fused operation is measured all the same
            del variants["compiled"]
            notes["compiled"] = f"skipped, {type(error).__name__}: {(str(error) or 'no message').splitlines()[0]}"
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
    count = _slots(moved, device)
    slots = [inputs, *(Inputs.random(n, C, DTYPES[dtype], device, seed=1 + i) for i in range(count - 1))]
    bodies = {k: _bodies(f, arguments[k], slots) for k, f in variants.items()}
    for calls in bodies.values():
        calls[0]()
    return Prepared(bodies, errors, notes, moved)


def measure(name: str, n: int, C: int, dtype: str, config: OpsConfig, copy: float) -> OpsRow:
    """One row of the table; `copy` is the device's copy bandwidth in bytes per second."""
    case = prepare(name, n, C, dtype, config)
    timings, uncaptured = _time(case.bodies, torch.device(config.device), config)
    fused = timings["fused"]
    bandwidth = case.moved_bytes / fused.median
    return OpsRow(
        operation=name,
        n=n,
        C=C,
        dtype=dtype,
        microseconds={k: t.median * 1e6 for k, t in timings.items()},
        speedup={k: t.ratio_to(fused) for k, t in timings.items() if k != "fused"},
        gigabytes_per_second=bandwidth / 1e9,
        share_of_copy=bandwidth / copy,
        error=case.errors,
        notes={**case.notes, **uncaptured},
    )


def _time(
    bodies: dict[str, list[Body]], device: torch.device, config: OpsConfig
) -> tuple[dict[str, Timing], dict[str, str]]:
    """Timings per call, and the variants that could not be captured, with the reason."""
    if device.type != "cuda" or not config.graph:
        return interleave(bodies, device, seconds=config.seconds), {}
    captured: dict[str, tuple[list[Body], int]] = {}
    notes: dict[str, str] = {}
    for name, calls in bodies.items():
        try:
            replay, count = replayed(calls)
            captured[name] = [replay], count
        except RuntimeError as error:  # it waits for the device, as others' code may
            if name == "fused":
                raise
            captured[name] = calls, 1
            notes[name] = f"timed from the host, not captured in a graph: {str(error).splitlines()[0]}"
    timings = interleave({k: calls for k, (calls, _) in captured.items()}, device, seconds=config.seconds)
    return {k: Timing(tuple(s / captured[k][1] for s in t.seconds)) for k, t in timings.items()}, notes


def cases(config: OpsConfig) -> Iterator[tuple[str, Callable[[float], OpsRow]]]:
    """Every case by name, and what measures it beside the copy bandwidth."""
    for name in config.operations:
        for dtype in config.dtypes:
            if name in (LOOKAHEAD, IMAGES):
                from fastmeta.bench import images, lookahead  # which measure by the functions here

                yield f"{name} {dtype}", partial((lookahead if name == LOOKAHEAD else images).measure, dtype, config)
                continue
            for n, C in config.sizes or SIZES[config.device]:
                yield f"{name} {n}x{C} {dtype}", partial(measure, name, n, C, dtype, config)


HEADER = ("operation", "n", "C", "dtype", "µs", "GB/s", "of copy", "eager", "compiled", "others")
_WIDTHS = (29, 7, 8, 8, 9, 7, 7, 8, 8, 0)


def line(texts: Sequence[str]) -> str:
    """One line of the table: printed as soon as it is measured, so the widths are fixed."""
    first, *others = (text.rjust(width) for text, width in zip(texts, _WIDTHS, strict=True))
    return "  ".join([first.strip().ljust(_WIDTHS[0]), *others])


def cells(row: OpsRow) -> list[str]:
    others = [f"{k} {v:.2f}x" for k, v in row.speedup.items() if k not in ("eager", "compiled")]
    return [
        row.operation,
        str(row.n),
        str(row.C),
        row.dtype,
        f"{row.microseconds['fused']:.1f}",
        f"{row.gigabytes_per_second:.1f}",
        f"{row.share_of_copy:.0%}",
        *(f"{number(row.speedup.get(k))}x" if k in row.speedup else "-" for k in ("eager", "compiled")),
        ", ".join(others) or "-",
    ]


def verdicts(row: OpsRow, device: str) -> list[Verdict]:
    """The project's goals that this row speaks to."""
    at = f"{row.operation} {row.n}x{row.C} {row.dtype}"
    out: list[Verdict] = []
    eager, compiled = row.speedup["eager"], row.speedup.get("compiled")
    if row.operation == LOOKAHEAD:
        goal = f"{row.operation} {row.n} parameters, {row.dtype}: share of copy bandwidth"
        return [Verdict(goal, ">=", 0.85, row.share_of_copy)] if device == "cuda" else []
    if device == "cpu":
        wanted = {(4096, 1000): 5.0, (128, 100): 2.5}.get((row.n, row.C))
        if wanted and row.operation == "instance_label_step_" and row.dtype == "float32":
            out.append(Verdict(f"{at}: times faster than eager", ">=", wanted, eager))
        return out
    if row.operation not in ("instance_loss", "instance_label_step_"):
        return out
    if row.n * row.C >= LARGE and (row.C >= 1000 or row.C in (100, 256)):
        share = 0.90 if row.C >= 1000 else 0.75
        out.append(Verdict(f"{at}: share of copy bandwidth", ">=", share, row.share_of_copy))
    if row.n == 128 and row.C <= 1000:
        out.append(Verdict(f"{at}: microseconds", "<=", 2.5, row.microseconds["fused"]))
    out.append(Verdict(f"{at}: times faster than eager", ">=", 8.0, eager))
    if compiled is not None:
        out.append(Verdict(f"{at}: times faster than compiled", ">=", 1.5, compiled))
    for peer, speedup in row.speedup.items():
        if peer not in ("eager", "compiled"):
            out.append(Verdict(f"{at}: times faster than {peer}", ">=", 1.0, speedup))
    return out


def run(config: OpsConfig, say: Callable[[str], None] = print) -> tuple[dict[str, Any], list[Verdict]]:
    """Measure everything in `config`; the content for the JSON, and the goals with their figures.

    A case that is wrong or cannot run stands under "failures" instead of having a row.
    """
    device = torch.device(config.device)
    if config.threads:
        torch.set_num_threads(config.threads)
    copy = copy_bandwidth(device, seconds=min(0.5, config.seconds))
    say(
        f"copy bandwidth of this {device.type}: {copy / 1e9:.1f} GB/s read + written, {torch.get_num_threads()} threads"
    )
    say(line(HEADER))
    measured: list[OpsRow] = []
    failures: list[str] = []
    left_out: list[str] = []
    start = time.perf_counter()
    for case, take in cases(config):
        if config.limit is not None and time.perf_counter() - start > config.limit:
            left_out.append(case)
            continue
        try:
            row = take(copy)
        except Exception as error:  # of a compiler, too: the other cases still have their figures
            failures.append(f"{case}: {str(error) or type(error).__name__}")
            say(f"{case}: FAILED, {failures[-1].splitlines()[0]}")
            continue
        measured.append(row)
        say(line(cells(row)))
    say("eager, compiled, others: how many times longer they take than the fused operation, paired")
    for peer, note in sorted({item for r in measured for item in r.notes.items()}):
        say(f"{peer}: {note}")
    if left_out:
        say(f"not begun within --limit {config.limit:g}: {', '.join(left_out)}")
    content = {
        "config": asdict(config),
        "copy_gb_per_s": copy / 1e9,
        "rows": [asdict(r) for r in measured],
        "failures": failures,
        "left_out": left_out,
    }
    return content, [v for r in measured for v in verdicts(r, config.device)]
