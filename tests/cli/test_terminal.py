"""Text of others reaches no terminal as it is: names, paths, messages of a user's code, wherever they come in."""

import json
import os
import re
import subprocess
import sys
import unicodedata
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from torch._subclasses import FakeTensor

import fastmeta
from fastmeta._text import distinct, printable, printable_lines, reason, shown
from fastmeta.cli import main
from fastmeta.data import Dataset, InputError, split
from fastmeta.training import load_run
from fastmeta.training.listener import Listener
from fastmeta.training.rundir.files import to_json
from tests.support.runs import two_classes

ROOT = Path(__file__).parents[2]
#: a colour, the window's title by C1, a line of its own, a direction, nothing to see, half a character
PLANTED = "a\x1b[31m\x9b2J\r\nb\u202e\u200b\ud800"


def harmless(text: str) -> bool:
    return all(c == "\n" or unicodedata.category(c) not in ("Cc", "Cf", "Cs", "Zl", "Zp") for c in text)


def test_every_character_that_a_terminal_obeys_is_escaped():
    assert printable(PLANTED) == r"a\x1b[31m\x9b2J\r\nb\u202e\u200b\ud800"
    for code in range(0x110000):
        if unicodedata.category(chr(code)) in ("Cc", "Cf", "Cs", "Zl", "Zp"):
            assert harmless(printable(chr(code))), hex(code)
            assert "\n" not in printable(chr(code))
    for kept in ("", "cat", "plain text", r"C:\x1b", "λ→…×", "日本語", "e\u0301", "a\xa0b", "🐈"):
        assert printable(kept) == kept
    assert printable_lines(f"one\n{PLANTED}") == "one\n" + r"a\x1b[31m\x9b2J\r" + "\n" + r"b\u202e\u200b\ud800"


def test_long_texts_are_cut():
    assert printable("x" * 10**6, 5) == "xxxx…"
    assert len(printable("\x1b" * 100, 16)) == 16
    assert printable("five5", 5) == "five5"


class Bad:
    def __repr__(self):
        raise RuntimeError

    __str__ = __repr__


class BadError(Exception):
    __str__ = Bad.__repr__


def test_what_cannot_be_shown_is_described():
    nested: dict = {}
    for _ in range(100_000):
        nested = {"a": nested}
    assert shown(nested) == "a dict"
    assert shown(Bad()) == "a Bad"
    assert reason(BadError()) == "BadError: no message"
    assert reason(ValueError(f"{PLANTED}\nmore")) == r"ValueError: a\x1b[31m\x9b2J"
    while nested:
        nested = nested.pop("a")  # or Python's own end of it takes the stack


def test_errors_and_warnings_are_printable_in_python_too():
    assert str(InputError(PLANTED)) == printable(PLANTED)
    with pytest.warns(UserWarning, match=re.escape(printable(PLANTED))):
        Listener().warning(PLANTED)


def test_json_can_be_written_and_keeps_the_text():
    text = to_json({"class_names": [PLANTED, "ü"]})
    assert json.loads(text.encode()) == {"class_names": [PLANTED, "ü"]}
    assert "ü" in text


def planted_set(**changes):
    """Two classes of planted names; the clean set holds one, so that a note names the other, and labels move."""
    data = two_classes(class_names=[f"dark{PLANTED}", f"bright{PLANTED}" + "x" * 1000], y_true=None) | changes
    bright = data["y_meta"] == 1
    data["x_meta"], data["y_meta"] = data["x_meta"][bright], data["y_meta"][bright]
    return data


def test_notes_name_classes_in_few_printable_characters():
    for note in split(Dataset.from_arrays(planted_set())).notes:
        assert harmless(note)
        assert "\n" not in note
        assert len(note) < 200


MINE = f"""
import torch, warnings
def build(num_classes):
    net = torch.nn.Sequential(torch.nn.Flatten())
    net.add_module({PLANTED[:-1]!r}, torch.nn.Linear(16, num_classes))
    warnings.warn({PLANTED[:-1]!r})
    return net
def refuse(num_classes):
    raise ValueError({PLANTED!r})
"""


def test_a_run_with_planted_names_prints_no_control_character(tmp_path):
    """Under a terminal of its own, where rich draws: its own sequences are taken out before the text is judged."""
    pty = pytest.importorskip("pty", reason="no terminals to make here")
    planted = PLANTED[:-1] + os.fsdecode(b"\xff")  # which no UTF-8 has
    np.savez(tmp_path / "\x1b[31mset\x9b.npz", **planted_set())
    (tmp_path / "mine.py").write_text(MINE)
    line = ["train", "--dataset", "npz:\x1b[31mset\x9b.npz", "--model", "mine:build", "--epochs", "3", "--threads", "1"]
    line += ["--labels.label-lr", "1e4", "--out", f"out{planted}"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "TERM": "xterm", "COLUMNS": "120"}
    ours, theirs = pty.openpty()
    with subprocess.Popen(
        [sys.executable, "-m", "fastmeta", *line], cwd=tmp_path, env=environment, stdout=theirs, stderr=theirs
    ) as process:
        os.close(theirs)
        told = b""
        while True:
            try:
                piece = os.read(ours, 65536)
            except OSError:  # Linux' end of a terminal
                piece = b""
            if not piece:
                break
            told += piece
    os.close(ours)
    text = told.decode()
    assert process.returncode == 0, text
    # what rich and the terminal add: colours but for the planted red, the cursor, line ends
    text = re.sub(r"\x1b\[(?!31m)(\?25[hl]|[0-9]*[AKm])|\x1b\[[0-9;]+;[0-9]+m|\r", "", text)
    assert harmless(text), repr(text)
    assert r"bright" in text
    assert r"\x1b[31m" in text
    path = tmp_path / f"out{planted}"
    # the truth is in the files
    summary = json.loads((path / "summary.json").read_bytes())
    assert summary["class_names"][0] == f"dark{PLANTED}"
    assert summary["dataset"].endswith("\x1b[31mset\x9b.npz")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        sys.path.insert(0, str(tmp_path))
        try:
            assert load_run(path, trust_code=True).summary == summary
        finally:
            sys.path.remove(str(tmp_path))
            sys.modules.pop("mine", None)
    assert (path / "figures" / "label_matrix.png").stat().st_size


