"""Exact sums of decimals over windows, for many rows at once.

PostgreSQL sums a double as the shortest decimal that gives it back. Here such decimals are whole
numbers over one power of ten, in digits of 18 bits, so sums and products of any length are exact in
arrays of 64-bit integers. Only the conversion of a result to a double rounds, and it rounds
correctly: in extended precision, and in Python's integers where that leaves a doubt.

Sums over windows are differences of running sums. Their digits exist for some rows at a time, so
that they stay in the processor's cache.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from decimal import Context, Decimal

import duckdb
import numpy as np
import numpy.typing as npt
import pyarrow as pa

Ints = npt.NDArray[np.int64]
Doubles = npt.NDArray[np.float64]

# The longest window has 400 days of minutes, 2^20 rows, and a double at most 51 digits: the sum of
# 51 products of two digits over 2^20 rows has less than 63 bits.
_BITS = 18
_HALF = 1 << (_BITS - 1)
_BASE = 1 << _BITS

# Rows whose digits are in memory at once.
_ROWS = 8192

# Doubles have all whole numbers up to this, and powers of ten up to 10^22: their quotient is the
# nearest double.
_EXACT = 1 << 53
_EXACT_SCALE = 22
# Three digits are a number of 54 bits.
_GROUP = 3
_GROUP_BASE = float(_BASE**_GROUP)

# Whole numbers up to this are doubles, and a decimal of so few digits is the shortest one.
_SHORT = 10**15
_SHORT_SCALE = 15
_DECIMAL_DIGITS = 38
_WIDE = Context(prec=400)

# The relative error of one operation in extended precision, twice as large as it can be.
_ERROR = float(np.finfo(np.longdouble).eps)


@dataclass(frozen=True)
class Whole:
    """Whole numbers, one a row: the sum of digits[k] * 2^(18 k), over 10^scale."""

    digits: list[Ints]
    scale: int

    def kept(self, rows: npt.NDArray[np.bool_]) -> Whole:
        """Return the numbers of some rows, and 0 in the others."""
        return Whole([np.where(rows, digit, 0) for digit in self.digits], self.scale)

    def grouped(self, starts: Ints) -> Whole:
        """Return the sums of runs of rows, which begin at these places."""
        return Whole(_normal([np.add.reduceat(digit, starts) for digit in self.digits]), self.scale)

    def integer(self, row: int) -> int:
        """Return the whole number of one row."""
        return sum(int(digit[row]) << (_BITS * place) for place, digit in enumerate(self.digits))

    def decimal(self, row: int) -> Decimal:
        """Return the decimal of one row."""
        return Decimal(self.integer(row)).scaleb(-self.scale)

    def doubles(self) -> Doubles:
        """Return the nearest double of each number."""
        count = len(self.digits[0])
        return _rounded(count, self.scale, lambda rows: [one[rows] for one in self.digits]).values


@dataclass(frozen=True)
class Running:
    """Sums over all rows before each row and the next one, digit by digit, over 10^scale.

    The sums may exceed 64 bits and wrap around; the difference of two of them does not.
    """

    sums: list[Ints]
    scale: int

    def windows(self, rows: slice, lo: Ints) -> list[Ints]:
        """Return the digits of the sums over the windows of some rows, as in `sums`."""
        after = slice(rows.start + 1, rows.stop + 1)
        return _normal([one[after] - one[lo[rows]] for one in self.sums])


@dataclass(frozen=True)
class Rounded:
    """The nearest doubles of whole numbers, of which some may have so many bits."""

    values: Doubles
    bits: int


def whole_numbers(values: Doubles) -> Whole:
    """Return doubles as the shortest decimals that give them back; NaN as 0."""
    x = np.where(np.isnan(values), 0.0, values)
    short = _short(x)
    if short is not None:
        return short
    sizes = np.abs(x[x != 0])
    # A double has at most 17 digits, so this many decimals are enough for the smallest.
    scale = max(0, 16 - _exponent(float(sizes.min())))
    if scale + max(0, _exponent(float(sizes.max())) + 1) <= _DECIMAL_DIGITS:
        return _by_text(x, scale)
    texts = [Decimal(repr(one)) for one in x.tolist()]
    scale = max(0, *(-_exponent_of(one) for one in texts))
    integers = np.array([int(one.scaleb(scale, _WIDE)) for one in texts], dtype=object)
    return Whole(_of_integers(integers), scale)


def running(x: Whole) -> Running:
    """Return the running sums of numbers."""
    return Running([_running(digit) for digit in x.digits], x.scale)


def running_products(x: Whole, y: Whole) -> Running:
    """Return the running sums of the products of two numbers of each row."""
    return Running([_running(one) for one in _product(x.digits, y.digits)], x.scale + y.scale)


def sums(x: Running, lo: Ints) -> Rounded:
    """Return the sum over each row's window, which begins at the row `lo` and ends with it."""
    return _rounded(len(lo), x.scale, lambda rows: x.windows(rows, lo))


def spreads(products: Running, x: Running, y: Running, lo: Ints, n: Ints) -> Rounded:
    """Return n * sum(x*y) - sum(x) * sum(y) over each row's window.

    products: of x and y.
    n: the number of values in the window.
    """

    def digits_of(rows: slice) -> list[Ints]:
        sum_x = x.windows(rows, lo)
        sum_y = sum_x if x is y else y.windows(rows, lo)
        found = [n[rows] * one for one in products.windows(rows, lo)]
        for place, one in enumerate(_product(sum_x, sum_y)):
            if place == len(found):
                found.append(np.zeros_like(one))
            found[place] -= one
        return _normal(found)

    return _rounded(len(lo), products.scale, digits_of)


