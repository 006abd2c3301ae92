"""``csv:PATH``: a table with a header, of numbers and words."""

from __future__ import annotations

import csv
import io
from collections import Counter
from pathlib import Path

import numpy as np

from fastmeta._memory import free_memory, gibibytes
from fastmeta._text import reason, shown
from fastmeta.data.dataset import Dataset
from fastmeta.data.errors import InputError
from fastmeta.data.sources.scheme import Choice, given_path
from fastmeta.data.tabular import IN_PIECES, dataset_of_table

FORM = "csv:PATH"
HELP = "a table whose columns of numbers are features; --data.label-column names the labels, words or whole numbers"
OPTIONS = frozenset({"label_column", "truth_column", "split_column"})

#: bytes in memory of one of the file, while it is read
_SWELLS = 12
_DELIMITERS = ",;\t|"


def read(argument: str, choice: Choice) -> Dataset:
    path = given_path(FORM, argument)
    columns = read_columns(path)
    return dataset_of_table(str(path), columns, choice.label_column, choice.truth_column, choice.split_column)


def lasting(argument: str) -> str:
    return str(given_path(FORM, argument).resolve())


def read_columns(path: Path) -> dict[str, np.ndarray]:
    """Columns by the names of the header, each of whole numbers, numbers, truth values or texts (objects).

    InputError where there is no such file, or it is no table in UTF-8.
    """
    try:
        if not path.is_file():
            raise InputError(f"{path} {'is no file' if path.exists() else 'does not exist'}; csv:PATH wants a table")
        size, free = path.stat().st_size, free_memory()
        if free is not None and _SWELLS * size > free:
            raise InputError(f"{path} has {gibibytes(size)}, and {gibibytes(free)} of memory are free; {IN_PIECES}")
        text = path.read_bytes().decode("utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path} cannot be read as a table in UTF-8 ({reason(error)})") from error
    head = text[: text.find("\n")] if "\n" in text else text
    delimiter = delimiter_of(head)
    try:
        rows = [(n, row) for n, row in enumerate(csv.reader(io.StringIO(text), delimiter=delimiter), 1) if row]
    except csv.Error as error:
        raise InputError(f"{path} is no table ({error})") from error
    if len(rows) < 2:
        raise InputError(f"{path} has no row below its header")
    header = [name.strip() for name in rows[0][1]]
    counts = Counter(header)
    twice = next((name for name in header if counts[name] > 1), None)
    if twice is not None:
        raise InputError(f"{path} has the column {shown(twice)} twice; give one of them another name")
    if all(_typed([name]).dtype.kind in "if" for name in header):
        raise InputError(f"{path} has no header: its first line {shown(head)} holds numbers; name the columns there")
    for number, row in rows[1:]:
        if len(row) != len(header):
            raise InputError(f"{path} has {len(row)} cells for {len(header)} columns in record {number}")
    return {name: _typed([row[i].strip() for _, row in rows[1:]]) for i, name in enumerate(header)}


def delimiter_of(head: str) -> str:
    """What lies between the cells of a table whose first line is `head`."""
    return max(_DELIMITERS, key=head.count)


def _typed(cells: list[str]) -> np.ndarray:
    for kind in (np.int64, np.float64):
        try:
            filled = cells if kind is np.int64 else [cell or "nan" for cell in cells]
            found = np.array(filled).astype(kind)
        except (ValueError, OverflowError):
            continue
        if kind is np.int64 or not np.isnan(found).all():  # a column of empty cells says nothing
            return found
    words = [cell.lower() for cell in cells]
    if set(words) <= {"true", "false"}:
        return np.array([word == "true" for word in words])
    array = np.empty(len(cells), object)
    array[:] = cells
    return array
