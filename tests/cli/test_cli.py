"""The command line: one line and exit code 2 for what the user got wrong, nothing half-written, help that reads."""

import contextlib
import dataclasses
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

import fastmeta
from fastmeta.cli import COMMANDS, main
from fastmeta.cli.config_help import config_help
from fastmeta.cli.near_miss import unknown_option
from fastmeta.cli.parser import Parser
from fastmeta.training import load_run
from fastmeta.training.option_names import near
from tests.support.runs import two_classes

pytest.importorskip("tyro", reason="the command line of the trainer is built on tyro")
from fastmeta.cli.config_flags import one_line
from fastmeta.cli.train import parse

ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def in_an_empty_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def npz(tmp_path_factory):
    path = tmp_path_factory.mktemp("data") / "two.npz"
    np.savez(path, **two_classes())
    return path


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("--epoch 3", "unknown option --epoch; did you mean --epochs?"),
        ("extra", "unexpected argument extra"),
        ("my.npz", "unexpected argument my.npz; did you mean --dataset npz:my.npz?"),
        ("npz:my.npz", "unexpected argument npz:my.npz; did you mean --dataset npz:my.npz?"),
        ("--epochs three", "Error parsing --epochs: expected a whole number or auto, got 'three'"),
        ("--labels.lookahead-steps 1.5", "Error parsing --labels.lookahead-steps: expected a whole number, got '1.5'"),
        ("--labels.label-lr fast", "Error parsing --labels.label-lr: expected a number, auto or search, got 'fast'"),
        ("--epochs", "Missing value for argument '--epochs'"),
        ("--epochs 0", "epochs must be at least 1, got 0"),
        ("--optim.lr 0", "optim.lr must be above 0 and finite, got 0.0"),
        ("--optim.schedule linear", "invalid choice 'linear' for argument '--optim.schedule'"),
        ("--method foo", "method must be one of onehot, class_labels, instance_labels, "),
        (
            "--noise pairs:0.1",
            "unknown noise 'pairs:0.1': expected none, uniform:RATE, uniform_exact:RATE, uniform_other:RATE, "
            "class:RATE, pair:RATE, permute:RATE, instance:RATE, superclass:RATE, file:PATH or "
            "package.module:function:RATE",
        ),
        ("--model resnet99", "unknown model 'resnet99'"),
        ("--dataset npz:missing.npz", "missing.npz does not exist"),
        (
            "--dataset my.npz",
            "dataset must be digits, npz:PATH, npy:DIR, csv:PATH, parquet:PATH, folder:PATH, torchvision:NAME, "
            "cifar10, cifar100 or package.module:factory, got 'my.npz'; did you mean npz:my.npz?",
        ),
        (
            "--dataset npz:",
            "dataset must be digits, npz:PATH, npy:DIR, csv:PATH, parquet:PATH, folder:PATH, torchvision:NAME",
        ),
        ("--config missing.toml", "cannot read the config file missing.toml"),
        ("--resume missing", "missing is no run directory"),
        ("--resume missing --epochs 3", "give no other flag with it"),
        ("--resume missing --watch-every 5", "give no other flag with it"),
        ("--device cuda:99", "device cuda:99 is not there"),
        ("--dry-run --epochs 0", "epochs must be at least 1"),
    ],
)
def test_a_mistake_is_one_line_and_exit_code_2(line, message, capsys, tmp_path):
    assert main(["train", *line.split()]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.count("\n") == 1
    assert err.startswith("fastmeta train: ")
    assert message in err
    assert list(tmp_path.iterdir()) == []


DRAWN = """╭─ Unrecognized options ──────╮
│ Unrecognized options: --epoch, 3 │
│ ────────────────────────────── │
│ Perhaps you meant:             │
│     --epochs INT               │
╰────────────────────────────────╯
"""
DASHED = """ Unrecognized options
 ----------------------
  Unrecognized options: --epoch, 3
  ----------------------
  Perhaps you meant:
      --epochs INT
"""


@pytest.mark.parametrize("box", [DRAWN, DASHED])
def test_the_parsers_box_becomes_one_line(box):
    expected = "unknown option --epoch; did you mean --epochs? (fastmeta train --help lists the options)"
    assert one_line(box, ["--epochs", "--seed"], "fastmeta train") == expected


def test_a_broken_config_file_names_the_key(capsys, tmp_path):
    (tmp_path / "c.toml").write_text("[optim]\nlearning_rate = 1\n")
    assert main(["train", "--config", "c.toml"]) == 2
    assert "c.toml: unknown key 'optim.learning_rate'" in capsys.readouterr().err


def test_flags_win_over_the_file_and_the_file_over_defaults(tmp_path):
    (tmp_path / "c.toml").write_text('epochs = 7\nnoise = "none"\n[optim]\nlr = 0.5\nnesterov = true\n')
    for form in (["--config", "c.toml"], ["--config=c.toml"]):
        run = parse([*form, "--epochs", "9", "--optim.momentum", "0.5", "--optim.milestones", "0.1", "0.2"]).run
        assert (run.epochs, run.noise, run.optim.lr, run.optim.momentum) == (9, "none", 0.5, 0.5)
        assert run.optim.milestones == (0.1, 0.2)
        assert run.optim.nesterov
    assert not parse(["--config", "c.toml", "--optim.no-nesterov"]).run.optim.nesterov
    assert parse(["--config", "c.toml", "--optim.lr", "auto"]).run.optim.lr is None


@pytest.mark.parametrize(
    ("word", "meant"),
    [
        ("--lr", ["--optim.lr"]),
        ("--optim-lr", ["--optim.lr"]),
        ("--labels.lr", ["--labels.label-lr"]),
        ("--label-lr=3", ["--labels.label-lr"]),
        ("--batch_size", ["--data.batch-size"]),
        ("--momentum", ["--optim.momentum"]),
        ("--lrr", ["--optim.lr"]),
        ("--optimizer.gamma", ["--optim.gamma"]),
        ("--noise.rate", ["--noise"]),
        ("--epoch", ["--epochs"]),
        ("--zzz", []),
    ],
)
def test_near_misses_of_options(word, meant, capsys):
    assert main(["train", word, "1"]) == 2
    name = word.split("=")[0]
    hint = f"; did you mean {' or '.join(meant)}?" if meant else ""
    listed = "(fastmeta train --help lists the options)"
    assert capsys.readouterr().err == f"fastmeta train: unknown option {name}{hint} {listed}\n"


def test_an_option_of_a_method_of_ones_own():
    """`--method` is an option itself, and a group of options."""
    assert near("--method.amont", ["--method", "--method.amount"]) == ["--method.amount"]
    assert near("--method.amont", ["--method"]) == ["--method"]


def test_two_groups_may_have_an_option_of_one_name():
    assert unknown_option(["3", "--lr"], ["--a.lr", "--b.lr"]) == "unknown option --lr; did you mean --a.lr or --b.lr?"


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("check --model mlp --optim.lr 1", "fastmeta check: unknown option --optim.lr; did you mean --lr?\n"),
        ("bench step --label_lr 1", "fastmeta bench: unknown option --label_lr; did you mean --label-lr?\n"),
        ("bench ops --variants sgd", "fastmeta bench: unknown option --variants\n"),
    ],
)
def test_near_misses_of_other_commands(line, message, capsys):
    with pytest.raises(SystemExit) as stop:
        main(line.split())
    assert stop.value.code == 2
    assert capsys.readouterr().err == message


