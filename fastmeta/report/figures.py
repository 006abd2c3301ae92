"""figures/*.png and *.svg of a run directory, from metrics.jsonl, labels.npz, the summary and the images."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from fastmeta.data.npz_file import NpzFile
from fastmeta.report import curves
from fastmeta.report.matrices import given_to_learned, true_to_learned
from fastmeta.report.sheet import changed_images
from fastmeta.report.style import write
from fastmeta.report.wrong_labels import wrong_labels


def read_metrics(path: Path) -> dict[str, list[dict[str, Any]]]:
    """Lines of metrics.jsonl by stage, in order."""
    lines: dict[str, list[dict[str, Any]]] = defaultdict(list)
    with open(path, encoding="utf-8") as file:
        for line in file:
            record = json.loads(line)
            lines[record["run"]].append(record)
    return dict(lines)


def read_labels(path: Path) -> dict[str, np.ndarray]:
    """What figures need of labels.npz; what may be missing is left out."""
    with NpzFile(path) as file:
        names = ["given", "learned", *(name for name in ("given_probability", "label_quality", "true") if name in file)]
        return file.read({name: file.declared(name) for name in names})


def write_figures(path: Path, summary: Mapping[str, Any], samples: Any = None) -> list[Path]:
    """Write under path/figures, as PNG and SVG, what the run has the figures for, and return the files.

    accuracy        test accuracy over the epochs, and of the copies that were fine-tuned
    canaries        put right and spoiled over the epochs, where there are canaries
    distance        cosine to the exact step over the epochs, where steps were inexact and somebody looked
    labels          right, corrected and spoiled labels over the epochs
    label_matrix    learned classes of each given class; up to 1,000 classes, like the next
    confusion       given and learned classes of each true class, where those are known
    wrong_labels    precision and recall of the wrong labels that were found, where those are known
    changed         the images whose labels have changed most, where the train `samples` are images (N, H, W, C) uint8
    """
    metrics, table = read_metrics(path / "metrics.jsonl"), read_labels(path / "labels.npz")
    given, learned, true = table["given"], table["learned"], table.get("true")
    quality = table.get("label_quality", table.get("given_probability"))
    figures = {
        "accuracy": curves.accuracy(metrics, _finetuned(summary)),
        "canaries": curves.canaries(metrics, summary),
        "labels": curves.labels(metrics, summary),
        "distance": curves.distance(metrics, summary),
        "label_matrix": given_to_learned(given, learned, summary),
        "confusion": None if true is None else true_to_learned(true, given, learned, summary),
    }
    if quality is not None:
        figures["wrong_labels"] = None if true is None else wrong_labels(true, given, learned, quality)
        figures["changed"] = changed_images(samples, table, summary)
    written = []
    for name, figure in figures.items():
        if figure is not None:
            written += write(figure, path / "figures" / name)
    return written


def _finetuned(summary: Mapping[str, Any]) -> dict[str, float]:
    """Test accuracy of the copies that were fine-tuned, by stage."""
    stages = {summary["method"]: summary, **summary.get("baselines", {})}
    reached = {name: stage.get("finetuned", {}).get("test_accuracy") for name, stage in stages.items()}
    return {name: value for name, value in reached.items() if value is not None}
