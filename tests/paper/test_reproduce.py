"""``fastmeta reproduce``: runs that artefacts share, failures, kills, what is written, bad input."""

import csv
import json
import signal
import subprocess
import sys

import numpy as np
import pytest

from fastmeta.cli import main
from fastmeta.data import InputError
from fastmeta.paper import ARTEFACTS, Cell, Claim, Scale, Wanted, artefact, beyond, higher
from fastmeta.paper.carry_out import Watcher, carry_out
from fastmeta.paper.scale import NAMES
from fastmeta.training.rundir import only_process
from tests.support.tiny_artefact import Tiny, data, plan


@pytest.fixture(scope="module")
def npz(tmp_path_factory):
    return data(tmp_path_factory.mktemp("data"))


@pytest.fixture(autouse=True)
def undrawn(monkeypatch):
    """Without figures, which take longer than the runs."""
    monkeypatch.setattr("fastmeta.paper.written_reading.draw_dots", lambda path, title, reading: [])


def content(out, name="tiny"):
    return json.loads((out / name / "result.json").read_text())


def summaries(out):
    return {path.parent.relative_to(out): json.loads(path.read_text()) for path in out.glob("runs/*/*/summary.json")}


def test_what_is_written_is_what_the_runs_have_reached(npz, tmp_path):
    (made,) = carry_out(plan(tmp_path, Tiny(npz)), Watcher())
    assert not made.failures
    told = content(tmp_path)
    assert told["complete"]
    assert (told["scale"], told["seeds"]) == ("smoke", [0, 1])
    assert {"commit", "dirty", "torch", "cpu"} <= told["environment"].keys()
    tests = {key: s["test_accuracy_last"] for key, s in summaries(tmp_path).items()}
    assert len(tests) == 6
    for row, run in zip(told["rows"], ("plain", "smoothed", "student"), strict=True):
        folder = next(one["folder"] for one in told["runs"] if run in one["names"])
        measured = row["cells"]["CIFAR-10 40%"]["measured"]
        values = [100 * s for key, s in sorted(tests.items()) if str(key.parent) == folder]
        assert list(measured["values"].values()) == values
        assert measured["mean"] == pytest.approx(np.mean(values))
        assert measured["std"] == pytest.approx(np.std(values, ddof=1))
        assert row["cells"]["CIFAR-10 40%"]["published"] == {"mean": 68.1, "std": 0.2}
    with open(tmp_path / "tiny" / "table.csv") as file:
        lines = list(csv.DictReader(file))
    assert [line["row"] for line in lines] == ["plain", "smoothed", "student"]
    assert [line["in_paper"] for line in lines] == ["True", "True", "False"]
    text = (tmp_path / "tiny" / "table.md").read_text()
    assert "68.1 ± 0.2" in text
    assert "student †" in text
    assert "All is smaller." in text
    page = (tmp_path / "tiny" / "report.html").read_text()
    assert "Plain is better." in page
    assert "http" not in page.replace("http-equiv", "")


def test_artefacts_share_runs_and_finished_ones_are_left_as_they_are(npz, tmp_path):
    carry_out(plan(tmp_path, Tiny(npz), seeds=1), Watcher())
    before = {path: path.stat().st_mtime_ns for path in tmp_path.glob("runs/*/*/*")}

    class Counting(Watcher):
        begun = ()
        runs = 0

        def begin(self, path, finished, total):
            self.begun = finished, total

        def run(self, *told):
            self.runs += 1
            return super().run(*told)

    watcher = Counting()
    carry_out(plan(tmp_path, Tiny(npz), Tiny(npz, name="other"), seeds=2), watcher)
    assert (watcher.begun, watcher.runs) == ((3, 6), 3)
    assert all(path.stat().st_mtime_ns == time for path, time in before.items())
    assert content(tmp_path, "other")["rows"] == content(tmp_path)["rows"]


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_a_failed_run_is_noted_and_the_others_go_on(npz, tmp_path):
    (made,) = carry_out(plan(tmp_path, Tiny(npz, lr=1e30, epochs=20), seeds=1), Watcher())
    told = content(tmp_path)
    assert not told["complete"]
    cells = [row["cells"]["CIFAR-10 40%"] for row in told["rows"]]
    assert "not finite" in cells[0]["failed"]["0"]
    assert cells[1]["measured"]["mean"] is not None
    assert "not finite" in cells[2]["failed"]["0"]  # of the run that it learns from
    assert sorted(text.partition(",")[0] for text in made.failures.values())[-1] == "the run it learns from"
    assert made.missed(Scale("smoke", tmp_path)) == ["Plain is better."]
    assert "## Failed runs" in (tmp_path / "tiny" / "table.md").read_text()


def test_a_kill_at_any_moment_and_the_same_command(npz, tmp_path):
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    carry_out(plan(whole, Tiny(npz, epochs=6), seeds=1), Watcher())
    words = [sys.executable, "-m", "tests.support.tiny_artefact", str(npz), str(cut), "6"]
    for runs in (2,):
        process = subprocess.Popen(words, stdout=subprocess.PIPE, text=True)
        for _ in range(runs):
            assert process.stdout.readline()
        process.send_signal(signal.SIGKILL)
        process.communicate()
    assert 0 < len(summaries(cut)) < 3
    carry_out(plan(cut, Tiny(npz, epochs=6), seeds=1), Watcher())

    def lasting(folder):
        return [(row["cells"], row["row"]) for row in content(folder)["rows"]]

    assert lasting(cut) == lasting(whole)


