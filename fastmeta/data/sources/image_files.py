"""Data sets of image files: in memory where they fit, and read as they are needed where they do not."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np

from fastmeta.data.dataset import Dataset
from fastmeta.data.image_stream import ImageStream
from fastmeta.data.pictures import Look, Open, look, read, residence
from fastmeta.data.resident import Images
from fastmeta.data.source import Source
from fastmeta.data.sources.scheme import Choice


class ImageFiles(NamedTuple):
    """One part of a data set."""

    images: Sequence[Open]
    names: Sequence[str]
    labels: np.ndarray  # (N,) int64, right once an image has been opened


def dataset_of_files(
    name: str, parts: Mapping[str, ImageFiles], class_names: tuple[str, ...] | None, choice: Choice
) -> Dataset:
    """Of the parts train, and test and meta where there are any; all are grey where train is. InputError as `read`."""
    looks: dict[str, Look] = {}
    grey: bool | None = None
    for part, files in parts.items():
        looks[part] = look(name, files.images, files.names, choice.image_size, grey)
        grey = looks[part].pictures.grey
    resident, note = residence(name, choice.resident, [found.pictures for found in looks.values()])
    sources, notes = dict[str, Source](), [] if note is None else [note]
    row_names: dict[str, tuple[str, ...]] = {}
    for part, found in looks.items():
        made = read(found, choice.skip_corrupt, resident)
        labels = parts[part].labels[made.rows]
        if made.x is None:
            sources[part] = ImageStream(made.pictures, labels, class_names)
        else:
            sources[part] = Images(made.x, labels, class_names, made.pictures.known)
        notes += [] if made.note is None else [made.note]
        row_names[part] = tuple(made.pictures.names)
    data = Dataset.from_sources(name, sources["train"], sources.get("meta"), sources.get("test"))
    return replace(data, notes=tuple(notes), row_names=row_names["train"])
