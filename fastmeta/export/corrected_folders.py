"""Learned labels in a copy of the folder of images that they are of: each image lies in the folder of its class."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from fastmeta._text import printable
from fastmeta.data import InputError
from fastmeta.data.sources import ImageTree
from fastmeta.export.sample_views import check_same, load
from fastmeta.training.rundir import RunLabels

_NAMED = 3


def write_folder(labels: RunLabels, source: Path, to: Path, copy: bool) -> tuple[str, ...]:
    """The images of `source` in the new folder `to`: hard links where the file system has them, unless `copy`.

    Images of test and meta, and those that the run did not train on, lie where they lay. InputError where `to` lies in
    `source`, or cannot be written.
    """
    if Path(os.path.realpath(to)).is_relative_to(os.path.realpath(source)):
        raise InputError(f"{to} lies in the data set, and would be a part of it; name a folder beside it")
    data = load(labels.config)
    check_same(labels, data, source)
    assert data.row_names is not None
    lies = np.asarray(data.train.targets)[labels.row]  # not as given: noise of a file may have given others
    rows = zip(labels.row.tolist(), lies.tolist(), labels.learned.tolist(), strict=True)
    moved = {data.row_names[row]: (old, new) for row, old, new in rows if old != new}
    tree = ImageTree.of(source)
    renamed = _new_names(tree.images["train"], moved, labels.class_names, tree.train)
    images = [name for names in tree.images.values() for name in names]
    linked = 0
    with whole_folder(to) as made:
        for place in tree.classes:  # those without an image, too: classes are numbered by their folders
            (made / place).mkdir(parents=True)
        for name in images:
            linked += put(source / name, made / renamed.get(name, name), copy)
    return (*told_links(linked, source), *_told_names(renamed), *_told_others(source, len(images)))


def _new_names(
    names: Sequence[str], moved: Mapping[str, tuple[int, int]], classes: Sequence[str], train: Path
) -> dict[str, str]:
    """New paths of the images that change their class, below the data set's folder; none of them is there yet."""
    taken = {name.casefold() for name in names if name not in moved}
    made: dict[str, str] = {}
    for name, (old, new) in moved.items():
        inside = Path(name).relative_to(train / classes[old])
        path, number = train / classes[new] / inside, 1
        while str(path).casefold() in taken:
            mark = f"_{classes[old]}" if number == 1 else f"_{classes[old]}_{number}"
            path, number = (train / classes[new] / inside).with_stem(f"{inside.stem}{mark}"), number + 1
        taken.add(str(path).casefold())
        made[name] = str(path)
    return made


def put(old: Path, new: Path, copy: bool) -> bool:
    """The file `old` at `new`, too. Whether it is a hard link."""
    new.parent.mkdir(parents=True, exist_ok=True)
    real = os.path.realpath(old)  # of a symbolic link, what it points at
    if not copy:
        try:
            os.link(real, new)
        except OSError:  # another file system, or one without them
            pass
        else:
            return True
    shutil.copy2(real, new)
    return False


@contextmanager
def whole_folder(to: Path) -> Iterator[Path]:
    """A folder that becomes `to` at the end, or is gone. InputError where it cannot be written."""
    try:
        to.parent.mkdir(parents=True, exist_ok=True)
        made = Path(tempfile.mkdtemp(prefix=f".{to.name[:100]}.", dir=to.parent))
        try:
            yield made
            made.chmod(0o777 & ~_umask())  # as any other new folder; mkdtemp's is the owner's alone
            os.rename(made, to)
        except BaseException:
            shutil.rmtree(made, ignore_errors=True)
            raise
    except OSError as error:
        raise InputError(f"cannot write {to}: {error.strerror or error}; name another folder") from error


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def told_links(linked: int, source: Path) -> list[str]:
    if not linked:
        return []
    return [
        f"{linked:,} files are hard links: they take no room, and to write into one is to write into the file in "
        f"{source}; --copy makes copies"
    ]


def _told_names(renamed: Mapping[str, str]) -> list[str]:
    other = [(old, new) for old, new in renamed.items() if Path(old).name != Path(new).name]
    if not other:
        return []
    some = ", ".join(printable(f"{old} is {new}", 160) for old, new in other[:_NAMED])
    more = " …" if len(other) > _NAMED else ""
    return [f"{len(other):,} names were taken in the new class, so these images have another: {some}{more}"]


def _told_others(source: Path, images: int) -> list[str]:
    others = sum(len(files) for _, _, files in os.walk(source)) - images
    return [f"{others:,} files of {source} that are no images of the data set are left out"] if others > 0 else []
