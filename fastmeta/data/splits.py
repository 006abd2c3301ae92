"""Train, meta and test parts of a data set: the clean set leaves the training set, noise falls on what remains.

Some rows of a large clean set become canaries: they are trained on beside the training rows, and are no part of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np

from fastmeta._text import printable
from fastmeta.data.canary_rows import Chosen, choose, how_many
from fastmeta.data.dataset import Dataset
from fastmeta.data.errors import InputError
from fastmeta.data.hold_out import HoldOut
from fastmeta.data.noise import MOST_KEPT, in_words, noisy, parse, transition
from fastmeta.data.seeds import numpy_generator
from fastmeta.data.source import Source, digest_of
from fastmeta.distributed import Ranks

#: characters of a class name in a note
NAME_LENGTH = 40


@dataclass(frozen=True)
class Part:
    """Rows of one part. `row` numbers them in the data set's own order; `y_true` is None where nobody knows."""

    source: Source
    y: np.ndarray  # (N,) int64, given; those of the source before any noise
    row: np.ndarray  # (N,) int64
    y_true: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.y)

    @property
    def x(self) -> Any:
        """The samples as an array (N, ...), or one by one as ``x[i]``."""
        return self.source.x


@dataclass(frozen=True)
class Splits:
    """What a run trains and measures on; `notes` are lines that the user should see."""

    train: Part
    meta: Part
    test: Part | None
    num_classes: int
    class_names: tuple[str, ...]
    noise: str
    noise_rate: float | None  # share of wrong given labels in train, None where nobody knows
    notes: tuple[str, ...]
    canaries: Part | None = None  # y: their right labels
    chosen: Chosen | None = None  # what is known of the canaries before training
    no_canaries: str = ""  # why there are none, where that is not the config's doing
    val: Part | None = None  # to validate on; y as given, before any noise
    overlap: int | None = 0  # rows of train that stand in the clean set or in val too; None where nobody looked
    whole: Source | None = None  # the training set before anything was held out

    @property
    def noise_matrix(self) -> list[list[float]] | None:
        """(C, C): share of the training rows of each class that say each; None of many classes, or where nobody knows.

        A class without a row has zeros.
        """
        if self.train.y_true is None or self.num_classes > MOST_KEPT:
            return None
        shares = transition(self.train.y_true, self.train.y, self.num_classes)
        return [[round(float(v), 4) for v in row] for row in shares]

    @property
    def noise_told(self) -> str | None:
        """The same in words, of noise that was added."""
        if self.noise == "none" or self.train.y_true is None:
            return None
        return in_words(self.train.y_true, self.train.y, self.class_names)

    @property
    def told(self) -> list[str]:
        """Lines on what was held out, and on the noise."""
        lines = [] if self.val is None else [f"{len(self.val):,} rows to validate on"]
        lines.append(self.overlap_told)
        return lines if self.noise_told is None else [*lines, *f"noise {self.noise}: {self.noise_told}".split("\n")]

    @property
    def overlap_told(self) -> str:
        """How many training rows stand in what is held apart from them."""
        apart = "clean" if self.val is None else "clean and validation"
        return f"overlap of train with {apart} rows: {'not looked at' if self.overlap is None else f'{self.overlap:,}'}"

    def own(self, ranks: Ranks) -> Splits:
        """With the training rows of this rank alone; all else is whole."""
        if ranks.size == 1:
            return self
        train, own = self.train, slice(*ranks.share(len(self.train)))
        rows = np.arange(own.start, own.stop)
        y_true = None if train.y_true is None else train.y_true[own]
        return replace(self, train=Part(train.source.take(rows), train.y[own], train.row[own], y_true))

    @cached_property
    def data_hash(self) -> str:
        """Of the whole training set, with its labels before any noise."""
        return (self.whole or self.train.source).fingerprint()

    def fingerprint(self) -> str:
        """Changes when any sample or label of any part does: a resumed run must see the data that it began with."""
        parts = [part for part in (self.train, self.canaries, self.meta, self.test, self.val) if part is not None]
        before = [self.chosen.given] if self.chosen is not None and self.chosen.given is not None else []
        return digest_of(*(v for part in parts for v in (part.source.fingerprint(), part.y, part.row)), *before)


