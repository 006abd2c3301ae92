"""A labelled image set as arrays, checked once where it enters."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from fastmeta.data.errors import InputError

#: what an .npz file or a mapping of arrays may hold; other names are left alone
FIELDS = ("x_train", "y_train", "y_true", "x_meta", "y_meta", "meta_index", "x_test", "y_test", "class_names")
#: what the kernels are tested for
MOST_CLASSES = 65536


@dataclass(frozen=True)
class Dataset:
    """Images as uint8 (N, H, W, channels), labels as int64 (N,), all on the host.

    Build it with :meth:`from_arrays`, which checks everything. `y_true` are the right labels of the training rows where
    somebody knows them; they are for measuring alone and never reach training. The clean meta set is either
    `x_meta`, `y_meta` or rows `meta_index` of the training set, or absent.
    """

    name: str
    x_train: np.ndarray
    y_train: np.ndarray
    num_classes: int
    class_names: tuple[str, ...]
    y_true: np.ndarray | None = None
    x_meta: np.ndarray | None = None
    y_meta: np.ndarray | None = None
    meta_index: np.ndarray | None = None
    x_test: np.ndarray | None = None
    y_test: np.ndarray | None = None

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, Any], *, name: str = "arrays") -> Dataset:
        """Check and take over arrays under the names of `FIELDS`; `x_train` and `y_train` must be there.

        Images are uint8, (N, H, W, channels) or (N, H, W); labels any integer dtype. The number of classes is that of
        `class_names`, else one more than the largest label.

        Raises:
            InputError: a missing, misshapen or contradictory array, labels out of range, or fewer than two classes.
        """
        given = {k: np.asarray(arrays[k]) for k in FIELDS if k in arrays and arrays[k] is not None}
        for needed in ("x_train", "y_train"):
            if needed not in given:
                raise InputError(f"{name}: array {needed!r} is missing, found {_names(arrays)}")
        for image, label in (("x_meta", "y_meta"), ("x_test", "y_test")):
            if (image in given) != (label in given):
                here, gone = (image, label) if image in given else (label, image)
                raise InputError(f"{name}: {here!r} comes without {gone!r}; give both or neither")
        if "meta_index" in given and "x_meta" in given:
            raise InputError(f"{name}: both 'x_meta' and 'meta_index' name a clean set; keep one of them")

        images: dict[str, np.ndarray] = {
            k: _images(name, k, given[k]) for k in ("x_train", "x_meta", "x_test") if k in given
        }
        labels: dict[str, np.ndarray] = {
            k: _labels(name, k, given[k]) for k in ("y_train", "y_true", "y_meta", "y_test") if k in given
        }
        for k, x in images.items():
            if x.shape[1:] != images["x_train"].shape[1:]:
                raise InputError(
                    f"{name}: {k} has images of shape {x.shape[1:]}, x_train of {images['x_train'].shape[1:]}; "
                    "bring all to one shape (height, width, channels)"
                )
        for k, y in labels.items():
            of = {"y_train": "x_train", "y_true": "x_train", "y_meta": "x_meta", "y_test": "x_test"}[k]
            if len(y) != len(images[of]):
                raise InputError(f"{name}: {k} has {len(y)} labels for the {len(images[of])} images of {of}")
        class_names, num_classes = _classes(name, given.get("class_names"), labels)
        return cls(
            name=name,
            x_train=images["x_train"],
            y_train=labels["y_train"],
            num_classes=num_classes,
            class_names=class_names,
            y_true=labels.get("y_true"),
            x_meta=images.get("x_meta"),
            y_meta=labels.get("y_meta"),
            meta_index=_meta_index(name, given.get("meta_index"), len(images["x_train"])),
            x_test=images.get("x_test"),
            y_test=labels.get("y_test"),
        )


def _names(arrays: Mapping[str, Any]) -> str:
    return ", ".join(sorted(arrays)) or "no array at all"


def _images(name: str, key: str, x: np.ndarray) -> np.ndarray:
    if x.dtype != np.uint8 or x.ndim not in (3, 4) or 0 in x.shape:
        raise InputError(
            f"{name}: {key} must be uint8 images (N, height, width, channels), none empty, "
            f"got {x.dtype} of shape {x.shape}; scale to 0..255 and convert with .astype(np.uint8)"
        )
    x = x[..., None] if x.ndim == 3 else x
    if x.shape[3] > 4 and x.shape[1] <= 4:
        raise InputError(
            f"{name}: {key} of shape {x.shape} looks like (N, channels, height, width); "
            "use .transpose(0, 2, 3, 1) to put the channels last"
        )
    return np.ascontiguousarray(x)


def _labels(name: str, key: str, y: np.ndarray) -> np.ndarray:
    if y.ndim == 2 and y.shape[1] == 1:
        y = y[:, 0]
    if y.ndim != 1 or not np.issubdtype(y.dtype, np.integer):
        raise InputError(
            f"{name}: {key} must be class numbers (N,) of an integer dtype, got {y.dtype} of shape {y.shape}; "
            "number the classes 0, 1, 2, …" + (" and convert with .astype(np.int64)" if y.dtype.kind == "f" else "")
        )
    return y.astype(np.int64)


def _classes(name: str, names: np.ndarray | None, labels: Mapping[str, np.ndarray]) -> tuple[tuple[str, ...], int]:
    present = np.unique(labels["y_train"])
    if len(present) < 2:
        raise InputError(
            f"{name}: y_train holds one class only ({present[0]}); labels can be learned from two classes on"
        )
    if names is not None and names.ndim != 1:
        raise InputError(f"{name}: class_names must be one name per class (C,), got shape {names.shape}")
    count = len(names) if names is not None else 1 + max(int(y.max()) for y in labels.values())
    for key, y in labels.items():
        low, high = int(y.min()), int(y.max())
        if low < 0 or high >= count:
            wanted = f"lie in 0..{count - 1} ({count} class_names are given)" if names is not None else "start from 0"
            raise InputError(f"{name}: {key} must {wanted}, got {low} to {high}; renumber the labels or drop the rows")
    # before anything of that size is made: a stray label such as an id would ask for a network of as many outputs
    if count > MOST_CLASSES:
        raise InputError(
            f"{name}: at most {MOST_CLASSES:,} classes are possible, got {count:,} (one more than the largest label); "
            "number the classes 0, 1, 2, … without gaps"
        )
    if names is None:
        return tuple(map(str, range(count))), count
    return tuple(k.decode(errors="replace") if isinstance(k, bytes) else str(k) for k in names.tolist()), count


def _meta_index(name: str, index: np.ndarray | None, size: int) -> np.ndarray | None:
    if index is None:
        return None
    if index.ndim != 1 or not np.issubdtype(index.dtype, np.integer) or not len(index):
        raise InputError(
            f"{name}: meta_index must be row numbers (M >= 1,) of an integer dtype, got {index.dtype} of shape "
            f"{index.shape}" + ("; pass np.flatnonzero(meta_index)" if index.dtype == bool else "")
        )
    if index.min() < 0 or index.max() >= size:
        raise InputError(
            f"{name}: meta_index must lie in 0..{size - 1}, the rows of x_train, got {index.min()} to {index.max()}"
        )
    if len(np.unique(index)) != len(index):
        raise InputError(f"{name}: meta_index names a row twice; pass np.unique(meta_index)")
    return index.astype(np.int64)
