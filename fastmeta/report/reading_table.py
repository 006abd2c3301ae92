"""What labels are by each reading, side by side: table, network and product."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from fastmeta.report.numbers import percent, plain
from fastmeta.training.canaries import percent_of
from fastmeta.training.readings import NETWORK

#: beside the reading that is handed out
MARK = "←"
#: before the head of a column that they fill
CANARIES = "canaries"


class ReadingTable(NamedTuple):
    """Cells as texts, the first column the name of a reading."""

    head: tuple[str, ...]
    rows: list[tuple[str, ...]]
    chosen: int  # of `rows`, the one that is handed out


def reading_table(summary: Mapping[str, Any]) -> ReadingTable | None:
    """Of a summary.json; None where labels were read off nothing but their table, or were not learned.

    What right labels tell stands there where somebody knows them, and what canaries tell where there are some.
    """
    told = summary.get("reading")
    if not told or len(told["readings"]) < 2:
        return None
    readings: Mapping[str, Mapping[str, Any]] = told["readings"]
    columns: dict[str, list[str]] = {"changed": [f"{r['labels_changed']:,}" for r in readings.values()]}
    if all(r["label_accuracy"] is not None for r in readings.values()):
        columns |= {
            "right %": [percent(r["label_accuracy"]) for r in readings.values()],
            "put right": [_count(r["labels_corrected"]) for r in readings.values()],
            "spoiled": [_count(r["labels_spoiled"]) for r in readings.values()],
            "AP": [plain(r["wrong_label_average_precision"], 3) for r in readings.values()],
        }
    if all("right_by_canaries" in r for r in readings.values()):
        columns[f"{CANARIES}: right %"] = [percent(r["right_by_canaries"]) for r in readings.values()]
    for key, word in (("put_right", "put right %"), ("spoiled", "spoiled %")):
        if all(key in r for r in readings.values()):
            columns[f"{CANARIES}: {word}"] = [percent_of(r[key]).replace("%", "") for r in readings.values()]
    name = {NETWORK: "fine-tuned network" if told["network"] == "finetuned" else NETWORK}
    rows = [(name.get(way, way), *(column[k] for column in columns.values())) for k, way in enumerate(readings)]
    return ReadingTable(("labels read off", *columns), rows, list(readings).index(told["chosen"]))


def _count(value: int | None) -> str:
    return "–" if value is None else f"{value:,}"
