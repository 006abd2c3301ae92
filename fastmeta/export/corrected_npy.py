"""Learned labels in a copy of the folder of .npy files that they are of."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np

from fastmeta.data import InputError
from fastmeta.data.dataset import LABELS_BEFORE
from fastmeta.data.npy_rows import NpyFile
from fastmeta.data.sources import NpyFolder
from fastmeta.export.corrected_arrays import in_array
from fastmeta.export.corrected_folders import put, told_links, whole_folder
from fastmeta.export.sample_views import check_same, load
from fastmeta.training.rundir import RunLabels


def write_npy(labels: RunLabels, source: Path, to: Path, copy: bool) -> tuple[str, ...]:
    """The .npy files of `source` in the new folder `to`: hard links where the file system has them, unless `copy`.

    InputError where `to` lies in `source`, or cannot be written.
    """
    if Path(os.path.realpath(to)).is_relative_to(os.path.realpath(source)):
        raise InputError(f"{to} lies in the data set, and would be a part of it; name a folder beside it")
    check_same(labels, load(labels.config), source)
    folder = NpyFolder.of(source, labels.config.data.given, labels.config.data.truth)
    place = folder.places["y_train"]
    before = place.with_name(f"{LABELS_BEFORE}.npy")
    given, linked = NpyFile(source / place).whole(), 0
    with whole_folder(to) as made:
        for name in folder.arrays:
            if name != str(place):
                linked += put(source / name, made / name, copy)
        (made / place).parent.mkdir(parents=True, exist_ok=True)
        np.save(made / place, in_array(labels, given), allow_pickle=False)
        kept = (made / before).exists()
        if not kept:
            np.save(made / before, given, allow_pickle=False)
    said = f"{before} was in {source} already, and stays as it was" if kept else f"the labels as given are in {before}"
    return (said, *told_links(linked, source))
