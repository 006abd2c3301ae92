"""report.html: one file that is whole, safe, small, and says what the run says."""

import html.parser
import json
import re

import numpy as np
import pytest

pytest.importorskip("matplotlib")

from fastmeta.cli import main
from fastmeta.data import InputError
from fastmeta.report import write_report
from fastmeta.report.charts import Line, chart
from fastmeta.report.finders import cleanlab_scores, finder
from fastmeta.report.markup import Markup, element
from fastmeta.report.run_folder import entries, groups, in_words, spread
from fastmeta.training.rundir import run_labels
from tests.support.finished import NAMES, changed, small_run, withheld

VOID = {"meta", "img", "br", "line", "rect", "polyline", "polygon", "circle"}


class Page(html.parser.HTMLParser):
    """Elements with their attributes and the text inside of each; fails where one is not closed."""

    def __init__(self, path):
        super().__init__()
        self.found, self.open, self.text = [], [], ""
        self.feed(path.read_text(encoding="utf-8"))
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.found.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.found.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open[-1:] != ["style"]:
            self.text += data + "\n"


def checked(path):
    """No script, nothing from elsewhere, less than a megabyte."""
    page = Page(path)
    assert path.stat().st_size < 1_000_000
    tags = {tag for tag, _ in page.found}
    assert not tags & {"script", "iframe", "object", "link", "form", "base"}
    for tag, attributes in page.found:
        assert not any(name.startswith("on") for name in attributes)
        if tag == "img":
            assert attributes["src"].startswith("data:image/png;base64,")
        if "href" in attributes:
            assert tag == "a"
            assert not re.match(r"[a-z]+:|//", attributes["href"])
        assert "url(" not in attributes.get("style", "")
    (policy,) = [a["content"] for t, a in page.found if t == "meta" and "http-equiv" in a]
    assert "default-src 'none'" in policy
    return page


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return small_run(tmp_path_factory.mktemp("report"), baselines="noisy", finetune_steps=2)


def test_a_run_in_one_page(run, capsys):
    assert main(["show", str(run)]) == 0
    said = capsys.readouterr().out
    assert "instance labels" in said
    assert f"page in {run / 'report.html'}" in " ".join(said.split())
    page, labels = checked(run / "report.html"), run_labels(run)
    moved = int((labels.learned != labels.given).sum())
    assert f"{moved} of 80" in page.text
    assert sum(tag == "img" for tag, _ in page.found) == moved
    assert sum(tag == "svg" for tag, _ in page.found) == 3
    for word in (
        "Where labels went",
        "Wrong labels found",
        "learned labels",
        "fixed: given",
        "… fine-tuned",
        "in-sample",
    ):
        assert word in page.text
    for name in NAMES:
        assert name in page.text
    assert "epochs = 3" in page.text
    table = re.findall(
        r"<td[^>]*>([\d,]*)</td>", (run / "report.html").read_text().split("matrix")[-1].split("</table")[0]
    )
    numbers = [int(cell or 0) for cell in table[:4]]
    expected = np.zeros((2, 2), int)
    np.add.at(expected, (labels.given, labels.learned), 1)
    assert numbers == expected.reshape(-1).tolist()


def test_equal_runs_have_equal_pages(run, tmp_path):
    first = write_report(run, tmp_path / "a.html").read_bytes()
    assert write_report(run, tmp_path / "b.html").read_bytes() == first


def test_names_texts_and_configs_of_others_are_text(run, tmp_path):
    """Whatever a run directory holds that somebody sent."""
    evil = "</pre><script>alert(1)</script><img src=x onerror=alert(2)>\u202e\x1b[31m"
    told = {"class_names": [evil, f"{evil}2"], "warnings": [evil], "dataset": evil, "method": evil, "model": evil}
    copy = changed(run, tmp_path / "run", told)
    config = f"out = {json.dumps(evil)}\n" + (copy / "config.toml").read_text()
    (copy / "config.toml").write_text(config)
    page = checked(write_report(copy, samples=np.array([f"{evil} text {k}" for k in range(80)])))
    assert "alert(1)" in page.text
    assert "text 0" in page.text
    assert "\x1b" not in page.text
    assert "\u202e" not in page.text


def test_samples_of_every_kind(run, tmp_path):
    labels = run_labels(run)
    row = int(labels.row[labels.suspicious(1)[0]])
    numbers = checked(write_report(run, tmp_path / "n.html", samples=np.arange(800.0).reshape(80, 10)))
    assert f"{10 * row}, {10 * row + 1}" in numbers.text
    texts = checked(write_report(run, tmp_path / "t.html", samples=[f"sample {k}\nline two" for k in range(80)]))
    assert f"sample {row}\nline two" in texts.text
    big = np.random.default_rng(0).integers(0, 256, (80, 300, 200, 3), dtype=np.uint8)
    pictures = checked(write_report(run, tmp_path / "p.html", samples=big))
    assert sum(tag == "img" for tag, _ in pictures.found) > 0


