"""benchmarks/canary_coverage.py: what its file proves, and the page that is made from it."""

from pathlib import Path

import pytest

from tests.support.scripts import benchmarks

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def script():
    with benchmarks("canary_coverage") as found:
        yield found["canary_coverage"]


def test_intervals_hold_the_truth_and_no_choice_costs_more_than_half_a_point(script):
    rows = script.read()["rows"]
    count, of = script.covered(rows)
    assert of >= 100
    assert count / of >= 0.9
    assert min(row["right"] - row["readings"]["table"] for row in rows) >= -0.005
    assert {script.SETS[row["set"]][0] for row in rows} == {script.CLASS, script.INSTANCE, script.PEOPLE}


def test_the_page_is_of_the_file(script):
    page = (ROOT / "docs" / "canaries.md").read_text()
    assert "\n".join(script.page(script.read()["rows"])) in page


def test_the_page_counts_right(script):
    def row(name, rate, truth, right, table, chosen):
        share = {"rate": rate, "low": rate - 0.1, "high": rate + 0.1, "rows": 20, "truth": truth}
        readings = {"table": table, "network": right, "product": right}
        told = {"set": name, "seed": 0, "origin": "drawn", "way": "default", "right_after": right, "right": right}
        return told | {"put_right": share, "spoiled": share, "chosen": chosen, "readings": readings}

    rows = [
        row("digits-pair-30", 0.5, 0.45, 0.9, 0.8, "network"),
        row("digits-pair-30", 0.5, 0.7, 0.8, 0.81, "table"),
        row("news", 0.5, 0.2, 0.8, 0.8, "table"),
    ]
    assert script.covered(rows) == (2, 4)
    page = "\n".join(script.page(rows))
    assert "2 of 4 intervals (50%) hold the truth" in page
    assert "| digits-pair-30 | by class | drawn | -7.5 | -7.5 | +0.0 | 2 of 4 |" in page
    assert "| news | people | drawn | +30.0 | +30.0 | +0.0 | 0 of 2 |" in page
    assert "| digits-pair-30 | default | 80.5 | 85.0 | 85.0 | 85.0 | table 1, network 1 |" in page
    assert "the worst of 3 choices is -1.0 points" in page
