"""Runs that several artefacts are read off, each said once, so that it is trained once."""

from __future__ import annotations

from typing import Any

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


#: of runs that hold nothing out: the paper's final models train on all 50,000 images
ALL_ROWS: dict[str, Any] = {"data.folds": None, "data.fold": None, "data.meta_fraction": 0.0}


def supervised(scale: Scale, method: str, recipe: str, **over: Any) -> Wanted:
    """A run of a method with fixed labels on all training rows: tables 1, 2, 4, 5 and 8."""
    return Wanted(scale.config(recipe, method, **{**ALL_ROWS, **over}))


def folded_labels(scale: Scale, method: str, recipe: str) -> Wanted:
    """Labels learned over five folds, and the model that replays them as they moved: tables 1, 3, 4 and 5, figure 2.

    `method` is class_labels or instance_labels.
    """
    return Wanted(scale.config(recipe, method, **{**ALL_ROWS, "data.meta_fraction": None}), folds=FOLDS)


def static_labels(scale: Scale, method: str, recipe: str) -> Wanted:
    """A model that is trained on all rows, on the converged labels of folds, held fixed: table 3."""
    held = {**ALL_ROWS, "data.meta_batch_size": None, "method.play": "static"}
    return Wanted(scale.config(recipe, "replay", **held), sources={"trajectory": folded_labels(scale, method, recipe)})
