"""Learned labels in a copy of the table that they are of: the cells of one column change, in the words of the file."""

from __future__ import annotations

import codecs
import csv
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from fastmeta._text import printable
from fastmeta.data import Dataset, InputError
from fastmeta.data.sources import delimiter_of
from fastmeta.data.tabular import LABEL_COLUMNS
from fastmeta.export.columns import pyarrow
from fastmeta.export.sample_views import check_same, load
from fastmeta.export.whole_file import write_whole
from fastmeta.training.rundir import RunLabels


def write_csv(labels: RunLabels, source: Path, to: Path) -> tuple[str, ...]:
    data = load(labels.config)  # which refuses what is no table
    content = source.read_bytes()
    text = content.decode("utf-8-sig")
    head = text.partition("\n")[0]
    delimiter = delimiter_of(head)
    records = [record for record in csv.reader(io.StringIO(text), delimiter=delimiter) if record]
    columns = [[record[k].strip() for record in records[1:]] for k in range(len(records[0]))]
    header = [name.strip() for name in records[0]]
    label = _label_column(labels, header)
    for row, cell in _changes(labels, data, dict(zip(header, columns, strict=True)), label, source).items():
        records[1 + row][header.index(label)] = cell
    made = io.StringIO(newline="")
    csv.writer(made, delimiter=delimiter, lineterminator="\r\n" if head.endswith("\r") else "\n").writerows(records)
    mark = codecs.BOM_UTF8 if content.startswith(codecs.BOM_UTF8) else b""
    write_whole(to, lambda out: out.write(mark + made.getvalue().encode()))
    return _said(label, source)


def write_parquet(labels: RunLabels, source: Path, to: Path) -> tuple[str, ...]:
    arrow, parquet = pyarrow()
    data = load(labels.config)
    table = parquet.read_table(str(source))
    label = _label_column(labels, table.column_names)
    split = labels.config.data.split_column
    columns = {name: table.column(name).to_pylist() for name in (label, split) if name is not None}
    cells = list(columns[label])
    for row, cell in _changes(labels, data, columns, label, source).items():
        cells[row] = cell
    kind, number = table.schema.field(label).type, table.column_names.index(label)
    plain = arrow.array(cells, type=kind.value_type if arrow.types.is_dictionary(kind) else kind)
    made = table.set_column(number, table.field(number), plain if plain.type == kind else plain.cast(kind))
    write_whole(to, lambda out: parquet.write_table(made, out))
    return _said(label, source)


def _said(label: str, source: Path) -> tuple[str, ...]:
    return (f"column {printable(label, 40)} has the learned labels; the given ones are in {source} alone",)


def _label_column(labels: RunLabels, names: Sequence[str]) -> str:
    return labels.config.data.label_column or next(name for name in LABEL_COLUMNS if name in names)


def _changes(
    labels: RunLabels, data: Dataset, columns: dict[str, list[Any]], label: str, source: Path
) -> dict[int, Any]:
    """New cells of the label column by their row in the file, as the file itself writes these classes."""
    check_same(labels, data, source)
    cells, split = columns[label], labels.config.data.split_column
    parts = ["train"] * len(cells) if split is None else [str(cell).strip().lower() for cell in columns[split]]
    rows = [row for row, part in enumerate(parts) if part == "train"]
    if len(rows) != len(data.train):
        raise InputError(f"{source} has {len(rows):,} rows to train on, and {len(data.train):,} a moment ago")
    written: dict[int, Any] = {}
    targets = np.asarray(data.train.targets)
    for row, number in zip(rows, targets.tolist(), strict=True):
        written.setdefault(number, cells[row])
    for number, name in enumerate(labels.class_names):  # classes that no training row has been given
        written.setdefault(number, _cell(name, cells[0]))
    moved = np.flatnonzero(labels.learned != targets[labels.row]).tolist()
    return {rows[int(labels.row[at])]: written[int(labels.learned[at])] for at in moved}


def _cell(name: str, like: Any) -> Any:
    """A class by its name as the file writes others."""
    if isinstance(like, bytes):
        return name.encode()
    return type(like)(name) if isinstance(like, int | float) else name
