"""Arguments that every operation refuses."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from fastmeta import ops

RAW = torch.ops.fastmeta


Change = Callable[[Tensor], Tensor]


def changed(given: list[Any], at: int, change: Change) -> list[Any]:
    if isinstance(given[at], list):  # the last of a list of tensors
        return [*given[:at], [*given[at][:-1], change(given[at][-1])], *given[at + 1 :]]
    return [*given[:at], change(given[at]), *given[at + 1 :]]


def public(operation: str, x: list[Any]) -> Any:
    """The public function of the same name, where there is one."""
    if operation == "load_images":
        return ops.load_images(*x[:4], padding=x[4], flip=x[6], seed=x[7], step=x[8], dtype=x[9])
    if operation == "lookahead_update":
        return ops.lookahead_update(*x[:3], lr=x[3], gain=x[4], carry=x[5], weight_decay=x[6])
    if operation in ("instance_label_step_", "instance_label_step"):
        return getattr(ops, operation)(*x[:7], unique=x[7], **dict(zip(("seed", "step"), x[8:], strict=False)))
    return getattr(ops, operation)(*x)


def refused(call: Callable[[], Any], argument: str, kinds: type | tuple = RuntimeError) -> str:
    with pytest.raises(kinds) as error:
        call()
    text = str(error.value)
    assert "\n" not in text
    assert len(text) < 250
    assert re.search(rf"\b{argument}\b", text), text
    return text
