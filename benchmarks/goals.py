"""What the project wants of its operations and steps, beside what a run of ``fastmeta bench`` has measured.

    python benchmarks/goals.py step --model resnet20 ... --json FILE    measure as `fastmeta bench` does, then judge
    python benchmarks/goals.py FILE.json ...                            judge what was measured before

The goals that a run speaks to, those of its variants on the hardware that a goal names, are printed; the first form
adds them to its FILE under "goals". With --strict a missed goal is exit code 1, and so is none to judge.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

from fastmeta.bench.ops_run import LARGE
from fastmeta.bench.result_files import replace, table
from fastmeta.bench.step_variants import REFERENCE, is_plain
from fastmeta.cli import bench

Row = Mapping[str, Any]


@dataclass(frozen=True)
class Verdict:
    """A goal beside the figure that was measured for it."""

    what: str
    sense: Literal["<=", ">="]
    goal: float
    measured: float

    @property
    def met(self) -> bool:
        return self.measured <= self.goal if self.sense == "<=" else self.measured >= self.goal

    def as_json(self) -> dict[str, Any]:
        return {**asdict(self), "met": self.met}


def verdicts(document: Mapping[str, Any]) -> list[Verdict]:
    """The goals that the JSON of a run speaks to."""
    config, rows = document.get("config", {}), document.get("rows", [])
    if document.get("kind") == "ops":
        return [verdict for row in rows for verdict in of_operation(row, config["device"])]
    if document.get("kind") == "step":
        gpu = document["environment"]["gpu"]
        return of_steps(config, rows, None if gpu is None else gpu["name"])
    return []


def verdict_table(found: Sequence[Verdict]) -> str:
    rows = [[v.what, f"{v.sense} {v.goal:g}", f"{v.measured:.3g}", "yes" if v.met else "NO"] for v in found]
    return table(["goal", "wanted", "measured", "met"], rows)


# Operations ------------------------------------------------------------------------------------------------


def of_operation(row: Row, device: str) -> list[Verdict]:
    name, n, classes, dtype = row["operation"], row["n"], row["C"], row["dtype"]
    at = f"{name} {n}x{classes} {dtype}"
    out: list[Verdict] = []
    eager, compiled = row["speedup"]["eager"], row["speedup"].get("compiled")
    if name == "lookahead_update":
        goal = f"{name} {n} parameters, {dtype}: share of copy bandwidth"
        return [Verdict(goal, ">=", 0.85, row["share_of_copy"])] if device == "cuda" else []
    if device == "cpu":
        wanted = {(4096, 1000): 5.0, (128, 100): 2.5}.get((n, classes))
        if wanted and name == "instance_label_step_" and dtype == "float32":
            out.append(Verdict(f"{at}: times faster than eager", ">=", wanted, eager))
        return out
    if name not in ("instance_loss", "instance_label_step_"):
        return out
    if n * classes >= LARGE and (classes >= 1000 or classes in (100, 256)):
        share = 0.90 if classes >= 1000 else 0.75
        out.append(Verdict(f"{at}: share of copy bandwidth", ">=", share, row["share_of_copy"]))
    if n == 128 and classes <= 1000:
        out.append(Verdict(f"{at}: microseconds", "<=", 2.5, row["microseconds"]["fused"]))
    out.append(Verdict(f"{at}: times faster than eager", ">=", 8.0, eager))
    if compiled is not None:
        out.append(Verdict(f"{at}: times faster than compiled", ">=", 1.5, compiled))
    for peer, speedup in row["speedup"].items():
        if peer not in ("eager", "compiled"):
            out.append(Verdict(f"{at}: times faster than {peer}", ">=", 1.0, speedup))
    return out


# Steps -----------------------------------------------------------------------------------------------------

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


def of_steps(config: Row, rows: Sequence[Row], gpu: str | None) -> list[Verdict]:
    by_name = {row["variant"]: row for row in rows}
    out = _peak(config, by_name)
    if (config["device"], config["threads"], config["dtype"]) == ("cpu", 1, "float32"):
        out += _on_one_thread(config, by_name)
    elif config["device"] == "cuda" and gpu is not None and "H200" in gpu and config["dtype"] == "bfloat16":
        timed = [(row["milliseconds"], name) for name, row in by_name.items() if is_plain(name) and row["milliseconds"]]
        out += _on_h200(config, by_name, min(timed)[1] if timed else None)
    return out


def _ratio(rows: Mapping[str, Row], name: str, by: str | None) -> float | None:
    """The time of variant `name` by that of `by`, where both were timed."""
    return ((rows.get(name) or {}).get("ratios") or {}).get(by)


def _peak(config: Row, rows: Mapping[str, Row]) -> list[Verdict]:
    most = _PEAK.get((config["model"], config["batch"], config["meta_batch"]))
    ours, truth = ((rows.get(name) or {}).get("peak_bytes") for name in ("fastmeta", REFERENCE))
    if most is None or not ours or not truth:
        return []
    case = f"{config['model']} {config['batch']}/{config['meta_batch']}"
    return [Verdict(f"{case}: peak memory by the reference's", "<=", most, ours / truth)]


def _on_one_thread(config: Row, rows: Mapping[str, Row]) -> list[Verdict]:
    model, n, m, classes = (config[key] for key in ("model", "batch", "meta_batch", "classes"))
    wanted = _CPU.get((model, n, m, classes))
    if wanted is None:
        return []
    most_eager, most_compiled, gain = wanted
    case = f"{model} {n}/{m}, C={classes}, 1 thread"
    out: list[Verdict] = []
    if (ratio := _ratio(rows, "fastmeta", "sgd")) is not None:
        out.append(Verdict(f"{case}: times an eager plain step", "<=", most_eager, ratio))
    if (ratio := _ratio(rows, "fastmeta:full", "sgd:compiled")) is not None:
        out.append(Verdict(f"{case}, compiled: times a compiled plain step", "<=", most_compiled, ratio))
    out += _gains(f"{case}, compiled", rows, dict.fromkeys((REFERENCE, "higher", "torchopt"), gain))
    return out


def _on_h200(config: Row, rows: Mapping[str, Row], unit: str | None) -> list[Verdict]:
    key = (config["model"], config["batch"], config["meta_batch"])
    case = f"{key[0]} {key[1]}/{key[2]} bf16, H200"
    out = [
        Verdict(f"{case}: {name}, times the best plain step ({unit})", "<=", most, ratio)
        for name, most in _H200_PLAIN.get(key, {}).items()
        if (ratio := _ratio(rows, name, unit)) is not None
    ]
    out += _gains(f"{case}, compiled", rows, _H200_REFERENCE.get(key, {}))
    shares = [r["share_of_matrix_rate"] for k, r in rows.items() if is_plain(k) and k.endswith("captured")]
    found = [share for share in shares if share is not None]
    if key in _H200_SHARE and found:
        out.append(Verdict(f"{case}: plain captured step, share of matrix rate", ">=", _H200_SHARE[key], max(found)))
    return out


def _gains(case: str, rows: Mapping[str, Row], wanted: Mapping[str, float]) -> list[Verdict]:
    """How many times longer others take than the compiled step."""
    return [
        Verdict(f"{case}: times faster than {name}", ">=", gain, ratio)
        for name, gain in wanted.items()
        if (ratio := _ratio(rows, name, "fastmeta:full")) is not None
    ]


# Command line ----------------------------------------------------------------------------------------------


def main(argv: Sequence[str]) -> int:
    """0; 1 where an output was wrong, or with --strict a goal was missed; 2 for what cannot be used."""
    strict, words = "--strict" in argv, [word for word in argv if word != "--strict"]
    if not words or {"-h", "--help"} & set(words[:1]):
        print(__doc__)
        return 0 if words else 2
    code, files = 0, [Path(word) for word in words]
    if measuring := words[0] in ("ops", "step", "approx"):
        code = bench.main(words)
        named = [b for a, b in pairwise(words) if a == "--json"]
        named += [word.removeprefix("--json=") for word in words if word.startswith("--json=")]
        files = [Path(named[-1])] if named and code != 2 else []
        if not named:
            print("goals.py: a goal is judged from the file of --json, and none is named", file=sys.stderr)
            return 2
    found: list[Verdict] = []
    for path in files:
        try:
            document = json.loads(path.read_text())
            judged = verdicts(document)
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            print(f"goals.py: {path} is no result of fastmeta bench: {error}", file=sys.stderr)
            return 2
        if measuring:
            replace(path, {**document, "goals": [verdict.as_json() for verdict in judged]})
        found += judged
    if found:
        print("\n" + verdict_table(found))
    else:
        print("goals.py: no goal speaks to what was measured", file=sys.stderr)
    return code or int(strict and not (found and all(verdict.met for verdict in found)))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
