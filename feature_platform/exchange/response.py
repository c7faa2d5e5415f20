"""Check the rows of an exchange's answer: which are bars of the requested range."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import numpy as np
from numpy.typing import NDArray

from feature_platform.bar_rules import (
    MINUTE_US,
    NO_TIME,
    PRICES,
    Batch,
    Floats,
    Ints,
    Mask,
    Rows,
    inside_minutes,
    judge,
    unit_times,
)
from feature_platform.bars import Bars, time_of

# The length of a rejected row in messages.
_LONGEST_TEXT = 200

_LARGEST_TIME = 2**62


@dataclass(frozen=True, slots=True)
class Rejected:
    """A row that cannot be stored: its minute, the reason, and its text.

    minute: None where the row has no valid time.
    """

    minute: datetime | None
    reason: str
    text: str


@dataclass(frozen=True, slots=True)
class Answer:
    """The checked rows of one answer.

    bars: the valid rows of the requested range.
    rejected: the other rows of that range, and those without a valid time.
    known: the minutes of `bars` and of `rejected`, ascending, in microseconds since 1970-01-01.
    first, last: the first and the last time of a closed minute in the answer, in the range or not;
        None where there is none.
    without_time: the number of rows without a valid time.
    """

    bars: Bars
    rejected: tuple[Rejected, ...]
    known: Ints
    first: int | None
    last: int | None
    without_time: int


def read_answer(rows: Sequence[Sequence[Any]], start: int, end: int, closed: int) -> Answer:
    """Check the rows of an answer by the rules of the table `ohlcv_1m`.

    rows: time in milliseconds, open, high, low, close, volume, in any order, None where ccxt
        could not read a value; a seventh value may hold the exchange's original row.
    start, end: the requested range, in microseconds since 1970-01-01 UTC.
    closed: rows of this time or later are of open minutes.
    """
    faults: dict[int, str] = {}
    times = _times(rows, faults)
    timed = times != NO_TIME
    past = timed & (times < closed)
    wanted = (past & (times >= start) & (times < end)) | ~timed
    batch = _judged(rows, times, faults, np.flatnonzero(wanted))
    bars, twice = _one_a_minute(batch)
    rejected = [_rejected(rows, times, bad.line, bad.reason) for bad in batch.bad]
    rejected += [
        _rejected(rows, times, line, "another row of the same minute has other values")
        for line in twice.tolist()
    ]
    in_range = times[wanted & timed]
    return Answer(
        bars=bars,
        rejected=tuple(rejected),
        known=np.unique(in_range - in_range % MINUTE_US),
        first=int(times[past].min()) if past.any() else None,
        last=int(times[past].max()) if past.any() else None,
        without_time=int((~timed).sum()),
    )


def judge_rows(rows: Sequence[Sequence[Any]]) -> Batch:
    """Check rows of any time as `read_answer` does; `line` is their index."""
    faults: dict[int, str] = {}
    times = _times(rows, faults)
    return _judged(rows, times, faults, np.arange(len(rows)))


def _times(rows: Sequence[Sequence[Any]], faults: dict[int, str]) -> Ints:
    """Return the rows' times in microseconds, NO_TIME for a row without a valid one."""
    first: list[Any] = [row[0] if row else None for row in rows]
    values = np.array(first)
    if values.dtype != np.int64:
        values = np.zeros(len(rows), np.int64)
        for at, value in enumerate(first):
            if _is_whole(value) and abs(value) < _LARGEST_TIME:
                values[at] = int(value)
            else:
                faults[at] = (
                    "ts is missing" if value is None else f"time {value!r} is not a whole number"
                )
    times = unit_times(values, 1000, faults)
    if faults:
        times[list(faults)] = NO_TIME
    for at in np.flatnonzero(inside_minutes(times)).tolist():
        faults[at] = f"time {values[at]} is not the start of a minute"
    return times


def _is_whole(value: Any) -> bool:
    return isinstance(value, int | float) and value == value // 1


def _prices(rows: Sequence[Sequence[Any]], faults: dict[int, str]) -> Floats:
    """Return the other five values of the rows, NaN for a value that is no number."""
    shape = (len(rows), len(PRICES))
    try:
        prices = np.array([row[1:6] for row in rows], np.float64)  # None becomes NaN
    except (TypeError, ValueError):
        prices = np.empty(0)
    if prices.shape != shape:  # some row has not five numbers
        prices = np.full(shape, np.nan)
        for at, row in enumerate(rows):
            try:
                values = np.array(row[1:6], np.float64)
            except (TypeError, ValueError):
                values = np.empty(0)
            if len(values) == len(PRICES):
                prices[at] = values
            else:
                faults.setdefault(at, "not five numbers")
    for at in np.flatnonzero(np.isnan(prices).any(axis=1)).tolist():
        given = list(rows[at][1:6])
        if None in given:
            faults.setdefault(at, f"{PRICES[given.index(None)]} is missing")
    return prices


def _judged(
    rows: Sequence[Sequence[Any]], times: Ints, faults: dict[int, str], wanted: Ints
) -> Batch:
    """Check the wanted rows; `line` is their index."""
    reasons = {at: faults[line] for at, line in enumerate(wanted.tolist()) if line in faults}
    prices = _prices([rows[line] for line in wanted.tolist()], reasons)
    columns = dict(zip(PRICES, np.ascontiguousarray(prices.T), strict=True))
    found = Rows(
        line=wanted,
        ts=times[wanted],
        **columns,
        symbols=("",),
        symbol=np.zeros(len(wanted), np.int32),
        faults=reasons,
        text=lambda _at: "",
    )
    return judge("", found, (), 1.0)


def _one_a_minute(batch: Batch) -> tuple[Bars, NDArray[np.int64]]:
    """Return bars by time, one for each minute whose rows are equal, and the lines of the rows of
    the other minutes.
    """
    order = np.argsort(batch.ts, kind="stable")
    line = batch.line[order]
    bars = Bars(*(getattr(batch, name)[order] for name in ("ts", *PRICES)))
    again: Mask = np.diff(bars.ts, prepend=-1) == 0
    if not again.any():
        return bars, line[:0]
    head = np.maximum.accumulate(np.where(again, 0, np.arange(len(bars))))
    differs = np.zeros(len(bars), np.bool_)
    for name in PRICES:
        column = getattr(bars, name)
        differs |= column != column[head]
    contradicted = np.isin(head, head[differs])
    return bars.take(~again & ~contradicted), line[contradicted]


def _rejected(rows: Sequence[Sequence[Any]], times: Ints, line: int, reason: str) -> Rejected:
    row = rows[line]
    text = str(row[6] if len(row) > 6 else row)
    time = int(times[line])
    return Rejected(
        minute=None if time == NO_TIME else time_of(time - time % MINUTE_US),
        reason=reason,
        text=text if len(text) <= _LONGEST_TEXT else text[:_LONGEST_TEXT] + "…",
    )
