"""The README's code runs, its commands parse, its diff turns one loop into the other, its counts were measured."""

import json
import re
import shlex
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()


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


def commands():
    lines = "".join(re.findall(r"^```sh\n(.*?)^```", README, re.M | re.S)).splitlines()
    return [shlex.split(line, comments=True) for line in lines if line.strip()]


def test_the_commands_exist():
    pytest.importorskip("tyro")
    from fastmeta.cli import bench, check, main, train

    seen = set()
    for program, command, *flags in commands():
        assert program in ("fastmeta", "./dev")
        seen.add(command)
        if "--help" in flags:
            with pytest.raises(SystemExit) as stop:
                main([command, *flags])
            assert stop.value.code == 0
        elif command == "train":
            assert train.parse(flags).run
        elif command == "check":
            assert check.parser().parse_args(flags).model
        elif command == "bench":
            assert bench.parse(flags).command == flags[0]
        elif command == "--version":
            assert main([command, *flags]) == 0
        else:
            assert f"\n{command})\n" in (ROOT / "dev").read_text()
    assert seen == {"train", "test", "check", "bench", "--version"}


def test_the_counts_of_forwards_were_measured():
    """Of every way in the table: ResNet-20's, and the MLP's in brackets."""
    rows = dict(re.findall(r"^\| (default|`(?:compile|approx)=\S+`) \| ([\d.]+ \([\d.]+\)) \|", README, re.M))
    counted: dict[str, list[str]] = {}
    for model in ("resnet20", "mlp"):
        results = ROOT / "benchmarks" / "results"
        steps = json.loads((results / f"step-{model}-cpu.json").read_text())["rows"]
        forwards = {row["variant"]: row["forwards"] for row in steps}
        names = {"default": "fastmeta", '`compile="trace"`': "fastmeta:trace", '`compile="full"`': "fastmeta:full"}
        found = {name: forwards[variant] for name, variant in names.items()}
        for row in json.loads((results / f"approx-{model}-cpu.json").read_text())["models"][0]["rows"]:
            if row["approx"] != "exact":
                found[f'`approx="{row["approx"]}"`'] = row["forwards"]
        for name, value in found.items():
            counted.setdefault(name, []).append(f"{round(value, 1):g}")
    assert rows == {name: f"{conv} ({mlp})" for name, (conv, mlp) in counted.items()}
