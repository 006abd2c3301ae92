"""What counts as a number where a rate, a count or a class number is wanted."""

import decimal
import enum
import fractions
import math
import warnings

import numpy as np
import pytest
import torch

from fastmeta._numbers import as_real, as_whole, shown

INTEGERS = [f"{u}int{bits}" for u in ("", "u") for bits in (8, 16, 32, 64)]


class Three(enum.IntEnum):
    THREE = 3


@pytest.mark.parametrize("kind", INTEGERS)
def test_integers_of_numpy_and_torch(kind):
    scalar, tensor = getattr(np, kind)(3), torch.tensor(3, dtype=getattr(torch, kind))
    for value in (scalar, np.array(scalar), tensor, np.array(3, dtype=np.dtype(kind).newbyteorder())):
        assert type(as_whole(value)) is int
        assert as_whole(value) == 3
        assert type(as_real(value)) is float
        assert as_real(value) == 3.0


@pytest.mark.parametrize(
    "value",
    [
        0.5,
        np.float16(0.5),
        np.float32(0.5),
        np.float64(0.5),
        np.longdouble(0.5),
        np.array(0.5, dtype=np.float32),
        np.array(0.5, dtype=object),
        torch.tensor(0.5),
        torch.tensor(0.5, dtype=torch.bfloat16),
        torch.nn.Parameter(torch.tensor(0.5, dtype=torch.float64)),
        fractions.Fraction(1, 2),
        decimal.Decimal("0.5"),
    ],
    ids=lambda v: type(v).__name__,
)
def test_floats(value):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert type(as_real(value)) is float
        assert as_real(value) == 0.5
        assert as_whole(value) is None


@pytest.mark.parametrize(
    "value",
    [
        True,
        np.bool_(True),
        np.array(True),
        torch.tensor(True),
        None,
        "1",
        b"1",
        np.str_("1"),
        1j,
        np.complex64(1),
        torch.tensor(1 + 0j),
        [1],
        np.array([1]),
        torch.tensor([1]),
        np.datetime64("2020-01-01"),
        np.timedelta64(1, "s"),
        np.array("1", dtype=object),
        torch.tensor(1, device="meta"),
        Ellipsis,
        float,
    ],
    ids=lambda v: f"{type(v).__name__} {shown(v)}",
)
def test_what_is_no_number(value):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert as_real(value) is None
        assert as_whole(value) is None


def test_ends():
    assert (as_real(10**400), as_real(-(10**400))) == (math.inf, -math.inf)
    assert as_whole(10**400) == 10**400
    assert math.isnan(as_real(np.float32("nan")))
    assert as_whole(3.0) is as_whole(np.float64(3)) is as_whole(torch.tensor(3.0)) is None
    assert type(as_whole(Three.THREE)) is int
    assert as_real(Three.THREE) == 3.0


def test_shown_is_one_short_line():
    assert shown("5") == "'5'"
    assert shown(10**5000) == "an int of 16610 bits"
    for value in (torch.randn(40, 40), "x" * 500, [1] * 500):
        assert len(shown(value)) <= 80
        assert "\n" not in shown(value)
