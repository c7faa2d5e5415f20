"""The rules of the table `ohlcv_1m`, applied to arrays of parsed bars."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

PRICES = ("open", "high", "low", "close", "vol")

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]
Mask = NDArray[np.bool_]

MINUTE_US = 60_000_000

# The bounds of the table's constraints: with them all products and squares of features are finite.
SMALLEST = 1e-100
LARGEST = 1e100

# A time outside these years is an error. Inside them the magnitude of a whole number gives its
# unit, because the ranges of the four units do not overlap.
FIRST_YEAR = 1980
LAST_YEAR = 2099
FIRST_SECOND = int(datetime(FIRST_YEAR, 1, 1, tzinfo=UTC).timestamp())
END_SECOND = int(datetime(LAST_YEAR + 1, 1, 1, tzinfo=UTC).timestamp())

# The placeholder of a time that cannot be read; such a row has a fault.
NO_TIME = -1

_YEARS = f"the years {FIRST_YEAR} to {LAST_YEAR}"
_OUT_OF_YEARS = f"is not in {_YEARS}"
BOUNDS = f"{SMALLEST:g} to {LARGEST:g}"


@dataclass(frozen=True, slots=True)
class BadRow:
    """A row that cannot be stored: its place, the reason, and its text.

    file: the file's path as given, with `!member` for a zip of several files.
    line: the line of the file, or the row of a Parquet file, from 1.
    """

    file: str
    line: int
    reason: str
    text: str


@dataclass(frozen=True, slots=True)
class Batch:
    """A part of a bar file: columns of the good rows, and the bad rows.

    file: as in BadRow.
    symbols: the symbols that `symbol` indexes, from 0; some may have no row.
    symbol, ts, open, high, low, close, vol, line: one entry for each good row, in the file's
        order; ts in microseconds since 1970-01-01 UTC, line as in BadRow.
    bad: the rejected rows, by line.
    done: the part of the file that has been read, from 0 to 1.
    text: returns the text of the row at an index of `line`.
    empty: how many rows have a time and no values, for minutes without trades.
    """

    file: str
    symbols: tuple[str, ...]
    symbol: NDArray[np.int32]
    ts: Ints
    open: Floats
    high: Floats
    low: Floats
    close: Floats
    vol: Floats
    line: Ints
    bad: tuple[BadRow, ...]
    done: float
    text: Callable[[int], str]
    empty: int = 0

    @property
    def rows(self) -> int:
        """Return the number of rows: good, bad and without values."""
        return len(self.line) + len(self.bad) + self.empty


@dataclass(slots=True)
class Rows:
    """Parsed rows before the rules are applied.

    faults: the first reason why a row could not be read, by index.
    text: returns the text of the row at an index.
    """

    line: Ints
    ts: Ints
    open: Floats
    high: Floats
    low: Floats
    close: Floats
    vol: Floats
    symbols: tuple[str, ...]
    symbol: NDArray[np.int32]
    faults: dict[int, str]
    text: Callable[[int], str]


def judge(file: str, rows: Rows, unread: Iterable[BadRow], done: float) -> Batch:
    """Separate good rows from bad ones.

    unread: bad rows whose fields could not be read at all.
    """
    good = _keeps_rules(rows)
    if rows.faults:
        good[list(rows.faults)] = False
    bad = list(unread)
    kept: slice | Mask = slice(None)
    if not good.all():
        kept = good
        for at in np.flatnonzero(~good).tolist():
            reason = rows.faults.get(at) or _broken_rule(rows, at)
            bad.append(BadRow(file, int(rows.line[at]), reason, rows.text(at)))
    bad.sort(key=lambda row: row.line)
    indices = np.flatnonzero(good) if bad else None

    def text(at: int) -> str:
        return rows.text(at if indices is None else int(indices[at]))

    return Batch(
        file=file,
        symbols=rows.symbols,
        symbol=rows.symbol[kept],
        ts=rows.ts[kept],
        open=rows.open[kept],
        high=rows.high[kept],
        low=rows.low[kept],
        close=rows.close[kept],
        vol=rows.vol[kept],
        line=rows.line[kept],
        bad=tuple(bad),
        done=done,
        text=text,
    )


def _keeps_rules(rows: Rows) -> Mask:
    # A comparison with NaN is false, and all must be true for a good row. Open and close are within
    # the bounds if they are between low and high.
    kept: Mask = (rows.low >= SMALLEST) & (rows.high <= LARGEST) & (rows.low <= rows.high)
    for price in (rows.open, rows.close):
        kept &= (rows.low <= price) & (price <= rows.high)
    kept &= (rows.vol == 0) | ((rows.vol >= SMALLEST) & (rows.vol <= LARGEST))
    return kept


def _broken_rule(rows: Rows, at: int) -> str:
    """Return the first rule that a row breaks, as a text."""
    value = {name: float(getattr(rows, name)[at]) for name in PRICES}
    for name, number in value.items():
        if not math.isfinite(number):
            return f"{name} is {number}, not a finite number"
        if name == "vol" and number == 0:
            continue
        if number <= 0:
            return f"{name} is {number!r}, {'below' if name == 'vol' else 'not above'} 0"
        if not SMALLEST <= number <= LARGEST:
            return f"{name} {number!r} is outside of {BOUNDS}"
    for name in ("low", "open", "close"):
        if value["high"] < value[name]:
            return f"high {value['high']!r} is below {name} {value[name]!r}"
        if value["low"] > value[name]:
            return f"low {value['low']!r} is above {name} {value[name]!r}"
    raise AssertionError(f"no rule is broken by {value}")


def epoch_times(values: Ints, faults: dict[int, str], indices: Ints | None = None) -> Ints:
    """Convert whole numbers to microseconds since 1970-01-01 UTC, each by its magnitude.

    values: seconds, milliseconds, microseconds or nanoseconds.
    faults, indices: as in unit_times.
    """
    # Most files have milliseconds only.
    if _in_years(values, 1_000).all():
        return values * 1_000
    per_second = np.ones(len(values), np.int64)
    for unit in (1_000, 1_000_000, 1_000_000_000):
        per_second[_in_years(values, unit)] = unit
    return unit_times(values, per_second, faults, indices)


def unit_times(
    values: Ints,
    per_second: int | Ints,
    faults: dict[int, str],
    indices: Ints | None = None,
) -> Ints:
    """Convert times in a known unit to microseconds since 1970-01-01 UTC.

    per_second: the units in a second: 1, a thousand, a million or a billion.
    faults: gets a reason for every time outside the years, or finer than a microsecond.
    indices: the index of each value in `faults`; by default its index in `values`.
    """
    coarse = np.maximum(1_000_000 // np.asarray(per_second), 1)
    fine = np.maximum(np.asarray(per_second) // 1_000_000, 1)
    sane = _in_years(values, per_second)
    exact = values % fine == 0
    times: Ints = np.where(sane & exact, values, 0) * coarse // fine
    times[~(sane & exact)] = NO_TIME
    for at in np.flatnonzero(times == NO_TIME).tolist():
        index = at if indices is None else int(indices[at])
        reason = _OUT_OF_YEARS if not sane[at] else "is finer than a microsecond"
        shown = int(values[at])
        faults.setdefault(index, f"time {shown} {reason}")
    return times


def inside_minutes(times: Ints) -> Mask:
    """Return a mask of the known times that are not the start of a minute."""
    inside: Mask = (times != NO_TIME) & (times % MINUTE_US != 0)
    return inside


def _in_years(values: Ints, per_second: int | Ints) -> Mask:
    inside: Mask = (values >= FIRST_SECOND * per_second) & (values < END_SECOND * per_second)
    return inside


def to_numpy(array: pa.Array | pa.ChunkedArray) -> NDArray[Any]:
    """Return Arrow numbers or booleans without nulls as a read-only NumPy array.

    Arrow's own to_numpy imports pandas, which takes a quarter of a second.
    """
    if isinstance(array, pa.ChunkedArray):
        array = array.combine_chunks()
    if pa.types.is_boolean(array.type):
        return to_numpy(array.cast(pa.uint8())).astype(np.bool_)
    kind = np.dtype(str(array.type))
    if not len(array):
        return np.empty(0, kind)
    return np.frombuffer(array.buffers()[1], kind, len(array), array.offset * kind.itemsize)
