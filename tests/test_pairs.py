"""Which cases of a product run each time."""

from itertools import combinations, product

import pytest

from tests.support.pairs import covering, parametrize_some


@pytest.mark.parametrize(("sizes", "strength", "most"), [((6, 2, 3), 1, 6), ((6, 2, 3), 2, 18), ((6, 2, 3, 4), 2, 26)])
def test_every_combination_is_in_a_case_and_cases_are_few(sizes, strength, most):
    chosen = covering(sizes, strength)
    assert len(chosen) <= most
    for axes in combinations(range(len(sizes)), strength):
        held = {tuple(case[axis] for axis in axes) for case in chosen}
        assert held == set(product(*(range(sizes[axis]) for axis in axes)))


def test_the_whole_product_is_there_and_the_rest_of_it_is_slow():
    mark = parametrize_some(1, a="xy", b=[1, 2])
    names, cases = mark.args
    assert names == ("a", "b")
    assert [case.values for case in cases] == list(product("xy", [1, 2]))
    quick = [case.values for case in cases if not case.marks]
    assert quick == [("x", 1), ("y", 2)]