def _rounded(count: int, scale: int, digits_of: Callable[[slice], list[Ints]]) -> Rounded:
    """Return the nearest doubles of numbers, whose normal digits are given for some rows."""
    values = np.empty(count)
    longest = 1
    for first in range(0, count, _ROWS):
        rows = slice(first, min(first + _ROWS, count))
        digits = digits_of(rows)
        longest = max(longest, len(digits))
        values[rows] = _nearest(digits, scale)
    return Rounded(values, longest * _BITS)


def _nearest(digits: list[Ints], scale: int) -> Doubles:
    """Return the nearest double of each number."""
    groups = [_grouped(digits[place : place + _GROUP]) for place in range(0, len(digits), _GROUP)]
    if len(groups) == 1 and scale <= _EXACT_SCALE and np.abs(groups[0]).max() <= _EXACT:
        return groups[0] / 10.0**scale
    with np.errstate(all="ignore"):
        near = groups[-1].astype(np.longdouble)
        for group in reversed(groups[:-1]):
            near *= _GROUP_BASE
            near += group
        near /= np.longdouble(f"1e{scale}")
        error = np.abs(near) * (_ERROR * (len(groups) + 2))
        low, high = (near - error).astype(np.float64), (near + error).astype(np.float64)
    doubtful = np.flatnonzero(low != high)
    if len(doubtful):
        wholes = groups[-1][doubtful].astype(object)
        for group in reversed(groups[:-1]):
            wholes = (wholes << (_BITS * _GROUP)) + group[doubtful]
        power = 10**scale
        low[doubtful] = [one / power for one in wholes.tolist()]
    return low


def _grouped(digits: list[Ints]) -> Ints:
    """Return up to three digits as one number."""
    found = digits[-1]
    for digit in reversed(digits[:-1]):
        found = (found << _BITS) + digit
    return found


def _exponent(value: float) -> int:
    return int(f"{value:e}".partition("e")[2])


def _exponent_of(value: Decimal) -> int:
    exponent = value.as_tuple().exponent
    assert isinstance(exponent, int), "the value is finite"
    return exponent


def _short(x: Doubles) -> Whole | None:
    """Return decimals of at most 15 digits, None where some have more."""
    largest = float(np.abs(x).max(initial=0.0))
    sample = x[:: max(1, len(x) // 1000)]
    for scale in range(_SHORT_SCALE + 1):
        power = 10.0**scale
        if largest * power > _SHORT:
            return None
        if not np.array_equal(np.rint(sample * power) / power, sample):
            continue
        whole = np.rint(x * power)
        if np.array_equal(whole / power, x):
            return Whole(_normal([whole.astype(np.int64)]), scale)
    return None


def _by_text(x: Doubles, scale: int) -> Whole:
    """Return decimals of at most 38 digits, which DuckDB reads from its text of the doubles."""
    with duckdb.connect() as connection:
        connection.register("doubles", pa.table({"x": x}))
        column = connection.sql(
            f"SELECT x::VARCHAR::DECIMAL({_DECIMAL_DIGITS}, {scale}) FROM doubles"  # noqa: S608
        ).to_arrow_table()[0]
    chunks = [
        np.frombuffer(chunk.buffers()[1], np.int64)[2 * chunk.offset :][: 2 * len(chunk)]
        for chunk in column.chunks
    ]
    halves = np.concatenate(chunks).reshape(-1, 2)
    low, high = halves[:, 0].view(np.uint64), halves[:, 1].view(np.uint64)
    negative = halves[:, 1] < 0
    low = np.where(negative, ~low + np.uint64(1), low)
    high = np.where(negative, ~high + (low == 0), high)
    digits = []
    for place in range(0, 128, _BITS):
        digit = low >> np.uint64(place) if place < 64 else high >> np.uint64(place - 64)
        if 64 - _BITS < place < 64:
            digit = digit | (high << np.uint64(64 - place))
        digits.append((digit & np.uint64(_BASE - 1)).astype(np.int64))
    sign = np.where(negative, -1, 1)
    return Whole(_normal([digit * sign for digit in digits]), scale)


def _of_integers(integers: npt.NDArray[np.object_]) -> list[Ints]:
    digits: list[Ints] = []
    signs = np.where(integers < 0, -1, 1)
    rest = integers * signs
    while np.any(rest):
        digits.append((rest & (_BASE - 1)).astype(np.int64) * signs)
        rest = rest >> _BITS
    return _normal(digits)


def _normal(digits: list[Ints]) -> list[Ints]:
    """Return the digits from -2^17 up to 2^17, so that their sum loses nothing by cancellation."""
    found: list[Ints] = []
    carry = np.zeros_like(digits[0])
    while len(found) < len(digits) or carry.any():
        digit = carry + digits[len(found)] if len(found) < len(digits) else carry
        carry = (digit + _HALF) >> _BITS
        found.append(digit - (carry << _BITS))
    while len(found) > 1 and not found[-1].any():
        found.pop()
    return found


def _product(x: list[Ints], y: list[Ints]) -> list[Ints]:
    found = [np.zeros_like(x[0]) for _ in range(len(x) + len(y) - 1)]
    for i, one in enumerate(x):
        if x is y:
            found[2 * i] += one * one
            twice = 2 * one
            for j in range(i + 1, len(y)):
                found[i + j] += twice * y[j]
        else:
            for j, other in enumerate(y):
                found[i + j] += one * other
    return found


def _running(values: Ints) -> Ints:
    found = np.zeros(len(values) + 1, np.int64)
    np.cumsum(values, out=found[1:])
    return found
