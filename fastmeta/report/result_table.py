"""The result of a run as one table for the terminal."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from fastmeta._text import printable
from fastmeta.data import PILOT
from fastmeta.report.numbers import percent, plain
from fastmeta.report.reading_table import CANARIES, MARK, reading_table
from fastmeta.training.canaries import in_words
from fastmeta.training.distances import in_words as distance
from fastmeta.training.readings import in_words as read_as
from fastmeta.training.search import in_words as searched

if TYPE_CHECKING:
    from rich.console import Group

#: what stands in the first column for each kind of run
TITLES = {
    "instance_labels": "instance labels",
    "class_labels": "class labels",
    "onehot": "fixed labels",
    "l2rw": "l2rw: weights",
    "mwnet": "mwnet: weights",
    "mlc": "mlc: corrector",
    "emlc": "emlc: teacher",
    PILOT: "pilot",
    "noisy": "fixed: given",
    "union": "fixed: given+clean",
    "clean": "fixed: clean",
}


#: characters of a name of others' in a line of text
NAME_LENGTH = 40


def title(stage: str) -> str:
    """How people call a kind of run."""
    return TITLES.get(stage) or printable(stage, NAME_LENGTH)


def result_table(summary: Mapping[str, Any]) -> Group:
    """A line on the data, the method's row and one per baseline, notes; `summary` is a summary.json."""
    from rich import box
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    table = Table(
        box=box.SIMPLE_HEAD,
        padding=0,
        show_edge=False,
    )
    table.add_column("labels", no_wrap=True)
    # narrow enough for a terminal of 80 columns; nll and ece stand in summary.json
    for header in (
        "test %\nlast",
        "\n best",
        " labels right %\nstart → end",
        "  put\nright",
        "\nspoiled",
        " finds\nwrong, AP",
        "\ns",
    ):
        table.add_column(header, justify="right", no_wrap=True)
    start, end = percent(summary["label_accuracy_initial"]), percent(summary["label_accuracy_final"])
    last, best, seconds = _stage_cells(summary)
    table.add_row(
        Text(title(summary["method"]), style="bold"),
        last,
        best,
        "–" if summary["label_accuracy_initial"] is None else f"{start} → {end}",
        _count(summary["labels_corrected"]),
        _count(summary["labels_spoiled"]),
        plain(summary["wrong_label_average_precision"], 3),
        seconds,
    )
    for row in _finetuned_rows(summary):
        table.add_row(*row)
    for name, figures in summary["baselines"].items():
        last, best, seconds = _stage_cells(figures)
        table.add_row(Text(title(name)), last, best, "", "", "", "", seconds)
        for row in _finetuned_rows(figures):
            table.add_row(*row)
    # as Text, because names of the user's may hold what rich takes for markup
    head = Text(f"{_name(summary['dataset'])}: {_data_line(summary)}")
    readings = _readings(summary)
    return Group(head, table, *([] if readings is None else [Text(), readings, Text()]), *map(Text, _notes(summary)))


