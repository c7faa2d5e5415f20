"""The true bars of the simulated exchange, from which the published ones are made."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable
from dataclasses import dataclass, fields
from datetime import UTC, datetime
from pathlib import Path
from typing import Self

import numpy as np
import pandas as pd

from feature_platform.errors import UserError
from feature_platform.importer.reader import read_file
from feature_platform.simulator._noise import Floats, Ints, key_of, uniform, value_noise
from feature_platform.simulator.markets import Market, market_of

MINUTE_MS = 60_000
DAY = 1440

# The first minute of generated symbols.
FIRST_MINUTE = int(datetime(2020, 1, 1, tzinfo=UTC).timestamp()) // 60

# The sum of curves of random values 2, 4, … 2**17 minutes apart, with a height that grows with the
# square root of that distance, looks like a price at each scale and stays within a factor of two.
_OCTAVES = range(1, 18)
_SWING = 0.0004

# The longest time without trades, in minutes, so that the search for the last trade is short.
_LONGEST_QUIET = 64


@dataclass(frozen=True, slots=True)
class MinuteBars:
    """Bars of one symbol, ascending, one entry for each.

    minute: of the bar's start, in minutes since 1970-01-01 UTC.
    trades: their number; 0 where volume is, and at least four elsewhere.
    """

    minute: Ints
    open: Floats
    high: Floats
    low: Floats
    close: Floats
    volume: Floats
    trades: Ints

    def __len__(self) -> int:
        return len(self.minute)

    def take(self, which: Ints | slice) -> Self:
        """Return the bars at some indices."""
        return type(self)(*(getattr(self, field.name)[which] for field in fields(self)))

    @classmethod
    def join(cls, parts: Iterable[MinuteBars]) -> MinuteBars:
        """Return the bars of all parts, one after the other."""
        columns = zip(
            *([getattr(part, f.name) for f in fields(cls)] for part in parts), strict=True
        )
        return cls(*(np.concatenate(column) for column in columns))


class Truth(ABC):
    """All bars of some symbols, and the traits of these symbols.

    first: the minute of the oldest bar, in minutes since 1970-01-01 UTC.
    """

    markets: dict[str, Market]
    first: int

    @abstractmethod
    def minutes(self, symbol: str, first: int, end: int) -> MinuteBars:
        """Return the bars of the minutes from `first` to before `end`, since 1970-01-01 UTC."""

    def bars(self, symbol: str, start: datetime, end: datetime) -> pd.DataFrame:
        """Return the bars of [start, end): ts, open, high, low, close, vol, trades.

        ts is the bar's start in UTC. If `trades` is 0, the minute had no trades: an exchange
        publishes a flat bar with volume 0 for it, or none.
        """
        bars = self.minutes(symbol, minute_from(start), minute_from(end))
        return pd.DataFrame(
            {
                "ts": pd.to_datetime(bars.minute * 60, unit="s", utc=True).as_unit("us"),
                "open": bars.open,
                "high": bars.high,
                "low": bars.low,
                "close": bars.close,
                "vol": bars.volume,
                "trades": bars.trades,
            }
        )


class GeneratedTruth(Truth):
    """Generated bars, which depend only on seed, symbol and minute.

    The open of a bar is the close of the one before. The volume has a daily season, bursts and
    spikes. Prices and volumes have the decimals of an exchange.

    symbols: such as "BTC/USDT".
    Raises UserError if one is not a spot symbol, or there is none.
    """

    def __init__(self, symbols: Iterable[str], seed: int = 0) -> None:
        self.markets = {symbol: market_of(symbol) for symbol in symbols}
        if not self.markets:
            raise UserError("no symbol to simulate; write them as BTC/USDT,ETH/USDT")
        self.first = FIRST_MINUTE
        self._keys = {
            symbol: {name: key_of(seed, symbol, name) for name in _STREAMS}
            for symbol in self.markets
        }

    def minutes(self, symbol: str, first: int, end: int) -> MinuteBars:
        """Return the bars of the minutes from `first` to before `end`, since 1970-01-01 UTC."""
        first = max(first, self.first)
        market, keys = self.markets[symbol], self._keys[symbol]
        # The last trade before the first bar is at most _LONGEST_QUIET minutes older.
        minute = np.arange(first - _LONGEST_QUIET, max(end, first) + 1, dtype=np.int64)
        activity = _activity(keys, minute)
        price = _prices(market, keys, minute, activity)  # in ticks, at the start of each minute
        minute, activity = minute[:-1], activity[:-1]
        traded = uniform(keys["quiet"], minute) >= market.quiet
        traded |= minute % _LONGEST_QUIET == 0

        # A price stays the same until the next trade.
        at = np.arange(len(minute))
        last_traded = np.maximum.accumulate(np.where(traded, at, 0))
        close = price[1:][last_traded]
        opening = np.concatenate([price[:1], close[:-1]])
        wick = _SWING * market.price * 10**market.price_decimals * np.sqrt(activity) * traded
        up, down = (
            np.floor(-np.log1p(-uniform(keys[name], minute)) * wick).astype(np.int64)
            for name in ("high", "low")
        )
        high = np.maximum(opening, close) + up
        low = np.maximum(np.minimum(opening, close) - down, 1)
        volume = _volumes(market, keys, minute, activity) * traded

        usual = market.volume * 10**market.volume_decimals
        trades = np.where(traded, np.clip(volume * 24.0 / usual, 4, 96), 0).astype(np.int64)
        ticks, steps = 10.0**market.price_decimals, 10.0**market.volume_decimals
        # An integer divided by a power of ten is exactly the float that its decimals are read as.
        return MinuteBars(
            minute,
            opening / ticks,
            high / ticks,
            low / ticks,
            close / ticks,
            volume / steps,
            trades,
        ).take(slice(_LONGEST_QUIET, None))


class RecordedTruth(Truth):
    """The bars of a file; minutes without a bar had no trades.

    path: a file in a format of `feature-platform import`.
    Raises UserError if it cannot be read, or a row is not a bar of a minute.
    """

    def __init__(self, symbol: str, path: Path) -> None:
        batches = []
        for batch in read_file(path, symbol=symbol):
            if batch.bad:
                bad = batch.bad[0]
                raise UserError(f"{bad.file}:{bad.line}: {bad.reason}")
            batches.append(batch)
        ts, opening, high, low, close, volume = (
            np.concatenate([getattr(batch, name) for batch in batches])
            for name in ("ts", "open", "high", "low", "close", "vol")
        )
        if not len(ts) or (ts % (MINUTE_MS * 1000) != 0).any() or (np.diff(ts) <= 0).any():
            raise UserError(f"{path}: the bars must be of whole minutes, in ascending order")
        trades = 4 * (volume > 0).astype(np.int64)
        minute = ts // (MINUTE_MS * 1000)
        self._bars = MinuteBars(minute, opening, high, low, close, volume, trades)
        self.markets = {symbol: market_of(symbol)}
        self.first = int(minute[0])

    def minutes(self, symbol: str, first: int, end: int) -> MinuteBars:
        """Return the bars of the minutes from `first` to before `end`, since 1970-01-01 UTC."""
        assert symbol in self.markets
        lo, hi = np.searchsorted(self._bars.minute, [first, end])
        return self._bars.take(slice(lo, hi))


def minute_from(at: datetime) -> int:
    """Return the first minute at or after a time, in minutes since 1970-01-01 UTC."""
    return -int(-at.timestamp() // 60)


_STREAMS = (
    "quiet",
    "jitter",
    "high",
    "low",
    "volume",
    "spike",
    "burst",
    "flurry",
    *(f"price{octave}" for octave in _OCTAVES),
)

_Keys = dict[str, np.uint64]


def _activity(keys: _Keys, minute: Ints) -> Floats:
    """Return the activity of each minute, around 1, which scales volume and volatility."""
    turn = (minute % DAY) * (2 * np.pi / DAY)
    season = 1 + 0.5 * np.sin(turn - 2.2) + 0.2 * np.sin(2 * turn - 0.7)
    burst = value_noise(keys["burst"], minute, 8) + 0.6 * value_noise(keys["flurry"], minute, 5)
    activity: Floats = season * np.exp(0.8 * burst)
    return activity


def _prices(market: Market, keys: _Keys, minute: Ints, activity: Floats) -> Ints:
    """Return the price at the start of each minute, in ticks."""
    jitter = uniform(keys["jitter"], minute)
    jitter = np.log((jitter + 2.0**-54) / (1 - jitter))  # logistic, with fat tails as real prices
    quick = 0.35 * jitter
    slow = np.zeros(len(minute))
    for octave in _OCTAVES:
        curve = 2 ** (octave / 2) * value_noise(keys[f"price{octave}"], minute, octave)
        if octave <= 4:
            quick += curve
        else:
            slow += curve
    wandered = _SWING * (quick * np.sqrt(activity) + slow)
    price: Ints = np.rint(market.price * 10**market.price_decimals * np.exp(wandered)).astype(
        np.int64
    )
    return np.maximum(price, 1)


def _volumes(market: Market, keys: _Keys, minute: Ints, activity: Floats) -> Ints:
    """Return the volume that each minute has if it has trades, in steps."""
    spread = sum(uniform(keys["volume"], minute * 4 + part) for part in range(4)) - 2
    spike = uniform(keys["spike"], minute)
    # One minute in five hundred is 5 to 25 times as busy.
    busy = np.where(spike < 0.002, 5 + spike * 10_000, 1.0)
    volume = market.volume * 10**market.volume_decimals * activity * np.exp(1.6 * spread) * busy
    steps: Ints = np.maximum(1, np.rint(volume)).astype(np.int64)
    return steps
