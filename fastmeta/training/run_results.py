"""What a run leaves: the files of its method's own stage, and the figures of all."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import nn

from fastmeta._version import __version__
from fastmeta.training.device import environment
from fastmeta.training.prepare import Prepared
from fastmeta.training.readings import Readings
from fastmeta.training.rundir.files import seal_of
from fastmeta.training.rundir.label_files import label_table, write_labels
from fastmeta.training.rundir.layout import finished_files
from fastmeta.training.rundir.model_files import write_models
from fastmeta.training.rundir.summary import summary_of
from fastmeta.training.stage import Stage

Done = Mapping[str, Mapping[str, Any]]


def write_main(
    path: Path, stage: Stage, prepared: Prepared, readings: Readings, finetuned: nn.Module | None, done: Done
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Weights and labels of the method's own stage, which is done: label figures of the summary, seals of the files.

    All ranks call it together, and rank 0 writes.
    """
    table = label_table(stage)

    def write() -> tuple[dict[str, Any], dict[str, Any]]:
        write_models(path, stage, finetuned)
        labels = write_labels(path, stage, prepared.splits, readings, table)
        return labels, {name: seal_of(path / name) for name in finished_files(prepared.config, done)}

    return stage.ranks.by_first(write)


def run_summary(
    prepared: Prepared, done: Done, labels: Mapping[str, Any], searched: Mapping[str, Any] | None, **beside: Any
) -> dict[str, Any]:
    """summary.json, with what stands `beside`: warnings, and seals of files."""
    config, ranks = prepared.config, prepared.ranks
    return summary_of(
        config,
        prepared.splits,
        done[config.method],
        labels,
        {name: done[name] for name in config.baseline_names()},
        searched=searched,
        fastmeta=__version__,
        precision=config.precision,
        compile=config.compile,
        approx=config.approx,
        **({} if ranks.size == 1 else {"ranks": ranks.size}),
        **environment(prepared.device),
        **beside,
    )
