"""report.html of a finished run: what became of its labels, in one file that can be sent."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from fastmeta._text import printable, printable_lines
from fastmeta.data import InputError
from fastmeta.export import Samples, samples_of
from fastmeta.report.changed_rows import ROWS, changed_rows
from fastmeta.report.charts import Line, chart
from fastmeta.report.curves import series
from fastmeta.report.figures import read_metrics
from fastmeta.report.finders import Finder, cleanlab_scores, finder
from fastmeta.report.markup import Markup, element, table
from fastmeta.report.numbers import percent, plain
from fastmeta.report.page import note, page, section, tile
from fastmeta.report.reading_table import CANARIES, MARK, reading_table
from fastmeta.report.result_table import title
from fastmeta.training.canaries import in_words
from fastmeta.training.distances import KEYS
from fastmeta.training.readings import in_words as read_as
from fastmeta.training.rundir import RunLabels, read, run_labels, user_path, write_atomically
from fastmeta.training.search import settings_in_words
from fastmeta.training.stage_names import is_aside

#: classes up to which the whole matrix of changes is shown, and changes beyond
_CLASSES, _CHANGES = 30, 20
_NAME = 24
_WARNINGS = 50
_LARGEST = 1e15
IN_SAMPLE = "Learned labels are in-sample: the network was trained on these very rows."


def write_report(
    run: str | Path, out: str | Path | None = None, *, samples: Any = None, cleanlab: bool = False
) -> Path:
    """Write the report of a finished run, by default as RUN/report.html, and return its path.

    Args:
        samples: of the whole training set, by ``samples[row]``: uint8 images (H, W[, 1 or 3]), texts, or numbers. By
            default they are read anew by the name of the run's data set, where that is no code and no data of the
            caller's own.
        cleanlab: hold cleanlab's finder of wrong labels beside the learned labels, where right labels are known. It
            trains logistic regression on the samples, five times.

    Raises:
        InputError: no finished run, a damaged one, or a file that cannot be written.
        ImportError: cleanlab is asked for, and not installed.
    """
    labels = run_labels(run, force=True)
    looked_at = samples_of(labels) if samples is None else Samples.of_rows(samples, labels.row)
    path = labels.path / "report.html" if out is None else user_path(out, "out")
    try:
        write_atomically(path, run_page(labels, looked_at, cleanlab=cleanlab))
    except OSError as error:
        raise InputError(f"cannot write {path}: {error.strerror}; name another file") from error
    return path


def run_page(labels: RunLabels, samples: Samples | None, *, cleanlab: bool = False) -> bytes:
    """The document."""
    summary, metrics = labels.summary, read(labels.path / "metrics.jsonl", checked_metrics)
    finders = _finders(labels, samples, cleanlab)
    told = f"{summary['method']} on {summary['dataset']}, {summary['model']}, {summary['epochs']} epochs"
    return page(
        f"fastmeta: {labels.path.name}",
        element("h1", printable(labels.path.resolve().name)),
        element("p", printable(f"{told}, seed {summary['seed']}"), class_="soft"),
        _tiles(summary, labels),
        _verdict(labels),
        _readings(summary),
        section("Labels that changed most", *_changed(labels, samples)),
        _flips(labels),
        _found(labels, finders),
        section("Over training", *_curves(metrics, summary, finders)),
        section("Results", _results(summary)),
        _search(summary),
        _warnings(summary),
        section("Config", element("details", element("summary", "config.toml"), element("pre", _config(labels)))),
    )


def checked_metrics(path: Path) -> dict[str, list[dict[str, Any]]]:
    """metrics.jsonl by stage, its numbers alone. ValueError for lines that no run has written."""
    found = read_metrics(path)
    for lines in found.values():
        for record in lines:
            if not isinstance(record.get("epoch"), int) or not _is_drawn(record["epoch"]):
                raise ValueError("a line has no epoch")
            for key in [k for k, v in record.items() if not _is_drawn(v)]:
                del record[key]
    return found


def _is_drawn(value: Any) -> bool:
    """Whether it is a number that a chart has room for: JSON has infinite ones, and whole ones without an end."""
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < _LARGEST


# -- sections ---------------------------------------------------------------------------------------------


def _tiles(summary: Mapping[str, Any], labels: RunLabels) -> Markup:
    changed = int((labels.learned != labels.given).sum())
    tiles = [tile(f"{changed:,} of {len(labels):,}", "labels changed")]
    if labels.true is not None:
        before, after = (float((c == labels.true).mean()) for c in (labels.given, labels.learned))
        tiles.append(tile(f"{percent(before)} → {percent(after)}%", "labels right, given → learned"))
    if summary["test_accuracy_last"] is not None:
        tiles.append(tile(f"{percent(summary['test_accuracy_last'])}%", "test accuracy, last epoch"))
    if summary["wrong_label_average_precision"] is not None:
        tiles.append(tile(plain(summary["wrong_label_average_precision"], 3), "finds wrong, average precision"))
    tiles.append(tile(f"{summary['meta_size']:,}", "clean samples"))
    return element("div", tiles, class_="tiles")


def _verdict(labels: RunLabels) -> list[Markup]:
    summary, told = labels.summary, labels.summary.get("canaries")
    if not told:
        unknown = "Right labels are unknown, and no canaries watched this run: nothing tells whether labels are better."
        return [note(unknown)] if labels.true is None else []
    better = told["right_after"] >= told["right_before"]
    right = f"{percent(told['right_before'])}% → {percent(told['right_after'])}% of the labels right"
    found = [note(f"By canaries: {right}; {in_words(told)}.", "good" if better else "bad")]
    if summary.get("labels_withheld"):
        found.append(
            note("These labels are withheld: labels.npz has the given ones. Below is what was learned.", "bad")
        )
    return found


def _readings(summary: Mapping[str, Any]) -> Markup | None:
    """Which reading is handed out, by what, and what the labels are by each."""
    if not summary["learns_labels"]:
        return None
    told, found = summary.get("reading"), reading_table(summary)
    line = read_as(told) if told else "labels are read off the table"
    about = element("p", f"{line[0].upper()}{line[1:]}.", class_="soft")
    if found is None:
        return section("What labels are read off", about)
    rows = [
        [element("b", f"{cell} {MARK}" if k == 0 else cell) for k, cell in enumerate(row)] if n == found.chosen else row
        for n, row in enumerate(found.rows)
    ]
    said = [f"{MARK} is handed out"]
    if "AP" in found.head:
        said.append("AP is the average precision of the wrong labels, most doubted first")
    if any(head.startswith(CANARIES) for head in found.head):
        said.append("in brackets are 95% intervals")
    mark = element("p", f"{'; '.join(said)}.", class_="soft")
    return section("What labels are read off", about, table(found.head, rows), mark)


def _changed(labels: RunLabels, samples: Samples | None) -> list[Any]:
    cards = changed_rows(labels, samples)
    if cards is None:
        return [element("p", "No label has changed.")]
    changed = int((labels.learned != labels.given).sum())
    some = f"The {ROWS} of {changed:,} changed labels" if changed > ROWS else "All changed labels, those first"
    which = f"{some} whose given label has the least quality, from 0 to 1: how far it may be believed. {IN_SAMPLE}"
    way = (
        "" if samples is not None else " The samples themselves are not to be had from here, so that rows are numbers."
    )
    return [element("p", which + way, class_="soft"), cards]


def _flips(labels: RunLabels) -> Markup | None:
    names, count = [printable(name, _NAME) for name in labels.class_names], len(labels.class_names)
    pairs, numbers = np.unique(labels.given * count + labels.learned, return_counts=True)
    if count <= _CLASSES:
        matrix = np.zeros(count * count, np.int64)
        matrix[pairs] = numbers
        return section("Where labels went", element("p", "Rows: given class. Columns: learned class.", class_="soft"),
                       _matrix(matrix.reshape(count, count), names))  # fmt: skip
    moved = pairs // count != pairs % count
    order = np.argsort(-numbers[moved], kind="stable")[:_CHANGES]
    rows = [
        (names[p // count], names[p % count], f"{k:,}")
        for p, k in zip(pairs[moved][order].tolist(), numbers[moved][order].tolist(), strict=True)
    ]
    return section("Where labels went most", table(("given", "learned", "labels"), rows, 2)) if rows else None


def _matrix(matrix: np.ndarray, names: Sequence[str]) -> Markup:
    share = matrix / np.maximum(matrix.sum(1, keepdims=True), 1)

    def cell(a: int, b: int) -> Markup:
        shade = f"background:rgba(var(--heat),{0.85 * share[a, b]:.2f})" if a != b and matrix[a, b] else None
        text = f"{matrix[a, b]:,}" if matrix[a, b] else ""
        return element("td", text, class_="same" if a == b else None, style=shade, title=f"{share[a, b]:.1%}")

    head = element("tr", element("th"), [element("th", name) for name in names])
    rows = [element("tr", element("th", name), [cell(a, b) for b in range(len(names))]) for a, name in enumerate(names)]
    return element("div", element("table", head, rows, class_="matrix"), class_="wide")


def _finders(labels: RunLabels, samples: Samples | None, cleanlab: bool) -> list[Finder]:
    if labels.true is None:
        if cleanlab:
            raise InputError(f"{labels.path} knows no right labels, against which cleanlab could be measured")
        return []
    wrong = labels.given != labels.true
    if not wrong.any() or wrong.all():
        return []
    found = [finder("learned labels", 1 - labels.quality, wrong)]
    if cleanlab:
        if samples is None:
            raise InputError(f"cleanlab needs the samples of {labels.path}, which are not to be had from here")
        rows = np.stack([np.asarray(samples.x[k]) for k in range(len(labels))])
        scores = cleanlab_scores(rows, labels.given, labels.summary["seed"])
        found.append(finder("cleanlab, logistic regression", scores, wrong))
    return found


def _found(labels: RunLabels, finders: Sequence[Finder]) -> Markup | None:
    if not finders:
        return None
    assert labels.true is not None
    chance = float((labels.given != labels.true).mean())
    ranks = list(finders[0].at)
    rows = [(f.name, plain(f.average_precision, 3), *(percent(f.at[k]) for k in ranks)) for f in finders]
    rows.append(("by chance", plain(chance, 3), *(percent(chance) for _ in ranks)))
    head = ("rows sorted by", "average precision", *(f"first {k:,}" for k in ranks))
    told = f"Of the first rows, % whose given label is wrong. {percent(chance)}% of all are."
    return section("Wrong labels found", element("p", told, class_="soft"), table(head, rows))


def _curves(
    metrics: Mapping[str, Sequence[Mapping[str, Any]]], summary: Mapping[str, Any], finders: Sequence[Finder]
) -> list[Markup | None]:
    own, size = metrics.get(summary["method"], []), summary["train_size"]

    def line(word: str, key: str, scale: float, lines: Sequence[Mapping[str, Any]]) -> Line:
        x, y = series(lines, key, scale)
        return Line(f"{word}: {y[-1]:.1f}" if y else word, x, y)

    accuracy = [line(title(name), "test_accuracy", 100, lines) for name, lines in metrics.items() if not is_aside(name)]
    if any(r.get("label_accuracy") is not None for r in own):
        of_labels = [
            line("right", "label_accuracy", 100, own),
            line("put right", "labels_corrected", 100 / size, own),
            line("spoiled", "labels_spoiled", 100 / size, own),
        ]
    else:
        of_labels = [line("changed", "labels_changed", 100 / size, own)]
    of_canaries = [
        line("wrong, put right", "canaries_put_right", 100, own),
        line("right, spoiled", "canaries_spoiled", 100, own),
    ]
    percents = (0.0, 100.0)
    few = 10  # rows and fewer say nothing about a precision
    found = []
    for f in finders:
        begin = min(few, len(f.recall)) - 1
        found.append(Line(f.name, (100 * f.recall[begin:]).tolist(), (100 * f.precision[begin:]).tolist()))
    drawn = [
        chart("Test accuracy", "epoch", "%", accuracy),
        chart("Labels", "epoch", "% of the training labels", of_labels),
        chart("Canaries", "epoch", "% of canaries", of_canaries, percents),
        _distance(own, summary),
        chart(
            "Wrong labels found",
            "share of the wrong labels that are found, %",
            "precision, %",
            found,
            percents,
            percents,
        ),
    ]
    return [element("div", [d for d in drawn if d is not None], class_="charts")]


def _distance(own: Sequence[Mapping[str, Any]], summary: Mapping[str, Any]) -> Markup | None:
    """Over the epochs, how inexact steps lie beside exact ones, where somebody looked."""
    told = summary.get("distance")
    if not told or not told["looks"]:
        return None
    means, least, length = (series(own, KEYS[name]) for name in ("cosine", "least", "length"))
    lines = [Line(f"cosine: {plain(told['cosine'], 2)}", *means), Line(f"length: {plain(told['length'], 2)}", *length)]
    if least != means:
        lines.insert(1, Line(f"least cosine of an epoch: {plain(told['least'], 2)}", *least))
    low, high = min([0.0, *least[1]]), max([1.05, *length[1]])
    title = printable(f"Steps by {told['approx']} beside exact ones", _NAME + 20)
    return chart(title, "epoch", "exact step = 1", lines, (low, high))


def _results(summary: Mapping[str, Any]) -> Markup:
    stages = {summary["method"]: summary, **summary["baselines"]}
    rows = []
    for name, stage in stages.items():
        failed = stage.get("failed")
        last = "failed" if failed else percent(stage["test_accuracy_last"])
        best, nll, ece = percent(stage["test_accuracy_best"]), plain(stage["nll"], 3), plain(stage["ece"], 3)
        rows.append((title(name), last, best, nll, ece, plain(stage["seconds"], 1)))
        if (tuned := stage.get("finetuned")) and not tuned["failed"]:
            figures = (percent(tuned["test_accuracy"]), "", plain(tuned["nll"], 3), plain(tuned["ece"], 3))
            rows.append(("… fine-tuned", *figures, plain(tuned["seconds"], 1)))
    return table(("trained on", "test %, last", "best on test", "NLL", "ECE", "seconds"), rows)


def _search(summary: Mapping[str, Any]) -> Markup | None:
    told = summary.get("search")
    if not told:
        return None
    rows = []
    for row in told["candidates"]:
        right = "failed" if row["failed"] else percent(row["right_by_choosing"])
        chosen = "chosen" if row["name"] == told["chosen"] else ""
        against = "" if row["against"] is None else row["against"]
        cells = (row["name"], settings_in_words(row["settings"]), right, against, plain(row["chance"], 4), chosen)
        rows.append(tuple(printable(str(cell), 100) for cell in cells))
    cost = f"{plain(told['cost'], 1)} times the cost of the run, of {told['budget']:g}"
    text = f"{len(rows) - 1} trials of {told['epochs']} epochs: {cost}. Of the canaries, those that choose."
    head = ("trial", "labels", "right, %", "against", "by chance", "")
    return section("Search", element("p", text, class_="soft"), table(head, rows, 2))


def _warnings(summary: Mapping[str, Any]) -> Markup | None:
    told = summary["warnings"][:_WARNINGS]
    return section("Warnings", [note(printable(text, 1000)) for text in told]) if told else None


def _config(labels: RunLabels) -> str:
    return printable_lines(labels.config.to_toml())
