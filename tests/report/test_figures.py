"""Figures that can be read, whatever a run has given and however its classes are called."""

import json

import numpy as np
import pytest

pytest.importorskip("matplotlib")

from fastmeta.report import curves, matrices, sheet
from fastmeta.report.figures import write_figures
from fastmeta.report.matrices import MOST_CLASSES
from fastmeta.report.wrong_labels import precision_recall, wrong_labels

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
        curves.accuracy(lines(test_accuracy=0.0)),
        curves.labels(lines(label_accuracy=0.0, labels_corrected=0, labels_spoiled=0), summary(["a", "b"])),
        curves.labels(lines(labels_changed=0), summary(["a", "b"])),
    ):
        axes = drawn(figure)
        assert all(not line.get_clip_on() for line in axes.get_lines())
        (legend,) = figure.legends
        assert not legend.get_window_extent().overlaps(axes.get_window_extent())
        assert all(tick == int(tick) for tick in axes.get_xticks())
    looks = {
        (line.get_color(), line.get_linestyle()) for line in curves.accuracy(lines(test_accuracy=0.5)).axes[0].lines
    }
    assert len({colour for colour, _ in looks}) == len({dashes for _, dashes in looks}) == len(STAGES)


def test_a_share_of_zero_is_not_blown_up():
    axes = drawn(curves.labels(lines(labels_changed=0), summary(["a", "b"])))
    assert axes.get_ylim() == (0, 1)


def test_names_that_are_long_or_look_like_formulas():
    names = ["a very long name of a class that goes on and on", r"$\frac$", "cat"]
    given = learned = np.array([0, 1, 2])
    figure = matrices.given_to_learned(given, learned, summary(names))
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


def test_as_many_labels_as_can_be_put_right_are_a_line_of_their_own():
    records = lines(label_accuracy=0.6, labels_corrected=1, labels_spoiled=0)
    axes = drawn(curves.labels(records, summary(["a", "b"], noise_rate=0.4)))
    level = axes.get_lines()[-1]
    assert level.get_label() == "wrong as given: 40.0"
    assert set(level.get_ydata()) == {40.0}
    for rate in (None, 0.0):
        assert len(drawn(curves.labels(records, summary(["a", "b"], noise_rate=rate))).get_lines()) == 3


TRUE = np.array([0, 0, 0, 1, 1, 1])
GIVEN = np.array([0, 0, 1, 1, 1, 0])
LEARNED = np.array([0, 1, 0, 1, 1, 0])
LEFT = np.array([0.9, 0.2, 0.1, 0.8, 0.9, 0.7])  # probability of the given class


def test_confusion_has_a_panel_before_and_one_after():
    figure = matrices.true_to_learned(TRUE, GIVEN, LEARNED, summary(["cat", "dog"]))
    before, after, _ = figure.axes  # the third is the colours'
    figure.draw_without_rendering()
    assert (before.get_ylabel(), before.get_xlabel(), after.get_xlabel()) == (
        "true class",
        "given class",
        "learned class",
    )
    assert before.images[0].get_array().round(1).tolist() == [[66.7, 33.3], [33.3, 66.7]]
    assert after.images[0].get_array().round(1).tolist() == [[66.7, 33.3], [33.3, 66.7]]


def test_precision_and_recall_of_wrong_labels():
    wrong = TRUE != GIVEN
    precision, recall = precision_recall(wrong, 1 - LEFT)
    # by probability left: 0.1 wrong, 0.2 right, 0.7 wrong, 0.8 right, and two of 0.9 together
    assert precision.round(3).tolist() == [1, 0.5, 0.667, 0.5, 0.333]
    assert recall.tolist() == [0.5, 0.5, 1, 1, 1]
    sklearn = pytest.importorskip("sklearn.metrics")
    figure = wrong_labels(TRUE, GIVEN, LEARNED, LEFT)
    curve, mark, chance = drawn(figure).get_lines()
    area = sklearn.average_precision_score(wrong, 1 - LEFT)
    assert curve.get_label() == f"average precision: {area:.3f}"
    assert mark.get_label() == "changed labels: 50.0 of them wrong, 50.0 found"
    assert chance.get_label() == "by chance: 33.3"
    assert wrong_labels(TRUE, TRUE, LEARNED, LEFT) is None


