"""Canaries: rows that are trained on like all others, some with a wrong label, whose right label is known.

Their fate tells what becomes of labels where nobody knows the right ones. With weights w_i, how many rows of the
training set a canary stands for, and e, the share of wrong labels there,

    put right   c = sum of w_i over wrong canaries that have their right label now / sum of w_i over wrong canaries
    spoiled     s = the same of right canaries that have a wrong label now
    right       e c + (1 - e) (1 - s)      expected share of the training set, where it was 1 - e

One half of them chooses which labels are kept; the other half reports.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from fastmeta.data import Splits
from fastmeta.data.canary_rows import spread, wrong_share
from fastmeta.data.seeds import numpy_generator

#: where their given labels come from
BEFORE, DRAWN = "before", "drawn"
#: of intervals
CONFIDENCE = 0.95
#: another reading of labels is taken where it has so much more of the share of right labels, which chance alone would
#: make it have no more often than so
WORTH, BY_CHANCE = 0.005, 0.05
#: differences of canaries whose signs are all tried; of more, the sum is normal enough
_TRIED = 16
#: most of a class's canaries that get a wrong label
MOST_WRONG = 0.6
#: of a wrong label without any sign of where wrong ones go
_ANYWHERE = 0.01


class Share(NamedTuple):
    """A share of some canaries, and a 95% interval of the share that it estimates."""

    rate: float | None  # None of none
    low: float
    high: float
    rows: int


class Fate(NamedTuple):
    """What has become of some canaries."""

    put_right: Share  # of those with a wrong label
    spoiled: Share  # of those with the right one
    before: float  # share of right labels in the training set as given
    after: float  # the same now, as expected from the canaries

    @property
    def worse(self) -> bool:
        """Whether labels are expected to be worse than they were given."""
        return self.after < self.before


@dataclass(frozen=True)
class Canaries:
    """Right and given labels of the canaries, in the order of their rows."""

    right: np.ndarray  # (K,) int64
    given: np.ndarray  # (K,) int64
    weight: np.ndarray  # (K,) float64
    chooses: np.ndarray  # (K,) bool; the others report
    wrong_rate: float
    origin: str

    @classmethod
    def known(cls, splits: Splits, seed: int) -> Canaries | None:
        """Those whose labels from before somebody checked them are known; None where wrong ones have to be drawn."""
        chosen, part = splits.chosen, splits.canaries
        if chosen is None or part is None or chosen.given is None:
            return None
        assert chosen.weight is not None
        assert chosen.wrong_rate is not None
        half = _half(part.y, chosen.given, seed)
        return cls(part.y, chosen.given, chosen.weight, half, chosen.wrong_rate, BEFORE)

    @classmethod
    def drawn(cls, right: np.ndarray, transition: np.ndarray, shares: np.ndarray, seed: int) -> Canaries:
        """Some get a wrong label, drawn from the noise of the training set.

        Where class shares allow it, canaries with a wrong label have the right classes that rows with a wrong label
        have in the training set; their weights do the rest.

        Args:
            right: (K,) right labels.
            transition: (C, C), T[y, k] = P(given k | right y).
            shares: (C,) of the right classes in the training set.
        """
        transition = _shares_of(transition)
        shares = _shares_of(shares)
        rate = float((shares * (1 - transition.diagonal())).sum())
        smooth = (1 - _ANYWHERE) * transition + _ANYWHERE / len(transition)
        stays = smooth.diagonal()
        counts = np.bincount(right, minlength=len(shares)).astype(np.float64)
        expected = _allotted(shares * (1 - stays), MOST_WRONG * counts, wrong_share(rate) * len(right))
        generator = numpy_generator(seed, "wrong labels of canaries")
        # rounded so that no class has one more or less than its share, and all sums are within one
        upper = np.floor(np.cumsum(expected) + generator.random())
        numbers = np.diff(upper, prepend=0.0).astype(np.int64)
        given = right.copy()
        for c in np.flatnonzero(numbers):
            rows = generator.permutation(np.flatnonzero(right == c))[: numbers[c]]
            wrong = smooth[c].copy()
            wrong[c] = 0
            given[rows] = generator.choice(len(wrong), len(rows), p=wrong / wrong.sum())
        of_wrong = shares * (1 - stays) / np.where(expected > 0, expected, 1)
        of_right = shares * stays / np.where(counts > expected, counts - expected, 1)
        weight = np.where(given != right, of_wrong[right], of_right[right])
        return cls(right, given, weight, _half(right, given, seed), rate, DRAWN)

    def state(self) -> dict[str, Any]:
        """What :meth:`of_state` takes, as JSON holds it."""
        arrays = {"given": self.given, "weight": self.weight, "chooses": self.chooses}
        return {
            **{name: array.tolist() for name, array in arrays.items()},
            "wrong_rate": self.wrong_rate,
            "origin": self.origin,
        }

    @classmethod
    def of_state(cls, splits: Splits, values: Mapping[str, Any]) -> Canaries:
        """ValueError for what no such canaries have given."""
        right = np.empty(0, np.int64) if splits.canaries is None else splits.canaries.y
        given, weight = np.asarray(values["given"], np.int64), np.asarray(values["weight"], np.float64)
        chooses = np.asarray(values["chooses"], bool)
        if not given.shape == weight.shape == chooses.shape == right.shape:
            raise ValueError(f"it holds the labels of {given.shape} canaries, expected {right.shape}")
        if not ((given >= 0) & (given < splits.num_classes)).all():
            raise ValueError("it gives canaries a class that there is not")
        rate, origin = float(values["wrong_rate"]), str(values["origin"])
        if not ((weight >= 0) & np.isfinite(weight)).all() or not 0 <= rate <= 1 or origin not in (BEFORE, DRAWN):
            raise ValueError("its canaries have weights, or a rate or origin of wrong labels, that there cannot be")
        return cls(right, given, weight, chooses, rate, origin)

    def fate(self, learned: np.ndarray, half: np.ndarray | None = None) -> Fate:
        """Of the canaries of a `half`, by default the reporting one, whose learned classes are `learned` (K,)."""
        half = ~self.chooses if half is None else half
        wrong = self.given != self.right
        put_right = _share((learned == self.right)[half & wrong], self.weight[half & wrong])
        spoiled = _share((learned != self.right)[half & ~wrong], self.weight[half & ~wrong])
        before = 1 - self.wrong_rate
        after = before * (1 - (spoiled.rate or 0.0)) + self.wrong_rate * (put_right.rate or 0.0)
        return Fate(put_right, spoiled, before, after)

    def choose(
        self, learned: Mapping[str, np.ndarray], among: int | None = None
    ) -> tuple[str, dict[str, dict[str, float | None]]]:
        """Which of several labels, classes (K,) by name, the choosing half finds best.

        The first ones stay unless others have more of the expected share of right labels, by half a point and by more
        than chance: of the values of the canaries that are right in one of the two alone, with their signs drawn at
        random, the sum is as large in no more than a share of 0.05, split among the others. Of several such, the best.

        Args:
            among: how many others there are in all, where this is one choice of several; by default those here.

        Returns:
            Its name; of each reading `right_by_choosing`, the expected share, and `chance`, that of chance alone, None
            of the first one.
        """
        value = self.choice
        right = {name: classes == self.right for name, classes in learned.items()}
        first, *others = right
        among = len(others) if among is None else among
        share = {name: min(float(value @ hit), 1.0) for name, hit in right.items()}
        chance = {name: chance_alone(value * (right[name].astype(np.float64) - right[first])) for name in others}
        better = [name for name in others if share[name] - share[first] >= WORTH and chance[name] * among <= BY_CHANCE]
        told = {name: {"right_by_choosing": share[name], "chance": chance.get(name)} for name in right}
        return max([first, *better], key=share.__getitem__), told

    @property
    def choice(self) -> np.ndarray:
        """(K,) what each choosing canary adds to the expected share of right labels where its own is right."""
        value = np.zeros(len(self.right))
        for kind, share in (
            (self.given != self.right, self.wrong_rate),
            (self.given == self.right, 1 - self.wrong_rate),
        ):
            rows = kind & self.chooses
            total = self.weight[rows].sum()
            value[rows] = share * self.weight[rows] / total if total > 0 else 0.0
        return value


def _shares_of(values: np.ndarray) -> np.ndarray:
    """Along the last axis; equal ones where nothing is known."""
    values = np.nan_to_num(np.asarray(values, np.float64), nan=0.0, posinf=0.0, neginf=0.0).clip(min=0)
    total = values.sum(-1, keepdims=True)
    return np.where(total > 0, values / np.where(total > 0, total, 1), 1 / values.shape[-1])


def _allotted(target: np.ndarray, most: np.ndarray, total: float) -> np.ndarray:
    """Numbers in proportion to `target`, none above `most`, whose sum is `total` where that can be."""
    full = np.zeros(len(target), bool)
    while True:
        rest = total - most[full].sum()
        open_ = target * ~full
        scaled = np.where(full, most, open_ * (max(rest, 0.0) / open_.sum() if open_.sum() > 0 else 0.0))
        over = (scaled > most) & ~full
        if not over.any():
            return scaled
        full |= over


def _half(right: np.ndarray, given: np.ndarray, seed: int) -> np.ndarray:
    """(K,) bool: every second one of those with a wrong label, and of the others, class by class."""
    generator = numpy_generator(seed, "halves of canaries")
    half = np.zeros(len(right), bool)
    for kind in (given != right, given == right):
        rows = np.flatnonzero(kind)
        half[spread(rows, right[rows], len(rows) // 2, generator)] = True
    return half


def chance_alone(differences: np.ndarray) -> float:
    """P(sum_i s_i |d_i| >= sum_i d_i) for signs s_i that are + or - alike."""
    differences = differences[differences != 0]
    total, sizes = float(differences.sum()), np.abs(differences)
    if len(sizes) == 0:
        return 1.0
    if len(sizes) > _TRIED:
        return 0.5 * math.erfc(total / math.sqrt(2 * float((sizes**2).sum())))
    sums = np.zeros(1)
    for size in sizes:
        sums = np.concatenate([sums - size, sums + size])
    return float((sums >= total - 1e-9 * sizes.sum()).mean())


def _share(hits: np.ndarray, weight: np.ndarray) -> Share:
    """Clopper and Pearson's interval; under weights, of as many rows as are worth the same (Kish)."""
    from scipy.special import betaincinv  # scipy.stats has it as beta.ppf, and takes a second to import

    total = float(weight.sum())
    if not total > 0:
        return Share(None, 0.0, 1.0, len(hits))
    rate = min(float(weight[hits].sum()) / total, 1.0)
    size = total**2 / float((weight**2).sum())
    hit, tail = rate * size, (1 - CONFIDENCE) / 2
    low = 0.0 if rate == 0 else float(betaincinv(hit, size - hit + 1, tail))
    high = 1.0 if rate == 1 else float(betaincinv(hit + 1, size - hit, 1 - tail))
    return Share(rate, low, high, len(hits))


