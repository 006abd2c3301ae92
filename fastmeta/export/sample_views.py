"""The samples of a finished run as people look at them: images, texts, or numbers."""

from __future__ import annotations

import base64
import io
from dataclasses import replace
from typing import Any

import numpy as np

from fastmeta._text import printable
from fastmeta.data import Dataset, InputError, load_dataset
from fastmeta.data.sources import parse
from fastmeta.training import TrainConfig
from fastmeta.training.prepare import CHOSEN
from fastmeta.training.rundir import RunLabels

#: samples that tell how bright all are
_FEW = 64


class Samples:
    """What rows of a run look like, one by one: `x` (N, ...), as ``x[i]`` or an array, or texts.

    Args:
        x: uint8 images (N, H, W, 1 or 3), texts, or anything else, which is numbers.
    """

    #: of each row, where samples are files: its path below the folder of the data set
    files: list[str] | None = None

    def __init__(self, x: Any) -> None:
        self.x = x
        first = x[0]
        if isinstance(first, str):
            self.kind = "text"
        else:
            one = np.asarray(first)
            image = one.dtype == np.uint8 and (one.ndim == 2 or (one.ndim == 3 and one.shape[2] in (1, 3)))
            self.kind = "image" if image else "numbers"
        # grey images of few levels, such as 16, would all be black
        few = range(min(len(x), _FEW)) if self.kind == "image" else ()
        self._levels = max((int(np.asarray(x[i]).max()) for i in few), default=255) or 255

    @classmethod
    def of_rows(cls, x: Any, rows: np.ndarray) -> Samples:
        """Of these rows of `x` alone, in this order."""
        return cls(_Rows(x, rows))

    def text(self, at: int) -> str:
        return str(self.x[at])

    def image_uri(self, at: int, most: int, least: int = 1) -> str:
        """A ``data:`` URI of a PNG; see :meth:`png`."""
        return "data:image/png;base64," + base64.b64encode(self.png(at, most, least)).decode()

    def png(self, at: int, most: int, least: int = 1) -> bytes:
        """The longer side has at most `most` pixels, and from `least` on where whole pixels repeated make it so."""
        from PIL import Image  # which matplotlib and torchvision bring along

        pixels = np.asarray(self.x[at])
        pixels = pixels[..., 0] if pixels.ndim == 3 and pixels.shape[2] == 1 else pixels
        if pixels.ndim == 2 and self._levels < 255:
            pixels = np.minimum(pixels.astype(np.uint16) * 255 // self._levels, 255).astype(np.uint8)
        image = Image.fromarray(np.ascontiguousarray(pixels))
        image.thumbnail((most, most))
        if max(image.size) < least:
            factor = -(-least // max(image.size))
            image = image.resize((factor * image.width, factor * image.height), Image.Resampling.NEAREST)
        buffer = io.BytesIO()
        image.save(buffer, "PNG", optimize=True)
        return buffer.getvalue()


def load(config: TrainConfig) -> Dataset:
    """The data set of a run, read anew; nothing is fetched. InputError where that cannot be done."""
    of = replace(config.data, download=False)
    seed = config.seed if of.split_seed is None else of.split_seed  # older runs had one seed for all
    chosen = {name: getattr(of, name) for name in CHOSEN}
    # image files one by one as they are shown, however the run held them
    return load_dataset(config.dataset, seed=seed, **{**chosen, "resident": "no"})


def samples_of(labels: RunLabels) -> Samples | None:
    """The samples of these rows, read anew by the name of the run's data set.

    None where that cannot be had without code of others or data of the caller's own, where the files are gone, or hold
    other labels now.
    """
    data = dataset_of(labels)
    if data is None:
        return None
    samples = Samples.of_rows(data.train.x, labels.row)
    if data.row_names is not None:
        samples.files = [data.row_names[row] for row in labels.row.tolist()]
    return samples


def dataset_of(labels: RunLabels) -> Dataset | None:
    """The same for the whole data set, whose given labels are as they were."""
    config = labels.config
    name = parse(config.dataset)
    if name.names_code or name.scheme == "custom":
        return None
    try:
        data = load(config)
        check_same(labels, data, config.dataset)
    except InputError:
        return None
    return data


def check_same(labels: RunLabels, data: Dataset, source: Any) -> None:
    """InputError unless `data` has the rows of the run, with the labels that it was given.

    Where a run has made them noisy itself, the right ones are compared.
    """
    targets, last = np.asarray(data.train.targets), int(labels.row.max())
    said = f"{source} is not what the run was trained on"
    if data.num_classes != len(labels.class_names):
        raise InputError(f"{said}: it has {data.num_classes} classes, the run had {len(labels.class_names)}")
    if last >= len(targets) or int(labels.row.min()) < 0:
        raise InputError(f"{said}: it has {len(targets):,} training rows, the run had row {last:,}")
    pairs = [(targets, labels.given)] if labels.config.noise in (None, "none") else []
    if labels.true is not None:
        pairs.append((targets if data.y_true is None else data.y_true, labels.true))
    for now, then in pairs:
        other = np.flatnonzero(now[labels.row] != then)
        if len(other):
            row = int(labels.row[other[0]])
            names = [printable(labels.class_names[k], 40) for k in (now[row], then[other[0]])]
            raise InputError(f"{said}: row {row} has label {names[0]}, the run was given {names[1]}; run it again")


class _Rows:
    """Some rows of `x`, which may be an array or samples that are read one by one."""

    def __init__(self, x: Any, rows: np.ndarray) -> None:
        self._x, self._rows = x, rows

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, at: int) -> Any:
        return self._x[int(self._rows[at])]
