"""The README's code runs, its commands parse, its tables are those of the measurements, and it is short."""

import contextlib
import importlib.util
import io
import json
import re
import shlex

import pytest

from tests.support.commands import ROOT, parse
from tests.support.guides import blocks

README = ROOT / "README.md"


def test_it_is_short():
    assert len(README.read_text().split()) <= 600


def test_its_figure_is_there_and_small():
    (name,) = re.findall(r"!\[[^\]]+\]\(([^)]+)\)", README.read_text())
    assert 1_000 < (ROOT / name).stat().st_size < 500_000


def test_the_loop_runs_and_learns():
    pytest.importorskip("sklearn")
    (block,) = [b for b in blocks(README) if b.language == "python"]
    assert sum(bool(line.strip()) for line in block.text.splitlines()) <= 16
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        exec(block.text, {})
    given, learned = map(int, re.findall(r"(\d+)%", printed.getvalue()))
    assert learned > given + 20


def test_the_commands_exist():
    pytest.importorskip("tyro")
    lines = [line for b in blocks(README) if b.language == "sh" for line in b.text.splitlines()]
    inline = [
        line for line in re.findall(r"`([^`\n]+)`", README.read_text()) if line.startswith(("fastmeta ", "./dev "))
    ]
    seen = {parse(words) for line in (*lines, *inline) if (words := shlex.split(line, comments=True))}
    assert seen >= {"train", "test"}


def readme_table():
    spec = importlib.util.spec_from_file_location("readme_table", ROOT / "benchmarks" / "readme_table.py")
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    return script


def test_the_tables_are_those_of_the_measurements():
    script = readme_table()
    for page, made in (
        (README, script.short()),
        (ROOT / "docs" / "benchmarks.md", script.page()),
    ):
        there = page.read_text().split(script.BEGIN)[1].split(script.END)[0]
        assert "\n".join(made).strip() in there, f"{page.name}: run benchmarks/readme_table.py"


def test_the_table_of_peers_is_made_of_what_was_timed(tmp_path, monkeypatch):
    script = readme_table()
    monkeypatch.setattr(script, "HERE", tmp_path)
    assert script.peers() == []
    timed = {"naive": "naive:mwnet", "milliseconds": 8.0, "error": 2e-16}
    rows = [
        {**timed, "variant": "naive:mwnet", "ratios": {"naive:mwnet": 1.0}, "error": 0.0},
        {**timed, "variant": "mwnet", "ratios": {"naive:mwnet": 0.5}, "milliseconds": 4.0},
        {"variant": "mwnet:full", "naive": None, "milliseconds": None, "ratios": None, "error": None},
    ]
    (tmp_path / "results").mkdir()
    machine = {"cpu": {"model": "a core", "capability": "AVX2"}, "torch": "2.11.0"}
    (tmp_path / "results" / "step-peers-mlp-cpu.json").write_text(json.dumps({"rows": rows, "environment": machine}))
    assert script.peers()[-1].endswith("Measured on a core, AVX2, torch 2.11.0.")
    assert [line for line in script.peers() if line.startswith("| ")] == [
        "| loss | step | MLP, ms | × faster | error |",
        "| MW-Net | naive autograd | 8.0 | 1.00 |  |",
        "|  | fastmeta | 4.0 | 2.00 | 2e-16 |",
    ]


def test_the_counts_of_forwards_were_measured():
    """Of every way in the table: ResNet-20's, and the MLP's in brackets."""
    text = (ROOT / "docs" / "exact-and-approximate.md").read_text()
    rows = dict(re.findall(r"^\| (default|`(?:compile|approx)=\S+`) \| ([\d.]+ \([\d.]+\)) \|", text, re.M))
    counted: dict[str, list[str]] = {}
    for model in ("resnet20", "mlp"):
        results = ROOT / "benchmarks" / "results"
        steps = json.loads((results / f"step-{model}-cpu.json").read_text())["rows"]
        forwards = {row["variant"]: row["forwards"] for row in steps}
        names = {"default": "fastmeta", '`compile="trace"`': "fastmeta:trace", '`compile="full"`': "fastmeta:full"}
        found = {name: forwards[variant] for name, variant in names.items()}
        for row in json.loads((results / f"approx-{model}-cpu.json").read_text())["models"][0]["rows"]:
            if row["approx"] != "exact":
                found[f'`approx="{row["approx"]}"`'] = row["forwards"]
        for name, value in found.items():
            counted.setdefault(name, []).append(f"{round(value, 1):g}")
    assert rows == {name: f"{conv} ({mlp})" for name, (conv, mlp) in counted.items()}
