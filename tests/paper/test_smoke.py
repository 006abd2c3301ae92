"""Every table and figure at scale smoke: its runs, its sign, its files. Minutes: CI runs this file by itself.

With ``-n 2 --dist loadgroup`` those that share runs stay together.
"""

import json

import pytest

from fastmeta.cli import main
from fastmeta.paper import ARTEFACTS

pytestmark = pytest.mark.slow

#: artefacts whose runs are under noise
NOISY = ("table6", "table7", "figure3", "figure4", "claims")
#: bytes of a figure, at most
MOST_BYTES = 500_000


@pytest.fixture(scope="module")
def out(tmp_path_factory):
    """One folder for all of a group, so that artefacts share their runs."""
    return tmp_path_factory.mktemp("paper") / "out"


def grouped(name):
    return pytest.param(name, marks=pytest.mark.xdist_group("noisy" if name in NOISY else "folds"))


@pytest.mark.parametrize("name", [grouped(name) for name in ARTEFACTS])
def test_smoke(name, out):
    assert main(["reproduce", name, "--scale", "smoke", "--out", str(out)]) == 0
    told = json.loads((out / name / "result.json").read_text())
    assert told["complete"]
    assert told["failed"] == {}
    signs = [claim["verdict"] for claim in told["claims"] if claim["asserted_at_smoke"]]
    assert signs
    assert set(signs) == {"reproduced"}
    for file in ("table.md", "table.csv", "report.html"):
        assert (out / name / file).stat().st_size > 0
    for figure in told["figures"]:
        assert 0 < (out / name / figure["file"]).stat().st_size < MOST_BYTES
    assert told["rows"] or told["figures"]
