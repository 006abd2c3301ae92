"""The labels of a run as a data frame."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fastmeta._text import distinct, encodable
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
    categories = distinct([encodable(name) for name in class_names])
    columns = {
        name: pandas.Categorical.from_codes(values, categories=categories) if name in _CLASSES else values
        for name, values in table.items()
        if name != "index"
    }
    return pandas.DataFrame(columns, index=pandas.Index(table["index"], name="row"))


_OPTIONAL = ("true", "withheld", "label_quality")
_CLASSES = ("given", "learned", "true", "withheld")
_COLUMNS = ("given", "learned", "true", "withheld", "probability", "given_probability", "label_quality", "entropy")