@pytest.mark.parametrize(
    "line",
    [
        [f"{PLANTED}"],
        ["train", "--dataset", f"npz:{PLANTED}"],
        ["train", "--dataset", PLANTED],
        ["train", "--model", PLANTED],
        ["train", "--model", f"mine{PLANTED}:build"],
        ["train", "--model", "mine:refuse"],
        ["train", "--noise", PLANTED],
        ["train", "--method", PLANTED],
        ["train", "--optim.schedule", PLANTED],
        ["train", "--epochs", PLANTED],
        ["train", "--device", PLANTED],
        ["train", "--baselines", PLANTED],
        ["train", "--data.given", PLANTED],
        ["train", f"--{PLANTED}"],
        ["train", PLANTED],
        ["train", "--config", PLANTED],
        ["train", "--config", "planted.toml"],
        ["train", "--config", "planted.toml", "--epochs", "0"],
        ["train", "--resume", PLANTED],
        ["train", "--resume", f"run{PLANTED[:-1]}"],
        ["check", "--model", PLANTED],
        ["check", "--model", "mine:refuse"],
        ["check", "--model", "mlp", "--tangent", PLANTED],
        ["check", "--model", "mlp", "--device", PLANTED],
        ["check", "--model", "mlp", "--batch", PLANTED],
        ["check", "--model", "mlp", "--input-shape", PLANTED],
        ["check", "--model", "mlp", f"--{PLANTED}"],
        ["check", "--model", f"torchvision:{PLANTED}"],
        ["bench", PLANTED],
        ["bench", "step", "--model", PLANTED],
        ["bench", "step", "--variants", PLANTED],
        ["bench", "step", "--inputs", PLANTED],
        ["bench", "ops", "--ops", PLANTED],
        ["bench", "ops", "--json", f"/{PLANTED[:-1]}/x/\0"],
        ["bench", "approx", "--approximations", PLANTED],
        ["bench", "approx", "--models", f"{PLANTED}:{PLANTED}"],
    ],
    ids=lambda line: " ".join(line)[:24].encode("ascii", "replace").decode().replace("\x1b", "?"),
)
def test_a_planted_word_in_a_mistake(line, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "mine", raising=False)
    (tmp_path / "mine.py").write_bytes(MINE.encode("utf-8", "surrogateescape"))
    (tmp_path / "planted.toml").write_text(f"{json.dumps(PLANTED[:-1])} = 3\nmodel = {json.dumps(PLANTED[:-1])}\n")
    (tmp_path / f"run{PLANTED[:-1]}").mkdir()
    try:
        code = main(line)
    except SystemExit as stop:
        code = stop.code
    out, err = capsys.readouterr()
    assert code == 2
    assert out == ""
    assert err.count("\n") == 1, err
    assert harmless(err), repr(err)


def test_the_help_shows_values_of_the_config_file(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "c.toml").write_text(
        'dataset = "npz:\\u001b[31m\\u009b"\nmodel = "m\\u001b"\n[data]\ngiven = "\\u202e"'
    )
    with pytest.raises(SystemExit):
        main(["train", "--config", "c.toml", "--help"])
    out, _ = capsys.readouterr()
    assert harmless(out)
    assert r"\x1b[31m\x9b" in out


class Silent(torch.nn.Linear):
    """A layer with an error that says nothing, under tracing."""

    def forward(self, x):
        if isinstance(x, FakeTensor):
            raise AssertionError
        return super().forward(x)


def test_an_error_without_a_word_ends_no_step():
    labels = fastmeta.InstanceLabels(torch.arange(6) % 3, 3)
    model = Silent(4, 3)
    step = fastmeta.MetaStep(model, labels, torch.optim.SGD(model.parameters(), lr=0.1), label_lr=1.0, compile="trace")
    batch = (torch.randn(6, 4), torch.arange(6)), (torch.randn(6, 4), torch.arange(6) % 3)
    with pytest.warns(UserWarning, match="runs eagerly: AssertionError: no message"):
        first = step(*batch)
    assert first.meta_loss.isfinite()
    assert step(*batch).meta_loss.isfinite()


@pytest.mark.parametrize(
    ("names", "made"),
    [
        (["a", "b"], ["a", "b"]),
        (["a", "b", "a"], ["a (0)", "b", "a (2)"]),
        (["a", "a", "a (1)"], ["0: a", "1: a", "2: a (1)"]),
    ],
)
def test_equal_names_bear_their_number(names, made):
    assert distinct(names) == made
