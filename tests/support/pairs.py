"""Products of many axes: a small part of them in every run, all of them among the slow tests."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations, product
from typing import Any

import pytest


def covering(sizes: Sequence[int], strength: int) -> set[tuple[int, ...]]:
    """Few cases of the product in which every combination of values of any `strength` axes occurs.

    Greedy: each case is the first of those that hold most combinations not yet held, and among them most of one more
    axis, so that the values of the other axes take turns.
    """

    def held(case: tuple[int, ...], count: int) -> set[tuple[tuple[int, int], ...]]:
        return {tuple((axis, case[axis]) for axis in axes) for axes in combinations(range(len(sizes)), count)}

    cases = list(product(*map(range, sizes)))
    counts = (strength, strength + 1)
    missing = {count: set().union(*(held(case, count) for case in cases)) for count in counts}
    chosen: set[tuple[int, ...]] = set()
    while missing[strength]:
        best = max(cases, key=lambda case: [len(held(case, count) & missing[count]) for count in counts])
        chosen.add(best)
        for count in counts:
            missing[count] -= held(best, count)
    return chosen


def parametrize_some(strength: int, **axes: Sequence[Any]) -> pytest.MarkDecorator:
    """As ``pytest.mark.parametrize`` over the whole product of `axes`, most of it marked slow.

    strength=1: each value occurs in a quick case; 2: each pair of two axes' values does.
    """
    values = [list(axis) for axis in axes.values()]
    quick = covering([len(axis) for axis in values], strength)
    cases = []
    for case in product(*(range(len(axis)) for axis in values)):
        chosen = (axis[i] for axis, i in zip(values, case, strict=True))
        cases.append(pytest.param(*chosen, marks=() if case in quick else pytest.mark.slow))
    return pytest.mark.parametrize(tuple(axes), cases)
