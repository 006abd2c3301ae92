"""The paper's own numbers, from published.toml: test accuracy in %, with its spread, by table, row and column."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from fastmeta.data import InputError
from fastmeta.training.toml_file import read_toml

SOURCE = "arXiv 2009.09496"
_FILE = Path(__file__).with_name("published.toml")
_NUMBER = re.compile(r"(\d+(?:\.\d+)?)(?: ± (\d+(?:\.\d+)?))?")


@dataclass(frozen=True)
class Number:
    """One published number, in %."""

    mean: float
    std: float | None
    text: str
    """As it is printed: 46.2 ± 0.15."""


@dataclass(frozen=True)
class PublishedRow:
    name: str
    title: str
    clean: bool
    """Does it use clean data beside the training set?"""
    numbers: Mapping[str, Number]
    """By column; a column without a number is left out."""


@dataclass(frozen=True)
class PublishedTable:
    name: str
    title: str
    columns: tuple[str, ...]
    rows: Mapping[str, PublishedRow]

    def number(self, row: str, column: str) -> Number | None:
        """None where the paper has none."""
        return self.rows[row].numbers.get(column) if row in self.rows else None


@cache
def published(name: str) -> PublishedTable:
    """The numbers of ``table1`` ... ``table8`` or ``figure4``. LookupError for any other."""
    return _tables()[name]


@cache
def settings() -> Mapping[str, Mapping[str, Any]]:
    """Table 9, the batches and the grids of the search, as the paper gives them."""
    found: Mapping[str, Mapping[str, Any]] = read_toml(_FILE)["settings"]
    return found


@cache
def _tables() -> dict[str, PublishedTable]:
    return {name: _table(name, values) for name, values in read_toml(_FILE).items() if name != "settings"}


def _table(name: str, values: Mapping[str, Any]) -> PublishedTable:
    columns = tuple(values["columns"])
    rows = {}
    for row, told in values["rows"].items():
        if len(told["test"]) != len(columns):
            raise InputError(f"published.toml: {name}.{row} has {len(told['test'])} numbers for {len(columns)} columns")
        numbers = {column: _number(text) for column, text in zip(columns, told["test"], strict=True) if text}
        rows[row] = PublishedRow(row, told["title"], told.get("clean", False), numbers)
    return PublishedTable(name, values["title"], columns, rows)


def _number(text: str) -> Number:
    found = _NUMBER.fullmatch(text)
    if found is None:
        raise InputError(f"published.toml: {text!r} is no number such as 68.1 ± 0.2")
    return Number(float(found[1]), None if found[2] is None else float(found[2]), text)
