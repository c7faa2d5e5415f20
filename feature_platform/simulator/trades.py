"""The trades of a minute, generated so that they aggregate to exactly its bar."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from feature_platform.simulator._noise import Floats, Ints, key_of, uniform
from feature_platform.simulator.markets import Market
from feature_platform.simulator.truth import MINUTE_MS, MinuteBars

# The number of a trade is its minute times this, plus its place in the minute.
IDS_PER_MINUTE = 1000

# Quantities are counted in units of the last of the exchange's eight decimals.
UNITS = 10**8

# A bar may need four trades: the first, the highest, the lowest and the last one.
FEWEST = 4


@dataclass(frozen=True, slots=True)
class Trades:
    """The trades of one minute of one symbol, in order.

    at: milliseconds since 1970-01-01 UTC.
    units: the quantity, in units of 1e-8 of the base currency.
    bought: whether the taker bought.
    """

    at: Ints
    price: Floats
    units: Ints
    bought: Ints

    def __len__(self) -> int:
        return len(self.at)

    @property
    def first_id(self) -> int:
        """Return the number of the first trade; the next ones have the next numbers."""
        return int(self.at[0]) // MINUTE_MS * IDS_PER_MINUTE

    def until(self, now: int) -> int:
        """Return the number of trades before a time, in milliseconds since 1970-01-01 UTC."""
        return int(np.searchsorted(self.at, now))


def trades_of(market: Market, bar: MinuteBars) -> Trades:
    """Return the trades of one bar: as many as its count, at least four if it has a volume.

    Their first price is its open, their highest its high, their lowest its low, their last its
    close, and the sum of their quantities is its volume. They depend only on symbol and bar.
    """
    units = round(float(bar.volume[0]) * UNITS)
    count = max(int(bar.trades[0]), FEWEST) if units else 0
    minute = int(bar.minute[0])
    place = np.arange(count) + minute * IDS_PER_MINUTE
    keys = {name: key_of(market.symbol, "trade", name) for name in ("at", "price", "size", "order")}
    at = minute * MINUTE_MS + np.sort((uniform(keys["at"], place) * MINUTE_MS).astype(np.int64))
    price = _prices(market, bar, uniform(keys["price"], place), uniform(keys["order"], place))
    return Trades(
        at,
        price,
        _split(units, market, uniform(keys["size"], place)),
        (np.diff(price, prepend=price[:1]) >= 0).astype(np.int64),
    )


def bar_so_far(bar: MinuteBars, trades: Trades, count: int) -> MinuteBars:
    """Return the bar after some of its trades; flat at its open before the first."""
    if count == len(trades):
        return bar
    price = trades.price[:count] if count else bar.open
    volume = int(trades.units[:count].sum()) / UNITS
    return MinuteBars(
        bar.minute,
        bar.open,
        np.array([price.max()]),
        np.array([price.min()]),
        price[-1:],
        np.array([volume]),
        np.array([count]),
    )


def _prices(market: Market, bar: MinuteBars, chance: Floats, order: Floats) -> Floats:
    count = len(chance)
    if not count:
        return np.empty(0)
    opening, high, low, close = (
        float(column[0]) for column in (bar.open, bar.high, bar.low, bar.close)
    )
    # The highest and the lowest trade are between first and last, in either order.
    extremes = 1 + np.argsort(order[1:-1])[:2]
    anchors = {0: opening, int(extremes[0]): high, int(extremes[1]): low, count - 1: close}
    places = sorted(anchors)
    between = np.interp(np.arange(count), places, [anchors[place] for place in places])
    price = np.round(between + (chance - 0.5) * 0.2 * (high - low), market.price_decimals)
    price = np.clip(price, low, high)
    for place, value in anchors.items():
        price[place] = value
    return price


def _split(units: int, market: Market, chance: Floats) -> Ints:
    """Split a volume into positive parts, in whole steps of the symbol if possible."""
    count = len(chance)
    if not count:
        return np.empty(0, np.int64)
    step = UNITS // 10**market.volume_decimals
    if units % step or units // step < count:
        step = 1
    steps = units // step
    share = np.cumsum(0.2 + chance)
    # Each part has one step; the rest is divided at ascending places.
    ends = np.floor(share / share[-1] * (steps - count)).astype(np.int64) + np.arange(1, count + 1)
    ends[-1] = steps
    parts: Ints = np.diff(ends, prepend=0) * step
    return parts