def test_one_process_and_one_scale_for_a_folder(npz, tmp_path):
    carry_out(plan(tmp_path, Tiny(npz), seeds=1), Watcher())
    with only_process(tmp_path), pytest.raises(InputError, match="in use by another process"):
        carry_out(plan(tmp_path, Tiny(npz), seeds=1), Watcher())
    with pytest.raises(InputError, match="begun with another scale: it was 'smoke', is 'full' now"):
        carry_out(plan(tmp_path, Tiny(npz), scale="full", seeds=1), Watcher())
    other = tmp_path / "other"
    other.mkdir()
    (other / "letter.txt").write_text("mine")
    with pytest.raises(InputError, match="is not empty"):
        carry_out(plan(other, Tiny(npz), seeds=1), Watcher())
    assert [path.name for path in other.iterdir()] == ["letter.txt"]


def test_claims_are_judged_by_their_spread():
    def cell(*values):
        return Cell(dict(enumerate(values)))

    assert higher("", cell(80.0, 82.0), cell(70.0, 71.0)).verdict == "reproduced"
    assert higher("", cell(70.0, 71.0), cell(80.0, 82.0)).verdict == "not reproduced"
    assert higher("", cell(80.0, 82.0), cell(79.5, 81.5)).verdict == "not decided"
    one = higher("", cell(80.0), cell(70.0), sign=True)
    assert (one.verdict, one.by_sign().verdict) == ("not decided", "reproduced")
    assert higher("", cell(70.0), cell(80.0)).by_sign().verdict == "not reproduced"
    assert higher("", cell(), cell(80.0)).by_sign().verdict == "not reproduced"
    assert higher("", Cell({0: 1.0, 1: 9.0}), Cell({1: 2.0})).gap == 7.0  # the seeds that both have
    assert beyond("", {0: 0.5, 1: 0.6}, 0.3).verdict == "reproduced"
    assert beyond("", {0: 0.2, 1: 0.6}, 0.3).verdict == "not decided"
    assert isinstance(beyond("", {}, 0.3), Claim)


@pytest.mark.parametrize("scale", NAMES)
@pytest.mark.parametrize("name", ARTEFACTS)
def test_every_artefact_says_its_runs_at_every_scale(name, scale, tmp_path):
    one = artefact(name)
    wanted = one.wanted(Scale(scale, tmp_path))
    assert wanted
    assert {k: w.key for k, w in wanted.items()} == {k: w.key for k, w in one.wanted(Scale(scale, tmp_path)).items()}
    elsewhere = one.wanted(Scale(scale, tmp_path / "elsewhere"))
    assert [w.key for w in elsewhere.values()] == [w.key for w in wanted.values()]


def test_equal_runs_have_one_key_and_an_option_at_its_default_changes_none(tmp_path):
    scale = Scale("cpu", tmp_path)
    one = Wanted(scale.config("cifar10-a", "onehot"))
    assert one.key == Wanted(scale.config("cifar10-a", "onehot", **{"labels.read": "auto", "optim.momentum": 0.9})).key
    assert one.key.startswith("onehot-")
    keys = {one.key, Wanted(one.config, folds=5).key, Wanted(one.config, sources={"teacher": one}).key}
    keys |= {Wanted(scale.config("cifar10-a", "onehot", **{"optim.momentum": m})).key for m in (0.0, 0.5)}
    keys |= {Wanted(scale.config("cifar10-a", "focal")).key}
    assert len(keys) == 6


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["table66"], "no artefact 'table66'; did you mean table6?"),
        (["table6", "--scale", "tiny"], "scale must be one of full, short, cpu, smoke"),
        (["table6", "table6"], "table6 stands twice"),
        (["table6", "--scale", "cpu"], "name their npz file with --data"),
        (["table6", "--scale", "cpu", "--data", "nothing.npz"], "nothing.npz cannot be read: No such file"),
        (["table6", "--scale", "full"], "the folder data holds no cifar10 of torchvision"),
        (["table6", "--scale", "cpu", "--data-root", "there"], "the folder there holds no cifar10 of torchvision"),
        (["table6", "--sclae", "cpu"], "--scale"),
        (["table6", "--seeds", "0"], "--seeds"),
        ([], "NAME"),
    ],
)
def test_bad_input_is_one_line(words, told, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    try:
        code = main(["reproduce", *words])
    except SystemExit as stop:
        code = stop.code
    out, err = capsys.readouterr()
    assert (code, out) == (2, "")
    assert told in err
    assert err.count("\n") == 1


def test_dry_run_trains_nothing(tmp_path, capsys):
    out = tmp_path / "out"
    assert main(["reproduce", "table6", "--scale", "smoke", "--out", str(out), "--dry-run"]) == 0
    assert "9 runs, about" in capsys.readouterr().out
    assert not out.exists()
