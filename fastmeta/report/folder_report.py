"""A folder of runs: a table for the terminal, and report.html with means over seeds and their bands."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from fastmeta._text import printable
from fastmeta.data import InputError
from fastmeta.report.charts import Line, chart
from fastmeta.report.curves import series
from fastmeta.report.markup import Markup, element, table
from fastmeta.report.numbers import percent, plain
from fastmeta.report.page import page, section
from fastmeta.report.result_table import title
from fastmeta.report.run_folder import WITHHELD, Entry, Group, entries, groups, in_words, spread
from fastmeta.report.run_report import checked_metrics
from fastmeta.training.rundir import read, user_path, write_atomically
from fastmeta.training.stage_names import is_aside

if TYPE_CHECKING:
    from rich.console import Group as Printed

#: columns of a terminal at least, and what of them the columns behind the name of a run take
WIDTH, _DONE, _OPEN = 80, 51, 57
_AT = ("run", "state", "stage", "epoch", "left", "last")
_HEAD = ("run", "test %", "labels right %", "changed", "AP", "s")
_MEANS = ("mean ± standard deviation", "test %", "labels right %", "AP")


def write_folder_report(folder: str | Path, out: str | Path | None = None) -> Path:
    """Write FOLDER/report.html, the table of the runs in a folder; returns its path. InputError where it has none."""
    folder = user_path(folder, "folder")
    path = folder / "report.html" if out is None else user_path(out, "out")
    found = entries(folder)
    several = [group for group in groups(found) if len(group.entries) > 1]
    others = [entry for entry in found if entry.summary is None]
    content = page(
        f"fastmeta: {folder.name}",
        element("h1", printable(folder.resolve().name)),
        element("p", f"{len(found):,} runs", class_="soft"),
        section("Not finished", table(_AT, [(printable(e.name), *_standing(e)) for e in others])) if others else None,
        section("Runs", table(_HEAD, [(_linked(e, path), *_cells(e)) for e in found if e.summary is not None])),
        [element("p", line) for line in _said(found)],
        [_of_group(group) for group in several],
    )
    try:
        write_atomically(path, content)
    except OSError as error:
        raise InputError(f"cannot write {path}: {error.strerror}; name another file") from error
    return path


def folder_table(found: Sequence[Entry], width: int = WIDTH) -> Printed:
    """For the terminal: runs that are not finished, those that are, and means over seeds."""
    from rich import box
    from rich.console import Group as Printed
    from rich.table import Table
    from rich.text import Text

    def made(head: Sequence[str], rows: Sequence[Sequence[str]], left: int = 1) -> Table:
        drawn = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), show_edge=False)
        for number, word in enumerate(head):
            drawn.add_column(word, justify="left" if number < left else "right", no_wrap=True)
        for row in rows:
            # as Text, because names of the user's may hold what rich takes for markup
            drawn.add_row(*(Text(cell) for cell in row))
        return drawn

    done = [entry for entry in found if entry.summary is not None]
    others = [entry for entry in found if entry.summary is None]
    parts: list[Any] = []
    if others:
        parts.append(made(_AT, [(_short(e.name, width - _OPEN), *_standing(e)) for e in others], left=3))
    if others and done:
        parts.append(Text(""))
    if done:
        parts.append(made(_HEAD, [(_short(e.name, width - _DONE), *_cells(e)) for e in done]))
    parts += [Text(line) for line in _said(found)]
    for group in groups(found):
        if len(group.entries) > 1:
            parts += [Text(f"\n{_about(group)}"), made(_MEANS, means(group))]
    return Printed(*parts)


def means(group: Group) -> list[tuple[str, str, str, str]]:
    """Rows of text: the method and its baselines, over the seeds."""
    rows = []
    for name, stages in group.stages().items():
        own = name == group.method
        right = [in_words([s.get(f"label_accuracy_{at}") for s in stages], 100) for at in ("initial", "final")]
        rows.append(
            (
                title(name),
                in_words([s["test_accuracy_last"] for s in stages], 100),
                f"{right[0]} → {right[1]}" if own and right[1] != "–" else "",
                in_words([s.get("wrong_label_average_precision") for s in stages], 1, 3) if own else "",
            )
        )
        tuned = [told["test_accuracy"] for s in stages if (told := s.get("finetuned")) and not told["failed"]]
        if tuned:
            rows.append(("… fine-tuned", in_words(tuned, 100), "", ""))
    return rows


def _cells(entry: Entry) -> tuple[str, ...]:
    summary = entry.summary
    assert summary is not None
    start, end = (percent(summary[f"label_accuracy_{at}"]) for at in ("initial", "final"))
    return (
        percent(summary["test_accuracy_last"]),
        f"{start} → {end}" if summary["label_accuracy_initial"] is not None else "–",
        f"{summary['labels_changed']:,}",
        plain(summary["wrong_label_average_precision"], 3),
        plain(summary["seconds"], 1),
    )


def _standing(entry: Entry) -> tuple[str, ...]:
    """How far a run is that is not finished."""
    at = entry.progress
    if at is None:
        return (entry.state.partition(":")[0], "", "", "", "")
    last = at.last or {}
    reached = ""
    for key, word in (("test_accuracy", "test"), ("val_accuracy", "val"), ("label_accuracy", "labels")):
        if not reached and _is_rate(last.get(key)):
            reached = f"{word} {percent(last[key])}%"
    if not reached and isinstance(last.get("train_loss"), int | float):
        reached = f"loss {last['train_loss']:.3g}"
    epochs = "" if at.epoch is None else f"{at.epoch}/{'?' if at.epochs is None else at.epochs}"
    return (at.state, printable(at.stage or "", 15), epochs, _clock(at.left), reached)


def _is_rate(value: Any) -> bool:
    return isinstance(value, int | float) and 0 <= value <= 1


def _clock(seconds: float | None) -> str:
    if seconds is None:
        return ""
    minutes, s = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{s:02}" if hours < 100 else f"{hours // 24} d"


def _short(name: str, most: int) -> str:
    """The name of a run with its end, which says which one of several it is."""
    name = printable(name)
    return name if len(name) <= most else f"{name[: most // 3]}…{name[len(name) - (most - most // 3 - 1) :]}"


def _said(found: Sequence[Entry]) -> list[str]:
    """Lines on what a table has no room for."""
    lines = []
    for entry in found:
        if entry.state.startswith("damaged"):
            lines.append(f"{printable(entry.name)}: {printable(entry.state)}")
        elif entry.progress is not None and entry.progress.why is not None:
            lines.append(f"{printable(entry.name)}: failed: {printable(entry.progress.why, 500)}")
        elif entry.state == WITHHELD:
            lines.append(f"{printable(entry.name)}: labels withheld: canaries find them worse than the given ones")
    return lines


def _about(group: Group) -> str:
    summary = group.summaries[0]
    seeds = ", ".join(str(s["seed"]) for s in group.summaries[:12]) + (" …" if len(group.summaries) > 12 else "")
    return printable(
        f"{title(group.method)} on {summary['dataset']}, {summary['model']}: {len(group.entries)} seeds ({seeds})"
    )


def _linked(entry: Entry, page_path: Path) -> Any:
    report = entry.path / "report.html"
    if not os.path.isfile(report):
        return printable(entry.name)
    target = os.path.relpath(report, page_path.parent)
    return element("a", printable(entry.name), href=quote(Path(target).as_posix(), errors="surrogateescape"))


def _of_group(group: Group) -> Markup:
    drawn = [
        chart("Test accuracy", "epoch", "%", accuracy_bands(group)),
        chart("Labels", "epoch", "% of the training labels", label_bands(group)),
    ]
    told = "Lines are means over seeds, bands one standard deviation to either side."
    charts = [d for d in drawn if d is not None]
    return section(
        _about(group),
        table(_MEANS, means(group)),
        [element("p", told, class_="soft"), element("div", charts, class_="charts")] if charts else None,
    )


# -- bands over seeds -------------------------------------------------------------------------------------


def accuracy_bands(group: Group) -> list[Line]:
    """Test accuracy in % of each stage."""
    return [
        band(title(name), [m.get(name, []) for m in _metrics(group)], "test_accuracy", 100)
        for name in group.stages()
        if not is_aside(name)
    ]


def label_bands(group: Group) -> list[Line]:
    """Labels right, put right and spoiled, in % of the training rows; those changed where right ones are unknown."""
    own, size = [m.get(group.method, []) for m in _metrics(group)], group.summaries[0]["train_size"]
    right = band("right", own, "label_accuracy", 100)
    if not right.x:
        return [band("changed", own, "labels_changed", 100 / size)]
    return [
        right,
        band("put right", own, "labels_corrected", 100 / size),
        band("spoiled", own, "labels_spoiled", 100 / size),
    ]


def band(word: str, runs: Sequence[Sequence[Mapping[str, Any]]], key: str, scale: float) -> Line:
    """Mean and one standard deviation to either side, at the epochs that all `runs` have."""
    found = [dict(zip(*series(lines, key, scale), strict=True)) for lines in runs]
    epochs = sorted(set.intersection(*map(set, found))) if found else []
    spreads = [spread([values[epoch] for values in found]) for epoch in epochs]
    pairs = [(centre, deviation or 0.0) for centre, deviation in filter(None, spreads)]
    label = f"{word}: {pairs[-1][0]:.1f} ± {pairs[-1][1]:.1f}" if pairs else word
    return Line(
        label,
        epochs,
        [centre for centre, _ in pairs],
        low=[centre - deviation for centre, deviation in pairs],
        high=[centre + deviation for centre, deviation in pairs],
    )


def _metrics(group: Group) -> list[dict[str, list[dict[str, Any]]]]:
    return [read(entry.path / "metrics.jsonl", checked_metrics) for entry in group.entries]
