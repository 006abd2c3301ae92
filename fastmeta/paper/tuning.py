"""Tuning as the paper did it: settings of learned labels tried on one split, and chosen by validation alone.

The seed is outside of those that are reported, and the validation rows are outside of the clean set.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fastmeta.paper.wanted import Wanted
from fastmeta.training import TrainConfig
from fastmeta.training.toml_file import read_toml

if TYPE_CHECKING:
    from fastmeta.paper.scale import Scale

SEED = 100
VAL_FRACTION = 0.1
_FILE = Path(__file__).with_name("settings") / "tuned.toml"


@dataclass(frozen=True)
class Search:
    """Options that are tried one after the other, each with the best values of those before."""

    name: str
    """Of what is tuned: noise/instance_labels."""
    config: TrainConfig
    grid: Mapping[str, Sequence[float]]
    """By option of [labels], the values to try."""

    @property
    def budget(self) -> int:
        """How many settings are tried."""
        return sum(len(values) for values in self.grid.values()) - (len(self.grid) - 1)

    def at(self, values: Mapping[str, float]) -> Wanted:
        """The run with these values, which holds validation rows out."""
        own: dict[str, Any] = dict(values)
        labels = replace(self.config.labels, **own)
        data = replace(self.config.data, val_fraction=VAL_FRACTION)
        return Wanted(replace(self.config, labels=labels, data=data))


@cache
def _tuned() -> Mapping[str, Any]:
    return read_toml(_FILE)


def budget(scale: Scale, kind: str, name: str) -> str:
    """How many settings the values of a row were chosen from, in words."""
    tried = _tuned().get(scale.name, {}).get(kind, {}).get(name)
    return "none" if tried is None else f"{tried} settings, 1 seed, by validation"
