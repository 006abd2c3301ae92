"""Kinds of noise by name, and the one parser of what names one."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from fastmeta._text import shown
from fastmeta.data.errors import InputError
from fastmeta.data.label_file import SUFFIXES
from fastmeta.data.noise.classwise import classwise
from fastmeta.data.noise.instance import instance
from fastmeta.data.noise.pair import pair
from fastmeta.data.noise.permute import permute
from fastmeta.data.noise.superclass import superclass
from fastmeta.data.noise.uniform import uniform, uniform_exact, uniform_other

#: (targets (N,) int64, x (N, ...), num_classes, rate, generator) -> labels (N,); a function of these alone
Kind = Callable[[np.ndarray, Any, int, float, np.random.Generator], np.ndarray]

#: every kind of this package by its name
KINDS: dict[str, Kind] = {
    "uniform": uniform,
    "uniform_exact": uniform_exact,
    "uniform_other": uniform_other,
    "class": classwise,
    "pair": pair,
    "permute": permute,
    "instance": instance,
}
#: those that take the keyword `superclasses`, (C,), too
GROUPED: dict[str, Callable[..., np.ndarray]] = {"superclass": superclass}
FILE = "file"
_CODE = re.compile(r"([^\W\d][\w.]*:[^\W\d][\w.]*)(?::([^:]+))?")
_FILE = re.compile(rf"(.*(?:{'|'.join(map(re.escape, SUFFIXES))}))(?::(.+))?", re.IGNORECASE | re.DOTALL)


class Noise(NamedTuple):
    """What a text stands for."""

    kind: str  # of `KINDS` or `GROUPED`, none, file, or package.module:function
    rate: float
    path: Path | None = None  # of a file
    key: str | None = None  # what it calls the labels

    @property
    def names_code(self) -> bool:
        return ":" in self.kind


def parse(spec: str) -> Noise:
    """("uniform", 0.4) of "uniform:0.4", ("none", 0) of "none", ("mine:flip", 0.3) of "mine:flip:0.3".

    A function of the user's may come without a rate, and is called with rate 1. "file:PATH:KEY" is a file, in which KEY
    may be left out. Nothing is imported or read here.

    Raises:
        InputError: anything else.
    """
    if not isinstance(spec, str):
        raise _unknown(spec)
    if spec == "none":
        return Noise("none", 0.0)
    kind, _, text = spec.partition(":")
    if kind == FILE:
        return _file(text)
    if kind not in KINDS and kind not in GROUPED:
        code = _CODE.fullmatch(spec)
        if code is None:
            raise _unknown(spec)
        kind, text = type(spec)(code[1]), code[2] or "1"  # a name of a file's stays one
    try:
        rate = float(text)
    except ValueError:
        rate = -1.0
    if not 0 <= rate <= 1:
        raise _unknown(spec)
    return Noise(kind, rate)


def _file(text: str) -> Noise:
    found = _FILE.fullmatch(text)
    if found is None:
        raise InputError(
            f"noise file:PATH or file:PATH:KEY takes a file that ends in {', '.join(SUFFIXES)}, got {shown(text)}"
        )
    try:
        return Noise(FILE, 0.0, Path(found[1]).expanduser(), found[2])
    except RuntimeError as error:  # ~somebody who is not known here
        raise InputError(f"noise file:{text}: {error}; write the path out") from error


def lasting(spec: str) -> str:
    """`spec` as a run directory keeps it: it finds the same file from any folder."""
    noise = parse(spec)
    if noise.path is None:
        return spec
    return f"{FILE}:{noise.path.resolve()}" + (f":{noise.key}" if noise.key else "")


def _unknown(spec: Any) -> InputError:
    known = ", ".join(f"{k}:RATE" for k in (*KINDS, *GROUPED))
    return InputError(
        f"unknown noise {shown(spec)}: expected none, {known}, file:PATH or package.module:function:RATE with RATE in "
        "[0, 1], such as uniform:0.4"
    )