def figures(canaries: Canaries, fate: Fate) -> dict[str, Any]:
    """As summary.json has them."""
    return {
        "origin": canaries.origin,
        "wrong_rate": canaries.wrong_rate,
        "put_right": fate.put_right._asdict(),
        "spoiled": fate.spoiled._asdict(),
        "right_before": fate.before,
        "right_after": fate.after,
    }


def in_words(told: Mapping[str, Any]) -> str:
    """A summary's figures: wrong labels put right 61% [42, 78], right ones spoiled 3% [1, 9]."""
    wrong, right = told["put_right"], told["spoiled"]
    return f"wrong labels put right {percent_of(wrong)}, right ones spoiled {percent_of(right)}"


def warning(told: Mapping[str, Any], withheld: bool) -> str | None:
    """Where a summary's figures say that labels are worse than they were given."""
    if told["right_after"] >= told["right_before"]:
        return None
    how = "as they were given, unless with --force" if withheld else "all the same"
    return f"labels are worse than they were given, by the canaries: {in_words(told)}; they are handed out {how}"


def percent_of(share: Mapping[str, Any]) -> str:
    """61% [42, 78]."""
    if share["rate"] is None:
        return "unknown"
    return f"{100 * share['rate']:.0f}% [{100 * share['low']:.0f}, {100 * share['high']:.0f}]"
