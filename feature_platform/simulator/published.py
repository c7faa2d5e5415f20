"""The published bars of the simulated exchange: the truth, changed by bar faults."""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import datetime
from math import ceil

import numpy as np
from numpy.typing import NDArray

from feature_platform.clock import Clock
from feature_platform.simulator._noise import Ints, uniform
from feature_platform.simulator.faults import (
    BarFault,
    Corrected,
    Faults,
    Late,
    Outage,
    QuietLeftOut,
)
from feature_platform.simulator.trades import bar_so_far, trades_of
from feature_platform.simulator.truth import MINUTE_MS, MinuteBars, Truth, minute_from

_Mask = NDArray[np.bool_]

# The most minutes to read at once if few of them have bars.
_LARGEST_PIECE = 50_000

# Minutes: a stream does not send bars that are published later; clients request them over REST.
_LONGEST_DELAY = 1440


class OutageHitError(Exception):
    """A request includes minutes for which the exchange answers with a status only."""

    def __init__(self, status: int) -> None:
        super().__init__(status)
        self.status = status


@dataclass(frozen=True, slots=True)
class Publication:
    """One published bar, and its time in milliseconds since 1970-01-01 UTC."""

    at: int
    bar: MinuteBars


@dataclass(frozen=True, slots=True)
class _Plan:
    """For each bar: never published, published from, and right from a time."""

    hidden: _Mask
    from_ms: Ints
    right_ms: Ints


