"""Figures over several seeds: lines are means, bands one standard deviation to either side."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from fastmeta.report.charts import Line
from fastmeta.report.folder_report import accuracy_bands, label_bands
from fastmeta.report.run_folder import Group
from fastmeta.report.style import axes_of, band, legend, line, write


def write_band_figures(folder: Path, group: Group) -> list[Path]:
    """accuracy and labels as PNG and SVG in `folder`, as far as the runs have figures for them; the files."""
    drawn = (
        ("accuracy", "test accuracy, %", "Test accuracy", accuracy_bands(group)),
        ("labels", "share of training labels, %", "Labels over training", label_bands(group)),
    )
    return [path for name, what, title, lines in drawn for path in _figure(folder / name, what, title, lines)]


def _figure(path: Path, what: str, title: str, lines: Sequence[Line]) -> list[Path]:
    if not any(one.x for one in lines):
        return []
    figure, axes = axes_of("epoch", what, f"{title}: mean ± standard deviation")
    for number, one in enumerate(lines):
        if one.x:
            line(axes, number, one.x, one.y, one.label)
            band(axes, number, one.x, one.low, one.high)
    legend(figure)
    return write(figure, path)
