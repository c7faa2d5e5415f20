"""Exact sums of decimals over windows, for many rows at once.

PostgreSQL sums a double as the shortest decimal that gives it back. Here such decimals are whole
numbers over one power of ten, in digits of 18 bits, so sums and products of any length are exact in
arrays of 64-bit integers. Only the conversion of a result to a double rounds, and it rounds
correctly: in extended precision, and in Python's integers where that leaves a doubt.
"""

from __future__ import annotations

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

    @property
    def bits(self) -> int:
        """Return how many bits the numbers may have."""
        return _BITS * len(self.digits)

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
        with np.errstate(all="ignore"):
            near = np.zeros(len(self.digits[0]), np.longdouble)
            for digit in reversed(self.digits):
                near *= _BASE
                near += digit
            near /= np.longdouble(f"1e{self.scale}")
            error = np.abs(near) * (_ERROR * (len(self.digits) + 4))
            low, high = (near - error).astype(np.float64), (near + error).astype(np.float64)
        for row in np.flatnonzero(low != high).tolist():
            low[row] = self.integer(row) / 10**self.scale
        return low


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


def sums(x: Whole, lo: Ints) -> Whole:
    """Return the sum over each row's window, which begins at the row `lo` and ends with it."""
    return Whole(_normal([_window(digit, lo) for digit in x.digits]), x.scale)


def spreads(x: Whole, y: Whole, lo: Ints, n: Ints) -> Whole:
    """Return n * sum(x*y) - sum(x) * sum(y) over each row's window.

    n: the number of values in the window.
    """
    products = _normal([_window(one, lo) for one in _product(x.digits, y.digits)])
    sum_x = sums(x, lo).digits
    sum_y = sum_x if x is y else sums(y, lo).digits
    found = [n * one for one in products]
    for place, one in enumerate(_product(sum_x, sum_y)):
        if place == len(found):
            found.append(np.zeros_like(one))
        found[place] -= one
    return Whole(_normal(found), x.scale + y.scale)


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
        for j, other in enumerate(y):
            found[i + j] += one * other
    return found


def _window(values: Ints, lo: Ints) -> Ints:
    """Return sums over windows, by running sums: these wrap around, their differences do not."""
    running = np.zeros(len(values) + 1, np.int64)
    np.cumsum(values, out=running[1:])
    return running[1:] - running[lo]
