"""The notebook of one's own data runs, cell by cell, without Jupyter."""

import json
import re

import numpy as np
import pytest

from tests.support.guides import DOCS

NOTEBOOK = DOCS / "own-data.ipynb"


@pytest.fixture(scope="module")
def cells():
    notebook = json.loads(NOTEBOOK.read_text(encoding="utf-8"))
    assert (notebook["nbformat"], notebook["nbformat_minor"]) == (4, 5)
    return notebook["cells"]


def test_it_is_text_alone(cells):
    """Outputs would be others' files in the repository."""
    assert len({cell["id"] for cell in cells}) == len(cells)
    for cell in cells:
        assert cell["cell_type"] in ("markdown", "code")
        if cell["cell_type"] == "code":
            assert (cell["outputs"], cell["execution_count"]) == ([], None)


def test_its_links_lead_somewhere(cells):
    text = "".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "markdown")
    for target in re.findall(r"\]\(([^)#]+)", text):
        assert (DOCS / target).exists()


def test_it_runs_from_top_to_bottom(cells, tmp_path, monkeypatch, capsys):
    pyplot = pytest.importorskip("matplotlib.pyplot")
    pytest.importorskip("sklearn")
    pyplot.switch_backend("Agg")
    monkeypatch.chdir(tmp_path)
    sources = ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]
    assert len(sources[0].splitlines()) <= 15
    names: dict = {"__name__": "notebook"}
    for source in sources:
        exec(compile(source, NOTEBOOK.name, "exec"), names)
    labels, true = names["labels"], names["data"]["y_true"]
    assert (labels["learned"] == true).mean() > (labels["given"] == true).mean() + 0.15
    assert (names["learner"].labels_ == names["names"][true]).mean() > (labels["given"] == true).mean() + 0.15
    assert (tmp_path / "my-run" / "report.html").exists()
    issues = (tmp_path / "issues.csv").read_text().splitlines()
    assert len(issues) == 601
    assert np.sum(["True" in line for line in issues]) == names["changed"].sum()
    assert "labels changed" in capsys.readouterr().out
    pyplot.close("all")
