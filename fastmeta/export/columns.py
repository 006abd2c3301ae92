"""Labels as a table: csv, parquet, npz, and the frame of cleanlab."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path
from typing import Any

import numpy as np

from fastmeta._text import encodable
from fastmeta.data import InputError
from fastmeta.data.sources import parse
from fastmeta.export.sample_views import samples_of
from fastmeta.training.rundir import RunLabels, npz_bytes

NOTE = "learned labels are in-sample; the label quality says how far the given label may be believed"


def write(labels: RunLabels, path: Path, format: str) -> dict[Path, bytes]:
    if format == "npz":
        return {path: npz_bytes(numbers(labels))}
    table = cleanlab(labels) if format == "cleanlab" else columns(labels) | files(labels)
    if format == "cleanlab" and path.suffix not in (".csv", ".parquet"):
        raise InputError(f"a frame of cleanlab is written as .csv or .parquet, got {path}")
    if format == "parquet" or path.suffix == ".parquet":
        return {path: parquet_bytes(table, labels)}
    return {path: csv_bytes(table)}


def columns(labels: RunLabels) -> dict[str, np.ndarray]:
    """Classes by name; what nobody knows is left out."""
    names = np.array(labels.class_names, dtype=object)
    found: dict[str, np.ndarray | None] = {
        "row": labels.row,
        "given_label": names[labels.given],
        "learned_label": names[labels.learned],
        "changed": labels.learned != labels.given,
        "label_quality": labels.quality,
        "learned_probability": labels.probability,
        "entropy": labels.entropy,
        "true_label": None if labels.true is None else names[labels.true],
    }
    return {name: column for name, column in found.items() if column is not None}


def files(labels: RunLabels) -> dict[str, np.ndarray]:
    """What file each sample is, where the data set is a folder of them that can still be read."""
    if parse(labels.config.dataset).scheme != "folder" or (samples := samples_of(labels)) is None:
        return {}
    return {} if samples.files is None else {"file": np.array(samples.files, dtype=object)}


def cleanlab(labels: RunLabels) -> dict[str, np.ndarray]:
    """As cleanlab's CleanLearning.find_label_issues gives it, behind the number of the row."""
    names = np.array(labels.class_names, dtype=object)
    return {
        "row": labels.row,
        "is_label_issue": labels.learned != labels.given,
        "label_quality": labels.quality,
        "given_label": names[labels.given],
        "predicted_label": names[labels.learned],
    }


def numbers(labels: RunLabels) -> dict[str, np.ndarray]:
    """Classes by number, and what the numbers mean."""
    found: dict[str, np.ndarray | None] = {
        "row": labels.row,
        "given": labels.given,
        "learned": labels.learned,
        "label_quality": labels.quality,
        "learned_probability": labels.probability,
        "entropy": labels.entropy,
        "true": labels.true,
        "class_names": np.array(labels.class_names),
        "note": np.array(NOTE),
    }
    return {name: array for name, array in found.items() if array is not None}


def csv_bytes(table: dict[str, np.ndarray]) -> bytes:
    text = io.StringIO(newline="")
    writer = csv.writer(text)
    writer.writerow(table)
    # lists, whose numbers print as Python's: the shortest that read back the same
    writer.writerows(zip(*(column.tolist() for column in table.values()), strict=True))
    return text.getvalue().encode("utf-8", "backslashreplace")


def parquet_bytes(table: dict[str, np.ndarray], labels: RunLabels, schema: Any = None) -> bytes:
    """ImportError without pyarrow. The classes, in their order, and the note stand in the metadata of the schema."""
    arrow, parquet = pyarrow()
    texts = {k: [encodable(text) for text in column] for k, column in table.items() if column.dtype == object}
    made = arrow.table({**table, **texts}, schema=schema)
    about = {"class_names": json.dumps(labels.class_names), "note": NOTE}
    made = made.replace_schema_metadata({**(made.schema.metadata or {}), **about})
    buffer = io.BytesIO()
    parquet.write_table(made, buffer)
    return buffer.getvalue()


def pyarrow() -> tuple[Any, Any]:
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError as error:
        raise ImportError(
            f"parquet needs pyarrow: pip install 'fastmeta[parquet]' or pip install pyarrow, or take csv ({error})"
        ) from error
    return pyarrow, parquet
