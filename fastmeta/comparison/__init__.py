"""Comparisons: methods beside plain training, on the same data, network and schedule, over seeds and a grid."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import nn

from fastmeta import recipes
from fastmeta._train import train
from fastmeta.comparison.planned_runs import make_plan
from fastmeta.comparison.runs import Comparison, Watcher, run_all
from fastmeta.recipes import Recipe
from fastmeta.training import Listener, TrainConfig

__all__ = ["Comparison", "Watcher", "compare"]


def compare(
    recipe: str | Path | Recipe,
    out: str | Path,
    *,
    methods: Sequence[str] | None = None,
    seeds: int | None = None,
    grid: Mapping[str, Sequence[Any]] | Sequence[str] | None = None,
    over: Mapping[str, Any] | None = None,
    new_splits: bool = False,
    model: nn.Module | None = None,
    data: Any = None,
    trust_code: bool = False,
    trust_pickle: bool = False,
    watcher: Watcher | None = None,
) -> Comparison:
    """Train each method for each seed, and plain training beside it; a table of what all of them reach.

    Always there are: the given labels as they are, the same fine-tuned on the clean set, given and clean together, the
    clean set alone, and given labels softened and never moved. The same call goes on where it was stopped, leaves what
    is finished as it is, and tries again what has failed.

    Args:
        recipe: a shipped recipe by its name, a config file, or what :func:`fastmeta.recipes.read` gives.
        out: folder of the comparison: a run directory for each row and seed, comparison.json, table.md, table.csv,
            comparison.png, report.html.
        methods: names, or ["all"]; by default those of the recipe.
        seeds: how many, from the recipe's seed on; by default as the recipe says.
        grid: values by option, ``{"labels.target_prob": [0.3, 0.6]}``, or texts ``"labels.target_prob=0.3,0.6"``: each
            point of their product is a row of every method that has these options. Of several points of a method the
            one with the best validation accuracy is chosen (`data.val_fraction`), and none without one.
        over: options that are laid over the recipe, ``{"epochs": 2, "optim.lr": 0.05}``, as far as a method has them.
        new_splits: draw what is held out anew for each seed.
        model, data, trust_code, trust_pickle: as for :func:`fastmeta.train`.
        watcher: is told of each run.

    Raises:
        InputError: something given is wrong, `out` holds something else or another comparison, another process is in
            it, or plain training is refused. What one method alone refuses, and a run that fails, is a note in the
            table.
        Interrupted: SIGINT, SIGTERM or SIGHUP; the state of the run was saved.
    """
    if not isinstance(recipe, Recipe):
        recipe = recipes.read(recipe)
    plan = make_plan(
        recipe, methods=methods, seeds=seeds, grid=grid, over=over, new_splits=new_splits, trust_code=trust_code
    )

    def train_one(config: TrainConfig, listener: Listener) -> Any:
        return train(config, model=model, data=data, auto_resume=True, trust_pickle=trust_pickle, listener=listener)

    return run_all(plan, out, train_one, watcher or Watcher())