@pytest.mark.parametrize(
    "line", ["", "train", "reproduce", "check", "bench", "bench ops", "bench step", "bench approx"]
)
def test_helps_have_one_style_and_80_columns(line, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "40")  # whatever the terminal has
    with contextlib.suppress(SystemExit):
        main([*line.split(), "--help"])
    text = capsys.readouterr().out
    assert text.startswith(f"usage: {' '.join(['fastmeta', *line.split()])} ")
    assert text.splitlines()[0].endswith("[OPTIONS]")
    assert max(map(len, text.splitlines())) <= 80
    assert not re.search("[│╭]|MISSING|None|INT|FLOAT", text)
    if line not in ("", "bench"):
        assert re.search(r"\n  -h, --help {8,12}Print this and exit\.\n", text)
        sentences = re.split(r"\n  --\S.*?(?:  +|\n +)", text.split("\n\nexamples:")[0])[1:]
        assert all(re.search(r"\.$|\)$|image\.$", " ".join(s.split("\n\n")[0].split())) for s in sentences), sentences


def test_options_without_a_docstring_have_no_signature_for_one():
    method = dataclasses.make_dataclass("Config", [("amount", float, 0.1)])
    tree = dataclasses.make_dataclass("Tree", [("method", method)])(method())
    text = config_help(Parser(prog="x"), dataclasses.make_dataclass("Own", [])(), tree)
    assert "method options:\n  --method.amount NUMBER" in text


