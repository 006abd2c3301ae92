"""labels.store=auto, and whether what it names has the room: asked before a run begins."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import torch

from fastmeta._memory import free_memory, gibibytes
from fastmeta.data import InputError
from fastmeta.distributed import Ranks
from fastmeta.methods.label_store import path_of
from fastmeta.training.config import TrainConfig

#: tables of labels for which a device has to have room, beside what else lies there: the table, its gradient or the
#: changes of an epoch, and half of it for a model
DEVICE_SHARE = 0.5
#: tables that a host holds while it writes a checkpoint
HOST_TABLES = 3
#: tables of float32 that an estimate of labels makes: predictions of copies, their mean, the posterior, their mixture
ESTIMATE_TABLES = 7


def store_in_words(config: TrainConfig, rows: int, num_classes: int) -> str | None:
    """One line on where the label table lies; None where it is a dense one on the device."""
    store = config.labels.store
    if store in ("auto", "device"):
        return None
    size = f"{rows:,} × {num_classes:,} {config.labels.dtype}, {gibibytes(_size(config, rows, num_classes))}"
    if store == "host":
        return f"label table: {size}, in the host's memory"
    return f"label table: {size} once all rows have moved, in {path_of(store)}"


def settled(config: TrainConfig, rows: int, num_classes: int, device: torch.device, ranks: Ranks) -> TrainConfig:
    """A resolved `config` whose labels.store is device, host or mmap:PATH with the path in full. `rows` are of a rank.

    auto takes the device where the table takes at most half of what is free there, else the host where that has three
    times the table free, which a checkpoint needs. InputError for a table that finds no room so.
    """
    labels = config.labels
    if "labels.store" not in config.method_class().supports:
        return replace(config, labels=replace(labels, store="device"))
    size, store = _size(config, rows, num_classes), labels.store
    if store == "auto":
        store = _by_size(config, size, device, ranks.size, f"{rows:,} × {num_classes:,} {labels.dtype}")
    if (path := path_of(store)) is not None:
        store = f"mmap:{os.path.abspath(path)}"
        _check_file(Path(path).absolute(), store)
    if store != "device":
        _check_bounded(config, rows, num_classes, store)
    return replace(config, labels=replace(labels, store=store))


def _size(config: TrainConfig, rows: int, num_classes: int) -> int:
    return rows * num_classes * getattr(torch, config.labels.dtype).itemsize


def _by_size(config: TrainConfig, size: int, device: torch.device, ranks: int, form: str) -> str:
    """Of tables of `size` bytes, one on each rank, which may all be on this host."""
    on_host = free_memory()
    free = torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else on_host
    on_device = size if device.type == "cuda" else size * ranks
    if free is None or on_device <= DEVICE_SHARE * free:
        return "device"
    if device.type == "cuda" and (on_host is None or HOST_TABLES * size * ranks <= on_host):
        return "host" if _may_be_elsewhere(config) else "device"
    raise InputError(
        f"a table of {form} labels takes {gibibytes(size)}, and {device} has {gibibytes(free)} free, of which half is "
        "for other things; take labels.store=mmap:PATH, a file, or labels.store=device to try it all the same"
    )


def _may_be_elsewhere(config: TrainConfig) -> bool:
    labels = config.labels
    return labels.parametrisation == "softmax" and not labels.label_momentum and labels.lookahead_steps == 1


def _check_file(path: Path, store: str) -> None:
    if not path.parent.is_dir():
        raise InputError(f"labels.store={store}: {path.parent} is no folder; make it first")
    if os.path.lexists(path) and not path.is_file():
        raise InputError(f"labels.store={store}: {path} is no regular file; name another one")
    if not os.access(path.parent, os.W_OK):
        raise InputError(f"labels.store={store}: {path.parent} cannot be written to; name a file elsewhere")


def _check_bounded(config: TrainConfig, rows: int, num_classes: int, store: str) -> None:
    """InputError for what holds whole tables beside the one that does not fit."""
    free = free_memory()
    if free is None:
        return
    labels, whole = config.labels, 4 * rows * num_classes
    if labels.update == "posterior" and ESTIMATE_TABLES * whole > free:
        raise InputError(
            f"labels.update=posterior holds {ESTIMATE_TABLES} tables of predictions of all rows, "
            f"{gibibytes(ESTIMATE_TABLES * whole)}, and {gibibytes(free)} are free, so labels.store={store} does not "
            "help; take labels.update=exact or epoch"
        )
    if config.trajectory_every is not None and whole > free:
        raise InputError(
            f"trajectory_every={config.trajectory_every} writes all probabilities at once, {gibibytes(whole // 2)}, "
            f"twice, and {gibibytes(free)} are free; leave it out with labels.store={store}"
        )
