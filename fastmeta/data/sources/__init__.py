"""Where a data set comes from: one file per scheme (``SCHEME:ARGUMENT``), or ``package.module:factory``."""

from fastmeta.data.sources.csv_table import delimiter_of
from fastmeta.data.sources.image_folder import ImageTree
from fastmeta.data.sources.npy import NpyFolder
from fastmeta.data.sources.npz import is_pickle
from fastmeta.data.sources.registry import (
    SCHEMES,
    Name,
    forms,
    is_path,
    lasting,
    lasting_path,
    lasting_root,
    load_dataset,
    parse,
    with_superclasses,
)

__all__ = [
    "SCHEMES",
    "ImageTree",
    "Name",
    "NpyFolder",
    "delimiter_of",
    "forms",
    "is_path",
    "is_pickle",
    "lasting",
    "lasting_path",
    "lasting_root",
    "load_dataset",
    "parse",
    "with_superclasses",
]
