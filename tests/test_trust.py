"""Files of strangers are data: what they name is not imported, and what lies in the current folder is not either."""

import dataclasses
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from fastmeta import models, train
from fastmeta.cli import main
from fastmeta.data import InputError
from fastmeta.training import Interrupted, TrainConfig, load_run
from fastmeta.training.estimate import dry_run
from tests.support.runs import two_classes
from tests.support.stopped import Kill, assert_same

ROOT = Path(__file__).parents[1]
REFUSED = r"model: 'strange:build' names code and comes from a file: .* --trust-code \(in Python trust_code=True\)"


@pytest.fixture
def strange(tmp_path, monkeypatch):
    """A module in the current folder; the list that this gives has one entry for each time it was imported."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    (tmp_path / "strange.py").write_text(
        "import builtins, torch\n"
        "builtins.imported.append(1)\n"
        "def build(num_classes): return torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(16, num_classes))\n"
    )
    imported = []
    monkeypatch.setattr("builtins.imported", imported, raising=False)
    yield imported
    sys.modules.pop("strange", None)


def config(**changes):
    return TrainConfig(**{"epochs": 2, "threads": 1, "model": "strange:build", "out": "run", **changes})


def test_code_that_a_run_names_is_imported_only_when_trusted(strange, monkeypatch, tmp_path):
    monkeypatch.syspath_prepend(tmp_path)
    run = train(config(), data=two_classes())  # named in Python: the caller's own
    assert len(strange) == 1
    with pytest.raises(Interrupted) as stopped:
        train(config(out="stopped"), data=two_classes(), listener=Kill(2, "instance_labels", 1))
    assert stopped.value.way == "fastmeta train --resume stopped --trust-code"
    del sys.modules["strange"], strange[:]

    for read in (
        load_run,
        lambda path: train(resume=path),
        lambda path: train(resume="stopped", data=two_classes()),
        lambda path: train(TrainConfig.read(path / "config.toml"), data=two_classes()),
        lambda path: train(dataclasses.replace(TrainConfig.read(path / "config.toml"), seed=1), data=two_classes()),
        lambda path: train(TrainConfig.from_mapping({"model": "strange:build"}), data=two_classes()),
        lambda path: dry_run(TrainConfig.from_mapping({"model": "strange:build"})),
    ):
        with pytest.raises(InputError, match=REFUSED):
            read(run.path)
    assert strange == []
    # a module of the reader's own needs none of it
    given = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(16, 2))
    assert torch.equal(load_run(run.path, model=given).model[1].weight, run.model[1].weight)
    assert strange == []
    assert torch.equal(load_run(run.path, trust_code=True).model[1].weight, run.model[1].weight)
    train(resume="stopped", data=two_classes(), trust_code=True)
    assert_same(Path("stopped"), run.path)
    assert len(strange) == 1


def test_the_command_trusts_what_its_line_names(strange, capsys):
    np.savez("two.npz", **two_classes())
    named = ["train", "--dataset", "npz:two.npz", "--threads", "1", "--epochs", "1"]
    Path("evil.toml").write_text('model = "strange:build"\n')
    for line in (["--config", "evil.toml"], ["--config=evil.toml", "--dry-run"]):
        assert main([*named, *line]) == 2
        assert "names code and comes from a file" in capsys.readouterr().err
    assert os.getcwd() not in sys.path
    assert strange == []
    assert main([*named, "--config", "evil.toml", "--model", "mlp", "--out", "plain"]) == 0
    assert strange == []
    assert main([*named, "--model", "strange:build", "--out", "run"]) == 0
    assert len(strange) == 1
    assert sys.path[-1] == os.getcwd()  # behind all that is installed
    assert main([*named, "--config", "evil.toml", "--trust-code", "--out", "trusted"]) == 0
    assert main(["train", "--resume", "run"]) == 2
    assert "names code and comes from a file" in capsys.readouterr().err
    assert main(["train", "--resume", "run", "--trust-code"]) == 0
    assert main(["train", "--resume", "run", "--trust-code", "--epochs", "3"]) == 2


@pytest.mark.parametrize("name", ["torchvision:get_model", "torchvision:../../strange", "torchvision:os.system"])
def test_only_classifiers_of_torchvision_are_had_by_name(name):
    pytest.importorskip("torchvision")
    with pytest.raises(ValueError, match=r"expected one of its \d+ classifiers"):
        models.build(name, num_classes=3)


def test_no_name_loads_weights(monkeypatch):
    pytest.importorskip("torchvision")

    def load(*_, **__):
        raise AssertionError("weights are loaded")

    monkeypatch.setattr(torch.hub, "load_state_dict_from_url", load)
    assert models.build("torchvision:squeezenet1_1", num_classes=3)


def test_what_lies_in_the_current_folder_is_not_imported(tmp_path):
    """Modules of Python, of its libraries and of nobody's, that torch and the trainer import."""
    for name in ("statistics", "fractions", "timeit", "tomllib", "tyro", "torchvision", "strange"):
        (tmp_path / f"{name}.py").write_text("raise SystemExit('evil')")
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.toml").write_text('model = "strange:build"\n')
    done = subprocess.run(
        [sys.executable, "-m", "fastmeta", "train", "--config", "run/config.toml", "--dry-run"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert "names code and comes from a file" in done.stderr, done.stderr
    assert (done.returncode, "evil" in done.stderr) == (2, False)
