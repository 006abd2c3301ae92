"""Figures that can be read, whatever a run has given and however its classes are called."""

import json

import numpy as np
import pytest

pytest.importorskip("matplotlib")

from fastmeta.report import figures
from fastmeta.report.figures import MOST_CLASSES, write_figures

STAGES = ("instance_labels", "noisy", "union", "clean")


def lines(stages=STAGES, epochs=3, **record):
    return {name: [{"run": name, "epoch": e, **record} for e in range(epochs)] for name in stages}


def summary(names, **more):
    return {"method": "instance_labels", "train_size": 10, "class_names": names, "num_classes": len(names), **more}


def drawn(figure):
    figure.draw_without_rendering()
    (axes,) = figure.axes
    return axes


def test_curves_along_the_edges_are_seen_and_the_legend_covers_none():
    for figure in (
        figures._accuracy(lines(test_accuracy=0.0)),
        figures._labels(lines(label_accuracy=0.0, labels_corrected=0, labels_spoiled=0), summary(["a", "b"])),
        figures._labels(lines(labels_changed=0), summary(["a", "b"])),
    ):
        axes = drawn(figure)
        assert all(not line.get_clip_on() for line in axes.get_lines())
        (legend,) = figure.legends
        assert not legend.get_window_extent().overlaps(axes.get_window_extent())
        assert all(tick == int(tick) for tick in axes.get_xticks())
    looks = {
        (line.get_color(), line.get_linestyle()) for line in figures._accuracy(lines(test_accuracy=0.5)).axes[0].lines
    }
    assert len({colour for colour, _ in looks}) == len({dashes for _, dashes in looks}) == len(STAGES)


def test_a_share_of_zero_is_not_blown_up():
    axes = drawn(figures._labels(lines(labels_changed=0), summary(["a", "b"])))
    assert axes.get_ylim() == (0, 1)


def test_names_that_are_long_or_look_like_formulas():
    names = ["a very long name of a class that goes on and on", r"$\frac$", "cat"]
    given = learned = np.array([0, 1, 2])
    figure = figures._matrix(given, learned, summary(names))
    figure.draw_without_rendering()
    axes = figure.axes[0]
    shown = [label.get_text() for label in axes.get_yticklabels()]
    assert shown == ["a very long nam…", r"$\frac$", "cat"]
    whole = figure.bbox
    for text in (figure._suptitle, *axes.get_xticklabels(), *axes.get_yticklabels()):
        extent = text.get_window_extent()
        assert whole.x0 <= extent.x0
        assert extent.x1 <= whole.x1
        assert whole.y0 <= extent.y0


@pytest.mark.parametrize(("count", "there"), [(MOST_CLASSES, True), (MOST_CLASSES + 1, False)])
def test_no_matrix_of_more_classes_than_a_picture_has_room_for(count, there, tmp_path):
    records = lines(["instance_labels"], labels_changed=0)["instance_labels"]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(r) + "\n" for r in records))
    np.savez(tmp_path / "labels.npz", given=np.array([0, count - 1]), learned=np.array([0, 1]))
    written = write_figures(tmp_path, summary([str(k) for k in range(count)]))
    assert (tmp_path / "figures" / "label_matrix.png" in written) == there
