"""The labels of a run as a data frame."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fastmeta.data.npz_file import NpzFile
from fastmeta.training.rundir.files import read


def labels_table(path: Path, class_names: Sequence[str]) -> Any:
    """The labels.npz at `path` as a pandas DataFrame.

    ImportError without pandas, InputError for a file that is gone or damaged.
    """
    try:
        import pandas
    except ImportError as error:
        raise ImportError(
            f"labels_table() makes a pandas DataFrame: pip install pandas, or read numpy.load({str(path)!r}): {error}"
        ) from error

    def arrays(path: Path) -> dict[str, Any]:
        with NpzFile(path) as file:
            names = [name for name in _COLUMNS if name not in _OPTIONAL or name in file]
            return file.read({name: file.declared(name) for name in ("index", *names)})

    table = read(path, arrays)
    columns = {
        name: pandas.Categorical.from_codes(values, categories=_distinct(class_names)) if name in _CLASSES else values
        for name, values in table.items()
        if name != "index"
    }
    return pandas.DataFrame(columns, index=pandas.Index(table["index"], name="row"))


_OPTIONAL = ("true", "withheld", "label_quality")
_CLASSES = ("given", "learned", "true", "withheld")
_COLUMNS = ("given", "learned", "true", "withheld", "probability", "given_probability", "label_quality", "entropy")


def _distinct(names: Sequence[str]) -> list[str]:
    """Categories must be distinct: of equal names, all bear their number."""
    return [name if names.count(name) == 1 else f"{name} ({number})" for number, name in enumerate(names)]
