"""Figure 2: meta accuracy and target probability of classes over training, and what labels hold likely beside them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from fastmeta.paper.artefact import Artefact, Cell, Figure, Found, Reading, Row
from fastmeta.paper.claims import beyond, higher
from fastmeta.paper.reading import (
    ClassCurves,
    Example,
    LearnedRun,
    class_curves,
    class_figure,
    easiest_middle_hardest,
    likeliest_others,
    mean_curves,
    most_moved,
    pictures,
    read_run,
    smoothing,
    smoothing_follows_difficulty,
)
from fastmeta.paper.scale import Scale
from fastmeta.paper.shared_runs import FOLDS, folded_labels
from fastmeta.paper.wanted import Wanted
from fastmeta.report.style import write

#: of table 1
RECIPE = "cifar100-resnet18"
KINDS = {"class_labels": "class labels", "instance_labels": "instance labels"}
COLUMNS = ("correlation", "rank correlation", "α at the start", "α early", "α late")


def folded_runs(scale: Scale) -> dict[str, Wanted]:
    """Labels over five folds, of tables 1 and 3."""
    return {kind: folded_labels(scale, kind, RECIPE) for kind in KINDS}


def folders(found: Found, kind: str) -> dict[int, Path]:
    """By seed, the folders with fold0, fold1, ... of finished runs over folds."""
    return {seed: found.wanted[kind].path(found.runs, seed) for seed in found.paths(kind)}


def curves_of(folder: Path) -> ClassCurves:
    """Mean over the folds of a seed."""
    return mean_curves([class_curves(run) for run in folds_of(folder)])


def folds_of(folder: Path) -> list[LearnedRun]:
    return [read_run(folder / f"fold{k}") for k in range(FOLDS)]


def shown_classes(curves: Mapping[int, ClassCurves]) -> list[int]:
    """By the mean over seeds."""
    return easiest_middle_hardest(mean_curves(list(curves.values())))


class Figure2(Artefact):
    name, title = "figure2", "Meta accuracy and target probability of classes over training"

    def wanted(self, scale: Scale) -> Mapping[str, Wanted]:
        return folded_runs(scale)

    def read(self, found: Found) -> Reading:
        rows, claims, figures = [], [], []
        for kind, words in KINDS.items():
            paths, failed = folders(found, kind), found.failed(kind)
            curves = {seed: curves_of(path) for seed, path in paths.items()}
            cells = {column: Cell(failed=failed) for column in COLUMNS}
            if curves:
                told = {seed: _numbers(one) for seed, one in curves.items()}
                cells = {
                    column: Cell({s: x for s, v in told.items() if (x := v[column]) is not None}, None, failed)
                    for column in COLUMNS
                }
                examples, epoch = _examples(found, curves) if kind == "instance_labels" else ([], 0)
                figure = class_figure(
                    list(curves.values()),
                    shown_classes(curves),
                    examples,
                    examples_title=f"Likeliest other classes, epoch {epoch}",
                )
                write(figure, found.out / f"classes_{kind}")
                figures.append(Figure(f"classes_{kind}.png", f"{words[0].upper()}{words[1:]}. {CAPTION}"))
            rows.append(Row(words, cells, "validation"))
            claims.append(
                beyond(
                    f"Harder classes are smoothed more ({words}): over classes, target probability and meta accuracy "
                    "go together, correlation.",
                    cells["correlation"].values,
                    0.0,
                    published="shown for three classes",
                )
            )
            claims.append(
                higher(
                    f"Labels are smoothed early and sharp late ({words}): mean α of the first and last quarter.",
                    cells["α early"],
                    cells["α late"],
                    published="in words",
                    digits=3,
                    sign=kind == "class_labels",
                )
            )
        return Reading(COLUMNS, rows, claims, figures, NOTES, unit="correlation over classes, and mean α", digits=3)


CAPTION = (
    "The easiest, the middle and the hardest class by mean meta accuracy over training. Lines: mean over seeds of the "
    "mean over folds; bands: one standard deviation over seeds. Meta accuracy is optimistic: its rows tuned the "
    "labels."
)
NOTES = (
    "Correlations are over all classes, of means over training; the paper shows three classes.",
    "Meta accuracy is that of the held-out fold which the labels were learned from, so it is optimistic.",
    "Instances are those whose label holds one other class likeliest, of these three classes, in the first fold of the "
    "first seed; trajectories are kept in float16.",
)


def _numbers(curves: ClassCurves) -> dict[str, float | None]:
    together, alpha = smoothing_follows_difficulty(curves), smoothing(curves)
    values = (together["pearson"], together["spearman"], alpha.start, alpha.early, alpha.late)
    return dict(zip(COLUMNS, values, strict=True))


def _examples(found: Found, curves: Mapping[int, ClassCurves]) -> tuple[list[Example], int]:
    """One row of each class of the figure, at the end of training."""
    seed = next(iter(curves))
    run = read_run(folders(found, "instance_labels")[seed] / "fold0")
    epoch, names = run.epochs[-1], run.class_names
    rows = most_moved(run, shown_classes(curves), epoch)
    images = pictures(run, rows)
    examples = []
    for row, image in zip(rows, images, strict=True):
        probs, given = run.label(epoch, row), int(run.given[row])
        others = [(names[c], p) for c, p in likeliest_others(probs, given)]
        examples.append(Example(image, names[given], float(probs[given]), others))
    return examples, epoch
