"""Labels that a file holds, as many tools write them, and a file's word on which data they are of."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from fastmeta._memory import free_memory, gibibytes
from fastmeta._numbers import as_whole
from fastmeta._text import printable, reason, shown
from fastmeta._trust import check_pickle
from fastmeta.data.arrays import as_array, names_in, texts
from fastmeta.data.dataset import Dataset, check_classes
from fastmeta.data.errors import InputError
from fastmeta.data.npz_file import NpzFile

#: names of the labels themselves, and of what they were before noise, where a file does not say which is meant
_LABELS = ("labels", "label", "noisy_label", "noisy_labels", "given_label", "y_train", "y")
_BEFORE = ("given", "clean_label")
_ROW = ("index", "row")
#: what makes arrays of numbers and can do nothing else: the files of CIFAR-N are pickles of dicts of arrays
_HARMLESS: list[Any] = [
    # NumPy's own function has no public name, and another one since NumPy 2
    *((np.empty(0).__reduce__()[0], f"numpy.{core}.multiarray._reconstruct") for core in ("_core", "core")),
    np.ndarray,
    np.dtype,
    *{type(np.dtype(code)) for code in "bBhHiIlLqQ"},
]


@dataclass(frozen=True)
class LabelFile:
    """Labels (N,), class numbers or names, and what the file says of its data; None where it does not."""

    name: str
    labels: Any
    before: Any = None  # (N,) the labels before noise
    row: Any = None  # (N,) rows of the training set that the labels are of; None: all, in their order
    data_hash: str | None = None
    class_names: tuple[str, ...] | None = None

    def fitted(self, data: Dataset) -> np.ndarray:
        """(N,) int64 labels of the training rows of `data`. InputError where the file is of other data."""
        size, here = len(data.train), f"{data.name} has"
        if self.class_names is not None and len(self.class_names) != data.num_classes:
            raise self._other(f"it knows {len(self.class_names)} classes, {here} {data.num_classes}")
        if self.class_names is not None and not _same_names(self.class_names, data.class_names):
            c = next(c for c, (a, b) in enumerate(zip(self.class_names, data.class_names, strict=True)) if a != b)
            theirs, ours = (printable(names[c], 40) for names in (self.class_names, data.class_names))
            raise self._other(f"its class {c} is {theirs!r}, {here} {ours!r}")
        labels, before = self._numbers(self.labels, data, "labels"), None
        if self.before is not None:
            before = self._numbers(self.before, data, "labels before noise")
        if len(labels) != size:
            raise self._other(f"it has {len(labels):,} labels, {here} {size:,} training {data.train.noun}")
        if self.data_hash is not None and self.data_hash != data.train.fingerprint():
            raise self._other("the hash of its data is another one: other samples, another order or other given labels")
        order = np.arange(size)
        if self.row is not None:
            rows = np.asarray(self.row)
            if rows.dtype.kind not in "iu" or not np.array_equal(np.sort(rows), order):
                raise self._other(f"its rows are not 0 to {size - 1}, each once")
            order = np.argsort(rows)
        if before is not None and self.data_hash is None:  # by which alone most files can be told from others
            known = [v for v in (data.train.targets, data.y_true) if v is not None]
            if len(before) != size or all((before[order] != v).any() for v in known):
                differ = f"{(before[order] != known[-1]).sum():,} of {size:,}" if len(before) == size else len(before)
                raise self._other(f"its labels before noise are others than those of the data ({differ})")
        return labels[order]

    def _other(self, why: str) -> InputError:
        return InputError(f"{self.name} is not of this training set: {why}; take the file of these data")

    def _numbers(self, values: Any, data: Dataset, what: str) -> np.ndarray:
        array = as_array(values, f"{self.name}: {what}")
        if array.ndim == 2 and array.shape[1] == 1:
            array = array[:, 0]
        if array.ndim != 1 or not len(array):
            raise InputError(f"{self.name}: {what} must be one for each row (N,), got shape {array.shape}")
        if array.dtype.kind in "US" or (array.dtype == object and isinstance(array[0], str | bytes)):
            number = {name: c for c, name in enumerate(data.class_names)}
            words = texts(array.tolist(), f"{self.name}: {what}")
            for row, word in enumerate(words):
                if word not in number:
                    raise InputError(
                        f"{self.name}: {what}[{row}] is {shown(word)}, which is no class of {data.name}: "
                        f"{', '.join(printable(n, 40) for n in data.class_names[:8])}"
                        f"{' …' if data.num_classes > 8 else ''}"
                    )
            return np.array([number[word] for word in words], np.int64)
        if array.dtype == object and all(as_whole(v) is not None for v in array.tolist()):
            array = np.array([as_whole(v) for v in array.tolist()])
        if array.dtype.kind not in "iu":
            raise InputError(
                f"{self.name}: {what} must be class numbers of an integer dtype, or names, got {array.dtype}; "
                "file:PATH:KEY names others"
            )
        check_classes(self.name, what, array, data.num_classes)
        return array.astype(np.int64)


def _same_names(a: tuple[str, ...], b: tuple[str, ...]) -> bool:
    """Numbers for names are no names."""
    numbers = tuple(map(str, range(len(a))))
    return a == b or numbers in (a, b)


def read_labels(path: Path, key: str | None = None) -> LabelFile:
    """Read a file of labels by the end of its name; `key` names them where it holds several arrays.

    .npz and .npy of NumPy; .csv with a header, of class numbers or names; .json, a list (as DivideMix writes it) or a
    mapping; .pt of torch, such as CIFAR-N's, of tensors and arrays alone. .pkl is refused unless pickles are trusted.

    Raises:
        InputError: no such file, another content than its name says, or no labels by that name.
    """
    suffix = path.suffix.lower()
    if suffix == ".npz":
        return _of_npz(path, key)
    free = free_memory()
    try:
        if not path.is_file():
            raise InputError(f"noise: {path} {'is no file' if path.exists() else 'does not exist'}")
        if free is not None and 8 * path.stat().st_size > free:
            raise InputError(f"noise: {path} has {gibibytes(path.stat().st_size)}, and {gibibytes(free)} are free")
        content = _READERS[suffix](path)
    except InputError:
        raise
    except Exception as error:  # of torch, json, csv, pickle: any kind, for any bytes
        why = printable(error, 300) if type(error) is ValueError else reason(error, 200)
        raise InputError(f"noise: {path} cannot be read as {suffix}: {why}") from error
    if not isinstance(content, Mapping):
        if key is not None:
            raise InputError(
                f"noise: {path} holds one row of labels, and nothing by the name {shown(key)}; leave it out"
            )
        return LabelFile(str(path), content)
    return _of_mapping(path, {str(name): value for name, value in content.items()}, key)


def _of_npz(path: Path, key: str | None) -> LabelFile:
    with NpzFile(path) as file:
        forms = {name: file.declared(name) for name in file}
        wanted = _chosen(path, key, [n for n, form in forms.items() if form.ndim == 1 or n == key], file.names)
        beside = (*_BEFORE, *_ROW, "data_hash", "class_names")
        content = file.read({n: form for n, form in forms.items() if n in (wanted, *beside)})
    return _of_mapping(path, content, wanted)


def _of_mapping(path: Path, content: Mapping[str, Any], key: str | None) -> LabelFile:
    rows = [name for name, value in content.items() if _is_row(value)]
    key = _chosen(path, key, rows, names_in(content))
    told, names = content.get("data_hash"), content.get("class_names")
    return LabelFile(
        str(path),
        content[key],
        before=next((content[name] for name in _BEFORE if name in content and name != key), None),
        row=next((content[name] for name in _ROW if name in content and name != key), None),
        data_hash=None if told is None else str(told),
        class_names=None if names is None else texts(names, f"{path}: class_names"),
    )


def _is_row(value: Any) -> bool:
    return isinstance(value, list | tuple) or getattr(value, "ndim", 0) in (1, 2)


def _chosen(path: Path, key: str | None, names: list[str], known: str) -> str:
    """`key`, or the one array that can only be meant."""
    if key is not None:
        if key not in names:
            raise InputError(f"noise: {path} has no labels {shown(key)}, found {known}")
        return key
    for name in _LABELS:
        if name in names:
            return name
    left = [n for n in names if n not in (*_BEFORE, *_ROW, "class_names")]
    if len(left) != 1:
        raise InputError(f"noise: {path} holds {known}; say which are the labels: file:{path}:NAME")
    return left[0]


def _json(path: Path) -> Any:
    content = json.loads(path.read_bytes())
    if not isinstance(content, dict | list):
        raise ValueError(f"it holds {type(content).__name__}, not a list of labels")
    return content


def _csv(path: Path) -> Any:
    """Columns by the names of the header; whole numbers where a column has nothing else."""
    text = path.read_bytes().decode("utf-8-sig")
    header, *lines = [line for line in csv.reader(io.StringIO(text)) if line] or [[]]
    if not header or as_number(header[0]) is not None:
        raise ValueError("its first line must name the columns")
    for number, line in enumerate(lines, 2):
        if len(line) != len(header):
            raise ValueError(f"line {number} has {len(line)} cells for {len(header)} columns")
    columns = {name.strip(): [line[i].strip() for line in lines] for i, name in enumerate(header)}
    numbers = {name: [as_number(cell) for cell in cells] for name, cells in columns.items()}
    return {n: columns[n] if None in found else np.array(found, np.int64) for n, found in numbers.items()}


def as_number(cell: str) -> int | None:
    try:
        value = int(cell)
    except ValueError:
        return None
    return value if abs(value) < 2**62 else None


def _torch(path: Path) -> Any:
    with torch.serialization.safe_globals(_HARMLESS):
        try:
            return torch.load(path, map_location="cpu", weights_only=True)
        except Exception:
            check_pickle("holds more than tensors and arrays of numbers")
    return torch.load(path, map_location="cpu", weights_only=False)


def _pickle(path: Path) -> Any:
    check_pickle("is a pickle")
    import pickle

    with path.open("rb") as file:
        return pickle.load(file)


_READERS: dict[str, Callable[[Path], Any]] = {
    ".npy": lambda path: np.load(path, allow_pickle=False),
    ".csv": _csv,
    ".json": _json,
    ".pt": _torch,
    ".pth": _torch,
    ".pkl": _pickle,
    ".pickle": _pickle,
}
SUFFIXES = (".npz", *_READERS)
