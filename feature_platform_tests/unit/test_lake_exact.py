"""Guards against exact sums that are not exact, or are rounded twice."""

from __future__ import annotations

from decimal import Decimal
from fractions import Fraction

import numpy as np
import pytest

from feature_platform.lake.exact import spreads, sums, whole_numbers

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
    found = sums(of_x, lo).doubles(), spreads(of_x, of_y, lo, n).doubles()
    decimals = [[Fraction(Decimal(repr(one))) for one in column.tolist()] for column in (x, y)]
    for at in range(len(x)):
        left, right = (column[lo[at] : at + 1] for column in decimals)
        total = sum(left, Fraction())
        products = sum((a * b for a, b in zip(left, right, strict=True)), Fraction())
        spread = len(left) * products - total * sum(right, Fraction())
        assert (found[0][at], found[1][at]) == (float(total), float(spread)), at


def test_a_missing_value_counts_as_nothing() -> None:
    x = whole_numbers(np.array([1.5, np.nan, 2.25]))
    assert sums(x, np.zeros(3, np.int64)).doubles().tolist() == [1.5, 1.5, 3.75]
