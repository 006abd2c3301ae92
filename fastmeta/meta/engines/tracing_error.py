"""An error of a tracer in words: what the model did, and in which line."""

from __future__ import annotations

import sys
import traceback
from types import FrameType

from fastmeta._text import printable, reason

#: of torch's kinds of error, those that mean: Python asked for the value of a tensor
_ASKS_FOR_VALUES = {"GuardOnDataDependentSymNode", "DataDependentOutputException"}
#: packages whose lines are not the model's, and those parts of them that are
_BETWEEN, _LAYERS = ("torch", "fastmeta"), ("torch.nn.modules", "fastmeta.models")
_CALLS = "torch.nn.modules.module"


def in_words(error: Exception) -> str:
    """Why a function could not be traced, and the line of the model at fault where there is one."""
    line = _line_of_model(error)
    if type(error).__name__ not in _ASKS_FOR_VALUES:
        return reason(error, 200).rstrip(".") + (line and f", in {line}")
    asks = "the model asks for the value of a tensor, which a graph does not know" + (line and f", in {line}")
    return f"{asks}; of a branch make torch.where"


def _line_of_model(error: Exception) -> str:
    """The innermost line that belongs to a model, by file, number and code, else ""."""
    frames = [frame for frame, _ in traceback.walk_tb(error.__traceback__)]
    lines = [number for _, number in traceback.walk_tb(error.__traceback__)]
    of_model = [k for k, frame in enumerate(frames) if _is_of_model(frame)]
    if not of_model:
        return ""
    frame = frames[of_model[-1]]
    (found,) = traceback.StackSummary.extract([(frame, lines[of_model[-1]])])
    name = found.filename.replace("\\", "/").rpartition("/")[2]
    code = f", `{printable(found.line, 120)}`" if found.line else ""  # "" where the file is gone
    return f"{printable(name)}:{found.lineno}{code}"


def _is_of_model(frame: FrameType) -> bool:
    module = frame.f_globals.get("__name__") or ""  # "" of what torch has generated
    if module == _CALLS or not module or module.partition(".")[0] in sys.stdlib_module_names:
        return False
    inside = any(module == name or module.startswith(f"{name}.") for name in _BETWEEN)
    return not inside or any(module == name or module.startswith(f"{name}.") for name in _LAYERS)