def test_the_sheet_shows_the_most_changed_first_and_what_is_right():
    images = np.zeros((6, 4, 4, 1), np.uint8)
    table = {"given": GIVEN, "learned": LEARNED, "given_probability": LEFT, "true": TRUE}
    assert sheet.most_changed(table, 10).tolist() == [2, 1]
    figure = sheet.changed_images(images, table, summary(["a", "$b"]))
    figure.draw_without_rendering()
    first, second, title = figure.axes[0].texts
    assert [first.get_text(), second.get_text()] == ["$b → a", "a → $b (a)"]
    assert first.get_color() != second.get_color()
    assert title.get_text().startswith("Labels changed most")
    assert [image.get_extent()[0] < 1.2 for image in figure.axes[0].images] == [True, False]
    for text in figure.axes[0].texts:
        assert figure.bbox.contains(*text.get_window_extent().min)
        assert figure.bbox.contains(*text.get_window_extent().max)
    del table["true"]
    figure = sheet.changed_images(images.repeat(3, 3), table, summary(["a long name", "another long name"]))
    assert figure.axes[0].texts[0].get_text() == "another lon…\n→ a long name"
    assert sheet.changed_images(images.astype(np.float32), table, summary(["a", "b"])) is None
    assert sheet.changed_images(None, table, summary(["a", "b"])) is None
    table["learned"] = GIVEN
    assert sheet.changed_images(images, table, summary(["a", "b"])) is None


def run_directory(path, **arrays):
    records = lines(["instance_labels"], label_accuracy=0.5, labels_corrected=0, labels_spoiled=1, test_accuracy=0.5)
    (path / "metrics.jsonl").write_text("".join(json.dumps(r) + "\n" for r in records["instance_labels"]))
    np.savez(path / "labels.npz", **arrays)


def test_all_figures_as_png_and_svg_with_equal_bytes_for_equal_runs(tmp_path):
    images = np.zeros((6, 4, 4, 1), np.uint8)
    contents = []
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        run_directory(tmp_path / name, given=GIVEN, learned=LEARNED, given_probability=LEFT, true=TRUE)
        written = write_figures(tmp_path / name, summary(["a", "b"], noise_rate=1 / 3), images)
        contents.append({path.name: path.read_bytes() for path in written})
    names = ("accuracy", "labels", "label_matrix", "confusion", "wrong_labels", "changed")
    assert list(contents[0]) == [f"{name}.{kind}" for name in names for kind in ("png", "svg")]
    assert contents[0] == contents[1]
    assert all(b"<svg" in content for name, content in contents[0].items() if name.endswith("svg"))


def test_without_the_truth_and_without_images(tmp_path):
    run_directory(tmp_path, given=GIVEN, learned=LEARNED, given_probability=LEFT)
    written = write_figures(tmp_path, summary(["a", "b"]))
    assert [path.stem for path in written[::2]] == ["accuracy", "labels", "label_matrix"]


def test_what_became_of_canaries():
    share = {"rate": 0.61, "low": 0.42, "high": 0.78, "rows": 30}
    told = {"put_right": share, "spoiled": {**share, "rate": 0.03, "low": 0.0, "high": 0.1}, "kept_epoch": 2}
    records = lines(["instance_labels"], canaries_put_right=0.61, canaries_spoiled=0.03)
    axes = drawn(curves.canaries(records, summary(["a", "b"], canaries=told)))
    shown = [line.get_label() for line in axes.get_lines() if not line.get_label().startswith("_")]
    assert shown == ["wrong, put right: 61% [42, 78]", "right, spoiled: 3% [0, 10]"]
    assert axes.get_ylim() == (0, 100)
    assert curves.canaries(records, summary(["a", "b"])) is None
