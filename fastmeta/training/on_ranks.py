"""What a config comes to on several ranks: what is refused there, and how batches are divided."""

from __future__ import annotations

from dataclasses import replace

from fastmeta.data import InputError, Splits
from fastmeta.distributed import Ranks
from fastmeta.training.config import TrainConfig

_WAY = "run it in one process"


def check(config: TrainConfig, ranks: Ranks) -> None:
    """InputError for what one process alone can do."""
    if ranks.size == 1:
        return
    if "ranks" not in config.method_class().supports:
        raise InputError(
            f"method {config.method} does not train on several ranks: {config.method_class().not_on_ranks}; {_WAY}"
        )
    if config.labels.lookahead_steps > 1:
        raise InputError(
            f"labels.lookahead_steps={config.labels.lookahead_steps} goes back through its steps in one process, and "
            f"there are {ranks.size} ranks; {_WAY}, or leave it out"
        )
    if config.labels.searches:
        raise InputError(
            f"labels.label_lr=search is judged by canaries, and {ranks.size} ranks have none; {_WAY}, and name what it "
            "finds here"
        )
    if config.labels.canaries not in ("auto", "off"):
        raise InputError(
            f"labels.canaries={config.labels.canaries} are for one process, and there are {ranks.size} ranks; {_WAY}, "
            "or leave it out"
        )


def without_canaries(config: TrainConfig, ranks: Ranks) -> tuple[TrainConfig, list[str]]:
    """`config` as ranks can have it, and a line on what that leaves out."""
    if ranks.size == 1 or config.labels.canaries == "off" or not config.can_have_canaries:
        return config, []
    config = replace(config, labels=replace(config.labels, canaries="off"))
    return config, [f"canaries: none, because {ranks.size} ranks train"]


def batch_size(name: str, asked: int | None, usual: int, rows: int, ranks: Ranks) -> int:
    """Of `rows` in all, of which each rank has its share: so many in all, as many of each rank, 0 of none.

    InputError for a size that was asked for and cannot be divided.
    """
    size = min(usual if asked is None else asked, rows)
    if ranks.size == 1 or not rows:
        return size
    if asked is not None and asked % ranks.size:
        low, high = asked - asked % ranks.size, asked + -asked % ranks.size
        raise InputError(
            f"data.{name}={asked} does not divide among {ranks.size} ranks; take {f'{low} or ' if low else ''}{high}"
        )
    least = ranks.least_share(rows) if name == "batch_size" else rows
    each = min(size // ranks.size, least)
    if not each:
        what = "training" if name == "batch_size" else "clean"
        why = f"there are {rows:,} {what} rows" if rows // ranks.size < 1 or not least else f"data.{name} is {size}"
        raise InputError(f"{why}, too few for {ranks.size} ranks; start fewer")
    return each * ranks.size


def told(config: TrainConfig, splits: Splits, ranks: Ranks) -> list[str]:
    """Lines on how a resolved config is divided."""
    if ranks.size == 1:
        return []
    size, clean = config.data.batch_size or 0, config.data.meta_batch_size or 0
    noun = splits.train.source.noun
    return [
        f"ranks: {ranks.size}, each with {ranks.least_share(len(splits.train)):,} training {noun} or more; a step "
        f"takes {size} train and {clean} clean {noun} in all, {size // ranks.size} and {clean // ranks.size} a rank"
    ]


def check_baselines(config: TrainConfig, splits: Splits, ranks: Ranks) -> None:
    """InputError where the rows of a baseline are too few."""
    if "clean" in config.baseline_names() and not ranks.least_share(len(splits.meta)):
        raise InputError(
            f"baselines={config.baselines}: clean trains on {len(splits.meta):,} rows, too few for {ranks.size} ranks; "
            "leave it out, or start fewer"
        )
