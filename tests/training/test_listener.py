"""fastmeta.Listener: a logger that hears every event, in its order."""

import json
import math

import pytest

import fastmeta
from fastmeta.training import DataConfig, InputError, TrainConfig
from tests.support.runs import two_classes


class Logger(fastmeta.Listener):
    """What an adapter to a tracker of experiments would be: scalars by name and step, texts, a summary."""

    def __init__(self):
        self.events, self.scalars, self.steps = [], {}, {}

    def begin(self, path, config, splits, device):
        self.events.append("begin")
        self.path, self.config, self.size, self.device = path, config.to_mapping(), len(splits.train), device

    def stage(self, stage):
        self.events.append(f"stage {stage.name}")

    def step(self, stage):
        self.steps[stage.name] = self.steps.get(stage.name, 0) + 1
        assert stage.step == self.steps[stage.name] <= stage.total

    def epoch(self, stage, record):
        self.events.append(f"epoch {stage.name} {record['epoch']}")
        assert record["epoch"] * stage.steps_per_epoch == stage.step
        for name, value in record.items():
            if isinstance(value, float):
                self.scalars.setdefault(f"{stage.name}/{name}", []).append((stage.step, value))

    def note(self, text):
        self.events.append(f"note {text}")

    def warning(self, text):
        self.events.append("warning")
        self.told = text

    def end(self, path, summary):
        self.events.append("end")
        self.summary = summary


def config(out, **more):
    data = DataConfig(batch_size=20)
    return TrainConfig(model="mlp", epochs=2, threads=1, data=data, out=str(out), baselines="noisy", **more)


def test_a_logger_hears_every_event(tmp_path):
    logger = Logger()
    data = two_classes()
    data["x_meta"], data["y_meta"] = data["x_meta"][data["y_meta"] == 1], data["y_meta"][data["y_meta"] == 1]
    run = fastmeta.train(config(tmp_path / "run"), data=data, listener=logger)
    assert logger.events == [
        "begin",
        "warning",  # the clean set has no image of a class
        "note canaries: none, 4 clean rows are too few to spare some, 200 are enough",
        "stage instance_labels",
        *(f"epoch instance_labels {k}" for k in (1, 2)),
        "stage noisy",
        *(f"epoch noisy {k}" for k in (1, 2)),
        "end",
    ]
    assert logger.steps == {"instance_labels": 8, "noisy": 8}
    assert (logger.path, logger.size, logger.device) == (run.path, 80, "cpu")
    assert logger.config["epochs"] == 2
    assert "clean set has no image" in logger.told
    assert logger.summary == run.summary
    # what it has heard is what stands in the run's file
    for line in (run.path / "metrics.jsonl").read_text().splitlines():
        record = json.loads(line)
        if record["epoch"] == 0:  # before the first step
            continue
        for name, value in record.items():
            if isinstance(value, float):
                assert (record["step"], value) in logger.scalars[f"{record['run']}/{name}"]
    assert all(math.isfinite(value) for _, value in logger.scalars["instance_labels/train_loss"])
    # a run that is finished already has nothing to tell but that
    again = Logger()
    with pytest.raises(InputError, match="not empty"):
        fastmeta.train(config(tmp_path / "run"), data=data, listener=again)
    assert again.events == []


def test_the_default_is_silent_and_a_run_without_listener_the_same(tmp_path, capsys):
    first = fastmeta.train(config(tmp_path / "a"), data=two_classes(), listener=fastmeta.Listener())
    second = fastmeta.train(config(tmp_path / "b"), data=two_classes())
    assert capsys.readouterr() == ("", "")
    assert first.summary["digest"] == second.summary["digest"]


def test_what_a_listener_raises_ends_the_run_and_it_goes_on(tmp_path):
    class Broken(fastmeta.Listener):
        def epoch(self, stage, record):
            if record["epoch"] == 1:
                raise ConnectionError("the tracker is down")

    with pytest.raises(ConnectionError, match="tracker"):
        fastmeta.train(config(tmp_path / "a", checkpoint_seconds=0), data=two_classes(), listener=Broken())
    run = fastmeta.train(resume=tmp_path / "a", data=two_classes())
    whole = fastmeta.train(config(tmp_path / "b", checkpoint_seconds=0), data=two_classes())
    assert run.summary["digest"] == whole.summary["digest"]