def test_help_reads(capsys):
    with pytest.raises(SystemExit) as stop:
        main(["train", "--help"])
    assert stop.value.code == 0
    text = capsys.readouterr().out
    for flag in ("--dataset", "--noise", "--method", "--model", "--epochs", "--seed", "--out", "--resume", "--dry-run"):
        assert f"{flag} " in text
    from fastmeta import models

    assert all(f"{name}," in text for name in models.NAMES)
    assert "None" not in text
    assert "MISSING" not in text
    assert main([]) == main(["--help"]) == 0
    text = capsys.readouterr().out
    assert all(f"  {name} " in text and what in text for name, what in COMMANDS.items())


def test_values_that_the_config_refuses_need_no_word_about_options(capsys):
    assert main(["train", "--optim.lr", "0"]) == 2
    assert capsys.readouterr().err == "fastmeta train: optim.lr must be above 0 and finite, got 0.0\n"


@pytest.mark.parametrize("command", ["train", "check"])
def test_a_factory_of_the_current_folder_is_found(command, tmp_path):
    """As the installed command runs: without the folder on Python's path."""
    (tmp_path / "mine.py").write_text("def build(num_classes): raise ValueError('found')")
    line = [command, "--model", "mine:build"]
    script = [sys.executable, "-P", "-c", f"import sys; from fastmeta.cli import main; sys.exit(main({line!r}))"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(script, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr.endswith("failed: ValueError: found\n")


def test_ctrl_c_outside_of_a_run_is_one_line(capsys, monkeypatch):
    def stop(argv):
        raise KeyboardInterrupt

    monkeypatch.setattr("fastmeta.cli.check.main", stop)
    assert main(["check", "--model", "mlp"]) == 130
    assert capsys.readouterr().err == "fastmeta check: stopped\n"


def test_unknown_command(capsys):
    assert main(["trian"]) == 2
    assert capsys.readouterr().err == (
        "fastmeta: unknown command 'trian', expected one of train, compare, reproduce, labels, show, check, bench; "
        "did you mean train?\n"
    )


def test_version(capsys):
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"fastmeta {fastmeta.__version__}\n"
    assert main(["--version", "-v"]) == 0
    text = capsys.readouterr().out
    import torch

    assert f"torch         {torch.__version__}" in text
    assert "CPU half      loaded" in text
    assert "CUDA half     " in text


def test_dry_run_writes_nothing(npz, capsys, tmp_path):
    run = [
        "train",
        "--dataset",
        f"npz:{npz}",
        "--dry-run",
        "--model",
        "mlp",
        "--threads",
        "1",
        "--labels.update",
        "exact",
    ]
    assert main(run) == 0
    text = capsys.readouterr().out
    assert "epochs = 100" in text
    assert "80 images (4, 4, 1), wrong labels: 10.0%" in text
    assert "about" in text
    assert "train graph" in text
    assert "meta graph" in text
    assert "steps:" not in text
    assert "run       runs/two-instance_labels-seed0" in text
    assert text.endswith("dry run: nothing was written\n")
    assert list(tmp_path.iterdir()) == []


def test_dry_run_refuses_what_the_run_would(npz, capsys):
    assert main(["train", "--dataset", f"npz:{npz}", "--dry-run", "--model", "mlp", "--out", str(npz.parent)]) == 2
    assert "is not empty; choose another --out" in capsys.readouterr().err


@pytest.mark.parametrize(("dtype", "size"), [("float32", "0.1"), ("bfloat16", "0.0")])
def test_dry_run_knows_the_size_of_the_label_table(dtype, size, capsys):
    """1,370 rows of 10 classes and their given labels: 66 kB, or 38."""
    assert main(["train", "--dry-run", "--baselines", "none", "--epochs", "1", "--labels.dtype", dtype]) == 0
    text = capsys.readouterr().out
    assert f'dtype = "{dtype}"' in text
    assert f"label table {size} MiB" in text


def test_train_prints_a_table_and_leaves_a_run(npz, capsys, tmp_path):
    line = ["train", "--dataset", f"npz:{npz}", "--model", "mlp", "--epochs", "2", "--threads", "1"]
    assert main([*line, "--baselines", "noisy,clean"]) == 0
    text = capsys.readouterr().out
    assert "two.npz: 80 train (10.0% of the labels wrong), 8 clean, 20 test" in text
    assert all(len(row) <= 80 for row in text[text.index("two.npz: ") :].splitlines()[:-1])
    assert "…" not in text
    for row in ("instance labels", "fixed: given", "fixed: clean"):
        assert row in text
    run = load_run("runs/two-instance_labels-seed0")
    assert list(run.summary["baselines"]) == ["noisy", "clean"]
    assert main(["train", "--resume", str(run.path)]) == 0
    assert "is finished already" in capsys.readouterr().out
    assert main([*line, "--baselines", "none"]) == 0
    assert sorted(p.name for p in (tmp_path / "runs").iterdir()) == [
        "two-instance_labels-seed0",
        "two-instance_labels-seed0-2",
    ]


def printed(line, cwd, *, stdout=subprocess.PIPE, **environment):
    """A process of its own, whose output is what a test is about."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", **environment}
    script = [sys.executable, "-m", "fastmeta", *line]
    return subprocess.run(script, cwd=cwd, env=environment, stdout=stdout, stderr=subprocess.PIPE, check=False)


def short_run(npz):
    return ["train", "--dataset", f"npz:{npz}", "--model", "mlp", "--epochs", "2", "--threads", "1", "--out", "run"]


def test_a_run_outlives_the_reader_of_its_output(npz, tmp_path):
    """As with `fastmeta train | head -1`."""
    read, write = os.pipe()
    os.close(read)
    done = printed(short_run(npz), tmp_path, stdout=write)
    os.close(write)
    assert (done.returncode, done.stderr) == (0, b"")
    assert load_run(tmp_path / "run").summary


@pytest.mark.parametrize(
    "line", [["check", "--model", "mlp", "--no-timing"], ["--help"], ["--version", "-v"]], ids=" ".join
)
def test_what_is_only_printed_ends_with_its_reader(tmp_path, line):
    read, write = os.pipe()
    os.close(read)
    done = printed(line, tmp_path, stdout=write)
    os.close(write)
    assert (done.returncode, done.stderr) == (128 + 13, b"")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no device that is always full")
def test_a_run_outlives_the_disk_of_its_log(npz, tmp_path):
    with open("/dev/full", "wb") as full:
        done = printed(short_run(npz), tmp_path, stdout=full)
    assert (done.returncode, done.stderr) == (0, b"")
    assert load_run(tmp_path / "run").summary


def test_a_terminal_without_our_letters(npz, tmp_path):
    for line in ([], ["train", "--help"], [*short_run(npz), "--dry-run"], short_run(npz)):
        done = printed(line, tmp_path, PYTHONIOENCODING="ascii")
        assert (done.returncode, done.stderr) == (0, b"")
        assert done.stdout.decode("ascii")
    assert b"everything in run" in done.stdout


def test_names_that_look_like_markup_are_printed_as_they_are(tmp_path, capsys):
    """The clean set holds one class, so that labels move to it, and its name and the other's come into the table."""
    data = two_classes(class_names=["[red]dark", "[/bright]"], y_true=None)
    bright = data["y_meta"] == 1
    data["x_meta"], data["y_meta"] = data["x_meta"][bright], data["y_meta"][bright]
    np.savez("odd[x].npz", **data)
    line = ["train", "--dataset", "npz:odd[x].npz", "--model", "mlp", "--epochs", "3", "--threads", "1"]
    assert main([*line, "--labels.label-lr", "1e4", "--out", "[/run]"]) == 0
    text = capsys.readouterr().out
    assert "→ [/run]\n" in text
    assert "warning: the clean set has no image of 1 class(es): [red]dark" in text
    assert "odd[x].npz: 80 train" in text
    assert "[red]dark → [/bright]" in text
    assert "everything in [/run]\n" in text


def test_a_narrow_terminal_loses_no_figure(npz, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "40")
    assert main(short_run(npz)) == 0
    text = capsys.readouterr().out
    row = next(line for line in text.splitlines() if line.startswith("instance labels  ") and "epoch" not in line)
    assert "…" not in text
    assert len(row.split()) == 11  # two words, two accuracies, start → end, two counts, precision, seconds
    assert "90.0 → " in row


def test_a_tilde_is_the_home_folder(npz, capsys, tmp_path, monkeypatch):
    """Which no shell fills in behind npz: or =, or in a TOML file."""
    monkeypatch.setenv("HOME", str(npz.parent))
    (npz.parent / "c.toml").write_text(f'dataset = "npz:~/{npz.name}"\nout = "~/out"\n')
    assert main(["train", "--config=~/c.toml", "--model", "mlp", "--epochs", "2", "--threads", "1"]) == 0
    assert main(["train", "--resume=~/out"]) == 0
    assert load_run("~/out").config.dataset == f"npz:{npz}"
    assert list(tmp_path.iterdir()) == []


def test_sigterm_says_how_to_go_on_and_exits_143(npz, tmp_path):
    script = [
        sys.executable,
        "-m",
        "fastmeta",
        "train",
        "--dataset",
        f"npz:{npz}",
        "--epochs",
        "100000",
        "--out",
        "run",
    ]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    options = ["--model", "mlp", "--threads", "1"]
    with subprocess.Popen([*script, *options], env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as run:
        metrics = tmp_path / "run" / "metrics.jsonl"
        while run.poll() is None and not (metrics.exists() and metrics.stat().st_size):
            time.sleep(0.02)
        run.terminate()
        _, err = run.communicate(timeout=60)
    assert run.returncode == 143, err.decode()
    first, second = err.decode().splitlines()[-2:]
    assert first.startswith("fastmeta train: stopped by SIGTERM in instance_labels at step ")
    assert second == "go on with: fastmeta train --resume run"
    assert not (tmp_path / "run" / "summary.json").exists()


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="glibc's allocator")
def test_freed_memory_stays_with_a_training_process():
    """Later rounds of the same large allocations touch no new page; without the setting they touch all of them."""
    script = """
import resource, sys, torch
from fastmeta.cli.allocator import keep_freed_memory
if sys.argv[1] == "keep" and not keep_freed_memory():
    print("no glibc"); sys.exit()
def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    torch.ones(2**24)  # 64 MiB: glibc maps such blocks and gives them back, whatever was freed before
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
print(max([faults() for _ in range(6)][3:]))
"""
    told = {}
    for how in ("keep", "leave"):
        done = subprocess.run([sys.executable, "-c", script, how], capture_output=True, text=True, check=True)
        told[how] = done.stdout.strip()
    if told["keep"] == "no glibc":
        pytest.skip("another C library")
    assert int(told["keep"]) < 0.05 * int(told["leave"])
