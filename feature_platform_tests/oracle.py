"""The features of a set of bars, computed in Python from their definition.

This code shares nothing with the SQL: no window functions, no running sums of floats, no cache.
Volumes are summed as whole numbers in units of their last decimal, so the sums have no error. The
only tolerance is for the rounding of the last operations in double precision.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from decimal import Decimal
from fractions import Fraction
from itertools import groupby
from operator import attrgetter
from typing import NamedTuple

MINUTE = 60_000_000  # microseconds
DAY = 1440 * MINUTE
WARM_UP = 1439 * MINUTE

_EPS = 2.0**-52


class Bar(NamedTuple):
    """One row of `ohlcv_1m`, its time in microseconds since the epoch."""

    symbol: str
    ts: int
    open: float
    high: float
    low: float
    close: float
    vol: float


class Features(NamedTuple):
    """One row of `features_1m`, without its key."""

    last_close: float
    vol: float
    log_return: float | None
    n_1d: int
    ma_vol_1d: float | None
    std_vol_1d: float | None
    volume_z: float | None
    vwap_gap: float
    parkinson_vol: float


Key = tuple[str, int]  # symbol, bucket in microseconds since the epoch


class Expected(NamedTuple):
    """Exact features, and the largest error of a right computation in double precision."""

    features: Features
    tolerance: Features


class _Minute(NamedTuple):
    bucket: int
    rows: Sequence[Bar]
    units: int  # the exact volume, in units of 10 ** -scale


def expected_features(bars: Iterable[Bar], until: int | None = None) -> dict[Key, Expected]:
    """Return the features of every minute of `bars`.

    until: microseconds since the epoch; bars from then on are ignored.
    """
    found: dict[Key, Expected] = {}
    known = sorted(bar for bar in bars if until is None or bar.ts < until)
    for symbol, rows in groupby(known, key=attrgetter("symbol")):
        for bucket, features in _of_symbol(list(rows)):
            found[symbol, bucket] = features
    return found


def _of_symbol(rows: list[Bar]) -> Iterator[tuple[int, Expected]]:
    scale = max(_decimals(bar.vol) for bar in rows)
    minutes = [
        _Minute(bucket, of_minute, sum(_units(bar.vol, scale) for bar in of_minute))
        for bucket, group in groupby(rows, key=lambda bar: bar.ts // MINUTE * MINUTE)
        if (of_minute := list(group))
    ]
    oldest = total = total_sq = 0
    for i, minute in enumerate(minutes):
        total += minute.units
        total_sq += minute.units**2
        while minutes[oldest].bucket <= minute.bucket - DAY:
            total -= minutes[oldest].units
            total_sq -= minutes[oldest].units ** 2
            oldest += 1
        warm = minute.bucket >= minutes[0].bucket + WARM_UP
        previous = minutes[i - 1].rows[-1].close if i else None
        window = (i + 1 - oldest, total, total_sq)
        yield minute.bucket, _of_minute(minute, previous, window, 10**scale, warm)


def _of_minute(
    minute: _Minute,
    previous_close: float | None,
    window: tuple[int, int, int],
    unit: int,
    warm: bool,
) -> Expected:
    rows = minute.rows
    n, total, total_sq = window
    close = rows[-1].close
    high = max(bar.high for bar in rows)
    ln_range = _ln_ratio(high, min(bar.low for bar in rows))
    vol = minute.units / unit  # a quotient of whole numbers is rounded once, to the nearest
    mean = std = z = None
    mean_tolerance = std_tolerance = z_tolerance = 0.0
    if warm:
        mean = total / (n * unit)
        spread = n * total_sq - total**2
        std = math.sqrt(spread / (n * unit) ** 2)
        mean_tolerance, std_tolerance = 4 * _EPS * mean, 4 * _EPS * std
        if spread:
            excess = minute.units * n - total
            z = math.copysign(math.sqrt(excess**2 / spread), excess)
            # vol and mean are rounded before they are subtracted.
            z_tolerance = 4 * _EPS * (max(vol, mean) / std + abs(z))
    log_return = None if previous_close is None else _ln_ratio(close, previous_close)
    return Expected(
        Features(
            last_close=close,
            vol=vol,
            log_return=log_return,
            n_1d=n,
            ma_vol_1d=mean,
            std_vol_1d=std,
            volume_z=z,
            vwap_gap=float(close - _mean_price(rows)),
            parkinson_vol=ln_range**2 / 2,
        ),
        Features(
            last_close=0,
            vol=0,
            # The ratio of prices is rounded before its logarithm is taken.
            log_return=_EPS * (1 + 4 * abs(log_return or 0)),
            n_1d=0,
            ma_vol_1d=mean_tolerance,
            std_vol_1d=std_tolerance,
            volume_z=z_tolerance,
            # The mean price is a sum of that many terms, no greater than `high`.
            vwap_gap=_EPS * (8 + 2 * len(rows)) * high,
            parkinson_vol=_EPS * ln_range * (2 + 4 * ln_range),
        ),
    )


def _mean_price(rows: Sequence[Bar]) -> Fraction:
    prices = [
        sum(map(Fraction, (bar.open, bar.high, bar.low, bar.close)), Fraction()) / 4 for bar in rows
    ]
    if len(rows) == 1:
        return prices[0]
    volumes = [Fraction(bar.vol) for bar in rows]
    if any(volumes):
        traded = sum((p * v for p, v in zip(prices, volumes, strict=True)), Fraction())
        return traded / sum(volumes, Fraction())
    return sum(prices, Fraction()) / len(prices)


def _ln_ratio(above: float, below: float) -> float:
    """Return ln(above / below), exact also if the quotient of near values loses digits."""
    if below / 2 <= above <= below * 2:
        return math.log1p((above - below) / below)  # the difference is exact
    return math.log(above / below)


def _decimals(value: float) -> int:
    exponent = Decimal(repr(value)).normalize().as_tuple().exponent
    assert isinstance(exponent, int)
    return max(0, -exponent)


def _units(value: float, scale: int) -> int:
    sign, digits, exponent = Decimal(repr(value)).as_tuple()
    assert not sign or not any(digits)
    assert isinstance(exponent, int)
    units = int("".join(map(str, digits)))
    shift = exponent + scale
    return units * int(10**shift) if shift >= 0 else units // int(10**-shift)


def mismatches(
    stored: Mapping[Key, Features], expected: Mapping[Key, Expected], most: int = 5
) -> list[str]:
    """Describe the first rows and columns that differ from the expected ones."""
    found: list[str] = []
    for key in sorted(stored.keys() | expected.keys()):
        if len(found) >= most:
            return [*found, "..."]
        if key not in expected:
            found.append(f"{name_of(key)}: a row that no bar accounts for: {stored[key]}")
        elif key not in stored:
            found.append(f"{name_of(key)}: no row, should be {expected[key].features}")
        else:
            found += _differences(key, stored[key], expected[key])
    return found


def _differences(key: Key, stored: Features, expected: Expected) -> Iterator[str]:
    columns = zip(Features._fields, stored, *expected, strict=True)
    for column, value, right, tolerance in columns:
        if value is None or right is None or tolerance is None:
            same = value is right
        else:
            same = abs(value - right) <= tolerance
        if not same:
            yield f"{name_of(key)}: {column} is {value!r}, should be {right!r} +- {tolerance}"


def name_of(key: Key) -> str:
    """Return the symbol, day and time of a row, for a message."""
    symbol, bucket = key
    days, minutes = divmod(bucket // MINUTE, 1440)
    left = bucket % MINUTE
    clock = f"{minutes // 60:02}:{minutes % 60:02}" + (f"+{left}us" if left else "")
    return f"{symbol} day {days} {clock}"