def split(
    data: Dataset,
    *,
    noise: str = "none",
    meta_fraction: float = 0.2,
    seed: int = 0,
    canaries: str = "off",
    hold_out: HoldOut | None = None,
) -> Splits:
    """Take the clean set out of train, or hold out a class-balanced part of train, then corrupt the rest.

    `canaries` says how many clean rows become canaries: auto, off or a number. `seed` draws the noise; what is held
    out goes by `hold_out`, and where that is left out by `meta_fraction` and `seed`.

    Raises:
        InputError: an image of the meta set that also stands in train, a part that ends up empty, an unknown noise, a
            number of canaries that cannot be had.
    """
    parse(noise)
    hold_out = hold_out or HoldOut(seed, meta_fraction)
    rows, targets = np.arange(len(data.train)), data.train.targets
    notes = list(data.notes)
    if data.unused:
        notes.append(
            f"{data.name}: {_some(data.unused)} {'is' if len(data.unused) == 1 else 'are'} not used; a clean set is "
            "x_meta and y_meta, a test set x_test and y_test"
        )
    overlap: int | None = 0
    if data.meta is not None:
        if hold_out.asked is not None:
            raise InputError(f"{hold_out.asked} holds out a clean set, and {data.name} brings its own; leave it out")
        overlap, more = _overlap(data, data.meta)
        notes += more
        train_rows = rows
        meta = Part(data.meta, data.meta.targets, np.arange(len(data.meta)))
    else:
        meta_rows = _clean_rows(data, hold_out, notes)
        train_rows = np.setdiff1d(rows, meta_rows)
        meta = Part(data.train.take(meta_rows), targets[meta_rows], meta_rows)
    val_rows = train_rows[hold_out.validation_rows(targets[train_rows])]
    if hold_out.val_fraction is not None and not len(val_rows):
        raise InputError(f"{data.name}: no row is left to validate on; leave data.val_fraction out")
    val = Part(data.train.take(val_rows), targets[val_rows], val_rows) if len(val_rows) else None
    train_rows = np.setdiff1d(train_rows, val_rows)
    if not len(train_rows):
        raise InputError(f"{data.name}: no training row is left beside the clean set; name fewer rows in meta_index")
    apart = [train_rows, val_rows, *([] if data.meta is not None else [meta.row])]
    assert len(np.unique(np.concatenate(apart))) == sum(map(len, apart)), "a row stands in two parts"

    before = targets[train_rows]
    train = data.train if len(train_rows) == len(rows) else data.train.take(train_rows)
    given = noisy(data, train_rows, noise, numpy_generator(seed, "noise"))
    # labels that we corrupt ourselves were right as far as anybody knows
    y_true = data.y_true[train_rows] if data.y_true is not None else before if noise != "none" else None
    if len(np.unique(given)) < 2:
        raise InputError(f"{data.name}: one class only is left to train on, class {given[0]}; check the labels")
    present = set(np.unique(before).tolist())
    one = data.train.noun.removesuffix("s")
    empty = [data.class_names[c] for c in range(data.num_classes) if c not in present]
    if empty:
        notes.append(
            f"train has no {one} of {len(empty)} of {data.num_classes} classes: {_some(empty)}; the network has an "
            "output for each all the same: is that how the labels are numbered?"
        )
    absent = [data.class_names[c] for c in sorted(present - set(meta.y.tolist()))]
    if absent and len(meta):
        notes.append(
            f"the clean set has no {one} of {len(absent)} class(es): {_some(absent)}; it learns from the others"
        )
    clean = meta
    if hold_out.of_train:
        if canaries not in ("auto", "off"):
            raise InputError(
                f"labels.canaries={canaries} are clean rows that are no training rows, and data.meta_is_train has "
                "none; leave one of them out"
            )
        meta, overlap, canaries = Part(train, given, train_rows), len(train_rows), "off"
        notes.append(
            f"{data.name}: the {len(train_rows):,} training rows are the clean set too, with their labels as given; "
            "figures on it flatter, and labels learn little from it"
        )
    meta, canary_part, chosen, no_canaries = _with_canaries(data, meta, given, canaries, hold_out.seed)
    test = None if data.test is None else Part(data.test, data.test.targets, np.arange(len(data.test)))
    if test is not None:
        looked_at = [source.digests() for source in (data.train, clean.source, test.source)]
        if all(found is not None for found in looked_at):
            train_digests, meta_digests, test_digests = (list(found or ()) for found in looked_at)
            seen = {*train_digests, *meta_digests}
            known = sum(digest in seen for digest in test_digests)
            if known:
                notes.append(
                    f"{known:,} of {len(test):,} test {test.source.noun} stand in train or the clean set too: test "
                    "figures flatter"
                )
    return Splits(
        train=Part(train, given, train_rows, y_true),
        meta=meta,
        test=test,
        num_classes=data.num_classes,
        class_names=data.class_names,
        noise=noise,
        noise_rate=None if y_true is None else float((given != y_true).mean()),
        notes=tuple(notes),
        canaries=canary_part,
        chosen=chosen,
        no_canaries=no_canaries,
        val=val,
        overlap=overlap,
        whole=data.train,
    )


