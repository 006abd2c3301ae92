"""Where the trainer keeps the rows of instance labels: labels.store."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from functools import partial
from typing import Any

from fastmeta.data import InputError
from fastmeta.losses import HostTable, LabelTable, MmapTable, Start
from fastmeta.methods.base import Context
from fastmeta.methods.kept import rows_of

#: of labels.store, before the path of a file
MMAP = "mmap:"
#: what the rows do not depend on: where they lie, and how they are computed and written
_ELSEWHERE = ("out", "threads", "device", "force", "max_shard_mb", "checkpoint_seconds", "data", "options", "method")


def path_of(store: str) -> str | None:
    """Of the file that rows lie in; None where they lie in memory."""
    return store.removeprefix(MMAP) if store.startswith(MMAP) else None


def check_one_run(store: str, what: str) -> None:
    """InputError where `what`, in words, makes several runs and the labels of each would lie in one file."""
    if path_of(store) is not None:
        raise InputError(f"labels.store={store} is the file of one run, and {what} makes several; train one by one")


def owner_of(config: Any, rows: int, num_classes: int) -> str:
    """Of a resolved config, by what makes its labels: a run that begins anew may replace its own file."""
    values = config.to_mapping()
    kept = {key: value for key, value in values.items() if key not in _ELSEWHERE}
    kept["labels"] = {key: value for key, value in values["labels"].items() if key != "store"}
    # files that a config names may be moved
    kept |= {key: value.partition(":")[0] for key in ("dataset", "noise") if "/" in (value := values.get(key, ""))}
    text = json.dumps([kept, config.method, rows, num_classes], sort_keys=True, default=str)
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


def table_of(context: Context) -> Callable[[Start], LabelTable] | None:
    """What makes the table of this run; None: a dense tensor on the device."""
    store, ranks = context.config.labels.store, getattr(context, "ranks", None)
    if store == "host":
        return HostTable
    if (path := path_of(store)) is None:
        return None

    def make(start: Start) -> LabelTable:
        rows = len(context.targets)
        first, total = 0, rows
        meet: Callable[[], Any] | None = None
        if ranks is not None and ranks.size > 1:
            first, total = rows_of(context)
            meet = partial(ranks.each, None)
        owner = owner_of(context.config, total, context.num_classes)
        try:
            return MmapTable(start, path, owner=owner, first_row=first, rows_in_all=total, meet=meet)
        except ValueError as error:
            raise InputError(f"labels.store={store}: {error}") from error

    return make
