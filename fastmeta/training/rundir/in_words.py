"""A finished run in a few lines, for a notebook."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fastmeta._text import printable
from fastmeta.training.canaries import in_words as fates
from fastmeta.training.distances import in_words as distance
from fastmeta.training.readings import in_words as readings
from fastmeta.training.search import in_words as searched


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
    lines += _finetuned(summary)
    lines += _read(summary)
    if summary["label_accuracy_initial"] is not None:
        begin, end = summary["label_accuracy_initial"], summary["label_accuracy_final"]
        moved = f"{summary['labels_corrected']:,} put right, {summary['labels_spoiled']:,} spoiled"
        lines.append(f"labels    {_percent(begin)} → {_percent(end)} right: {moved}")
    else:
        lines.append(f"labels    {summary['labels_changed']:,} changed")
    if told := summary.get("search"):
        lines.append(f"search    {searched(told).removeprefix('search: ')}")
    if told := summary.get("distance"):
        lines.append(f"distance  {distance(told)}")
    if told := summary.get("canaries"):
        lines.append(f"canaries  {fates(told)}")
    lines += [f"warning   {text}" for text in summary["warnings"]]
    more = " .finetuned" if "finetuned" in summary else ""
    lines.append("see       .summary .labels .labels_table() .model" + more + " .config; figures/ in its folder")
    return "\n".join(printable(line) for line in lines)


def _finetuned(summary: Mapping[str, Any]) -> list[str]:
    """Of the copy that was fine-tuned on clean samples, if one was, and of those of the baselines."""
    told = summary.get("finetuned")
    if told is None:
        return []
    if told["failed"]:
        return [f"finetuned failed: {told['failed']}"]
    parts = []
    if told["test_accuracy"] is not None:
        parts.append(f"{_percent(told['test_accuracy'])} of test right")
        parts.append(f"nll {_number(summary['nll'])} → {_number(told['nll'])}")
        parts.append(f"ece {_number(summary['ece'])} → {_number(told['ece'])}")
    others = [
        f"{name} {'failed' if figures['finetuned']['failed'] else _percent(figures['finetuned']['test_accuracy'])}"
        for name, figures in summary["baselines"].items()
        if "finetuned" in figures and told["test_accuracy"] is not None
    ]
    line = f"finetuned {told['steps']:,} clean steps: {', '.join(parts)}"
    line += f"; fixed labels: {', '.join(others)}" if others else ""
    return [line.removesuffix(": ")]


def _read(summary: Mapping[str, Any]) -> list[str]:
    """What labels are by each reading, and which one it was."""
    told = summary.get("reading")
    if told is None:  # labels that are not learned have none, nor had older runs
        told = {"readings": summary.get("finetuned", {}).get("labels", {})}
    if not told["readings"]:
        return []
    each = [f"{way} {_percent(r['label_accuracy'])}" for way, r in told["readings"].items()]
    if summary["label_accuracy_initial"] is None:
        each = [f"{way} {r['labels_changed']:,} changed" for way, r in told["readings"].items()]
    line = f"read      labels by {', '.join(each)}"
    return [line, *([f"          {readings(told)}"] if "chosen" in told else [])]


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.3f}"


def _percent(value: float | None) -> str:
    return "–" if value is None else f"{value:.1%}"
