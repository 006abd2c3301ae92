"""A finished run in a few lines, for a notebook."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fastmeta._text import printable
from fastmeta.training.canaries import in_words as fates


def in_words(path: Path, summary: Mapping[str, Any]) -> str:
    """From its directory and its summary.json."""
    rate, test = summary["noise_rate"], summary["test_size"]
    wrong = "" if rate is None else f" ({rate:.1%} of the labels wrong)"
    lines = [
        f"Run({str(path)!r})",
        f"data      {summary['dataset']}: {summary['train_size']:,} train{wrong}, {summary['meta_size']:,} clean, "
        + ("no test set" if test is None else f"{test:,} test")
        + f"; {summary['num_classes']} classes",
        f"training  {summary['method']}, {summary['model']}, {summary['epochs']} epochs, seed {summary['seed']}, "
        f"{summary['seconds']:.1f} s",
    ]
    if test is not None:
        last, best = summary["test_accuracy_last"], summary["test_accuracy_best"]
        others = [
            f"{name} {'failed' if told.get('failed') else _percent(told['test_accuracy_last'])}"
            for name, told in summary["baselines"].items()
        ]
        lines.append(
            f"test      {_percent(last)} right, best epoch {_percent(best)}"
            + (f"; fixed labels: {', '.join(others)}" if others else "")
        )
    if summary["label_accuracy_initial"] is not None:
        begin, end = summary["label_accuracy_initial"], summary["label_accuracy_final"]
        moved = f"{summary['labels_corrected']:,} put right, {summary['labels_spoiled']:,} spoiled"
        lines.append(f"labels    {_percent(begin)} → {_percent(end)} right: {moved}")
    else:
        lines.append(f"labels    {summary['labels_changed']:,} changed")
    if told := summary.get("canaries"):
        lines.append(f"canaries  {fates(told)}")
    lines += [f"warning   {text}" for text in summary["warnings"]]
    lines.append("see       .summary .labels .labels_table() .model .config; figures/ in its folder")
    return "\n".join(printable(line) for line in lines)


def _percent(value: float | None) -> str:
    return "–" if value is None else f"{value:.1%}"
