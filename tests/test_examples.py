"""The examples run and reach what they say."""

import importlib.util
import re
import runpy
from pathlib import Path

import pytest
import torch

import fastmeta
from tests.support import lightning as stand_in

EXAMPLES = Path(__file__).parents[1] / "examples"


def figures(text):
    return [float(number) for number in re.findall(r"([\d.]+)%", text)]


def test_the_loop_prints_what_it_reaches(capsys):
    pytest.importorskip("sklearn")
    runpy.run_path(str(EXAMPLES / "loop.py"), run_name="__main__")
    plain, learned = map(figures, capsys.readouterr().out.splitlines())
    assert learned[0] > plain[0] + 3  # of the test images
    assert learned[1] > plain[1] + 15  # of the labels


@pytest.fixture(params=["lightning", "stand-in"])
def lightning(request, monkeypatch):
    """Lightning itself where it is installed, and a stand-in that behaves as it does everywhere."""
    if request.param == "stand-in":
        stand_in.install(monkeypatch)
    else:
        pytest.importorskip("lightning", reason="lightning is not installed; the stand-in has run")


def test_lightning_learns_labels(lightning, capsys):
    spec = importlib.util.spec_from_file_location("lightning_loop", EXAMPLES / "lightning_loop.py")
    example = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(example)
    module = example.main(epochs=8)
    given, learned = figures(capsys.readouterr().out.splitlines()[-1])
    assert learned > given + 5
    assert module.trainer.global_step == module.step.steps == 80  # Lightning counts its steps, too
    assert isinstance(module.step, fastmeta.MetaStep)
    # a checkpoint brings the labels and the step back
    checkpoint = {"state_dict": module.state_dict()}
    module.on_save_checkpoint(checkpoint)
    other = example.LearnedLabels(module.model, torch.zeros(1000, dtype=torch.int64), num_classes=4)
    other.load_state_dict(checkpoint["state_dict"])
    other.on_load_checkpoint(checkpoint)
    other.trainer = module.trainer
    other.on_train_start()
    assert other.step.steps == 80
    assert torch.equal(other.labels.label_logits, module.labels.label_logits)
