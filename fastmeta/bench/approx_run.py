"""What each approximation of the step saves, and how far it is from the exact one in the course of a short training."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import torch

from fastmeta.bench.approx_distance import NOISE_RATE, SEPARATION, ShortTraining
from fastmeta.bench.result_files import number, table
from fastmeta.bench.step_problem import Problem, StepConfig, sizes
from fastmeta.bench.step_run import flops_of
from fastmeta.bench.step_variant import Variant
from fastmeta.bench.step_variants import PLAIN, VARIANTS, fastmeta_variant
from fastmeta.measure import interleave
from fastmeta.meta.approximation import Approximation

EXACT = "exact"
#: kind -> equation
EQUATIONS = {
    "exact": "Eqs. (3)-(6)",
    "delayed": "theta <- theta - lambda/n sum_i grad L_i(theta, p_i_old); the label gradient is the exact one",
    "every": "Eqs. (3)-(5) on one step in k; Eq. (6) with the labels as they are on the others",
    "last": "theta* moves the last L layers alone: u = J_L g_L, of their parameters",
    "difference": "u = (z(theta + e g) - z(theta - e g)) / 2e",
}
#: kind -> what is compared with the exact step from the same state
COMPARED = {
    "exact": "-",
    "delayed": "model update",
    "every": "label movement of k steps",
    "last": "label movement",
    "difference": "label movement",
}
#: model -> (train batch, meta batch), others as ResNet-20
BATCHES = {"mlp": (128, 256)}


#: of distances, side by side in a table
MOMENTS = 4


@dataclass(frozen=True)
class ApproxConfig:
    """What is compared: `moments` are numbers of exact steps after which each approximation is held against them."""

    models: tuple[str, ...] = ("resnet20", "mlp")
    approximations: tuple[str, ...] = ("delayed", "every:4", "last:1", "difference")
    moments: tuple[int, ...] = (0, 10, 50)
    batch: int | None = None  # None: by model
    meta_batch: int | None = None
    classes: int = 10
    samples: int = 1024  # of the training set, NOISE_RATE of whose labels are wrong
    input_shape: tuple[int, ...] | None = None
    device: str = "cpu"
    threads: int | None = None
    lr: float = 0.05
    seconds: float = 10.0  # of timing, per model
    rounds: int | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        for text in self.approximations:
            Approximation.parse(text)
        if not self.moments or min(self.moments) < 0:
            raise ValueError(f"moments must be numbers of steps >= 0, got {self.moments}")
        for model in self.models:
            self.of(model)

    def of(self, model: str) -> StepConfig:
        """The step that is timed; its own checks are made here."""
        n, m = BATCHES.get(model, (32, 64))
        step = StepConfig(
            model=model,
            batch=self.batch or n,
            meta_batch=self.meta_batch or m,
            classes=self.classes,
            samples=self.samples,
            input_shape=self.input_shape,
            device=self.device,
            lr=self.lr,
            seconds=self.seconds,
            rounds=self.rounds,
            seed=self.seed,
        )
        periods = [a.number for a in map(Approximation.parse, self.approximations) if a.kind == "every"]
        rows = step.batch * max(periods, default=1)
        if rows > self.samples:
            raise ValueError(
                f"samples must be at least {rows} for the {self.approximations} of batches of {step.batch}, whose rows "
                f"are drawn once, got {self.samples}"
            )
        return step


def run(config: ApproxConfig, say: Callable[[str], None] = print) -> dict[str, Any]:
    """The content for the JSON: per model the rows of the table.

    Ctrl-C ends the measuring, and the models before it are given back with "stopped".
    """
    if config.threads:
        torch.set_num_threads(config.threads)
    results: list[dict[str, Any]] = []
    stopped = False
    for model in config.models:
        try:
            results.append(_measure(config, model, say))
        except KeyboardInterrupt:
            if not results:
                raise
            stopped = True
            break
    say("\n".join(f"{kind:<11} {equation}" for kind, equation in EQUATIONS.items()))
    say(
        "a cell is the cosine to the exact step and, behind the ×, the length by the exact one's, after so many steps; "
        "every:k leaves the labels of k - 1 batches in k where they are, so about 1/sqrt(k) is what it can reach"
    )
    return {
        "config": asdict(config),
        "noise_rate": NOISE_RATE,
        "separation": SEPARATION,
        "models": results,
        "stopped": stopped,
    }


def _measure(config: ApproxConfig, model: str, say: Callable[[str], None]) -> dict[str, Any]:
    step = config.of(model)
    counted = sizes(step)
    say(f"{model}: {step.batch} train, {step.meta_batch} meta, {config.device}, {torch.get_num_threads()} threads")
    costs = _costs(config, step)
    distances = ShortTraining(step).distances(config.approximations, config.moments)
    rows = []
    for name in (EXACT, *config.approximations):
        kind, cost = Approximation.parse(None if name == EXACT else name).kind, costs[name]
        rows.append(
            {
                "approx": name,
                "equation": EQUATIONS[kind],
                "compared": COMPARED[kind],
                "forwards": cost["flops"] / counted.forward_flops if counted.forward_flops else None,
                **cost,
                "distances": [asdict(d) for d in distances.get(name, [])],
            }
        )
    say(_tables(rows, sorted(set(config.moments))) + "\n")
    return {"model": model, "batch": step.batch, "meta_batch": step.meta_batch, "rows": rows}


def _tables(rows: Sequence[dict[str, Any]], moments: Sequence[int]) -> str:
    """Costs, and below them distances after some of the moments, as many as 80 columns have room for."""
    costs = [
        [r["approx"], *(number(r[key]) for key in ("forwards", "milliseconds", "to_exact", "to_plain")), r["compared"]]
        for r in rows
    ]
    parts = [table(("approx", "F", "ms", "x exact", "x plain", "compared"), costs)]
    for first in range(0, len(moments), MOMENTS):
        shown = range(first, min(first + MOMENTS, len(moments)))
        distances = [
            [r["approx"], *(f"{d['cosine']:.6f} ×{d['length']:.3f}" for d in (r["distances"][k] for k in shown))]
            for r in rows
            if r["distances"]
        ]
        parts.append(table(("approx", *(f"step {moments[k]}" for k in shown)), distances))
    return "\n\n".join(parts)


def _costs(config: ApproxConfig, step: StepConfig) -> dict[str, dict[str, float]]:
    """FLOPs and paired times per step, means over the period of "every:k"."""
    problem = Problem(step, torch.float32)
    variants: dict[str, Variant] = {}
    for name in (PLAIN, EXACT, *config.approximations):
        build = VARIANTS[PLAIN] if name == PLAIN else partial(fastmeta_variant, approx=None if name == EXACT else name)
        built = build(problem)
        assert isinstance(built, Variant)
        built.cycle()  # chooses the tangent
        variants[name] = built
    timings = interleave(
        {k: v.bodies for k, v in variants.items()}, problem.device, seconds=config.seconds, rounds=config.rounds
    )
    return {
        name: {
            "flops": flops_of(variant),
            "milliseconds": timings[name].median * 1e3,
            "rounds": len(timings[name].seconds),
            "to_exact": timings[name].ratio_to(timings[EXACT]),
            "to_plain": timings[name].ratio_to(timings[PLAIN]),
        }
        for name, variant in variants.items()
    }