def test_many_large_images_stay_small(run, tmp_path):
    everything = changed(run, tmp_path / "run", learned=1 - run_labels(run).given)
    big = np.random.default_rng(0).integers(0, 256, (80, 224, 224, 3), dtype=np.uint8)
    page = checked(write_report(everything, samples=big))
    assert sum(tag == "img" for tag, _ in page.found) == 40


def test_without_samples_right_labels_and_changes(run, tmp_path):
    given = run_labels(run).given
    told = {"label_accuracy_initial": None, "wrong_label_average_precision": None, "dataset": "custom:arrays"}
    calm = changed(run, tmp_path / "calm", told, learned=given, true=None)
    page = checked(write_report(calm))
    assert "No label has changed." in page.text
    assert "nothing tells whether labels are better" in page.text
    assert "Wrong labels found" not in page.text
    with pytest.raises(InputError, match="knows no right labels"):
        write_report(calm, cleanlab=True)


def test_many_classes_have_no_matrix(run, tmp_path):
    names = [f"class {k}" for k in range(40)]
    given = np.arange(80) % 40
    learned = np.where(given == 3, 4, given)
    many = changed(
        run, tmp_path / "run", {"num_classes": 40, "class_names": names}, given=given, learned=learned, true=given
    )
    page = checked(write_report(many))
    assert "Where labels went most" in page.text
    assert re.search(r"class 3\s+class 4\s+2\n", page.text)


def test_labels_that_are_withheld_are_shown_as_such(run, tmp_path):
    held = withheld(run, tmp_path / "run")
    page = checked(write_report(held))
    assert "These labels are withheld" in page.text
    assert "90.0% → 50.0% of the labels right" in page.text
    assert "wrong labels put right 50% [20, 80]" in page.text


def test_how_well_wrong_labels_are_found():
    wrong = np.arange(40) < 10
    perfect = finder("a", wrong.astype(float), wrong)
    assert (perfect.average_precision, perfect.at) == (1.0, {10: 1.0, 30: 1 / 3})
    from sklearn.metrics import average_precision_score

    score = np.random.default_rng(0).integers(0, 5, 40).astype(float)
    assert finder("b", score, wrong).average_precision == pytest.approx(average_precision_score(wrong, score))


def test_beside_cleanlab(run, tmp_path):
    pytest.importorskip("cleanlab")
    page = checked(write_report(run, tmp_path / "c.html", cleanlab=True))
    assert "cleanlab, logistic regression" in page.text
    rng = np.random.default_rng(0)
    y = np.arange(90) % 3
    x = rng.normal(0, 0.3, (90, 20, 20)) + y[:, None, None]
    given = np.where(np.arange(90) < 9, (y + 1) % 3, y)
    scores = cleanlab_scores(x, given, 0)
    assert set(np.argsort(-scores)[:9]) == set(range(9))


def test_a_folder_of_runs(run, tmp_path, capsys):
    write_report(run)
    for seed, accuracy in ((0, 0.5), (9, 0.6), (10, 0.7)):
        told = {"seed": seed, "test_accuracy_last": accuracy}
        copy = changed(run, tmp_path / "all" / f"seed{seed}", told)
        (copy / "config.toml").write_text((copy / "config.toml").read_text().replace("\nseed = 0", f"\nseed = {seed}"))
    changed(run, tmp_path / "all" / "other" / "<i>x", {"epochs": 3})
    (tmp_path / "all" / "other" / "<i>x" / "report.html").unlink(missing_ok=True)
    cut = changed(run, tmp_path / "all" / "cut")
    (cut / "summary.json").unlink()
    damaged = changed(run, tmp_path / "all" / "damaged")
    (damaged / "summary.json").write_text("{}")
    (tmp_path / "all" / "nothing").mkdir()
    for path in (tmp_path / "all").glob("*/report.html"):  # of the run that was copied
        if path.parent.name != "seed0":
            path.unlink()
    assert main(["show", str(tmp_path / "all")]) == 0
    said = capsys.readouterr().out
    assert said.index("seed9") < said.index("seed10")
    assert "stopped" in said
    assert "damaged: " in said
    found = entries(tmp_path / "all")
    assert len(found) == 6
    (several,) = [g for g in groups(found) if len(g.entries) > 1]
    accuracies = [s["test_accuracy_last"] for s in several.summaries]
    assert in_words(accuracies, 100) == f"{100 * np.mean(accuracies):.1f} ± {100 * np.std(accuracies, ddof=1):.1f}"
    assert in_words(accuracies, 100) in said
    page = checked(tmp_path / "all" / "report.html")
    assert "bands one standard deviation" in page.text
    assert sum(tag == "polygon" for tag, _ in page.found) > 0
    links = [a["href"] for tag, a in page.found if tag == "a"]
    assert links == ["seed0/report.html"]


