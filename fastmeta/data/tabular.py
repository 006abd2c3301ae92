"""A table as a data set: numeric columns are features, one column is the label; words become classes."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from fastmeta._text import printable, shown
from fastmeta.data.arrays import class_numbers
from fastmeta.data.dataset import Dataset, check_classes
from fastmeta.data.errors import InputError

#: what the label's column is called where nobody says so
LABEL_COLUMNS = ("label", "target", "class", "y")
#: the way out for a table that does not fit into memory
IN_PIECES = "take fewer rows, or write it as arrays in pieces, npy:DIR (docs/scale.md, Data beyond memory, shows how)"
_PARTS = {"train": "train", "meta": "meta", "clean": "meta", "test": "test"}
#: a column of row numbers, as pandas writes it
_INDEX = ("", "Unnamed: 0", "__index_level_0__")
_NAMED = 5
#: rows from which on a column that goes up by one is more than chance
_LEAST_COUNTED = 10
#: numbers as Germans and others write them
_COMMA = re.compile(r"[+-]?\d+,\d+")

#: column -> (N,) cells: numbers, truth values, or objects of texts and None
Columns = Mapping[str, np.ndarray]


def dataset_of_table(
    name: str, columns: Columns, label: str | None = None, truth: str | None = None, split: str | None = None
) -> Dataset:
    """`label`, `truth` and `split` name columns: given classes, right ones, and train, meta or test of each row.

    Where there is a truth, clean and test rows have that for a label. Of training rows it may be empty: where it is,
    nobody knows the right labels of any of them. Classes are sorted, by number where all of them are whole numbers.

    Raises:
        InputError: no such column, cells that are empty, are no numbers or are no labels; the row is named.
    """
    label = _label_column(name, columns, label)
    for option, column in (("truth_column", truth), ("split_column", split)):
        if column is not None and column not in columns:
            raise InputError(f"{name}: no column {shown(column)} for data.{option}, found {_listed(columns)}")
        if column is not None and column in (label, truth if option == "split_column" else None):
            raise InputError(f"{name}: data.{option} names {shown(column)}, which holds labels already; leave it out")
    part = np.full(len(columns[label]), "train") if split is None else _parts(name, split, columns[split])
    words, notes = {label: _classes(name, label, columns[label])}, []
    rows_of = {label: np.arange(len(part))}
    if truth is not None:
        rows_of[truth] = np.flatnonzero(~(_empty(columns[truth]) & (part == "train")))
        words[truth] = _truth(name, truth, columns[truth], rows_of[truth], split)
    class_names = _sorted_names(name, np.concatenate(list(words.values())))
    number = {word: i for i, word in enumerate(class_names)}
    numbers = {c: np.full(len(part), -1) for c in words}
    for column, rows in rows_of.items():
        numbers[column][rows] = [number[w] for w in words[column].tolist()]
    given, right = numbers[label], None if truth is None else numbers[truth]
    measured = right is not None and bool((right[part == "train"] >= 0).all())
    if right is not None and not measured:
        notes.append(
            f"{name}: column {printable(truth, 40)!r} is empty in {(right < 0).sum():,} training rows: labels of these "
            "are learned, and not measured"
        )
    features, ignored = _features(name, {c: v for c, v in columns.items() if c not in (label, truth, split)})
    arrays: dict[str, Any] = {"class_names": list(map(str, class_names))}
    for which in ("train", "meta", "test"):
        rows = np.flatnonzero(part == which)
        if not len(rows):
            continue
        arrays[f"x_{which}"] = features[rows]
        arrays[f"y_{which}"] = (given if which == "train" or right is None else right)[rows]
        if right is not None and which == "train" and measured:
            arrays["y_true"] = right[rows]
        if right is not None and which == "meta":
            arrays["y_meta_given"] = given[rows]
    if "x_train" not in arrays:
        raise InputError(f"{name}: column {shown(split)} puts no row into train")
    notes += [
        f"{name}: column {printable(c, 40)!r} counts the rows and is taken for a feature; drop it if it is their number"
        for c in columns
        if c not in (label, truth, split, *ignored) and _counts(columns[c])
    ]
    if ignored:
        texts = ", ".join(printable(c, 40) or "''" for c in ignored[:_NAMED]) + (" …" if len(ignored) > _NAMED else "")
        notes.append(f"{name}: {len(ignored)} of {len(columns)} columns are no features: {texts}")
    return replace(Dataset.from_arrays(arrays, name=name), notes=tuple(notes))


def _counts(cells: np.ndarray) -> bool:
    """Whether these are row numbers, which tell the class where rows are sorted by it."""
    return cells.dtype.kind in "iu" and len(cells) >= _LEAST_COUNTED and bool((np.diff(cells) == 1).all())


def _listed(columns: Columns) -> str:
    names = [printable(c, 40) for c in columns]
    return ", ".join(names[:20]) + (" …" if len(names) > 20 else "")


def _label_column(name: str, columns: Columns, label: str | None) -> str:
    if label is None:
        label = next((c for c in LABEL_COLUMNS if c in columns), None)
        if label is None:
            raise InputError(
                f"{name}: no column is called {', '.join(LABEL_COLUMNS)}; say which holds the labels, "
                f"--data.label-column: found {_listed(columns)}"
            )
    if label not in columns:
        raise InputError(f"{name}: no column {shown(label)} for data.label_column, found {_listed(columns)}")
    if not len(columns[label]):
        raise InputError(f"{name} has no row")
    return label


def _classes(name: str, column: str, cells: np.ndarray) -> np.ndarray:
    """(N,) objects: whole numbers or texts."""
    what = f"column {printable(column, 40)!r}"
    if cells.dtype.kind == "b":
        return np.array([str(v) for v in cells.tolist()], object)
    if cells.dtype.kind == "f":
        empty = np.flatnonzero(np.isnan(cells))
        if len(empty):
            raise InputError(f"{name}: {what} has no label in row {empty[0]}, in {len(empty):,} row(s); drop these")
        row = int(np.argmax(cells != np.round(cells)))  # the first that is not whole, else 0
        way = "" if cells[row] != np.round(cells[row]) else "; write these without a point, as .astype(int) does"
        raise InputError(
            f"{name}: {what} holds numbers such as {cells[row]}, which are no classes; labels are whole numbers or "
            f"words{way}"
        )
    if cells.dtype.kind in "iu":
        number = class_numbers(cells, f"{name}: {what}")
        check_classes(name, what, number, max(int(number.max()) + 1, 1), "")
        return number.astype(object)
    values = cells.tolist()
    empty = np.flatnonzero(_empty(cells))
    if len(empty):
        raise InputError(f"{name}: {what} has no label in row {empty[0]}, in {len(empty):,} row(s); drop these")
    return np.array([v.decode(errors="replace") if isinstance(v, bytes) else str(v) for v in values], object)


def _empty(cells: np.ndarray) -> np.ndarray:
    """(N,) bool: cells that hold nothing."""
    if cells.dtype.kind == "f":
        return np.isnan(cells)
    if cells.dtype.kind != "O":
        return np.zeros(len(cells), bool)
    return np.array([v is None or v == "" or v != v for v in cells.tolist()], bool)


def _truth(name: str, column: str, cells: np.ndarray, rows: np.ndarray, split: str | None) -> np.ndarray:
    """Classes of the cells `rows`, which are all but empty ones of training rows."""
    if len(rows) < len(cells):
        what = f"{name}: column {printable(column, 40)!r}"
        first = int(np.flatnonzero(np.diff(rows, prepend=-1, append=len(cells)) > 1)[0])
        if split is None:
            raise InputError(
                f"{what} has no label in row {first}, in {len(cells) - len(rows):,} row(s); fill these, or say in "
                "another column which rows are train and which are meta or test (--data.split-column): training rows "
                "need none"
            )
        if not len(rows):
            raise InputError(f"{what} holds no label; leave data.truth_column out")
        empty = rows[_empty(cells[rows])]
        if len(empty):
            raise InputError(
                f"{what} has no label in row {empty[0]}, in {len(empty):,} meta or test row(s); fill these, or make "
                "them train"
            )
        if cells.dtype.kind == "f" and (cells[rows] == np.round(cells[rows])).all():
            return cells[rows].astype(np.int64).astype(object)  # whole numbers beside empty cells
    return _classes(name, column, cells[rows])


def _sorted_names(name: str, words: np.ndarray) -> list[Any]:
    kinds = {type(w) for w in words.tolist()}
    if len(kinds) > 1:
        raise InputError(f"{name}: labels are numbers in one column and words in the other; write both alike")
    return sorted(set(words.tolist()))


def _features(name: str, columns: Columns) -> tuple[np.ndarray, list[str]]:
    """(N, d) float32 of the columns of numbers, and the names of the others."""
    kept, ignored = [], []
    for column, cells in columns.items():
        what = f"column {printable(column, 40)!r}"
        if column in _INDEX and cells.dtype.kind in "iu":
            ignored.append(column)
            continue
        if cells.dtype.kind not in "iufb":
            numbers = np.array([_is_number(v) for v in cells.tolist()])
            if not numbers.any():
                ignored.append(column)
                continue
            if not numbers.all():
                row = int(np.flatnonzero(~numbers)[0])
                raise InputError(
                    f"{name}: {what} holds {shown(cells[row])} in row {row}, among numbers, in {(~numbers).sum():,} "
                    "row(s) in all; mend these, or make all of it words"
                )
            cells = np.array([float(v) for v in cells.tolist()])  # such as decimal ones
        with np.errstate(over="ignore"):
            values = cells.astype(np.float32)
        bad = np.flatnonzero(~np.isfinite(values))
        if len(bad):
            got = "is empty or NaN" if np.isnan(values[bad[0]]) else f"holds {cells[bad[0]]}"
            raise InputError(
                f"{name}: {what} {got} in row {bad[0]}, in {len(bad):,} row(s) in all; fill such cells, or drop the "
                "rows"
            )
        kept.append(values)
    if not kept:
        comma = any(isinstance(v[0], str) and _COMMA.fullmatch(v[0]) for v in columns.values())
        way = "; write them with a point, 1.5, not with a comma" if comma else ""
        raise InputError(f"{name}: no column of numbers is left beside the labels; found {_listed(columns)}{way}")
    return np.stack(kept, 1), ignored


def _is_number(value: Any) -> bool:
    try:
        float(value)
    except (TypeError, ValueError):
        return False
    return True


def _parts(name: str, column: str, cells: np.ndarray) -> np.ndarray:
    words = [str(v).strip().lower() for v in cells.tolist()]
    for row, word in enumerate(words):
        if word not in _PARTS:
            way = "; data.val_fraction holds out a validation set" if word.startswith("val") else ""
            raise InputError(
                f"{name}: column {printable(column, 40)!r} must say train, meta or test, got {shown(cells[row])} in "
                f"row {row}{way}"
            )
    return np.array([_PARTS[word] for word in words])
