"""Runs by approximate steps tell how far these are from exact ones, and train as if nobody had looked."""

import json

import pytest
import torch

from fastmeta import train
from fastmeta.cli import main
from fastmeta.data import InputError
from fastmeta.meta import Distance
from fastmeta.training import LabelConfig, TrainConfig
from fastmeta.training.distances import KEYS, Distances, in_words
from fastmeta.training.listener import Listener
from fastmeta.training.prepare import prepare
from tests.support.pairs import parametrize_some
from tests.support.runs import two_classes
from tests.support.stopped import config

METHODS = ["instance_labels", "class_labels", "mwnet", "mlc"]


def lines(path):
    return [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]


def labels(method, **kw):
    return LabelConfig(update="exact", warmup_epochs=0, **kw) if method.endswith("labels") else LabelConfig(**kw)


class Seen(Listener):
    """The distances of all steps."""

    def __init__(self):
        self.found = []

    def stage(self, stage):
        step = stage.method.step

        def watched(batch):
            outcome = step(batch)
            self.found.append(outcome.distance)
            return outcome

        stage.method.step = watched

    def warning(self, text):
        pass


@parametrize_some(1, method=METHODS, approx=["last:1", "delayed", "every:2"])
def test_a_watched_run_is_the_run(method, approx, tmp_path):
    runs, seen = [], Seen()
    for name, watch_every in (("watched", 2), ("alone", 0)):
        changes = {"approx": approx, "watch_every": watch_every, "epochs": 2, "model": "mlp", "baselines": "none"}
        plan = config(tmp_path / name, method=method, labels=labels(method), **changes)
        runs.append(train(plan, data=two_classes(), listener=seen))
    watched, alone = (lines(run.path) for run in runs)
    own = set(KEYS.values())
    assert all(own <= record.keys() for record in watched[1:])
    assert not any(own & record.keys() for record in alone)
    drop = own | {"seconds"}
    assert [{k: v for k, v in r.items() if k not in drop} for r in watched] == [
        {k: v for k, v in r.items() if k not in drop} for r in alone
    ]
    names = ["model.safetensors", "labels.safetensors"] if method.endswith("labels") else ["model.safetensors"]
    for file in names:
        assert (runs[0].path / file).read_bytes() == (runs[1].path / file).read_bytes()
    # 10 steps, 5 in an epoch; of "every:2" the period of steps 4 and 5 ends in the second one
    of_steps = [d for d in seen.found[:10] if d is not None]
    assert not any(seen.found[10:])
    assert [r[KEYS["looks"]] for r in watched[1:]] == ([2, 3] if approx == "every:2" else [3, 2])
    told = runs[0].summary["distance"]
    cosines = [float(d.cosine) for d in of_steps]
    assert told["cosine"] == pytest.approx(sum(cosines) / 5)
    assert (told["least"], told["looks"], told["every"], told["approx"]) == (min(cosines), 5, 2, approx)
    assert watched[1][KEYS["least"]] == min(cosines[: watched[1][KEYS["looks"]]])
    assert "distance" not in runs[1].summary
    assert f"distance  {approx} beside the exact step: cosine {told['cosine']:.3f} (worst" in repr(runs[0])


@parametrize_some(1, store=["mmap", "host"], dtype=["bfloat16", "float32"])
def test_rows_that_lie_elsewhere_stay(store, dtype, tmp_path):
    """A delayed step is looked at by moving the labels and back."""
    rows = []
    for watch_every in (1, 0):  # the same rows, twice
        where = f"mmap:{tmp_path / f'rows{watch_every}'}" if store == "mmap" else store
        changes = {"approx": "delayed", "watch_every": watch_every, "model": "mlp", "baselines": "none"}
        stored = labels("instance_labels", store=where, dtype=dtype)
        plan = config(tmp_path / "run", labels=stored, **changes)
        stage = prepare(plan, data=two_classes()).stage("instance_labels")
        for _ in range(7):
            stage.take_step()
        rows.append([stage.method.labels.value(torch.arange(80)), *stage.model.state_dict().values()])
        stage.close()
    assert all(map(torch.equal, *rows))


def test_sums_leave_out_what_is_not_finite():
    distances, nan = Distances(torch.device("cpu")), float("nan")
    assert distances.end_epoch() == {**dict.fromkeys(KEYS.values()), KEYS["looks"]: 0}
    for numbers in ((0.5, 2.0, 1.0), (nan, 2.0, nan), (-0.25, 2.0, 1.0)):
        distances.add(Distance(*torch.tensor(numbers, dtype=torch.float64)))
    told = {"cosine": 0.125, "least": -0.25, "length": 2.0, "error": 1.0, "looks": 2}
    assert distances.end_epoch() == {KEYS[name]: value for name, value in told.items()}
    assert distances.end_epoch()[KEYS["looks"]] == 0
    assert distances.of_run() == told
    empty = {**dict.fromkeys(told), "looks": 0, "every": 5, "approx": "last:1"}
    assert in_words(empty) == "last:1 beside the exact step: nobody could look"


def test_how_often_by_default_and_where_it_is_refused():
    expected = {"none": None, "last:2": 200, "delayed": 200, "every:4": 800}
    assert {approx: TrainConfig(approx=approx).watch_choice for approx in expected} == expected
    assert TrainConfig(approx="last:1", watch_every=0).watch_choice is None
    assert TrainConfig(watch_every=0).watch_choice is None
    assert TrainConfig(labels=LabelConfig(tangent="difference"), watch_every=7).watch_choice == 7
    # whose steps are delayed by what the method is
    assert TrainConfig(method="emlc", labels=LabelConfig(tangent="difference")).watch_choice is None
    for changes in ({}, {"method": "onehot"}, {"method": "emlc"}, {"method": "mwnet", "compile": "trace"}):
        with pytest.raises(InputError, match="watch_every=5 looks how far inexact steps are from exact ones"):
            TrainConfig(watch_every=5, **changes)
    with pytest.raises(InputError, match="watch_every must be at least 0, got -1"):
        TrainConfig(approx="last:1", watch_every=-1)


def test_what_the_terminal_and_the_page_say(tmp_path, monkeypatch, capsys):
    pytest.importorskip("matplotlib")
    monkeypatch.chdir(tmp_path)
    flags = "--dataset digits --model mlp --epochs 2 --approx last:1 --watch-every 10 --baselines none"
    run = tmp_path / "with figures"
    assert main(["train", *flags.split(), "--labels.canaries", "off", "--out", run.name]) == 0
    printed = " ".join(capsys.readouterr().out.split())
    told = json.loads((run / "summary.json").read_text())["distance"]
    last = lines(run)[-1]
    assert f"cosine {last[KEYS['cosine']]:.2f} (worst {last[KEYS['least']]:.2f})" in printed
    assert f"last:1 beside the exact step: cosine {told['cosine']:.3f} (worst {told['least']:.3f})" in printed
    assert (run / "figures" / "distance.png").is_file()
    assert main(["show", run.name]) == 0
    assert "last:1 beside the exact step: cosine" in capsys.readouterr().out
    page = (run / "report.html").read_text()
    assert "Steps by last:1 beside exact ones" in page
    assert f"cosine: {told['cosine']:.2f}" in page
    assert main(["show", run.name, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)[0][KEYS["cosine"]] == told["cosine"]
