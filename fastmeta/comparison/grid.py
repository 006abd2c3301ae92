"""Which option a method has, and the values of a search: ``labels.target_prob=0.3,0.6``."""

from __future__ import annotations

import dataclasses
import types
from collections.abc import Iterable, Mapping, Sequence
from itertools import product
from typing import Any, Literal, Union, get_args, get_origin

from fastmeta._text import shown
from fastmeta.data import InputError
from fastmeta.methods import Method
from fastmeta.training import DataConfig, TrainConfig
from fastmeta.training.option_names import names_of, near
from fastmeta.training.values import hints_of

#: of the table [data], what may differ between rows that are compared; all else says which data they see
TUNED_DATA = ("batch_size", "meta_batch_size", "augment", "padding", "pad_mode", "standardise")
#: no settings of a method: the data, the network, and where and how a run is kept
FIXED = (
    *(
        "dataset",
        "noise",
        "model",
        "method",
        "seed",
        "out",
        "baselines",
        "device",
        "threads",
        "force",
        "checkpoint_seconds",
        "max_shard_mb",
    ),
    *(f"data.{f.name}" for f in dataclasses.fields(DataConfig) if f.name not in TUNED_DATA),
)
#: options that a method names among those that it follows
_SUPPORTED = ("compile", "approx", "micro_batch", "ema", "mixup", "optim.warmup")
#: options of a method begin so
OWN = "method."
#: which the start that is softened and never moved has too
SOFT_START = "labels.target_prob"

Grid = Mapping[str, Sequence[Any]]


def has(method: type[Method], key: str) -> bool:
    """Whether a run of `method` follows the option `key`, such as optim.lr or method.forget_rate."""
    table, _, own = key.rpartition(".")
    if key.startswith(OWN):
        return own in {f.name for f in dataclasses.fields(method.Config)}
    if key in _SUPPORTED:
        return key in method.supports
    if key == "watch_every":
        return "approx" in method.supports
    if table != "labels":
        return True
    if own == "canaries":
        return method.learns_labels and "labels.canaries" in method.supports
    if own == "read":
        return method.learns_labels
    if own in ("lookahead", "tangent"):
        return method.uses_meta_batch
    return "labels.update" in method.supports


def checked_key(key: str, methods: Iterable[type[Method]]) -> str:
    """`key` as an option is called; InputError where no method has it, or where it is nothing to search over."""
    name = key.strip().lstrip("-").replace("-", "_")
    methods = list(methods)
    own = [f"{OWN}{f.name}" for method in methods for f in dataclasses.fields(method.Config)]
    known = [*names_of(TrainConfig), *own]
    if name in FIXED:
        raise InputError(f"grid: {name} says what is compared, and is no setting to search over; give it as --{name}")
    if name not in known:
        close = near(name, [k for k in known if k not in FIXED])
        told = f"; did you mean {' or '.join(close)}?" if close else ""
        where = f"no method of this comparison has the option {shown(name)}"
        raise InputError(
            f"grid: {where}{told}" if name.startswith(OWN) else f"grid: unknown option {shown(name)}{told}"
        )
    if name != SOFT_START and not any(has(method, name) for method in methods):
        raise InputError(f"grid: no method of this comparison has the option {name}; leave it out")
    return name


def read_grid(texts: Sequence[str], methods: Sequence[type[Method]]) -> dict[str, tuple[Any, ...]]:
    """Values by option of texts ``key=v1,v2``; InputError for what is none."""
    grid: dict[str, tuple[Any, ...]] = {}
    for text in texts:
        key, equals, values = text.partition("=")
        if not equals or not key.strip():
            raise InputError(f"grid must look like option=value,value, got {shown(text)}")
        name = checked_key(key, methods)
        if name in grid:
            raise InputError(f"grid names {name} twice; give all its values in one")
        hint = _hint_of(name, methods)
        grid[name] = tuple(_value(part.strip(), hint, name) for part in values.split(","))
    return checked_grid(grid, methods)


def checked_grid(grid: Grid, methods: Sequence[type[Method]]) -> dict[str, tuple[Any, ...]]:
    """The same of values from Python."""
    if not isinstance(grid, Mapping):
        raise InputError(f"grid must be a mapping of options to lists of values, got {shown(grid)}")
    found: dict[str, tuple[Any, ...]] = {}
    for key, values in grid.items():
        if not isinstance(key, str):
            raise InputError(f"grid: an option is a text, got {shown(key)}")
        if isinstance(values, str) or not isinstance(values, Iterable):
            raise InputError(f"grid: {key} must have a list of values, got {shown(values)}")
        name, row = checked_key(key, methods), tuple(values)
        if name in found:
            raise InputError(f"grid names {name} twice; give all its values in one")
        if not row:
            raise InputError(f"grid: {name} has no value")
        if len({repr(value) for value in row}) < len(row):
            raise InputError(f"grid: {name} has a value twice: {', '.join(map(in_text, row))}")
        found[name] = row
    return found


def points(grid: Grid, keys: Iterable[str]) -> list[dict[str, Any]]:
    """The product of the values of `keys`; one empty point without any."""
    kept = list(keys)
    return [dict(zip(kept, values, strict=True)) for values in product(*(grid[key] for key in kept))]


def in_text(value: Any) -> str:
    """A value as a table shows it."""
    if value is None:
        return "auto"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:g}" if isinstance(value, float) else str(value)


def _hint_of(name: str, methods: Sequence[type[Method]]) -> Any:
    table, _, own = name.rpartition(".")
    if name.startswith(OWN):
        return next(hints_of(m.Config)[own] for m in methods if has(m, name))
    return hints_of(hints_of(TrainConfig)[table] if table else TrainConfig)[own]


def _value(text: str, hint: Any, name: str) -> Any:
    """The text as a value of the type `hint`."""
    members = get_args(hint) if get_origin(hint) in (Union, types.UnionType) else (hint,)
    kind = next(m for m in members if m is not types.NoneType)
    if not text:
        raise InputError(f"grid: {name} has an empty value")
    if any(text in get_args(m) for m in members if get_origin(m) is Literal):
        return text
    if text == "auto" and types.NoneType in members:
        return None
    if get_origin(kind) is tuple:
        raise InputError(f"grid: {name} is a list of numbers by itself; search over it from Python, fastmeta.compare")
    if kind is bool:
        words = {"yes": True, "true": True, "no": False, "false": False}
        if text.lower() not in words:
            raise InputError(f"grid: {name} must be yes or no, got {shown(text)}")
        return words[text.lower()]
    if kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            what = "a whole number" if kind is int else "a number"
            raise InputError(f"grid: {name} must be {what}, got {shown(text)}") from None
    return text
