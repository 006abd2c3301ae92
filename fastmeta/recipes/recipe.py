"""A recipe as it is read: a config for each method, and published numbers for the settings that they were taken in."""

from __future__ import annotations

import copy
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from fastmeta._trust import Untrusted
from fastmeta.data.sources import parse as parse_dataset
from fastmeta.training import TrainConfig

#: what a published number is of, beside its method
SETTING = ("dataset", "noise", "model")


@dataclass(frozen=True)
class Published:
    """One published test accuracy."""

    row: str
    """A method's name, or the words that a table prints in its place."""
    test: float
    """In %."""
    std: float | None
    """Standard deviation over its runs, where one is published."""
    clean: bool
    """Does it use clean data?"""
    pretrained: bool
    """Does it start from weights that were trained on other data, or without labels?"""
    source: str
    """Work and table."""
    when: Mapping[str, str] = field(default_factory=dict)
    """Where it was taken, of `SETTING`: the recipe's own values, but for those that the file gives as `when`."""


@dataclass(frozen=True)
class Recipe:
    """One setting; made by :func:`fastmeta.recipes.read`."""

    name: str
    title: str
    source: str
    notes: str
    methods: tuple[str, ...]
    """What is compared where nobody chooses."""
    seeds: int
    published: tuple[Published, ...]
    """All rows of the file, also those of other noise or data; see :meth:`published_for`."""
    tables: Mapping[str, Any]
    """The plain TOML tables of the config, without its method."""
    of_method: Mapping[str, Mapping[str, Any]]
    """By method, the tables that are laid over them; its own options are the table ``method``."""
    method: str = TrainConfig.method
    """That of a run which names none."""
    plain: bool = False
    """A config file without [recipe] and [methods]."""

    def values(self, method: str | None = None, **over: Any) -> dict[str, Any]:
        """The nested mapping of :meth:`config`, as :meth:`TrainConfig.from_mapping` takes it; nothing is checked."""
        method = self.method if method is None else method
        merged = _merged(self.tables, self.of_method.get(method, {}))
        for key, value in over.items():
            first, *others = key.split(".")
            for part in reversed(others):
                value = {part: value}
            merged = _merged(merged, {"method" if first == "options" else first: value})
        return {**merged, "method": {**merged.get("method", {}), "name": method}}

    def config(self, method: str | None = None, **over: Any) -> TrainConfig:
        """The config of a run: the recipe's, over it [methods.NAME] of `method`, over both `over`.

        Args:
            method: a name, by default the recipe's own.
            over: values, nested (``optim={"lr": 0.1}``) or with dots (``**{"optim.lr": 0.1}``); None takes the value
                of the file away, for the default. Options of the method are ``options={...}`` or "method.NAME".

        Raises:
            InputError: an unknown key, a value of a wrong type or out of range, options that do not go together.

        Names of code that the file gives are not trusted; those of the caller are.
        """
        given = set(over) if method is None or isinstance(method, Untrusted) else {*over, "method"}
        return TrainConfig.from_mapping(self.values(method, **over), source=self.name, trusted=given)

    def published_for(self, config: TrainConfig) -> tuple[Published, ...]:
        """The rows that were taken with data, noise and network of `config`, resolved or not.

        Folders of files do not count: a noise ``file:DIR/CIFAR-10_human.pt:worse_label`` is the same in any folder.
        """

        def fits(row: Published) -> bool:
            own = {"noise": "none", **self.tables, **row.when}
            return all(key not in own or _same(key, own[key], getattr(config, key)) for key in SETTING)

        return tuple(row for row in self.published if fits(row))


def _same(key: str, a: str, b: str | None) -> bool:
    """Whether two names of a data set, a noise or a network mean the same, wherever files lie."""

    def plain(name: str) -> list[str]:
        if key == "dataset":
            name = ":".join(parse_dataset(name)[:2])
        parts = re.sub(r"[^:]*[/\\]", "", name).split(":")
        return [str(float(part)) if re.fullmatch(r"[\d.]*\d", part) else part for part in parts]

    b = "none" if b is None and key == "noise" else b
    return b is not None and plain(a) == plain(b)


def _merged(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    """`above` laid over `below`, table by table; a None of `above` takes the key away."""
    merged = copy.deepcopy(dict(below))
    for key, value in above.items():
        if value is None:
            merged.pop(key, None)
        elif isinstance(value, Mapping):
            old = merged.get(key)
            merged[key] = _merged(old if isinstance(old, Mapping) else {}, value)
        else:
            merged[key] = copy.deepcopy(value)
    return merged
