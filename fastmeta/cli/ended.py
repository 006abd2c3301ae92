"""How a command ends that may be stopped and go on: what it says, and its exit code."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence

from fastmeta._text import printable_lines
from fastmeta.data import InputError
from fastmeta.training import Interrupted, TrainingError
from fastmeta.training.rundir import command


def ended(name: str, argv: Sequence[str], run: Callable[[], int]) -> int:
    """The exit code of ``fastmeta NAME ARGV``, which `run` carries out: its own, or that of what it raises."""
    way = f"go on with: {command(*argv, of=name)}"

    def fail(code: int, text: str) -> int:
        print(printable_lines(f"fastmeta {name}: {text}"), file=sys.stderr)
        return code

    try:
        return run()
    except InputError as error:
        return fail(2, str(error))
    except TrainingError as error:
        return fail(1, str(error))
    except Interrupted as stop:
        return fail(128 + stop.signum, f"{stop}\n{way}")
    except KeyboardInterrupt:  # between two runs, or while one was made
        return fail(130, f"stopped\n{way}")
