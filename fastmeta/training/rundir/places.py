"""Where the files lie that a config names: they may be elsewhere when a run goes on, what they hold may not.

What they hold is checked by itself: data and noise by their fingerprint, runs and labels that a method learns from by
their seals. So a run whose files were moved goes on: with the paths of its config.toml where these are still there,
else with what lies to the run directory as it did when the run began, else with what its user writes there.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import is_dataclass, replace
from pathlib import Path
from typing import Any

from fastmeta.data import InputError
from fastmeta.data.noise import parse as parse_noise
from fastmeta.data.sources import is_path, lasting_path
from fastmeta.data.sources import parse as parse_dataset
from fastmeta.training.config import TrainConfig
from fastmeta.training.rundir.checkpoint import header
from fastmeta.training.rundir.layout import CONFIG, STATE


def places(config: TrainConfig) -> dict[str, str]:
    """Paths that a config names, by the option."""
    found = {"dataset": parse_dataset(config.dataset).argument} if is_path(config.dataset) else {}
    noise = None if config.noise is None else parse_noise(config.noise)
    if noise is not None and noise.path is not None:
        found["noise"] = str(noise.path)
    found |= {f"data.{name}": path for name in ("root", "superclasses") if (path := getattr(config.data, name))}
    return found | {f"method.{name}": path for name in _options(config) if (path := getattr(config.options, name))}


def _options(config: TrainConfig) -> tuple[str, ...]:
    """Options of its method that are paths; none where the method is code that is not trusted."""
    return config.method_class().paths if is_dataclass(config.options) else ()


def with_places(config: TrainConfig, found: Mapping[str, str]) -> TrainConfig:
    """The same config with other paths, by the option."""
    text, noise = type(config.dataset), config.noise
    dataset = (
        text(f"{parse_dataset(config.dataset).scheme}:{found['dataset']}")
        if "dataset" in found
        else text(config.dataset)
    )
    if noise is not None and "noise" in found:
        key = parse_noise(noise).key
        noise = type(noise)(f"file:{found['noise']}" + (f":{key}" if key else ""))
    tables: dict[str, dict[str, Any]] = {
        table: {name.partition(".")[2]: path for name, path in found.items() if name.startswith(f"{table}.")}
        for table in ("data", "method")
    }
    config = replace(config, dataset=dataset, noise=noise, data=replace(config.data, **tables["data"]))
    return replace(config, options=replace(config.options, **tables["method"])) if tables["method"] else config


def lasting_options(config: TrainConfig) -> TrainConfig:
    """Paths among the options of the method are found from any folder."""
    found = {k: lasting_path(path) for k, path in places(config).items() if k.startswith("method.")}
    return with_places(config, found) if found else config


def found_again(config: TrainConfig, begun: Path) -> TrainConfig:
    """The config of the run at `begun`, where its files lie now; InputError for what is nowhere."""
    named = places(config)
    gone = {name: path for name, path in named.items() if not os.path.lexists(path)}
    if not gone:
        return config
    place: Any = None
    with suppress(OSError, ValueError):  # a state that cannot be read is judged later
        place = header(begun / STATE)[1].get("place")
    for name, path in gone.items():
        there = ""
        if isinstance(place, str) and os.path.isabs(place) and "\0" not in place:
            there = os.path.normpath(os.path.join(os.path.realpath(begun), os.path.relpath(path, place)))
        if not os.path.lexists(there):
            beside = f", nor is it {there}" if there else ""
            raise InputError(
                f"{begun / CONFIG} names {name} {path}, which is not here{beside}; bring it back, or write into that "
                "file where it is now: what it holds is compared with what the run began with"
            )
        named[name] = there
    return with_places(config, named)


def placeless(values: Mapping[str, Any], config: TrainConfig) -> dict[str, Any]:
    """`values`, a config as a mapping, without where its files lie; `config` says which options of a method do."""
    kept = dict(values)
    with suppress(InputError):
        if is_path(kept.get("dataset", "")):
            kept["dataset"] = f"{parse_dataset(kept['dataset']).scheme}:PATH"
    with suppress(InputError):
        if (noise := parse_noise(kept.get("noise", ""))).path is not None:
            kept["noise"] = f"file:PATH:{noise.key}"
    if str(kept.get("labels", {}).get("store", "")).startswith("mmap:"):
        kept["labels"] = {**kept["labels"], "store": "mmap:PATH"}
    for table, names in (("data", ("root", "superclasses")), ("method", _options(config))):
        if isinstance(kept.get(table), Mapping):
            kept[table] = {k: bool(v) if k in names else v for k, v in kept[table].items()}
    return kept