def _clean_rows(data: Dataset, hold_out: HoldOut, notes: list[str]) -> np.ndarray:
    """Of the training set, those that are named, or are held out; what is to be said of it goes to `notes`."""
    targets = data.train.targets
    if data.meta_index is not None:
        # where all labels are known to be right, others are as good
        if hold_out.asked is None:
            return data.meta_index
        if data.y_true is None or (data.y_true != targets).any():
            raise InputError(
                f"{hold_out.asked} holds out a clean set, and {data.name} names its own in meta_index; leave it out"
            )
    chosen = hold_out.clean_rows(targets, data.class_names)
    if hold_out.none:
        return chosen
    if not len(chosen):
        raise InputError(
            f"{data.name}: no clean set can be held out, because no class has two "
            f"{data.train.noun}; bring x_meta and y_meta, or more {data.train.noun}"
        )
    if data.meta_index is None:
        share = "" if hold_out.asked or hold_out.balanced else f", {hold_out.meta_fraction:.0%} of each class,"
        notes.append(
            f"{data.name} has no clean set (x_meta, y_meta or meta_index): {len(chosen):,} training rows{share} are "
            "held out as one, and their labels are trusted as they are"
        )
    return chosen


def _with_canaries(
    data: Dataset, meta: Part, given: np.ndarray, wanted: str, seed: int
) -> tuple[Part, Part | None, Chosen | None, str]:
    """The clean set without the canaries, these, what is known of them, and why there are none."""
    count, why = how_many(wanted, meta.y)
    if not count:
        return meta, None, None, why
    before = data.meta_given
    chosen = choose(count, meta.y, before, given, data.num_classes, seed)
    rest = np.setdiff1d(np.arange(len(meta)), chosen.rows)

    def part(rows: np.ndarray) -> Part:
        return Part(meta.source.take(rows), meta.y[rows], meta.row[rows])

    return part(rest), part(chosen.rows), chosen, ""


def _some(names: Sequence[str]) -> str:
    return ", ".join(printable(name, NAME_LENGTH) for name in names[:5]) + (" …" if len(names) > 5 else "")


def _overlap(data: Dataset, meta: Source) -> tuple[int | None, list[str]]:
    """Training rows that stand in the clean set too, and a note on them: features of two samples may be equal.

    InputError for images. None where looking would take too long.
    """
    of_meta, of_train = meta.digests(), data.train.digests()
    if of_meta is None or of_train is None:
        return None, []
    seen = set(of_meta)
    shared = [row for row, digest in enumerate(of_train) if digest in seen]
    if not shared:
        return 0, []
    noun = data.train.noun
    text = f"the clean set and train share {len(shared)} {noun.removesuffix('s')}(s), the first at row {shared[0]} of"
    if noun != "images":
        note = f"{data.name}: {text} train; where they are the same sample and not two equal ones, results flatter"
        return len(shared), [note]
    raise InputError(
        f"{data.name}: {text} x_train; a leak would flatter every result: drop these rows, or name them with meta_index"
    )
