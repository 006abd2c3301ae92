"""What the project wants of a step, beside what a run has measured."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from fastmeta.bench.problem import StepConfig
from fastmeta.bench.results import Verdict
from fastmeta.bench.variants import REFERENCE, is_plain


@dataclass(frozen=True)
class StepRow:
    """The figures of one variant."""

    variant: str
    skipped: str | None = None  # why it was not timed
    note: str = ""  # the way of the tangent
    milliseconds: float | None = None  # median
    quartiles: tuple[float, float] | None = None  # of the milliseconds
    samples_per_second: float | None = None  # train samples
    ratios: Mapping[str, float] | None = None  # to every other variant's time, paired
    flops: float | None = None
    forwards: float | None = None  # FLOPs in units of one train forward
    share_of_matrix_rate: float | None = None  # FLOPs per second by those of the device's matrix product
    launches: float | None = None
    peak_bytes: int | None = None  # over the model, the labels and the batches
    error: float | None = None  # of the label step (a plain step: of the parameters) relative to the truth in float64

    def ratio_to(self, variant: str | None) -> float | None:
        return (self.ratios or {}).get(variant) if variant else None


def best_plain(rows: Sequence[StepRow]) -> str | None:
    """The fastest plain step."""
    timed = [(r.milliseconds, r.variant) for r in rows if is_plain(r.variant) and r.milliseconds is not None]
    return min(timed)[1] if timed else None


# (model, batch, meta batch, classes) on one CPU thread in float32:
# most times an eager plain step, of the eager step; most times the compiled one, and least gain, of the compiled step
_CPU = {("mlp", 128, 256, 10): (4.2, 4.1, 1.4), ("resnet20", 32, 64, 100): (5.3, 4.0, 1.65)}
# (model, batch, meta batch) on an H200 in bfloat16: most times the best plain step
_H200_PLAIN = {
    ("resnet18", 128, 256): {
        "fastmeta:full": 4.5,
        "fastmeta:delayed-full": 3.8,
        "fastmeta:last:1-full": 1.8,
        "fastmeta:every:4-full": 1.95,
    }
}
# least gain of the compiled step over the reference, eager and captured
_H200_REFERENCE = {
    ("resnet18", 128, 256): {REFERENCE: 5.0, "reference:captured": 1.6},
    ("wrn28_10", 128, 256): {REFERENCE: 2.5},
}
# (model, batch, meta batch), anywhere: most of the reference's peak memory, by the eager step
_PEAK = {("resnet20", 32, 64): 0.75, ("resnet18", 128, 256): 0.6}
_H200_SHARE = {("resnet18", 128, 256): 0.35}  # of the matrix rate, by the plain captured step


def verdicts(config: StepConfig, rows: Sequence[StepRow], gpu: str | None = None) -> list[Verdict]:
    """The goals that this run speaks to: of the variants that were run, on the hardware that a goal names."""
    by_name = {r.variant: r for r in rows}
    out = _peak(config, by_name)
    if (config.device, config.threads, config.dtype) == ("cpu", 1, "float32"):
        out += _on_one_thread(config, by_name)
    elif config.device == "cuda" and gpu is not None and "H200" in gpu and config.dtype == "bfloat16":
        out += _on_h200(config, by_name, best_plain(rows))
    return out


def _peak(config: StepConfig, rows: Mapping[str, StepRow]) -> list[Verdict]:
    most = _PEAK.get((config.model, config.batch, config.meta_batch))
    ours, truth = rows.get("fastmeta"), rows.get(REFERENCE)
    if most is None or not ours or not truth or not ours.peak_bytes or not truth.peak_bytes:
        return []
    case = f"{config.model} {config.batch}/{config.meta_batch}"
    return [Verdict(f"{case}: peak memory by the reference's", "<=", most, ours.peak_bytes / truth.peak_bytes)]


def _on_one_thread(config: StepConfig, rows: Mapping[str, StepRow]) -> list[Verdict]:
    wanted = _CPU.get((config.model, config.batch, config.meta_batch, config.classes))
    if wanted is None:
        return []
    most_eager, most_compiled, gain = wanted
    case = f"{config.model} {config.batch}/{config.meta_batch}, C={config.classes}, 1 thread"
    eager, full = rows.get("fastmeta"), rows.get("fastmeta:full")
    out: list[Verdict] = []
    if eager and (ratio := eager.ratio_to("sgd")) is not None:
        out.append(Verdict(f"{case}: times an eager plain step", "<=", most_eager, ratio))
    if full and (ratio := full.ratio_to("sgd:compiled")) is not None:
        out.append(Verdict(f"{case}, compiled: times a compiled plain step", "<=", most_compiled, ratio))
    out += _gains(f"{case}, compiled", rows, dict.fromkeys((REFERENCE, "higher", "torchopt"), gain))
    return out


def _on_h200(config: StepConfig, rows: Mapping[str, StepRow], unit: str | None) -> list[Verdict]:
    key = (config.model, config.batch, config.meta_batch)
    case = f"{config.model} {config.batch}/{config.meta_batch} bf16, H200"
    out = [
        Verdict(f"{case}: {name}, times the best plain step ({unit})", "<=", most, ratio)
        for name, most in _H200_PLAIN.get(key, {}).items()
        if name in rows and (ratio := rows[name].ratio_to(unit)) is not None
    ]
    out += _gains(f"{case}, compiled", rows, _H200_REFERENCE.get(key, {}))
    shares = [r.share_of_matrix_rate for k, r in rows.items() if is_plain(k) and k.endswith("captured")]
    found = [share for share in shares if share is not None]
    if key in _H200_SHARE and found:
        out.append(Verdict(f"{case}: plain captured step, share of matrix rate", ">=", _H200_SHARE[key], max(found)))
    return out


def _gains(case: str, rows: Mapping[str, StepRow], wanted: Mapping[str, float]) -> list[Verdict]:
    """How many times longer others take than the compiled step."""
    return [
        Verdict(f"{case}: times faster than {name}", ">=", gain, ratio)
        for name, gain in wanted.items()
        if name in rows and (ratio := rows[name].ratio_to("fastmeta:full")) is not None
    ]