class PublishedBars:
    """The bars that the exchange has published by the time of its clock."""

    def __init__(self, truth: Truth, faults: Faults, clock: Clock) -> None:
        self.truth = truth
        self.faults = faults
        self.clock = clock

    def bars(self, symbol: str, start: int | None, end: int | None, limit: int) -> MinuteBars:
        """Return published bars, ascending; the newest may be of the current minute.

        start, end: the first and last beginning of a bar, in milliseconds since 1970-01-01 UTC.
        limit: the most bars: the first ones, or without a start the last ones.
        Raises OutageHitError.
        """
        now = self.clock.milliseconds()
        first = self.truth.first if start is None else max(-(-start // MINUTE_MS), self.truth.first)
        after = now // MINUTE_MS + 1
        if end is not None:
            after = min(after, end // MINUTE_MS + 1)
        self._check_outages(symbol, first, after, limit, from_start=start is not None)
        parts = [self.truth.minutes(symbol, first, first)]
        missing, piece = limit, limit
        while missing > 0 and first < after:
            if start is None:
                lo, hi = max(first, after - piece), after
                part = self._published(symbol, lo, hi, now)
                part = part.take(slice(max(0, len(part) - missing), None))
                parts.insert(0, part)
                after = lo
            else:
                lo, hi = first, min(after, first + piece)
                part = self._published(symbol, lo, hi, now).take(slice(0, missing))
                parts.append(part)
                first = hi
            missing -= len(part)
            piece = min(2 * piece, _LARGEST_PIECE)
        return MinuteBars.join(parts)

    def open_candle(self, symbol: str) -> MinuteBars:
        """Return the bar of the current minute."""
        now = self.clock.milliseconds()
        minute = now // MINUTE_MS
        return self._so_far(symbol, self.truth.minutes(symbol, minute, minute + 1), now)

    def _check_outages(
        self, symbol: str, first: int, after: int, limit: int, *, from_start: bool
    ) -> None:
        lo, hi = (first, min(after, first + limit)) if from_start else (after - limit, after)
        for fault, _ in self.faults.of_bars(symbol):
            if isinstance(fault, Outage) and fault.status is not None:
                begins, ends = _bounds(fault)
                if lo < ends and begins < hi:
                    raise OutageHitError(fault.status)

    def publications(self, symbol: str, bars: MinuteBars) -> list[Publication]:
        """Return the publications of a minute's bar, with its corrections, in order of time.

        bars: one bar of the truth.
        """
        plan = self._plan(symbol, bars)
        if plan.hidden[0]:
            return []
        at = max(int(plan.from_ms[0]), int(_ends_of(bars.minute)[0]))
        right = int(plan.right_ms[0])
        if at >= right:
            return [Publication(at, bars)]
        return [Publication(at, _wrong(bars, np.ones(1, np.bool_))), Publication(right, bars)]

    def is_open_shown(self, symbol: str, bars: MinuteBars) -> bool:
        """Return whether a bar of the truth is published while its minute is open."""
        plan = self._plan(symbol, bars)
        return not plan.hidden[0] and not plan.from_ms[0]

    def longest_delay(self, symbol: str) -> int:
        """Return the longest delay of a publication after the end of its bar, in minutes."""
        delays = [
            fault.seconds
            for fault, _ in self.faults.of_bars(symbol)
            if isinstance(fault, Late | Corrected) and fault.seconds is not None
        ]
        return min(ceil(max(delays, default=0) / 60), _LONGEST_DELAY)

    def is_out(self, symbol: str, minute: int) -> bool:
        """Return whether an outage covers a minute; it then has no trades, either."""
        return any(
            isinstance(fault, Outage) and _bounds(fault)[0] <= minute < _bounds(fault)[1]
            for fault, _ in self.faults.of_bars(symbol)
        )

    def _published(self, symbol: str, first: int, end: int, now: int) -> MinuteBars:
        bars = self._so_far(symbol, self.truth.minutes(symbol, first, end), now)
        plan = self._plan(symbol, bars)
        bars = _wrong(bars, (_ends_of(bars.minute) <= now) & (now < plan.right_ms))
        return bars.take(np.flatnonzero(~plan.hidden & (plan.from_ms <= now)))

    def _plan(self, symbol: str, bars: MinuteBars) -> _Plan:
        """Return when bars of the truth are published under the active faults."""
        hidden = np.zeros(len(bars), np.bool_)
        from_ms, right_ms = np.zeros((2, len(bars)), np.int64)
        for fault, key in self.faults.of_bars(symbol):
            lo, hi = _bounds(fault)
            concerned = (bars.minute >= lo) & (bars.minute < hi)
            if isinstance(fault, Late | Corrected):
                concerned &= uniform(key, bars.minute) < fault.probability
            match fault:
                case QuietLeftOut():
                    hidden |= concerned & (bars.trades == 0)
                case Outage():
                    hidden |= concerned
                case Late():
                    late = _ends_of(bars.minute) + int(fault.seconds * 1000)
                    from_ms = np.where(concerned, np.maximum(from_ms, late), from_ms)
                case Corrected():
                    right = _corrected_at(fault, bars.minute)
                    right_ms = np.where(concerned, np.maximum(right_ms, right), right_ms)
        return _Plan(hidden, from_ms, right_ms)

    def _so_far(self, symbol: str, bars: MinuteBars, now: int) -> MinuteBars:
        """Replace the bar of the current minute by that of its trades up to now."""
        if not len(bars) or bars.minute[-1] != now // MINUTE_MS:
            return bars
        last = bars.take(slice(len(bars) - 1, None))
        trades = trades_of(self.truth.markets[symbol], last)
        cut = bar_so_far(last, trades, trades.until(now + 1))
        return MinuteBars.join([bars.take(slice(0, len(bars) - 1)), cut])


def _bounds(fault: BarFault) -> tuple[int, int]:
    """Return the first minute of a fault and the first after it."""
    return _minute(fault.start, 0), _minute(fault.end, 2**40)


def _minute(at: datetime | None, default: int) -> int:
    return default if at is None else minute_from(at)


def _ends_of(minute: Ints) -> Ints:
    return (minute + 1) * MINUTE_MS


def _corrected_at(fault: Corrected, minute: Ints) -> Ints:
    if fault.until is not None:
        return np.full(len(minute), int(fault.until.timestamp() * 1000))
    assert fault.seconds is not None
    return _ends_of(minute) + int(fault.seconds * 1000)


def _wrong(bars: MinuteBars, which: _Mask) -> MinuteBars:
    """Return bars, some of them with their open as close and six tenths of their volume."""
    return replace(
        bars,
        close=np.where(which, bars.open, bars.close),
        volume=np.where(which, np.round(bars.volume * 0.6, 8), bars.volume),
    )
