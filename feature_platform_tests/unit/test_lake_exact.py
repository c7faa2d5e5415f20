"""Guards against exact sums that are not exact, or are rounded twice."""

from __future__ import annotations

import math
from dataclasses import replace
from decimal import Decimal
from fractions import Fraction

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest

from feature_platform.lake.exact import (
    Whole,
    _normal,
    running,
    running_products,
    spreads,
    sums,
    whole_numbers,
)

RANDOM = np.random.default_rng(0)
COLUMNS = {
    "volumes": np.round(RANDOM.lognormal(3, 1, 300), 3),
    "returns": np.log1p(RANDOM.normal(0, 1e-3, 300)),
    "wide": RANDOM.choice([0, 1e-90, 1e90, 1e60, 5.0, 1e12 + 0.1, -3.7], 300),
    "limits": RANDOM.choice([1e-130, 1e130, -1e-130], 40),
    "large": np.array([1e15, 1e15 + 1, 9007199254740993.0, 123456789012345678.0, 1e22]),
    "small": RANDOM.random(100) * 1e-120,
    "negative": -RANDOM.random(100),
    "equal": np.full(50, 0.1),
    "zeros": np.zeros(20),
}


@pytest.mark.parametrize("name", COLUMNS)
@pytest.mark.parametrize("rows", [1, 7, 1000])
def test_sums_of_windows_are_the_nearest_doubles(name: str, rows: int) -> None:
    x = COLUMNS[name]
    y = RANDOM.permutation(x)
    lo = np.maximum(np.arange(len(x)) - rows + 1, 0)
    n = np.arange(len(x)) - lo + 1
    of_x, of_y = whole_numbers(x), whole_numbers(y)
    products = running_products(of_x, of_y)
    found = (
        sums(running(of_x), lo).values,
        spreads(products, running(of_x), running(of_y), lo, n).values,
    )
    decimals = [[Fraction(Decimal(repr(one))) for one in column.tolist()] for column in (x, y)]
    for at in range(len(x)):
        left, right = (column[lo[at] : at + 1] for column in decimals)
        total = sum(left, Fraction())
        product = sum((a * b for a, b in zip(left, right, strict=True)), Fraction())
        spread = len(left) * product - total * sum(right, Fraction())
        assert (found[0][at], found[1][at]) == (float(total), float(spread)), at


def test_a_missing_value_counts_as_nothing() -> None:
    x = running(whole_numbers(np.array([1.5, np.nan, 2.25])))
    assert sums(x, np.zeros(3, np.int64)).values.tolist() == [1.5, 1.5, 3.75]


def test_squares_are_products_with_itself() -> None:
    x = whole_numbers(COLUMNS["returns"])
    same, other = running_products(x, x), running_products(x, replace(x))
    for left, right in zip(same.sums, other.sums, strict=True):
        np.testing.assert_array_equal(left, right)


def test_results_between_two_doubles_are_rounded_as_pythons_integers() -> None:
    """Halves between doubles, and numbers beside them, more than one block of rows of them."""
    halves = [
        (1 << 53) * 2**k + 2 ** (k - 1) + beside for k in range(1, 60) for beside in (-1, 0, 1)
    ]
    numbers = [one if at % 2 else -one for at, one in enumerate(halves * 60)]
    digits = [np.array([(one >> 18 * k) & ((1 << 18) - 1) for one in numbers]) for k in range(6)]
    digits.append(np.array([one >> 108 for one in numbers]))
    for scale in (0, 3, 40):
        whole = Whole(_normal(digits), scale)
        assert whole.doubles().tolist() == [one / 10**scale for one in numbers]


def test_arrow_calls_the_c_library() -> None:
    """Each value must be the very double that the database computes."""
    x = np.exp(RANDOM.normal(0, 1, 60_000) * np.repeat([1e-4, 0.1, 30], 20_000))
    y = RANDOM.normal(0, 100, 60_000)
    assert pc.ln(pa.array(x)).to_pylist() == [math.log(one) for one in x.tolist()]
    assert pc.exp(pa.array(y)).to_pylist() == [math.exp(one) for one in y.tolist()]
    assert pc.power(pa.array(y), 2.0).to_pylist() == [math.pow(one, 2.0) for one in y.tolist()]
