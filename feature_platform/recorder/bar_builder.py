"""Build closed one-minute bars from stream updates."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from feature_platform.bar_rules import MINUTE_US, PRICES
from feature_platform.bars import StreamBar
from feature_platform.exchange.response import judge_rows

# The time for which the values of a minute stay, to distinguish corrections from old messages.
_REMEMBERED = 15 * MINUTE_US
# A stream sends no closed bars if this many minutes had no update after their end.
_ENOUGH_MINUTES = 3

Values = tuple[float, float, float, float, float]


class Update(NamedTuple):
    """One update of a minute from a stream.

    row: in ccxt's form: the minute in milliseconds, open, high, low, close and volume.
    received_at: in microseconds.
    final: whether the message marks the bar as closed; None where the exchange's messages carry
        no such mark. Then an update that arrives after the minute's end counts as closed.
    """

    symbol: str
    row: Sequence[Any]
    received_at: int
    final: bool | None = None


class RejectedUpdate(NamedTuple):
    """An update that cannot be a bar, with the reason."""

    symbol: str
    reason: str
    text: str


@dataclass
class Ready:
    """The result of one poll.

    bars: bars of closed minutes, and corrections of older minutes.
    unconfirmed: minutes without a closed bar, and minutes with a stale update after their bar was
        emitted; to be fetched over REST. Symbol and minute.
    rejected: updates that cannot be a bar.
    """

    bars: list[StreamBar] = field(default_factory=list)
    unconfirmed: list[tuple[str, int]] = field(default_factory=list)
    rejected: list[RejectedUpdate] = field(default_factory=list)


@dataclass(slots=True)
class _Latest:
    """The latest values of a symbol's minute.

    closed: whether they are of the minute after its end.
    """

    values: Values
    closed: bool


class BarBuilder:
    """Collect the updates of each minute, and emit its bars after the minute's end and grace.

    grace: the time after a minute's end in which its last trades can arrive; microseconds.
    confirm_after: the time after the grace in which a closed bar can arrive, before the minute is
        unconfirmed; microseconds.
    sends_closed_bars: whether the stream sends an update of each minute after its end, as most
        streams of bars do: an earlier update is not the final bar then. By default this is
        detected; a message that marks a bar as closed sets it.

    A stream may repeat messages, out of order, too: an update with a smaller volume and prices
    within the known range is stale.
    """

    def __init__(
        self, grace: int, confirm_after: int, *, sends_closed_bars: bool | None = None
    ) -> None:
        self._grace = grace
        self._confirm_after = confirm_after
        self._sends_closed_bars = sends_closed_bars
        self._minutes_without_closed = 0
        self._pending: dict[int, dict[str, _Latest]] = {}
        self._emitted: dict[int, dict[str, Values]] = {}
        self._ready = Ready()

    def add(self, updates: Sequence[Update]) -> None:
        """Add updates in the order in which they arrived."""
        judged = judge_rows([update.row for update in updates])
        for bad in judged.bad:
            self._reject(updates[bad.line], bad.reason)
        columns = [getattr(judged, name).tolist() for name in ("line", "ts", *PRICES)]
        for line, ts, *values in zip(*columns, strict=True):
            symbol, _, received_at, final = updates[line]
            opening, high, low, close, vol = values
            if ts > received_at + MINUTE_US:
                seconds = (ts - received_at) / 1e6
                self._reject(updates[line], f"its minute begins {seconds:,.0f} s in the future")
                continue
            if ts < received_at - _REMEMBERED:
                continue  # for older minutes only an answer over REST counts
            if final is not None:
                self._sends_closed_bars = True
                if not final and self._is_closed(symbol, ts):
                    continue
            # A message that was sent within a minute may arrive after its end.
            closed = received_at >= ts + MINUTE_US if final is None else final
            self._update(symbol, ts, (opening, high, low, close, vol), closed=closed)

    def discard_pending(self) -> None:
        """Discard the minutes that were not emitted: the stream was lost within them."""
        self._pending.clear()

    def next_due(self) -> int | None:
        """Return the end of the oldest pending minute's grace, in microseconds, or None."""
        return min(self._pending) + MINUTE_US + self._grace if self._pending else None

    def poll(self, now: int, last_message_at: int) -> Ready:
        """Return and remove all that is ready at `now`; both times in microseconds.

        last_message_at: a minute is ready only after a later message: a stream without one since
            the minute's end may have been lost within it.
        """
        for ts in sorted(self._pending):
            over_at = ts + MINUTE_US + self._grace
            if now < over_at or last_message_at < ts + MINUTE_US:
                break
            self._emit(ts, deadline_passed=now >= over_at + self._confirm_after)
        for ts in [ts for ts in self._emitted if ts < now - _REMEMBERED]:
            del self._emitted[ts]
        ready, self._ready = self._ready, Ready()
        return ready

    def _emit(self, ts: int, *, deadline_passed: bool) -> None:
        """Emit a minute's final bars; after the deadline, the other symbols are unconfirmed."""
        latest = self._pending.pop(ts)
        if self._sends_closed_bars is not False:
            still_open = {symbol: one for symbol, one in latest.items() if not one.closed}
            if deadline_passed:
                self._ready.unconfirmed += [(symbol, ts) for symbol in still_open]
            elif still_open:
                self._pending[ts] = still_open
            if self._sends_closed_bars is None:
                mostly_closed = 2 * len(still_open) <= len(latest)
                self._detect_closed_bars(mostly_closed, deadline_passed)
            latest = {symbol: one for symbol, one in latest.items() if one.closed}
        values_of = {symbol: one.values for symbol, one in latest.items()}
        self._ready.bars += [StreamBar(symbol, ts, *values) for symbol, values in values_of.items()]
        if values_of:
            self._emitted.setdefault(ts, {}).update(values_of)

    def _is_closed(self, symbol: str, ts: int) -> bool:
        """Return whether the closed bar of a minute has arrived."""
        latest = self._pending.get(ts, {}).get(symbol)
        return symbol in self._emitted.get(ts, {}) or (latest is not None and latest.closed)

    def _update(self, symbol: str, ts: int, values: Values, *, closed: bool) -> None:
        emitted = self._emitted.get(ts, {}).get(symbol)
        latest = self._pending.get(ts, {}).get(symbol)
        known = latest.values if latest is not None else emitted
        if known is not None and _is_stale(values, known):
            if emitted is not None:
                self._ready.unconfirmed.append((symbol, ts))
        elif values != emitted:
            self._pending.setdefault(ts, {})[symbol] = _Latest(values, closed)

    def _reject(self, update: Update, reason: str) -> None:
        rejected = RejectedUpdate(update.symbol, reason, str(update.row)[:200])
        self._ready.rejected.append(rejected)

    def _detect_closed_bars(self, mostly_closed: bool, deadline_passed: bool) -> None:
        if mostly_closed and not deadline_passed:
            self._sends_closed_bars = True
        elif deadline_passed:
            self._minutes_without_closed += 1
            if self._minutes_without_closed >= _ENOUGH_MINUTES:
                self._sends_closed_bars = False


def _is_stale(values: Values, known: Values) -> bool:
    """Return whether values may be an earlier state of the minute than the known ones."""
    opening, high, low, _, vol = values
    return opening == known[0] and high <= known[1] and low >= known[2] and vol < known[4]
