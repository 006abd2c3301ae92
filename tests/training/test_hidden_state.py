"""A resumed run is bitwise the unbroken one, whatever a model's forward draws from and moves beside its state_dict."""

import itertools
import os
import random
import signal
import subprocess
import sys
from decimal import Decimal
from pathlib import Path

import pytest
import torch

from fastmeta import train
from fastmeta.training import Interrupted, load_run
from tests.support.hidden import MODELS, Attributes, Base, NumpyDraws, PythonDraws, legacy
from tests.support.runs import Warnings, two_classes
from tests.support.stopped import Kill, assert_same, config

RESUMED = """
import sys
from fastmeta import train
from tests.support import hidden as models
from tests.support.runs import Warnings, two_classes
listener = Warnings()
train(resume=sys.argv[1], model=getattr(models, sys.argv[2])(), data=two_classes(), listener=listener)
print("\\n".join(t for t in listener.texts if "bitwise" in t))
"""


def options(method):
    return {"model": None, "baselines": "noisy", "method": method}


def broken(tmp_path, model, method, at):
    """An unbroken run, and one that was stopped; both with one module, as they stand beside each other."""
    listener = Warnings()
    unbroken = train(
        config(tmp_path / "unbroken", **options(method)), model=model, data=two_classes(), listener=listener
    )
    with pytest.raises(Interrupted):
        train(
            config(tmp_path / "run", **options(method)),
            model=model,
            data=two_classes(),
            listener=Kill(signal.SIGTERM, *at),
        )
    return unbroken, tmp_path / "run", [t for t in listener.texts if "bitwise" in t]


@pytest.mark.parametrize("kind", MODELS, ids=lambda k: k.__name__)
def test_fixed_labels_go_on_bitwise_with_a_module_made_anew(kind, tmp_path):
    unbroken, path, warned = broken(tmp_path, kind(), "onehot", ("onehot", 7))
    assert warned == []
    train(resume=path, model=kind(), data=two_classes(), listener=Warnings())
    for name in ("model.safetensors", "config.toml"):
        assert (path / name).read_bytes() == (unbroken.path / name).read_bytes()
    # and what is loaded is what was trained, with all that forward uses
    x = torch.randn(3, 1, 4, 4)
    again = load_run(path, model=kind()).model
    assert torch.equal(again(x), unbroken.model(x))
    if kind is Attributes:
        assert again.steps == unbroken.model.steps > 10
        assert (again.log, again.last) == (unbroken.model.log, unbroken.model.last)


@pytest.mark.parametrize("kind", MODELS, ids=lambda k: k.__name__)
def test_learned_labels_go_on_bitwise(kind, tmp_path):
    unbroken, path, warned = broken(tmp_path, kind(), "instance_labels", ("instance_labels", 8))
    assert warned == []
    train(resume=path, model=kind(), data=two_classes(), listener=Warnings())
    assert_same(path, unbroken.path)


@pytest.mark.slow
@pytest.mark.parametrize("at", [("instance_labels", 3), ("noisy", 6)])
@pytest.mark.parametrize("kind", MODELS, ids=lambda k: k.__name__)
def test_in_another_process(kind, at, tmp_path):
    unbroken, path, _ = broken(tmp_path, kind(), "instance_labels", at)
    root = Path(__file__).parents[2]
    script = [sys.executable, "-c", RESUMED, str(path), kind.__name__]
    environment = {**os.environ, "PYTHONPATH": str(root), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(script, cwd=root, env=environment, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == ""
    assert_same(path, unbroken.path)


@pytest.mark.parametrize("kind", [PythonDraws, NumpyDraws])
def test_a_run_is_a_function_of_its_seed_and_the_callers_generators_stay(kind, tmp_path):
    paths = []
    for k in range(2):
        random.seed(k)
        legacy.seed(k)
        torch.manual_seed(k)
        before = random.getstate(), legacy.get_state()[1].tolist(), torch.get_rng_state()
        paths.append(
            train(
                config(tmp_path / str(k), **options("onehot")), model=kind(), data=two_classes(), listener=Warnings()
            ).path
        )
        kind()  # draws no more than torch's
        torch.manual_seed(k)
        after = random.getstate(), legacy.get_state()[1].tolist(), torch.get_rng_state()
        assert before[:2] == after[:2]
        assert torch.equal(before[2], after[2])
    assert (paths[0] / "model.safetensors").read_bytes() == (paths[1] / "model.safetensors").read_bytes()


class Cycling(Base):
    def __init__(self):
        super().__init__()
        self.cycle = itertools.cycle([0.0, 0.1, 0.2])

    def scale(self):
        return next(self.cycle)


class SlotMeter:
    __slots__ = ("inner",)

    def __init__(self):
        self.inner = Decimal(0)


class Opaque(Base):
    def __init__(self):
        super().__init__()
        self.meter = SlotMeter()

    def scale(self):
        self.meter.inner += 1
        return 0.01 * float(self.meter.inner)


COUNT = [0]


class Global(Base):
    def scale(self):
        COUNT[0] += 1
        return 0.001 * COUNT[0]


@pytest.mark.parametrize(
    ("kind", "why"),
    [
        (Cycling, "attribute cycle of the model"),
        (Opaque, "attribute meter.inner of the model"),
        (Global, "forward uses what is outside of the module"),
    ],
)
def test_what_cannot_be_saved_is_said_at_the_start(kind, why, tmp_path):
    listener = Warnings()
    train(config(tmp_path / "run", **options("onehot")), model=kind(), data=two_classes(), listener=listener)
    (text,) = [t for t in listener.texts if "will not be bitwise" in t]
    assert why in text
    assert "\n" not in text
