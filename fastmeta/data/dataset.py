"""A labelled data set, checked once where it enters."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from fastmeta._text import printable
from fastmeta.data.arrays import NUMBER_NAMES, as_array, class_numbers, entries, names_in, texts
from fastmeta.data.errors import InputError
from fastmeta.data.resident import Features, Images
from fastmeta.data.source import Source
from fastmeta.data.superclasses import as_superclasses, known_superclasses

#: what an .npz file or a mapping of arrays may hold; other names are left alone
FIELDS = (
    "x_train",
    "y_train",
    "y_true",
    "x_meta",
    "y_meta",
    "y_meta_given",
    "meta_index",
    "x_test",
    "y_test",
    "class_names",
    "superclasses",
)
#: the labels as given, in a file whose labels were corrected: no field, and no mistake
LABELS_BEFORE = "y_given"
#: what the kernels are tested for
MOST_CLASSES = 65536
#: labels -> the images that they are of
_LABELS_OF = {"y_train": "x_train", "y_true": "x_train", "y_meta": "x_meta", "y_test": "x_test"}
_LABELS = (*_LABELS_OF, "y_meta_given")


@dataclass(frozen=True)
class Dataset:
    """Labelled samples in up to three parts, and what is known beside them.

    Build it with :meth:`from_arrays` or :meth:`from_sources`, which check everything. `y_true` are the right labels of
    the training rows where somebody knows them; they are for measuring alone and never reach training. The clean meta
    set is either `meta` or the rows `meta_index` of the training set, or absent; `meta_given` are the labels that its
    rows had before somebody checked them, where those are known. `superclasses` (C,) say which classes belong together.
    """

    name: str
    train: Source
    num_classes: int
    class_names: tuple[str, ...]
    y_true: np.ndarray | None = None
    meta: Source | None = None
    meta_index: np.ndarray | None = None
    test: Source | None = None
    #: names beside `FIELDS` that look as if they were meant for one of them
    unused: tuple[str, ...] = ()
    meta_given: np.ndarray | None = None
    superclasses: np.ndarray | None = None
    #: lines that the user should see
    notes: tuple[str, ...] = ()
    #: what the training rows are called where they come from, such as files
    row_names: tuple[str, ...] | None = None

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, Any], *, name: str = "arrays") -> Dataset:
        """Check and take over arrays under the names of `FIELDS`; `x_train` and `y_train` must be there.

        Samples are images, uint8 (N, H, W, channels) or (N, H, W), or features, floats (N, ...) of any shape; labels
        are of any integer dtype. The number of classes is that of `class_names`, else one more than the largest label.
        An array may be a list of rows, a tensor of any device, a column of pandas, or anything else that NumPy makes an
        array of.

        Raises:
            InputError: a missing, misshapen or contradictory array, labels out of range, features that are not finite,
                or fewer than two classes.
        """
        found = entries(arrays, FIELDS, name)
        names = texts(found.pop("class_names"), f"{name}: class_names") if "class_names" in found else None
        groups = found.pop("superclasses", None)
        given = {k: as_array(value, f"{name}: {k}") for k, value in found.items()}
        check_forms(name, given, known=lambda: names_in(arrays))
        labels = {k: class_numbers(given[k].reshape(-1), f"{name}: {k}") for k in _LABELS if k in given}
        class_names, num_classes = _classes(name, names, labels)

        def part(x: str, y: str) -> Source | None:
            if x not in given:
                return None
            if given[x].dtype == np.uint8:
                return Images(_channels_last(given[x]), labels[y], class_names)
            return Features(_finite(name, x, given[x]), labels[y], class_names)

        train = part("x_train", "y_train")
        assert train is not None
        return cls(
            name=name,
            train=train,
            num_classes=num_classes,
            class_names=class_names,
            y_true=labels.get("y_true"),
            meta=part("x_meta", "y_meta"),
            meta_index=_meta_index(name, given.get("meta_index"), len(train)),
            test=part("x_test", "y_test"),
            unused=strays(arrays),
            meta_given=labels.get("y_meta_given"),
            superclasses=_superclasses(name, groups, class_names),
        )

    @classmethod
    def from_sources(
        cls,
        name: str,
        train: Source,
        meta: Source | None = None,
        test: Source | None = None,
        *,
        class_names: tuple[str, ...] | None = None,
        y_true: np.ndarray | None = None,
        meta_index: np.ndarray | None = None,
        meta_given: np.ndarray | None = None,
        superclasses: Any = None,
    ) -> Dataset:
        """The same of sources of any kind. InputError where they do not fit each other."""
        labels = {"y_train": train.targets}
        labels |= {k: s.targets for k, s in (("y_meta", meta), ("y_test", test)) if s is not None}
        if y_true is not None:
            if y_true.shape != train.targets.shape:
                raise InputError(f"{name}: y_true has shape {y_true.shape} for {len(train)} training samples")
            labels["y_true"] = y_true
        if meta is not None and meta_index is not None:
            raise InputError(f"{name}: both 'meta' and 'meta_index' name a clean set; keep one of them")
        if meta_given is not None:
            clean = meta.targets if meta is not None else meta_index
            _check_meta_given(name, meta_given.shape[0], None if clean is None else len(clean))
            labels["y_meta_given"] = meta_given
        for word, source in (("meta", meta), ("test", test)):
            shapes = [] if source is None else [source.input_shape, train.input_shape]
            if shapes and None not in shapes and shapes[0] != shapes[1]:
                raise InputError(
                    f"{name}: {word} has samples of shape {shapes[0]}, train of {shapes[1]}; bring all to one shape"
                )
        if class_names is None:
            for word, source in (("meta", meta), ("test", test)):
                _check_same_names(name, word, None if source is None else source.class_names, train.class_names)
        names, num_classes = _classes(name, class_names or train.class_names, labels)
        rows = _meta_index(name, meta_index, len(train))
        groups = _superclasses(name, superclasses, names)
        return cls(
            name, train, num_classes, names, y_true, meta, rows, test, meta_given=meta_given, superclasses=groups
        )


def _check_same_names(name: str, word: str, theirs: tuple[str, ...] | None, ours: tuple[str, ...] | None) -> None:
    """InputError where a part calls its classes otherwise than train: one number would mean two things."""
    if theirs is None or ours is None or theirs == ours:
        return
    if len(theirs) != len(ours):
        what = f"{word} has {len(theirs)} classes, train {len(ours)}"
    else:
        c = next(c for c, (a, b) in enumerate(zip(theirs, ours, strict=True)) if a != b)
        what = f"class {c} is {printable(theirs[c], 40)!r} in {word} and {printable(ours[c], 40)!r} in train"
    raise InputError(f"{name}: {what}; number the classes of all parts alike, or give class_names for all of them")


def strays(names: Iterable[Any], taken: Collection[str] = ()) -> tuple[str, ...]:
    """Of `names`, those that are no field and not `taken`, and look like one: ``x_clean``, ``ymeta``, ``X_Test``."""

    def stray(name: Any) -> bool:
        if not isinstance(name, str) or name in (*FIELDS, LABELS_BEFORE) or name in taken:
            return False
        return name.lower().startswith(("x_", "y_")) or bool(difflib.get_close_matches(name.lower(), FIELDS, 1, 0.8))

    try:
        return tuple(sorted(name for name in names if stray(name)))
    except Exception:  # of the user's mapping
        return ()


class Form(Protocol):
    """What is known of an array before it is read."""

    @property
    def shape(self) -> tuple[int, ...]: ...
    @property
    def ndim(self) -> int: ...
    @property
    def dtype(self) -> np.dtype: ...


def check_forms(name: str, given: Mapping[str, Form], *, known: Callable[[], str]) -> None:
    """InputError unless arrays of these shapes and dtypes fit each other; `known` lists what there is, for messages."""
    for needed in ("x_train", "y_train"):
        if needed not in given:
            raise InputError(f"{name}: array {needed!r} is missing, found {known()}")
    for image, label in (("x_meta", "y_meta"), ("x_test", "y_test")):
        if (image in given) != (label in given):
            here, gone = (image, label) if image in given else (label, image)
            raise InputError(f"{name}: {here!r} comes without {gone!r}; give both or neither")
    if "meta_index" in given and "x_meta" in given:
        raise InputError(f"{name}: both 'x_meta' and 'meta_index' name a clean set; keep one of them")
    for label, image in _LABELS_OF.items():
        if image in given:
            _check_samples(name, image, given[image])
        if label in given:
            _check_labels(name, label, given[label])
            if given[label].shape[0] != given[image].shape[0]:
                raise InputError(
                    f"{name}: {label} has {given[label].shape[0]} labels for the {given[image].shape[0]} "
                    f"{_noun(given[image])} of {image}"
                )
    for image in ("x_meta", "x_test"):
        if image not in given:
            continue
        if (given[image].dtype == np.uint8) != (given["x_train"].dtype == np.uint8):
            raise InputError(
                f"{name}: {image} is {given[image].dtype}, x_train {given['x_train'].dtype}; uint8 is images, "
                "floats are features: bring all to one kind"
            )
        if _one_sample(given[image]) != _one_sample(given["x_train"]):
            kind = _noun(given[image])
            way = " (height, width, channels)" if kind == "images" else ""
            raise InputError(
                f"{name}: {image} has {kind} of shape {_one_sample(given[image])}, x_train of "
                f"{_one_sample(given['x_train'])}; bring all to one shape{way}"
            )
    if "meta_index" in given:
        index, size = given["meta_index"], given["x_train"].shape[0]
        if index.ndim != 1 or index.dtype.kind not in "iuO" or not index.shape[0]:
            raise InputError(
                f"{name}: meta_index must be row numbers (M >= 1,) of an integer dtype, got {index.dtype} of shape "
                f"{index.shape}" + ("; pass np.flatnonzero(meta_index)" if index.dtype == bool else "")
            )
        if index.shape[0] > size:
            raise InputError(f"{name}: meta_index names {index.shape[0]} rows, x_train has {size}")

    if "y_meta_given" in given:
        _check_labels(name, "y_meta_given", given["y_meta_given"])
        clean_set = given.get("y_meta", given.get("meta_index"))
        count = None if clean_set is None else clean_set.shape[0]
        _check_meta_given(name, given["y_meta_given"].shape[0], count)


def _check_meta_given(name: str, count: int, clean: int | None) -> None:
    """InputError unless there are as many labels from before as clean rows."""
    if clean is None:
        raise InputError(
            f"{name}: y_meta_given, what the clean rows' labels were before, comes without them; give x_meta and "
            "y_meta, or meta_index"
        )
    if count != clean:
        raise InputError(f"{name}: y_meta_given has {count} labels for {clean} clean rows; give one for each, in order")


def _one_sample(x: Form) -> tuple[int, ...]:
    return (*x.shape[1:], 1) if x.ndim == 3 and x.dtype == np.uint8 else x.shape[1:]


def _noun(x: Form) -> str:
    return "images" if x.dtype == np.uint8 else "samples"


def _check_samples(name: str, key: str, x: Form) -> None:
    if x.dtype.kind == "f" and x.ndim >= 2 and 0 not in x.shape:
        return
    if x.dtype != np.uint8 or x.ndim not in (3, 4) or 0 in x.shape:
        if 0 in x.shape:
            way = "give one sample at least"
        elif x.dtype.kind == "f":
            way = "one feature is a column, [:, None]"
        elif x.dtype.kind in "OUS":
            way = "make numbers of columns of text or of mixed kinds first"
        else:
            way = "convert images with .astype(np.uint8), numbers with .astype(np.float32)"
        raise InputError(
            f"{name}: {key} must be uint8 images (N, height, width, channels) or float features (N, ...), none empty, "
            f"got {x.dtype} of shape {x.shape}; {way}"
        )
    if x.ndim == 4 and x.shape[3] > 4 and x.shape[1] <= 4:
        raise InputError(
            f"{name}: {key} of shape {x.shape} looks like (N, channels, height, width); "
            "use .transpose(0, 2, 3, 1) to put the channels last"
        )


def _check_labels(name: str, key: str, y: Form) -> None:
    if not (y.ndim == 1 or (y.ndim == 2 and y.shape[1] == 1)) or y.dtype.kind not in "iuO":
        if y.ndim == 2 and y.dtype.kind in "fb":
            way = "of one row per sample and one column per class take .argmax(1)"
        elif y.dtype.kind in "US":
            way = NUMBER_NAMES
        else:
            convert = " and convert with .astype(np.int64)" if y.dtype.kind in "fb" else ""
            way = f"number the classes 0, 1, 2, …{convert}"
        raise InputError(
            f"{name}: {key} must be class numbers (N,) of an integer dtype, got {y.dtype} of shape {y.shape}; {way}"
        )


def _finite(name: str, key: str, x: np.ndarray) -> np.ndarray:
    """As float32; InputError that names the first number that is none, or too large."""
    with np.errstate(over="ignore"):
        features = np.ascontiguousarray(x, dtype=np.float32)
    bad = ~np.isfinite(features)
    if bad.any():
        first = tuple(int(i) for i in np.argwhere(bad)[0])
        rows = int(bad.reshape(len(x), -1).any(1).sum())
        raise InputError(
            f"{name}: {key} holds {x[first]} in row {first[0]} (at {first}), in {rows:,} row(s) in all; "
            "fill such numbers, or drop the rows"
        )
    return features


def _channels_last(x: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(x[..., None] if x.ndim == 3 else x)


def _classes(name: str, names: tuple[str, ...] | None, labels: Mapping[str, np.ndarray]) -> tuple[tuple[str, ...], int]:
    present = np.unique(labels["y_train"])
    if len(present) < 2:
        only = int(present[0])
        which = printable(names[only], 40) if names is not None and 0 <= only < len(names) else only
        raise InputError(f"{name}: y_train holds one class only ({which}); labels can be learned from two classes on")
    count = len(names) if names is not None else 1 + max(int(y.max()) for y in labels.values())
    for key, y in labels.items():
        check_classes(name, key, y, count, "class_names" if names is not None else "")
    known = max(int(labels[key].max()) for key in ("y_train", "y_true") if key in labels)
    for key in ("y_meta", "y_test") if names is None else ():
        if key in labels and (high := int(labels[key].max())) > known:
            raise InputError(
                f"{name}: {key} knows {high + 1} classes, y_train {known + 1}; number the classes of all parts alike, "
                "or give class_names where train has no row of some"
            )
    # before anything of that size is made: a stray label such as an id would ask for a network of as many outputs
    if count > MOST_CLASSES:
        raise InputError(
            f"{name}: at most {MOST_CLASSES:,} classes are possible, got {count:,} (one more than the largest label); "
            "number the classes 0, 1, 2, … without gaps"
        )
    if names is None:
        return tuple(map(str, range(count))), count
    return names, count


#: what PyTorch's losses and makers of segmentation masks write where there is no label
_IGNORED = (-100, 255)


def check_classes(name: str, key: str, y: np.ndarray, count: int, named: str = "classes") -> None:
    """InputError for class numbers (N,) outside of 0..count-1, and for marks of rows that have no label.

    `named` is what gives the count; nothing where the labels do so themselves.
    """
    low, high = int(y.min()), int(y.max())
    mark = next((v for v in _IGNORED if v in (low, high) and (v < 0 or _alone(y, v, count, named))), None)
    if mark is not None:
        rows = np.flatnonzero(y == mark)
        raise InputError(
            f"{name}: {key} holds {mark} in {len(rows):,} row(s), the first is row {rows[0]}; {mark} marks what has no "
            "label (ignore_index), and every row needs a class here: drop these rows"
        )
    if low < 0 or high >= count:
        wanted = f"lie in 0..{count - 1} ({count} {named} are given)" if named else "start from 0"
        raise InputError(f"{name}: {key} must {wanted}, got {low} to {high}; renumber the labels or drop the rows")


def _alone(y: np.ndarray, mark: int, count: int, named: str) -> bool:
    """Whether a largest label is no class: beyond those that are known, or far above all others."""
    if named:
        return mark >= count
    others = y[y != mark]
    return not len(others) or int(others.max()) < mark // 2


def _superclasses(name: str, given: Any, class_names: tuple[str, ...]) -> np.ndarray | None:
    if given is None:
        return known_superclasses(class_names)
    if hasattr(given, "tolist"):
        given = given.tolist()
    return as_superclasses(given, class_names, name)


def _meta_index(name: str, index: np.ndarray | None, size: int) -> np.ndarray | None:
    if index is None:
        return None
    index = class_numbers(index, f"{name}: meta_index")
    if index.min() < 0 or index.max() >= size:
        raise InputError(
            f"{name}: meta_index must lie in 0..{size - 1}, the rows of x_train, got {index.min()} to {index.max()}"
        )
    if len(np.unique(index)) != len(index):
        raise InputError(f"{name}: meta_index names a row twice; pass np.unique(meta_index)")
    return index
