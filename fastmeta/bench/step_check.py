"""The first step of every variant beside the same step in float64, before anything is timed."""

from __future__ import annotations

import gc
from dataclasses import dataclass

import torch
from torch import Tensor

from fastmeta._text import reason
from fastmeta.bench.step_problem import Problem, StepConfig
from fastmeta.bench.step_variant import Variant
from fastmeta.bench.step_variants import VARIANTS, is_captured, is_compiled, truth_of

# Against the truth in float64: what rounding makes of a step, with room for networks of any depth.
TOLERANCE = 1e-8
# What inductor compiles or a CUDA graph holds is checked in the precision that is timed, because to compile it again in
# float64 takes minutes. There the truth is off too: rounding switches ReLUs at theta*, and the step is read off
# labels and parameters that it hardly moves. Its own error is the measure: 100 times that, since other ReLUs may switch
# than its own, where a wrong term would be off by its size.
FACTOR = 100


class WrongStep(AssertionError):
    """An exact variant disagrees with its truth: it is not timed."""


class Unchecked(RuntimeError):
    """There is no truth to compare with: the truth runs out of memory in float64."""


def build(name: str, problem: Problem) -> Variant | str:
    """The variant, or one line that says why there is none."""
    try:
        return VARIANTS[name](problem)
    except (RuntimeError, NotImplementedError) as error:
        return reason(error)


@dataclass(frozen=True)
class Movement:
    """What one step has changed."""

    parameters: list[Tensor]
    labels: list[Tensor]  # (n, C) rows of the batch, or the parameters of a loss; none for a plain step

    def errors(self, truth: Movement) -> dict[str, float]:
        """Relative to `truth`."""
        out = {"parameters": _relative(self.parameters, truth.parameters)}
        if self.labels:
            out["labels"] = _relative(self.labels, truth.labels)
        return out


def _relative(a: list[Tensor], b: list[Tensor]) -> float:
    a, b = ([t.double() for t in tensors] for tensors in (a, b))
    difference, size = torch._foreach_norm(torch._foreach_sub(a, b)), torch._foreach_norm(b)
    return float(torch.stack(list(difference)).norm() / torch.stack(list(size)).norm())


def movement(variant: Variant | str, problem: Problem) -> Movement | str:
    """What the variant's next step changes, or why it cannot be taken."""
    if isinstance(variant, str):
        return variant
    before = _learned(variant, problem)
    try:
        variant.step()
    except (RuntimeError, NotImplementedError) as error:
        return reason(error)
    after = _learned(variant, problem)
    return Movement(*([a - b for a, b in zip(*pair, strict=True)] for pair in zip(after, before, strict=True)))


def _learned(variant: Variant, problem: Problem) -> tuple[list[Tensor], list[Tensor]]:
    """Copies of what a step moves: of the model, and of its labels or its loss."""
    labels = [] if variant.table is None else [variant.table[problem.index]]
    labels += [] if variant.loss is None else variant.loss.parameters()
    return [p.detach().clone() for p in variant.model.parameters()], [t.detach().clone() for t in labels]


class Check:
    """Compares first steps from the problem's starting state with those of the truth that each variant has.

    That is the reference, the naive step of another loss, or of a plain step the plain one.

    `problem` is what will be timed.
    """

    def __init__(self, config: StepConfig, problem: Problem) -> None:
        self._problem, self._double = problem, Problem(config, torch.float64)
        self._known: dict[tuple[str, torch.dtype], Movement] = {}

    def of(self, name: str, variant: Variant) -> float | str:
        """Its error (of labels or loss; of the model where there are none), or why it cannot take a step.

        `variant` was built for the problem that will be timed, and takes its first step here if that is what is
        checked. Raises WrongStep where an exact one is wrong, Unchecked where that cannot be told.
        """
        standard = truth_of(name)
        if is_compiled(name) or is_captured(name):
            moved = movement(variant, self._problem)
            own = self._standard(standard, self._problem).errors(self._standard(standard, self._double))
            allowed = {k: FACTOR * error + TOLERANCE for k, error in own.items()}
        else:
            moved = movement(build(name, self._double), self._double)
            allowed = dict.fromkeys(("labels", "parameters"), TOLERANCE)
        gc.collect()
        if isinstance(moved, str):
            return moved
        errors = moved.errors(self._standard(standard, self._double))
        if variant.exact and not all(error <= allowed[k] for k, error in errors.items()):
            told = ", ".join(f"{k} by {error:.1e} (allowed {allowed[k]:.0e})" for k, error in errors.items())
            raise WrongStep(
                f"{name} differs from the {standard} step in float64: {told}; it is not timed. A model with random "
                "layers draws anew there: pass --no-check"
            )
        return errors.get("labels", errors["parameters"])

    def _standard(self, name: str, problem: Problem) -> Movement:
        key = name, problem.dtype
        if key not in self._known:
            moved = movement(build(name, problem), problem)
            if isinstance(moved, str) and moved.startswith("OutOfMemoryError"):
                raise Unchecked(f"{name} in {problem.dtype}: {moved}")
            if isinstance(moved, str):
                raise WrongStep(f"{name} itself cannot run this model: {moved}")
            self._known[key] = moved
        return self._known[key]
