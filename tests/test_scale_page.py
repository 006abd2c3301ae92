"""benchmarks/scale_page.py: the measured part of docs/scale.md is that of its file."""

import json
from pathlib import Path

import pytest

from tests.support.scripts import benchmarks

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def script():
    with benchmarks("scale_page") as found:
        yield found["scale_page"]


def test_the_page_has_what_the_file_has(script):
    assert "\n".join(script.page()) in (ROOT / "docs" / "scale.md").read_text()


def test_what_is_sent_is_that_of_three_gradients(script):
    parameters = json.loads((ROOT / "benchmarks/results/step-resnet18-cuda.json").read_text())["sizes"]["parameters"]
    row = next(line for line in script.arithmetic() if "ResNet-18" in line)
    assert f"| {3 * 4 * parameters / 1e6:.0f} MB |" in row
    # of a ring of 8 each link carries 7/4 of that, at 300 GB/s
    assert f"| {12 * parameters * 7 / 4 / 300e6:.1f} ms more, " in row
