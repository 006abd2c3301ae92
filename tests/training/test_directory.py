"""A run's directory: one process at a time, and names that two runs do not share."""

from pathlib import Path

import pytest

from fastmeta.data import InputError
from fastmeta.training import TrainConfig, train
from fastmeta.training.directory import make_directory, only_process
from fastmeta.training.listener import Listener
from tests.training.test_resume import assert_same, config
from tests.training.test_run import two_classes


class Beside(Listener):
    """Tries to begin and to go on in the directory of a run that is under way."""

    def __init__(self, path):
        self.path, self.said = path, []

    def step(self, stage):
        if stage.step == 2 and not self.said:
            state = (self.path / "config.toml").read_bytes()
            for way in ({"resume": self.path}, {"config": config(self.path)}):
                with pytest.raises(InputError) as said:
                    train(**way, data=two_classes())
                self.said.append(str(said.value))
            assert (self.path / "config.toml").read_bytes() == state


def test_one_process_at_a_time_has_a_directory(unbroken, tmp_path):
    path = tmp_path / "run"
    beside = Beside(path)
    train(config(path), data=two_classes(), listener=beside)
    assert "is in use by another process" in beside.said[0]
    assert (
        f"is not empty; choose another --out, or go on with that run: fastmeta train --resume {path}"
        in (beside.said[1])
    )
    assert_same(path, unbroken)
    with only_process(path):  # free again
        pass


def test_runs_that_begin_together_take_different_names(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    mkdir, rival = Path.mkdir, Path("runs/digits-instance_labels-seed0")

    def beaten(self, *args, **options):
        if self == rival and not rival.exists():
            mkdir(self, parents=True)  # between the other's look and its own mkdir
        return mkdir(self, *args, **options)

    monkeypatch.setattr(Path, "mkdir", beaten)
    assert make_directory(TrainConfig()) == Path("runs/digits-instance_labels-seed0-2")
