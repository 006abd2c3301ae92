"""Formats by name, and the one way to write a file of them."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType
from typing import NamedTuple

from fastmeta._text import printable, shown
from fastmeta.data import InputError
from fastmeta.export import columns, hugging_face, label_studio
from fastmeta.training.rundir import RunLabels, run_labels, user_path, write_atomically


class Format(NamedTuple):
    what: str
    name: str  # of the file or folder in RUN/export
    module: ModuleType  # write(labels, path) -> content by path
    top: int | None = None  # rows without a number being given; None: all


FORMATS = {
    "parquet": Format("a row per sample", "labels.parquet", columns),
    "csv": Format("the same as text", "labels.csv", columns),
    "npz": Format("the same as arrays of NumPy, classes as numbers", "labels.npz", columns),
    "cleanlab": Format("cleanlab's frame of label issues, as .csv or .parquet", "cleanlab.csv", columns),
    "labelstudio": Format("tasks of Label Studio, the most suspicious rows", "labelstudio.json", label_studio, 100),
    "hf": Format("a folder for datasets.load_dataset", "hf", hugging_face),
}
IN_SAMPLE = "learned labels are in-sample: the network was trained on these very rows"


class Exported(NamedTuple):
    """What was written."""

    path: Path
    rows: int
    lines: tuple[str, ...]  # that the user should see


def export(
    run: str | Path, format: str, out: str | Path | None = None, *, top: int | None = None, force: bool = False
) -> Exported:
    """Write the labels of the finished `run` in one of :data:`FORMATS`.

    Args:
        out: file (folder for hf); by default in ``RUN/export``. One that is there is replaced.
        top: only so many rows, the most suspicious ones; by default 100 for Label Studio and all for others.
        force: labels that canaries find worse than the given ones, too.

    Raises:
        InputError: an unknown format, labels that cannot be had or were not learned, or a file that cannot be written.
        ImportError: pyarrow is missing, for parquet and hf.
    """
    if format not in FORMATS:
        raise InputError(f"format must be one of {', '.join(FORMATS)}, got {shown(format)}")
    if top is not None and top < 1:
        raise InputError(f"top must be at least 1, got {top}")
    chosen, labels = FORMATS[format], run_labels(run, force=force)
    if not labels.summary["learns_labels"] and (labels.learned == labels.given).all():
        raise InputError(
            f"{labels.path} has no labels but the given ones: method {labels.summary['method']} learns none"
        )
    path = labels.path / "export" / chosen.name if out is None else user_path(out, "out")
    top = chosen.top if top is None else top
    picked = labels if top is None else labels.take(labels.suspicious(top))
    if top is not None and format != "labelstudio":
        picked = picked.take(picked.row.argsort())  # in the order of the data
    try:
        for file, content in chosen.module.write(picked, path, format).items():
            write_atomically(file, content)
    except OSError as error:
        raise InputError(f"cannot write {path}: {error.strerror}; name another place") from error
    return Exported(path, len(picked), _lines(picked, path))


def _lines(labels: RunLabels, path: Path) -> tuple[str, ...]:
    changed = int((labels.learned != labels.given).sum())
    names = ", ".join(printable(name, 40) for name in labels.class_names[:20])
    more = f", … ({len(labels.class_names):,} in all)" if len(labels.class_names) > 20 else ""
    return (
        f"wrote {path}: {len(labels):,} rows, {changed:,} with another label than the given one",
        f"classes, by their numbers from 0 on: {names}{more}",
        IN_SAMPLE,
    )
