"""The README's code runs, and its diff is what turns the first block into the second."""

import re
from pathlib import Path

import pytest
import torch

README = (Path(__file__).parent.parent / "README.md").read_text()


def block(language):
    found = re.findall(rf"^```{language}\n(.*?)^```", README, re.M | re.S)
    assert len(found) == 1, f"the README has {len(found)} {language} blocks"
    return found[0]


def test_the_diff_belongs_to_the_loop_and_is_short():
    lines = block("diff").splitlines()
    before = [line[1:].rstrip() for line in lines if line[:1] in (" ", "-")]
    assert before == [line.rstrip() for line in block("python").splitlines()]
    assert sum(line[:1] in ("+", "-") for line in lines) <= 12


def test_the_loop_and_the_changed_loop_run():
    pytest.importorskip("sklearn")
    scores = []
    for source in (
        block("python"),
        "\n".join(line[1:] for line in block("diff").splitlines() if line[:1] in (" ", "+")),
    ):
        torch.manual_seed(0)
        names: dict = {}
        exec(source, names)
        test = slice(1200, 1700)
        predicted = names["model"](names["x"][test]).argmax(1)
        scores.append(float((predicted == names["y"][test]).float().mean()))
    learned = names["learned"].argmax(1)
    right = (learned == names["y"][:1200]).float().mean()
    given = (names["noisy"][:1200] == names["y"][:1200]).float().mean()
    assert right > given + 0.05
    assert scores[1] > scores[0]
