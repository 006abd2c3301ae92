"""Which clean rows become canaries: rows that are trained on like all others, whose right label is known."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from fastmeta.data.errors import InputError
from fastmeta.data.seeds import numpy_generator

#: clean rows from which on canaries are taken without being asked for
LEAST_CLEAN = 200
#: canaries of so many clean rows: a quarter, but no fewer than say something and no more than help
SHARE, LEAST, MOST = 0.25, 80, 1000
#: the fewest that may be asked for
LEAST_ASKED = 20
#: canaries with a wrong label, at least; below, labels from before somebody checked them tell too little
LEAST_WRONG = 10
#: of expectation maximisation
_ROUNDS = 200
#: chance that class shares of clean rows and of training rows differ as much although they are the same
SAME_SHARES = 0.01


@dataclass(frozen=True)
class Chosen:
    """Canaries among the clean rows.

    `given` are their labels from before somebody checked them, None where wrong ones have to be drawn. A `weight`
    says how many rows of the training set a canary stands for, in proportion; `wrong_rate` is the share of wrong labels
    there. Both are None where `given` is.
    """

    rows: np.ndarray  # (K,) int64, sorted, of the clean set
    given: np.ndarray | None = None  # (K,) int64
    weight: np.ndarray | None = None  # (K,)
    wrong_rate: float | None = None


def how_many(wanted: str, y: np.ndarray) -> tuple[int, str]:
    """How many of the clean rows with labels `y` become canaries, and why none do.

    `wanted` is auto, off or a number. InputError for a number that cannot be had.
    """
    if wanted == "off":
        return 0, ""
    spare = len(y) - len(np.unique(y))  # a row of each class stays
    if wanted == "auto":
        if len(y) < LEAST_CLEAN:
            return 0, f"{len(y):,} clean rows are too few to spare some, {LEAST_CLEAN} are enough"
        count = min(max(round(SHARE * len(y)), LEAST), MOST)
        if count > spare:
            return 0, f"{len(y):,} clean rows of {len(np.unique(y)):,} classes are too few to spare {count}"
        return count, ""
    count, most = int(wanted), min(spare, len(y) // 2)
    if not LEAST_ASKED <= count <= most:
        can = f"from {LEAST_ASKED} to {most}" if most >= LEAST_ASKED else f"off for {len(y)} clean rows"
        raise InputError(
            f"labels.canaries must be {can} (half of the clean rows at most, and one of each class stays), got {count}"
        )
    return count, ""


def wrong_share(wrong_rate: float) -> float:
    """Share of canaries that should have a wrong label: where most labels are right, right ones matter more."""
    return min(max(2 * wrong_rate, 1 / 3), 1 / 2)


def choose(
    count: int, y: np.ndarray, given: np.ndarray | None, train_given: np.ndarray, num_classes: int, seed: int
) -> Chosen:
    """Draw `count` canaries, a row of each class left out of the draw, by a seed of their own.

    Args:
        y: (M,) right labels of the clean rows.
        given: (M,) what these were before somebody checked them, or None.
        train_given: (N,) given labels of the training set.
    """
    generator = numpy_generator(seed, "canaries")
    stays = [generator.choice(np.flatnonzero(y == c)) for c in np.unique(y)]
    pool = np.setdiff1d(np.arange(len(y)), stays)
    if given is not None:
        weight = _class_weight(y, given, train_given, num_classes)[y]
        wrong = given != y
        rate = float(weight[wrong].sum() / weight.sum())
        bad, good = pool[wrong[pool]], pool[~wrong[pool]]
        # no more than half of them: what is hard stays in the clean set, too
        of_bad = max(min(round(wrong_share(rate) * count), len(bad) // 2), count - len(good))
        if of_bad >= LEAST_WRONG:
            parts = [(bad, of_bad), (good, count - of_bad)]
            rows = [spread(members, y[members], number, generator) for members, number in parts]
            stands_for = np.concatenate(
                [np.full(number, len(members) / number) for members, number in parts if number > 0]
            )
            taken = np.concatenate(rows)
            order = np.argsort(taken)
            taken, stands_for = taken[order], stands_for[order]
            return Chosen(taken, given[taken], stands_for * weight[taken], rate)
    return Chosen(np.sort(spread(pool, y[pool], count, generator)))


def spread(members: np.ndarray, y: np.ndarray, count: int, generator: np.random.Generator) -> np.ndarray:
    """`count` of `members`, each as likely as any other, and of each class of `y` as many as its share, but for one."""
    order = np.lexsort((generator.random(len(members)), y))
    if count <= 0:
        return members[:0]
    step = len(members) / count
    at = np.floor((np.arange(count) + generator.random()) * step).astype(np.int64)
    return members[order[np.minimum(at, len(members) - 1)]]


def _class_weight(y: np.ndarray, given: np.ndarray, train_given: np.ndarray, num_classes: int) -> np.ndarray:
    """(C,) share of each right class in the training set over its share in the clean set; ones where they agree.

    The right classes of the training set are unknown, its given ones are known, and the pairs (right, given) of the
    clean rows tell which come from which.
    """
    from scipy.special import chdtrc  # the upper tail of chi-squared; scipy.stats takes a second to import

    clean, train = (np.bincount(v, minlength=num_classes).astype(np.float64) for v in (given, train_given))
    both = clean + train
    expected = np.outer([clean.sum(), train.sum()], both / both.sum())
    seen = both > 0
    statistic = float((((np.stack([clean, train]) - expected) ** 2)[:, seen] / expected[:, seen]).sum())
    if chdtrc(max(int(seen.sum()) - 1, 1), statistic) > SAME_SHARES:
        return np.ones(num_classes)
    pairs = np.zeros((num_classes, num_classes))
    np.add.at(pairs, (y, given), 1)
    pairs += 0.5 * np.eye(num_classes) + 0.5 / num_classes
    transition = pairs / pairs.sum(1, keepdims=True)
    share = np.bincount(y, minlength=num_classes) / len(y)
    behind = shares_behind(transition, train / train.sum(), share)
    return np.where(share > 0, behind / np.maximum(share, 1e-300), 1.0)


def shares_behind(transition: np.ndarray, given: np.ndarray, start: np.ndarray) -> np.ndarray:
    """Shares pi (C,) of right classes for which sum_y pi_y T[y, k] is `given`, by expectation maximisation.

    `transition` is T (C, C), P(given k | right y); `start` (C,) is where it begins: a class of no share there keeps it.
    """
    shares = start / start.sum()
    for _ in range(_ROUNDS):
        joint = shares[:, None] * transition
        shares = (joint / np.maximum(joint.sum(0), np.finfo(float).tiny) * given).sum(1)
        shares = shares / shares.sum()
    return shares
