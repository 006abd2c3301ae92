"""``fastmeta compare``: rows of plain training and of methods, over seeds and a grid, resumably."""

import csv
import json
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import torch

import fastmeta
from fastmeta.cli import main
from fastmeta.comparison import Watcher
from fastmeta.training import Interrupted, TrainingError
from fastmeta.training.rundir import only_process
from tests.support.runs import two_classes

RECIPE = """
dataset = "npz:{npz}"
model = "mlp"
epochs = 2
threads = 1
[recipe]
title = "Two classes"
source = "nobody"
methods = ["elr"]
seeds = 2
[[recipe.published]]
row = "elr"
test = 91.25
std = 0.5
source = "a work, table 3"
"""
WORDS = ["--grid", "method.beta=0.5,0.7", "--data.val-fraction", "0.2", "--finetune-steps", "1"]


@pytest.fixture(scope="module", autouse=True)
def no_pictures_of_each_run():
    """Which take longer than these runs."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("fastmeta.report.write_figures", lambda *run: [])
        yield


@pytest.fixture
def undrawn(monkeypatch):
    """Without figure and report, which take longer than the runs."""
    monkeypatch.setattr("fastmeta.comparison.runs.write_figure", lambda *told: [])
    monkeypatch.setattr("fastmeta.comparison.runs.write_folder_report", lambda folder: folder)


@pytest.fixture(scope="module")
def recipe(tmp_path_factory):
    folder = tmp_path_factory.mktemp("recipe")
    np.savez(folder / "two.npz", **two_classes())
    (folder / "two.toml").write_text(RECIPE.format(npz=folder / "two.npz"))
    return folder / "two.toml"


@pytest.fixture(scope="module")
def found(recipe, tmp_path_factory):
    folder = tmp_path_factory.mktemp("comparison") / "out"
    assert main(["compare", str(recipe), "--out", str(folder), *WORDS]) == 0
    return folder


def content(folder):
    return json.loads((folder / "comparison.json").read_text())


def table(folder):
    """table.csv without seconds."""
    with open(folder / "table.csv") as file:
        return [{k: v for k, v in row.items() if k != "seconds"} for row in csv.DictReader(file)]


def stamps(folder):
    return {path: path.stat().st_mtime_ns for path in folder.glob("*/seed*/**/*") if path.is_file()}


def test_the_rows(found):
    rows = {row["setting"] + "/" + row["row"]: row for row in content(found)["rows"]}
    assert list(rows) == [
        "plain/onehot",
        "plain/union",
        "plain/clean",
        "plain/finetuned",
        "plain/union_finetuned",
        "softened/softened",
        "softened/softened_finetuned",
        "elr-beta=0.5/elr",
        "elr-beta=0.5/elr_finetuned",
        "elr-beta=0.7/elr",
        "elr-beta=0.7/elr_finetuned",
    ]
    folders = {path.parent.name for path in found.glob("*/seed0")}
    assert folders == {"plain", "softened", "elr-beta=0.5", "elr-beta=0.7"}  # none trained twice
    assert content(found)["complete"]


def test_figures_are_those_of_the_runs(found):
    rows = {row["row"]: row for row in content(found)["rows"]}
    summaries = [json.loads((found / "plain" / f"seed{k}" / "summary.json").read_text()) for k in (0, 1)]
    for name, stages, key in (
        ("onehot", summaries, "test_accuracy_last"),
        ("clean", [s["baselines"]["clean"] for s in summaries], "test_accuracy_last"),
        ("union_finetuned", [s["baselines"]["union"]["finetuned"] for s in summaries], "test_accuracy"),
    ):
        values = [stage[key] for stage in stages]
        assert rows[name]["last"]["values"] == values
        assert rows[name]["last"]["mean"] == pytest.approx(np.mean(values))
        assert rows[name]["last"]["sd"] == pytest.approx(np.std(values, ddof=1))
    selected = [s["test_accuracy_at_best_val"] for s in summaries]
    assert rows["onehot"]["val_selected"]["values"] == selected
    assert rows["onehot"]["noise_rate"] == pytest.approx(np.mean([s["noise_rate"] for s in summaries]))
    assert (rows["onehot"]["epochs"], rows["onehot"]["steps"]) == (2, 2)


def test_clean_data_is_counted(found):
    """Eight rows; those that validation has chosen by, too."""
    rows = {row["title"]: row for row in content(found)["rows"]}
    clean = {title: row["clean_data"] for title, row in rows.items()}
    val = rows["given labels"]["val_size"]
    assert val == 16
    assert clean["given labels"] == clean["given, softened to 0.7, never moved"] == 0
    for title in ("clean alone", "given labels, then fine-tuned on clean"):
        assert clean[title] == 8
    chosen = {row["chosen"] for row in rows.values() if row["row"] == "elr"}
    assert chosen == {True, False}
    for row in rows.values():
        if row["row"] == "elr":
            assert row["clean_data"] == (val if row["chosen"] else 0)
            assert row["tuning_budget"] == 2
        assert row["pretrained"] is False


def test_trials_of_a_run_that_searches_by_itself_are_told(found, recipe, undrawn):
    again = fastmeta.compare(recipe, found, grid=WORDS[1:2], over={"data.val_fraction": 0.2, "finetune_steps": 1})
    assert table(found)[0]["trials"] == "0"
    again.done["plain"][0].summary["search"] = {"candidates": [{}, {}, {}]}
    assert "| 1, 3 trials in each run |" in again.table()
    assert "canaries choose among them" in again.table()


def test_validation_chooses_by_the_mean_behind_the_last_epoch(found):
    rows = [row for row in content(found)["rows"] if row["row"] == "elr"]
    best = max(rows, key=lambda row: row["val_last"]["mean"])
    assert best["chosen"]


def test_the_table_and_the_files(found, capsys):
    text = (found / "table.md").read_text()
    assert "| row | test %, last | best | val-selected | NLL | ECE | seeds |" in text
    assert "| elr | 91.25 ± 0.5 | no | no | a work, table 3 |" in text
    assert content(found)["leaders"] in text
    for name in ("comparison.png", "comparison.svg", "report.html"):
        assert (found / name).stat().st_size > 1000
    rows = table(found)
    assert len(rows) == 12
    assert rows[-1]["source"] == "a work, table 3"


def test_the_same_command_again_touches_no_run(found, recipe, capsys, undrawn):
    before, rows = stamps(found), table(found)
    assert main(["compare", str(recipe), "--out", str(found), *WORDS]) == 0
    said = capsys.readouterr().out
    assert "8 runs, 8 finished already" in said
    assert content(found)["leaders"] in " ".join(said.split())
    assert stamps(found) == before
    assert table(found) == rows


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--optim.lr", "0.7"], "was begun with another optim.lr"),
        (["--methods", "confidence_penalty"], "methods may become more, not less"),
        (["--seeds", "1"], "seeds may become more, not less"),
        (["--grid", "optim.lr=0.1"], "plain is not among those of now; rows may become more, not less"),
    ],
)
def test_another_comparison_in_the_same_folder_is_refused(words, message, found, recipe, capsys):
    before = (found / "comparison.json").read_bytes()
    assert main(["compare", str(recipe), "--out", str(found), *WORDS, *words]) == 2
    assert message in capsys.readouterr().err
    assert (found / "comparison.json").read_bytes() == before


def test_two_processes_are_not_in_one_folder(found, recipe, capsys):
    with only_process(found):
        assert main(["compare", str(recipe), "--out", str(found), *WORDS]) == 2
    assert "is in use by another process" in capsys.readouterr().err


def test_a_run_that_fails_does_not_lose_the_others(recipe, tmp_path, monkeypatch, capsys, undrawn):
    def failing(config, **options):
        if config.method == "elr":
            raise TrainingError("it has diverged")
        if config.method == "focal":
            raise RuntimeError("CUDA out of memory")
        return real(config, **options)

    real = fastmeta.comparison.train
    monkeypatch.setattr("fastmeta.comparison.train", failing)
    line = ["compare", str(recipe), "--out", str(tmp_path / "out"), "--seeds", "1", "--methods", "elr,focal"]
    assert main(line) == 1
    said = capsys.readouterr()
    assert "failed: it has diverged" in said.err
    rows = {row["row"]: row for row in content(tmp_path / "out")["rows"]}
    assert rows["elr"]["failed"] == [{"seed": 0, "message": "it has diverged"}]
    assert (rows["elr"]["seeds"], rows["onehot"]["seeds"]) == ([], [0])
    assert rows["focal"]["failed"][0]["message"] == "RuntimeError: CUDA out of memory"
    assert "0 of 1" in (tmp_path / "out" / "table.md").read_text()
    # the same command tries it again, and one may add a method
    monkeypatch.setattr("fastmeta.comparison.train", real)
    before = stamps(tmp_path / "out" / "..")
    assert main([*line[:-1], "elr,focal,onehot"]) == 0
    assert before.items() <= stamps(tmp_path / "out" / "..").items()
    rows = {row["row"]: row for row in content(tmp_path / "out")["rows"]}
    assert (rows["elr"]["seeds"], rows["focal"]["seeds"]) == ([0], [0])
    assert content(tmp_path / "out")["plan"]["methods"] == ["elr", "focal", "onehot"]


def test_where_it_is_stopped_the_same_command_goes_on(recipe, tmp_path, monkeypatch, capsys):
    def stopped(config, **options):
        raise Interrupted(tmp_path / "out" / "plain" / "seed0", signal.SIGTERM, "at step 3 of 5", config)

    monkeypatch.setattr("fastmeta.comparison.train", stopped)
    line = ["compare", str(recipe), "--out", str(tmp_path / "out")]
    assert main(line) == 128 + signal.SIGTERM
    assert capsys.readouterr().err.endswith(f"go on with: fastmeta {' '.join(line)}\n")
    monkeypatch.setattr("fastmeta.comparison.train", lambda *run, **options: (_ for _ in ()).throw(KeyboardInterrupt))
    assert main(line) == 130
    assert f"stopped\ngo on with: fastmeta {' '.join(line)}" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--dataset", "npz:nowhere.npz"], "nowhere.npz does not exist"),
        (["--epochs", "0"], "epochs must be at least 1"),
        (["--epoch", "3"], "unknown option --epoch; did you mean --epochs?"),
        (["--epochs", "x"], "got 'x'"),
        (["--method", "elr"], "--method is decided by the comparison; name --methods"),
        (["--baselines", "all"], "--baselines is decided by the comparison"),
        (["--method.beta", "1"], "--grid method.beta=VALUE"),
        (["--methods", "erl"], "did you mean elr?"),
        (["--seeds", "0"], "must be at least 1, got 0"),
        (["--grid", "optim.lr"], "grid must look like"),
    ],
)
def test_what_is_wrong_is_a_line_and_leaves_nothing(words, message, recipe, tmp_path, capsys):
    try:
        code = main(["compare", *words, str(recipe), "--out", str(tmp_path / "out")])
    except SystemExit as stop:
        code = stop.code
    said = capsys.readouterr().err
    assert code == 2
    assert message in said
    assert said.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_a_folder_with_something_else_is_left_alone(recipe, tmp_path, capsys):
    (tmp_path / "mine.txt").write_text("mine")
    assert main(["compare", str(recipe), "--out", str(tmp_path)]) == 2
    assert "is not empty, and holds no comparison.json" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]
    (tmp_path / "comparison.json").write_text("{}")
    assert main(["compare", str(recipe), "--out", str(tmp_path)]) == 2
    assert "comparison.json" in capsys.readouterr().err


def test_a_dry_run_writes_nothing(recipe, tmp_path, capsys):
    assert main(["compare", str(recipe), "--out", str(tmp_path / "out"), *WORDS, "--dry-run"]) == 0
    assert "4 settings × 2 seeds = 8 runs" in capsys.readouterr().out
    assert not (tmp_path / "out").exists()


def test_from_python_with_arrays_of_ones_own(recipe, tmp_path, undrawn):
    heard = []

    class Ear(Watcher):
        def done(self, run, done):
            heard.append(run.name)

    found = fastmeta.compare(
        recipe, tmp_path / "out", methods=["elr"], seeds=1, data=two_classes(seed=1), watcher=Ear(), over={"epochs": 1}
    )
    assert heard == ["plain/seed0", "softened/seed0", "elr/seed0"]
    assert {row.name for row in found.rows} == {
        "onehot",
        "union",
        "clean",
        "finetuned",
        "union_finetuned",
        "softened",
        "elr",
    }
    assert "one seed" in found.leaders
    assert not found.failures
    assert found.leaders in repr(found)


def test_a_student_has_the_network_that_its_teacher_was_given(recipe, tmp_path, undrawn):
    def network():
        torch.manual_seed(0)
        return torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(16, 2))

    found = fastmeta.compare(
        recipe, tmp_path / "out", methods=["mlc", "distill"], seeds=1, data=two_classes(), model=network()
    )
    (student,) = (row for row in found.rows if row.setting.method == "distill")
    assert (student.title, student.failed, student.clean_data) == ("distill of mlc", (), 8)
    assert student.facts["pretrained"] is None
    again = fastmeta.load_run(tmp_path / "out" / "distill" / "seed0", model=network())
    assert again.config.options.teacher == str(tmp_path / "out" / "mlc" / "seed0")


@pytest.mark.slow
def test_killed_anywhere_it_ends_as_if_it_had_not_been(recipe, tmp_path):
    line = [sys.executable, "-m", "fastmeta", "compare", str(recipe), "--seeds", "1", "--epochs", "40"]
    line += ["--checkpoint-seconds", "0", "--out"]
    assert subprocess.run([*line, tmp_path / "whole"], stdout=subprocess.DEVNULL).returncode == 0
    kills, code = 0, None
    while code is None and kills < 40:
        process = subprocess.Popen([*line, tmp_path / "out"], stdout=subprocess.DEVNULL)
        began, found = time.monotonic(), len(stamps(tmp_path / "out"))
        while (code := process.poll()) is None:
            grown = len(stamps(tmp_path / "out")) > found + 3 and time.monotonic() - began > 1
            if grown and kills < 5:
                os.kill(process.pid, signal.SIGKILL)
                process.wait()
                kills, code = kills + 1, None
                break
            time.sleep(0.02)
    assert (code, kills) == (0, 5)
    assert table(tmp_path / "out") == table(tmp_path / "whole")