def test_means_of_what_is_there():
    assert spread([None, None]) is None
    assert spread([0.5, None]) == (0.5, None)
    assert in_words([None]) == "–"
    assert in_words([0.5], 100) == "50.0"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["{run}/checkpoint"], "is no run directory, and holds none"),
        (["{run}/missing"], "is not there"),
        (["{run}/config.toml"], "is no folder"),
        (["{run}/..", "--cleanlab"], "--cleanlab is about one run"),
        (["{run}", "{run}", "--out", "x.html"], "--out names the page of one RUN"),
        (["{run}", "--out", "{run}/config.toml/x.html"], "cannot write"),
    ],
)
def test_what_is_refused_in_one_line(arguments, message, run, capsys):
    try:
        code = main(["show", *(word.format(run=run) for word in arguments)])
    except SystemExit as stop:
        code = stop.code
    said = capsys.readouterr().err
    assert code == 2
    assert message in said
    assert said.count("\n") == 1


def test_a_damaged_run_is_refused(run, tmp_path):
    for name, text in (("metrics.jsonl", '{"run": "a"}\n'), ("metrics.jsonl", "no json\n"), ("config.toml", "=")):
        copy = changed(run, tmp_path / f"{name}{len(text)}")
        (copy / name).write_text(text)
        with pytest.raises(InputError):
            write_report(copy)


def test_elements_escape_what_is_no_markup():
    made = element("td", "a<b", Markup("<i>"), None, ["&", 3], title='"x"', class_=None, data_x=1)
    assert made == '<td title="&quot;x&quot;" data-x="1">a&lt;b<i>&amp;3</td>'


@pytest.mark.parametrize("values", [[5.0], [0.0, 0.0], [1e-300, 1e300], [-3.0, 2.0], list(range(1000))])
def test_a_chart_of_any_numbers(values):
    drawn = chart("t", "x", "y", [Line("a", [], []), Line("b", list(range(len(values))), values)])
    places = [float(v) for points in re.findall(r'points="([^"]+)"', drawn) for v in re.split("[ ,]", points)]
    assert all(-1 <= v <= 521 for v in places)
    assert "look1" in drawn
    assert len(drawn) < 20_000
    assert chart("t", "x", "y", [Line("a", [], [])]) is None


def read_off(chosen="product", by="canaries", network="model", right=True, canaries=True):
    """A summary's `reading`."""
    share = {"rate": 0.61, "low": 0.42, "high": 0.78, "rows": 20}
    readings = {}
    for number, name in enumerate(("table", "network", "product")):
        readings[name] = {
            "label_accuracy": 0.9 + number / 100 if right else None,
            "labels_changed": 10 + number,
            "labels_corrected": 7 + number if right else None,
            "labels_spoiled": number if right else None,
            "wrong_label_average_precision": 0.8 if right else None,
        }
        if canaries:
            readings[name] |= {"right_by_canaries": 0.8 + number / 50, "put_right": share, "spoiled": share}
    return {"chosen": chosen, "by": by, "network": network, "readings": readings}


@pytest.mark.parametrize(
    ("told", "line", "cells"),
    [
        (
            read_off(),
            "Labels are read off the product, which canaries choose",
            ["product ←", "12", "92.0", "9", "2", "0.800", "84.0", "61 [42, 78]", "61 [42, 78]"],
        ),
        (
            read_off("network", "asked", "finetuned", canaries=False),
            "Labels are read off the fine-tuned network, as asked",
            ["fine-tuned network ←", "11", "91.0", "8", "1", "0.800"],
        ),
        (
            read_off("table", right=False),
            "Labels are read off the table, which canaries choose",
            ["table ←", "10", "80.0", "61 [42, 78]", "61 [42, 78]"],
        ),
        (None, "Labels are read off the table.", None),
    ],
)
def test_which_reading_is_handed_out_and_what_labels_are_by_each(told, line, cells, run, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "80")
    run = changed(run, tmp_path / "run", {"reading": told})
    assert main(["show", str(run)]) == 0
    said, text = capsys.readouterr().out, checked(run / "report.html").text
    assert max(len(row) for row in said.splitlines() if "report.html" not in row) <= 80  # a path is as long as it is
    assert line in text
    assert ("handed out" in text) == (told is not None)
    if told is None:
        assert "labels read off" not in said
        return
    in_order = re.compile(r"\s+".join(map(re.escape, cells)))
    assert in_order.search(text)
    name, *figures = cells
    (row,) = [row for row in said.splitlines() if row.startswith(name)]
    if len(figures) in (5, 4):  # what 80 columns have room for
        figures = figures[1:] if told["readings"]["table"]["label_accuracy"] is not None else figures
    else:
        figures = [*figures[1:4], *figures[5:]]
    assert row.split() == [*name.split(), *" ".join(figures).split()]


@pytest.mark.parametrize("value", ["Infinity", "-Infinity", "NaN", "1e308", "1" + 400 * "0", "true", '"x"', "[1]"])
def test_numbers_that_no_chart_has_room_for_are_left_out(value, run, tmp_path):
    run = changed(run, tmp_path / "run")
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    odd = json.dumps(lines[-1] | {"epoch": 9, "test_accuracy": "ODD", "label_accuracy": "ODD"}).replace('"ODD"', value)
    (run / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines) + odd + "\n")
    checked(write_report(run))
    (run / "metrics.jsonl").write_text('{"run": "a", "epoch": ' + value + "}\n")
    with pytest.raises(InputError, match="a line has no epoch"):
        write_report(run)