def _readings(summary: Mapping[str, Any]) -> Any:
    """Readings side by side; columns that 80 characters have no room for stand on the page alone."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    found = reading_table(summary)
    if found is None:
        return None
    canaries = any(head.startswith(CANARIES) for head in found.head)
    left_out = {"changed": "right %" in found.head, "AP": canaries}
    columns = [k for k, head in enumerate(found.head) if not left_out.get(head)]
    table = Table(box=box.SIMPLE_HEAD, padding=0, show_edge=False)
    for k in columns:
        first, _, second = found.head[k].partition(": ") if canaries else ("", "", found.head[k])
        first, second = (first, second) if second else ("", first)
        table.add_column(f"{first}\n {second}".removeprefix("\n "), justify="right" if k else "left", no_wrap=True)
    for number, row in enumerate(found.rows):
        chosen = number == found.chosen
        name = f"{row[0]} {MARK}" if chosen else row[0]
        cells = (name, *(f" {row[k]}" for k in columns if k))
        table.add_row(*(Text(cell, style="bold" if chosen else "") for cell in cells))
    return table


def _stage_cells(figures: Mapping[str, Any]) -> tuple[str, str, str]:
    return (
        "failed" if figures.get("failed") else percent(figures["test_accuracy_last"]),
        percent(figures["test_accuracy_best"]),
        plain(figures["seconds"], 1),
    )


def _finetuned_rows(figures: Mapping[str, Any]) -> list[tuple[str, ...]]:
    """Of the copy that was fine-tuned, if one was: what it reaches, labels by it, and by it and the learned ones."""
    told = figures.get("finetuned")
    if told is None:
        return []
    last = "failed" if told["failed"] else percent(told["test_accuracy"])
    labels = told["labels"]
    rows: list[tuple[str, ...]] = []
    for name, way, first in ((" fine-tuned", "network", True), (" … × labels", "product", False)):
        reading = labels.get(way)
        if reading is None and not first:
            continue
        cells = ("–", "–", "–", "–")
        if reading is not None:
            cells = (
                percent(reading["label_accuracy"]),
                _count(reading["labels_corrected"]),
                _count(reading["labels_spoiled"]),
                plain(reading["wrong_label_average_precision"], 3),
            )
        rows.append((name, last if first else "", "", *cells, plain(told["seconds"], 1) if first else ""))
    return rows


def _finetuned_notes(summary: Mapping[str, Any]) -> list[str]:
    told = summary.get("finetuned")
    if told is None:
        return []
    if told["failed"]:
        return [f"failed: {told['failed']}"]
    lines = [f"fine-tuned: a copy behind {told['steps']:,} clean steps, and labels as it predicts them"]
    if "product" in told["labels"]:
        lines.append("× labels: its prediction times the learned labels")
    if told["nll"] is not None and summary["nll"] is not None:
        nll = f"nll {plain(summary['nll'], 3)} → {plain(told['nll'], 3)}"
        lines.append(f"the copy: {nll}, ece {plain(summary['ece'], 3)} → {plain(told['ece'], 3)}")
    return lines


def _count(value: int | None) -> str:
    return "–" if value is None else f"{value:,}"


def _name(dataset: str) -> str:
    return printable(dataset.rsplit("/", 1)[-1].removeprefix("npz:"))


def _data_line(summary: Mapping[str, Any]) -> str:
    rate = summary["noise_rate"]
    noise = "unknown share of wrong labels" if rate is None else f"{percent(rate)}% of the labels wrong"
    test = "no test set" if summary["test_size"] is None else f"{summary['test_size']:,} test"
    return f"{summary['train_size']:,} train ({noise}), {summary['meta_size']:,} clean, {test}"


def _notes(summary: Mapping[str, Any]) -> list[str]:
    lines = []
    if summary["test_accuracy_best"] is not None:
        lines.append("best: the epoch that is best on the test set itself, for comparison only")
    if summary["wrong_label_average_precision"] is not None:
        lines.append("AP: average precision of the wrong labels, most doubted first; 1 is perfect")
    lines += _finetuned_notes(summary)
    if summary["label_accuracy_initial"] is None:
        names = [printable(name, NAME_LENGTH) for name in summary["class_names"]]
        shown = [f"{names[f['given']]} → {names[f['learned']]} {f['count']:,}×" for f in summary["label_flips"][:5]]
        lines.append(
            f"right labels unknown; changed: {summary['labels_changed']:,} of {summary['train_size']:,}"
            + (f" ({', '.join(shown)})" if shown else "")
        )
    if told := summary.get("distance"):
        lines.append(distance(told))
    if told := summary.get("reading"):
        lines.append(read_as(told))
    if told := summary.get("search"):
        lines.append(searched(told))
    if told := summary.get("canaries"):
        how = {"before": "labels of before they were checked", "drawn": "wrong labels drawn as noise falls here"}
        count = told["put_right"]["rows"] + told["spoiled"]["rows"]
        lines.append(f"by {count:,} canaries ({how.get(told['origin'], told['origin'])}): {in_words(told)}")
    lines += [f"failed: {f['failed']}" for f in summary["baselines"].values() if f.get("failed")]
    return lines
