"""benchmarks/distance.py: the tables of docs/exact-and-approximate.md are those of its file."""

import json
from pathlib import Path

import pytest

from tests.support.scripts import benchmarks

pytest.importorskip("matplotlib")

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def script():
    with benchmarks("distance") as found:
        yield found["distance"]


def test_the_page_has_what_the_file_has(script):
    content = json.loads(script.FILE.read_text())
    assert f"{script.BEGIN}\n{script.tables(content)}\n{script.END}" in script.PAGE.read_text()


def test_looks_cost_by_default_what_the_help_says(script):
    costs = json.loads(script.FILE.read_text())["costs"]
    assert all(0.005 <= cost["share_by_default"] <= 0.02 for cost in costs)
