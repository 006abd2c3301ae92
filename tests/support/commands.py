"""Whether a line of a page is a command that there is, with options that there are. Nothing is run."""

from __future__ import annotations

from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def parse(words: list[str]) -> str:
    """The command, such as train; raises or fails for what would not parse."""
    from fastmeta.cli import bench, check, compare, labels, main, reproduce, show, train

    program, command, *flags = words
    if program == "python":
        assert (ROOT / command).exists()
        return command
    if program == "pip":
        return command
    assert program in ("fastmeta", "./dev"), program
    if "--help" in flags:
        with pytest.raises(SystemExit) as stop:
            main([command, *flags])
        assert stop.value.code == 0
    elif command == "train":
        assert train.parse(flags).run
    elif command == "compare":
        assert compare.parse(flags)[0].recipe
    elif command == "reproduce":
        assert reproduce.parser().parse(flags).names
    elif command == "check":
        assert check.parser().parse_args(flags).model
    elif command == "bench":
        assert bench.parse(flags).command == flags[0]
    elif command == "show":
        assert show.parser().parse(flags).runs
    elif command == "labels":
        assert labels.parse(flags).command == flags[0]
    elif command == "--version":
        assert main([command, *flags]) == 0
    else:
        assert f"\n{command})" in (ROOT / "dev").read_text(), command
    return command
