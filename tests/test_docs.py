"""The pages of docs/ are true: their code runs, their paths exist, and a guide that is followed leads where it says."""

import importlib.util
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.support.guides import DOCS, ROOT, blocks, follow

PAGES = sorted(DOCS.glob("*.md"))
PYTHON = [
    page for page in PAGES if any(b.language == "python" for b in blocks(page)) and page.stem != "add-an-operation"
]


def checkout(folder: Path) -> Path:
    """A copy of what the repository tracks that a library is built from and tested with, libraries included."""
    for name in ("csrc", "fastmeta", "tests", "docs"):
        skip = shutil.ignore_patterns("__pycache__", "results", "*.pyc")
        shutil.copytree(ROOT / name, folder / name, ignore=skip)
    for name in ("setup.py", "pyproject.toml", "README.md", "LICENSE", ".clang-format"):
        shutil.copy(ROOT / name, folder / name)
    return folder


def run(*command: object, root: Path, **env: str) -> str:
    environment = {**os.environ, "PYTHONPATH": str(root), "OMP_NUM_THREADS": "1", **env}
    done = subprocess.run(
        list(map(str, command)), cwd=root, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, (done.stdout + done.stderr)[-4000:]
    return done.stdout


def prose(page: Path) -> str:
    return re.sub(r"^```.*?^```\n", "", page.read_text(), flags=re.M | re.S)


@pytest.mark.parametrize("page", PYTHON, ids=lambda page: page.stem)
def test_the_python_of_a_page_runs_from_top_to_bottom(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    monkeypatch.setattr(sys, "path", [*sys.path, str(tmp_path)])
    written = set(follow(page, tmp_path))  # new files of the user's own
    names: dict = {"__name__": page.stem}
    for block in blocks(page):
        if block.language == "python" and not any(f"`{name}`" in block.before for name in written):
            exec(compile(block.text, f"{page.name}", "exec"), names)


def test_every_path_that_a_page_names_is_there():
    """Written as `folder/file` in the text; those of a guide to be made are not."""
    missing = []
    for page in [*PAGES, ROOT / "README.md", ROOT / "CONTRIBUTING.md"]:
        text = prose(page)
        new = set(re.findall(r"new\sfile\s`([^`]+)`", text))
        for name in set(re.findall(r"`((?:fastmeta|csrc|tests|docs|benchmarks|examples|\.ci)/[\w./-]*)`", text)) - new:
            if not (ROOT / name).exists():
                missing.append(f"{page.name}: {name}")
    assert not missing


def test_every_link_leads_somewhere():
    broken = []
    for page in [*PAGES, ROOT / "README.md", ROOT / "CONTRIBUTING.md"]:
        for target in re.findall(
            r"\]\(([^)#\s]+)(?:#[^)]*)?\)", re.sub(r"^```.*?^```\n", "", page.read_text(), flags=re.M | re.S)
        ):
            if not target.startswith("http") and not (page.parent / target).exists():
                broken.append(f"{page.name}: {target}")
    assert not broken


def test_add_an_operation_fits_the_sources(tmp_path):
    """Every place that it names is there, once; the slow test builds what comes of it."""
    follow(DOCS / "add-an-operation.md", checkout(tmp_path))


@pytest.mark.slow
@pytest.mark.skipif(shutil.which(os.environ.get("CXX", "c++")) is None, reason="no C++ compiler")
def test_add_an_operation_followed_word_by_word(tmp_path):
    root = checkout(tmp_path)
    written = follow(DOCS / "add-an-operation.md", root)
    assert {"csrc/cpu/row_sum.cpp", "csrc/cuda/row_sum.cu", "fastmeta/ops/row_sum.py"} <= set(written)
    run(sys.executable, "setup.py", "-q", "build_ext", "--inplace", root=root, FASTMETA_CUDA="0", MAX_JOBS="2")
    tests = ["tests/ops/test_truth.py", "tests/ops/test_registration.py", "-k", "row_sum or guarded"]
    out = run(sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *tests, root=root)
    assert re.search(r"\d\d passed", out) or "[100%]" in out
    if nvcc := shutil.which("nvcc"):
        run(nvcc, "-std=c++20", "-arch=sm_90", "-cubin", "-o", root / "x.cubin", "csrc/cuda/row_sum.cu", root=root)


#: what a newcomer looks for: docs/architecture.md has a row for each
QUESTIONS = 10


def test_the_table_of_places_names_what_is_there():
    """Each row: what, `path`, and a `word` that stands in that file."""
    text = (DOCS / "architecture.md").read_text().split("## Where is ...", 1)[1].split("\n## ", 1)[0]
    rows = re.findall(r"^\| (.+?) \| \[?`([^`]+)`.*? \| `([^`]+)` \|$", text, re.M)
    assert len(rows) >= QUESTIONS
    for what, path, word in rows:
        assert word in (ROOT / path).read_text(), f"{what}: {path} does not hold {word!r}"


def commands():
    for page in [*PAGES, ROOT / "CONTRIBUTING.md"]:
        for block in blocks(page):
            if block.language == "sh":
                for line in block.text.splitlines():
                    if words := shlex.split(line, comments=True):
                        yield pytest.param(words, id=f"{page.stem}: {line[:40]}")


@pytest.mark.parametrize("words", list(commands()))
def test_a_command_of_a_page_parses(words):
    from tests.support.commands import parse

    parse(words)


@pytest.mark.parametrize("name", ["epoch_lookahead", "lookahead_steps"])
def test_the_tables_of_a_look_ahead_are_those_of_its_file(name, monkeypatch):
    pytest.importorskip("sklearn")
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    spec = importlib.util.spec_from_file_location(name, ROOT / "benchmarks" / f"{name}.py")
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    page, files = script.PAGE.read_text(), [script.RESULT, *([script.WORTH] if hasattr(script, "WORTH") else [])]
    assert script.with_tables(page, *(json.loads(file.read_text()) for file in files)) == page
