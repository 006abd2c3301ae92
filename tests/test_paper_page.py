"""benchmarks/paper_page.py: docs/paper-cpu.md is what the files hold, and its figures are there."""

import json
import re
from pathlib import Path

import pytest

from tests.support.scripts import benchmarks

ROOT = Path(__file__).parents[1]
#: bytes of a figure, at most
MOST_BYTES = 500_000


@pytest.fixture(scope="module")
def script():
    with benchmarks("paper_page") as found:
        yield found["paper_page"]


def test_the_page_has_what_the_files_have(script):
    assert script.page() == script.PAGE.read_text()


def test_its_figures_are_there_and_small(script):
    named = re.findall(r"\]\((paper-cpu/[^)]*)\)", script.PAGE.read_text())
    assert {Path(name).name for name in named} == {file.name for file in script.FIGURES.iterdir()}
    assert all(0 < (script.PAGE.parent / name).stat().st_size < MOST_BYTES for name in named)


def test_every_run_of_the_files_is_whole(script):
    for name in script.ORDER:
        content = json.loads(script.result_file(name).read_text())
        assert content["scale"] == "cpu"
        assert content["complete"]
        assert not content["environment"]["dirty"]
        assert "/" not in content["environment"]["command"].replace("runs/paper-cpu", "")
        assert len(content["seeds"]) == 3


def cell(mean, std=None, published=None, optimistic=False):
    return {"published": published, "measured": {"mean": mean, "std": std}, "optimistic": optimistic}


def test_a_table_has_published_numbers_beside_measured_ones(script):
    rows = [
        {"row": "baseline", "cells": {"a": cell(71.23, 0.5, {"mean": 77.1, "std": 0.3})}, "in_paper": True},
        {"row": "clean alone", "cells": {"a": cell(60.0, optimistic=True)}, "in_paper": False},
    ]
    rows = [row | {"clean_data": "no", "tuning_budget": "none"} for row in rows]
    lines = script.table({"columns": ["a"], "rows": rows, "unit": "test accuracy, %"})
    assert lines[0] == "|  | a: published | a: here | clean data | settings tried |"
    assert lines[2] == "| baseline | 77.1 ± 0.3 | 71.2 ± 0.5 | no | none |"
    assert lines[3] == "| clean alone † | – | 60.0° | no | none |"
    assert lines[5].endswith("° optimistic: on rows that have also tuned the run.")


def test_what_is_not_finished_is_not_taken(script, tmp_path, monkeypatch):
    monkeypatch.setattr(script, "FIGURES", tmp_path / "figures")
    (tmp_path / "table1").mkdir()
    (tmp_path / "table1" / "result.json").write_text(json.dumps({"scale": "cpu", "complete": False}))
    with pytest.raises(SystemExit, match="run it to its end"):
        script.take(tmp_path)
