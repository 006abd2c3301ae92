"""Modules that lie outside of the package, and what a run has written, to compare."""

import json
import sys
import textwrap

import pytest


@pytest.fixture
def plug(tmp_path, monkeypatch):
    """Writes a module that lies outside of the package and is found by its name."""
    folder = tmp_path / "elsewhere"
    folder.mkdir()
    monkeypatch.syspath_prepend(str(folder))
    names = []

    def write(name, text):
        (folder / f"{name}.py").write_text(textwrap.dedent(text))
        names.append(name)
        return name

    yield write
    for name in names:
        sys.modules.pop(name, None)


def files(path):
    metrics = [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]
    return (
        {p.name: p.read_bytes() for p in path.iterdir() if p.suffix in (".safetensors", ".npz", ".toml")},
        [{k: v for k, v in record.items() if k != "seconds"} for record in metrics],
        json.loads((path / "summary.json").read_text())["digest"],
    )
