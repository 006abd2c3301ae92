"""Runs that several artefacts are read off, each said once, so that it is trained once."""

from __future__ import annotations

from typing import Any, Literal

from fastmeta.paper.scale import Scale
from fastmeta.paper.wanted import Wanted

#: how the entropy curriculum of the noisy setting weights samples; the paper gives no formula
CURRICULUM = "1-H/logC"
FOLDS = 5


def noise(rate: float) -> str:
    return f"uniform:{rate:g}"


def noisy(scale: Scale, method: str, rate: float, *, recipe: str = "cifar10-a", **over: Any) -> Wanted:
    """A run of `method` under uniform noise: tables 6 and 7."""
    return Wanted(scale.config(recipe, method, noise=noise(rate), **over))


def noisy_labels(scale: Scale, rate: float, *, recipe: str = "cifar10-a", curriculum: bool = False) -> Wanted:
    """Instance labels under uniform noise, with and without the entropy curriculum: tables 6 and 7, figures 3 and 4."""
    weight = CURRICULUM if curriculum else "none"
    return noisy(scale, "instance_labels", rate, recipe=recipe, **{"labels.entropy_weight": weight})


def supervised(scale: Scale, method: str, recipe: str, **over: Any) -> Wanted:
    """A run of `method` on all training rows, without noise and without a clean set: tables 1, 2 and 8.

    The paper trains on all 50,000 images. Here a run holds a clean set out, so it is the baseline of given and clean
    together of a run, :attr:`UNION`.
    """
    return Wanted(scale.config(recipe, method, **over))


def folded_labels(scale: Scale, method: str, recipe: str) -> Wanted:
    """Labels learned over five folds: tables 1, 3 and 5, figure 2. `method` is class_labels or instance_labels."""
    own: dict[str, Any] = {"data.folds": FOLDS, "data.fold": None}
    return Wanted(scale.config(recipe, method, **own), folds=FOLDS)


def replayed(scale: Scale, method: str, recipe: str, play: Literal["dynamic", "static"]) -> Wanted:
    """The final model of folds: it trains on all rows, on their labels averaged over the folds."""
    source = folded_labels(scale, method, recipe)
    return Wanted(scale.config(recipe, "replay", **{"method.play": play}), sources={"trajectory": source})
