"""benchmarks/methods.py: the tables of docs/methods.md are those of the files, and a comparison's rows go there."""

import json
from pathlib import Path
from types import SimpleNamespace

import pytest

from tests.support.scripts import benchmarks

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def script():
    with benchmarks("methods") as found:
        yield found["methods"]


def test_the_page_has_what_the_files_have(script):
    assert "\n".join(script.page()) in (ROOT / "docs" / "methods.md").read_text()


def row(name, test, **more):
    figures = {"last": test, "best": test, "nll": 0.5, "ece": 0.1, "seconds": 2.0}
    known = {
        "name": name,
        "mean": figures.get,
        "label_accuracy": (),
        "failed": (),
        "clean_data": 0,
        "setting": SimpleNamespace(point={}),
    }
    return SimpleNamespace(**known | more)


def test_a_method_with_other_options_is_a_row_of_its_own(script):
    point = SimpleNamespace(point={"method.curriculum": "learned"})
    found = SimpleNamespace(rows=[row("mentornet", 0.7), row("mentornet", 0.8, setting=point)])
    rows = script.rows_of(found, "news", 0)
    assert [(r["name"], r["test_accuracy_last"]) for r in rows] == [("mentornet", 0.7), ("mentornet_learned", 0.8)]


def test_a_set_has_the_rows_of_its_own_options(script):
    digits, news = (next(t for t in script.TASKS if t.of == of) for of in ("digits", "news"))
    assert set(script.OPTIONS) - set(digits.names()) == {name for name in script.OPTIONS if "labels" in name} | {
        "softened_half",
        "softened_tuned",
    }
    assert set(script.OPTIONS) - set(news.names()) == {"mwnet_sgd", "mwnet_n", "mwnet_n_sgd"}


def test_rows_of_a_comparison_are_merged_into_the_file(script, tmp_path, monkeypatch):
    monkeypatch.setattr(script, "RESULTS", tmp_path)
    task = next(task for task in script.TASKS if task.of == "news")
    asked = []

    def compare(self, seed, methods, out, grid):
        asked.append((seed, methods))
        failed = row("focal", None, failed=((seed, "it has diverged"),), mean=lambda figure: None, clean_data=None)
        learned = row("instance_labels", 0.8 + seed / 10, label_accuracy=(0.9,), clean_data=100)
        return SimpleNamespace(rows=[row("onehot", 0.7), learned, failed])

    monkeypatch.setattr(script.Task, "compare", compare)
    monkeypatch.setattr(script.Task, "missing", lambda self: "")
    wanted = ["onehot", "instance_labels", "focal"]
    script.run([task], [0, 1], wanted, tmp_path, again=False)
    script.run([task], [0, 1], wanted, tmp_path, again=False)
    # what is there is not measured again, what has failed is; plain training always stands beside
    assert asked == [(0, wanted), (1, wanted), (0, ["focal"]), (1, ["focal"])]
    content = json.loads((tmp_path / "methods-news.json").read_text())
    assert len(content["rows"]) == 6
    shown = script.page()
    assert "| `instance_labels` | 85.0 ± 7.1 | 0.500 ± 0.000 | 0.100 ± 0.000 | 90.0 ± 0.0 | 100 | 2.0 |" in shown
    assert "| `focal` | failed | – | – | – | no | – |" in shown


def test_chosen_rows_are_a_comparison_of_their_own(script, tmp_path, monkeypatch):
    monkeypatch.setattr(script, "RESULTS", tmp_path)
    task = next(task for task in script.TASKS if task.of == "news")
    asked = []

    def compare(self, seed, methods, out, grid):
        asked.append((methods, out.name, grid))
        point = SimpleNamespace(point={key: values[0] for key, values in grid.items()})
        return SimpleNamespace(rows=[row("onehot", 0.7), row("instance_labels", 0.8, setting=point)])

    monkeypatch.setattr(script.Task, "compare", compare)
    monkeypatch.setattr(script.Task, "missing", lambda self: "")
    name = "instance_labels_exact_tuned"
    script.run([task], [0], [name], tmp_path, again=False)
    point = script.OPTIONS[name][1]
    assert asked == [(["instance_labels"], "seed0-tuned", {key: [value] for key, value in point.items()})]
    rows = json.loads((tmp_path / "methods-news.json").read_text())["rows"]
    assert [(r["name"], r["test_accuracy_last"]) for r in rows] == [(name, 0.8)]
