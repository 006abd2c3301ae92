"""One table of wrong arguments for each raw operation. The kernel, the shape function, a fake tensor, opcheck and the
public function refuse each of them, in one line that names the argument, and nothing is written."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from fastmeta.ops import guard
from tests.support.ops import Batch, raw_arguments
from tests.support.refusals import RAW, Change, changed, public, refused

# ---------------------------------------------------------------------------------------------------------
# The table: kinds of arguments, and what is wrong with each
# ---------------------------------------------------------------------------------------------------------

KINDS = {
    "logits": "logits a",
    "matrix": "u v probs label_rows b",
    "table": "label_logits",
    "vector": "weight lse grad alpha",
    "index": "index targets",
    "scalar": "label_lr lr",
    "counter": "step",
    "images": "images",
    "channels": "center",
    "tensors": "params grads buffers",
}


def kind_of(operation: str, argument: str) -> str | None:
    if argument == "scale":
        return "channels" if operation == "load_images" else "scalar"
    return next((kind for kind, names in KINDS.items() if argument in names.split()), None)


def apart(t: Tensor) -> Tensor:
    """The same values, their columns apart in memory."""
    return t.t().contiguous().t()


MATRIX: dict[str, Change] = {
    "of one dimension": lambda t: t[0],
    "of three dimensions": lambda t: t[None],
    "of integers": lambda t: t.long(),
    "of complex numbers": lambda t: t.to(torch.complex64),
    "with columns apart": apart,
}
FIXED: dict[str, Change] = {
    **MATRIX,
    "of fewer columns": lambda t: t[:, :3],
    "of float64": lambda t: t.double(),
    "of float16": lambda t: t.half(),
}
VECTOR: dict[str, Change] = {
    "of two dimensions": lambda t: t[:, None],
    "without a dimension": lambda t: t[0],
    "too short": lambda t: t[:-1],
    "empty": lambda t: t[:0],
    "of another width": lambda t: t.to(torch.float16 if t.is_floating_point() else torch.int32),
    "of bool": lambda t: t.bool(),
}
CHANGES: dict[str, dict[str, Change]] = {
    "logits": {**MATRIX, "without columns": lambda t: t[:, :0]},
    "matrix": {**FIXED, "of fewer rows": lambda t: t[:3], "empty": lambda t: t[:0]},
    "table": FIXED,
    "vector": VECTOR,
    "index": {**VECTOR, "of floats": lambda t: t.double()},
    "scalar": {
        "of one dimension": lambda t: t[None],
        "an integer": lambda t: t.long(),
        "of float16": lambda t: t.half(),
    },
    "counter": {"of one dimension": lambda t: t[None], "a float": lambda t: t.double(), "int32": lambda t: t.int()},
    "images": {
        "of three dimensions": lambda t: t[0],
        "of int8": lambda t: t.to(torch.int8),
        "in channels last": lambda t: t.transpose(1, 2),
        "of no pixel": lambda t: t[:, :0],
    },
    "channels": {"too short": lambda t: t[:2], "of float64": lambda t: t.double(), "a column": lambda t: t[:, None]},
    "tensors": {
        "of another shape": lambda t: t[:, :3],
        "of another rank": lambda t: t[0],
        "of float64": lambda t: t.double(),
        "of integers": lambda t: t.long(),
    },
}
# What the argument's own name makes wrong
OWN: dict[str, dict[str, Change]] = {
    "logits": {"of one class": lambda t: t[:, :1]},
    "alpha": {"strided": lambda t: t.repeat_interleave(2)[::2]},
    "label_logits": {
        "expanded": lambda t: t[:1].expand(50, -1),
        "overlapping": lambda t: t.as_strided((50, 9), (3, 1)),
    },
}
# "of another width" is one that the dtype of the logits allows, in two places; strided alpha is read, not written, in
# the functional twins; a table that is only read may be expanded
FITS = {
    ("class_loss", "alpha", "strided"),
    ("class_label_step", "alpha", "strided"),
    ("instance_loss", "label_logits", "expanded"),
    ("instance_loss", "label_logits", "overlapping"),
    *(("load_images", "index", what) for what in ("too short", "empty")),  # it sets n
}
ON_DEVICE: dict[str, Change] = {"on the meta device": lambda t: t.to("meta")}


def table() -> Iterator[tuple[str, int, str, Change]]:
    """(operation, position of the argument, what is wrong, change)"""
    for operation in guard.NAMES:
        schema = getattr(RAW, operation).default._schema
        for at, argument in enumerate(schema.arguments):
            kind = kind_of(operation, argument.name)
            if kind is None:
                assert argument.type.kind() != "TensorType", f"{argument.name} is in no kind"
                continue
            for what, change in {**CHANGES[kind], **OWN.get(argument.name, {}), **ON_DEVICE}.items():
                if (operation, argument.name, what) not in FITS:
                    yield operation, at, what, change


TABLE = list(table())
IDS = [f"{o}-{getattr(RAW, o).default._schema.arguments[at].name}-{what}" for o, at, what, _ in TABLE]


def arguments(operation: str) -> tuple[list[Any], Batch]:
    b = Batch(6, 9)
    given = list(raw_arguments(operation, b))
    if operation in ("instance_label_step_", "instance_label_step"):  # all of them, with the draws
        given += [3, torch.tensor(5)]
    return given, b


def mapped(given: list[Any], f: Change) -> list[Any]:
    return [[f(t) for t in x] if isinstance(x, list) else f(x) if isinstance(x, Tensor) else x for x in given]


def on_meta(t: Tensor) -> Tensor:
    """Numbers stay on the host: they go with tensors of any device."""
    return torch.empty_strided(t.shape, t.stride(), dtype=t.dtype, device="meta") if t.ndim > 0 else t


@pytest.mark.parametrize(("operation", "at", "what", "change"), TABLE, ids=IDS)
def test_refused_everywhere(operation, at, what, change):
    op = getattr(RAW, operation).default
    argument = op._schema.arguments[at].name
    given, _ = arguments(operation)
    before = mapped(given, Tensor.clone)
    wrong = changed(given, at, change)

    text = refused(lambda: op(*wrong), argument)
    with FakeTensorMode() as mode:
        assert refused(lambda: op(*mapped(wrong, mode.from_tensor)), argument) == text
    if "device" in what:
        assert re.search("is on (meta but .* on cpu|cpu but .* on meta); move one of them$", text)
    else:
        assert refused(lambda: op(*mapped(wrong, on_meta)), argument) == text
    if what == next(iter(CHANGES[kind_of(operation, argument)])):  # one for each argument: it is slow
        with pytest.raises(Exception, match=re.escape(text)):
            torch.library.opcheck(op, tuple(wrong), test_utils="test_faketensor")
    written = operation == "instance_label_step_" and argument == "label_logits"
    copied = what == "with columns apart" and not written  # by the public function
    if operation != "soft_cross_entropy_backward" and not copied:
        refused(lambda: public(operation, wrong), argument, (RuntimeError, ValueError, TypeError))
    assert all(torch.equal(old, new) for old, new in zip(before, given, strict=True) if isinstance(new, Tensor))
