"""``parquet:PATH``: the same of a file of Parquet, by pyarrow where that is installed."""

from __future__ import annotations

import os
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np

from fastmeta._memory import free_memory, gibibytes
from fastmeta._text import reason, shown
from fastmeta.data.dataset import Dataset
from fastmeta.data.errors import InputError
from fastmeta.data.sources.scheme import Choice, given_path
from fastmeta.data.tabular import IN_PIECES, dataset_of_table

FORM = "parquet:PATH"
HELP = "the same of a file of Parquet, with pyarrow: pip install 'fastmeta[parquet]'"
OPTIONS = frozenset({"label_column", "truth_column", "split_column"})

#: bytes in memory of a cell: as it is read, as a number, and as a feature
_CELL = 24


def read(argument: str, choice: Choice) -> Dataset:
    path = given_path(FORM, argument)
    columns = read_columns(path)
    return dataset_of_table(str(path), columns, choice.label_column, choice.truth_column, choice.split_column)


def lasting(argument: str) -> str:
    return str(given_path(FORM, argument).resolve())


def read_columns(path: Path) -> dict[str, np.ndarray]:
    """Columns by name. InputError where pyarrow is absent, or the file is none of Parquet."""
    if not os.path.isfile(path):
        raise InputError(
            f"{path} {'is no file' if os.path.exists(path) else 'does not exist'}; parquet:PATH wants a table"
        )
    try:
        from pyarrow import parquet
    except ImportError as error:
        raise InputError(
            f"parquet:{path} needs pyarrow, which is not installed: pip install 'fastmeta[parquet]', or write the "
            "table as csv"
        ) from error
    try:
        about = parquet.read_metadata(str(path))
        names, free = about.schema.to_arrow_schema().names, free_memory()
        counts = Counter(names)
        twice = next((name for name in names if counts[name] > 1), None)
        if twice is not None:
            raise InputError(f"{path} has the column {shown(twice)} twice; give one of them another name")
        needed = _CELL * about.num_rows * len(names)
        if free is not None and needed > free:
            raise InputError(
                f"{path} holds {about.num_rows:,} rows of {len(names):,} columns, which take {gibibytes(needed)}, and "
                f"{gibibytes(free)} of memory are free; {IN_PIECES}"
            )
        table = parquet.read_table(str(path))
        return {str(name): _array(table.column(name)) for name in table.column_names}
    except InputError:
        raise
    except Exception as error:  # of pyarrow: any kind, for any bytes
        raise InputError(f"{path} cannot be read as Parquet ({reason(error, 200)})") from error


def _array(column: Any) -> np.ndarray:
    from pyarrow import types

    kind = column.type
    if types.is_floating(kind) or types.is_integer(kind) or (types.is_boolean(kind) and not column.null_count):
        return np.asarray(column.to_numpy())  # whole numbers with gaps come as floats, with NaN there
    values = column.to_pylist()
    array = np.empty(len(values), object)
    array[:] = values
    return array
