"""Claims of the paper, and what the measured numbers say of them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Literal, Protocol

from fastmeta.report.run_folder import in_words, spread

Verdict = Literal["reproduced", "not reproduced", "not decided"]


@dataclass(frozen=True)
class Claim:
    text: str
    """What is claimed, as a sentence."""
    published: str
    """What the paper has for it, numbers or words."""
    measured: str
    """What was measured here."""
    gap: float | None
    """How far the measured mean is on the claim's side; below 0 it is on the other. None of what was not measured."""
    noise: float | None
    """The standard deviation that `gap` has to be beyond; None of one seed."""
    sign: bool = False
    """Must it hold at scale smoke? Each artefact has one such claim. Its sign alone judges it there."""

    @property
    def verdict(self) -> Verdict:
        """Within one standard deviation, and with one seed alone, nothing is decided."""
        if self.gap is None or self.noise is None or abs(self.gap) <= self.noise:
            return "not decided"
        return "reproduced" if self.gap > 0 else "not reproduced"

    def by_sign(self) -> Claim:
        """As a smoke run judges it."""
        return replace(self, gap=self.gap if self.gap is not None else -1.0, noise=0.0)


class Values(Protocol):
    """A cell of a table, as claims need it."""

    @property
    def values(self) -> Mapping[int, float]: ...


def higher(
    text: str, above: Values, below: Values, *, published: str = "", digits: int = 1, sign: bool = False
) -> Claim:
    """Claims that `above` is higher than `below`, by more than the larger of their two standard deviations.

    Seeds that both have are compared.
    """
    seeds = [seed for seed in above.values if seed in below.values]
    first, second = ([cell.values[seed] for seed in seeds] for cell in (above, below))
    if not seeds:
        return Claim(text, published, "not measured", None, None, sign)
    gap = sum(a - b for a, b in zip(first, second, strict=True)) / len(seeds)
    found = [told[1] for values in (first, second) if (told := spread(values)) is not None and told[1] is not None]
    means = [in_words(values, 1, digits) for values in (first, second)]
    measured = f"{means[0]} against {means[1]}, difference {gap:+.{digits}f}"
    return Claim(text, published, measured, gap, max(found) if found else None, sign)


def beyond(
    text: str, values: Mapping[int, float], bound: float, *, published: str = "", digits: int = 2, sign: bool = False
) -> Claim:
    """Claims that numbers, by seed, are above `bound`, by more than their standard deviation."""
    found = spread(list(values.values()))
    if found is None:
        return Claim(text, published, "not measured", None, None, sign)
    measured = f"{in_words(list(values.values()), 1, digits)} against {bound:.{digits}f}"
    return Claim(text, published, measured, found[0] - bound, found[1], sign)
