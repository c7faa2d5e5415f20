"""The texts of Binance's events: a trade, and a bar that is open or closed."""

from __future__ import annotations

import json

from feature_platform.simulator._noise import Floats
from feature_platform.simulator.damage import damaged
from feature_platform.simulator.faults import Damage
from feature_platform.simulator.markets import Market
from feature_platform.simulator.trades import IDS_PER_MINUTE, UNITS, Trades
from feature_platform.simulator.truth import MINUTE_MS, MinuteBars

# A bar's six fields, by their names in an event.
_FIELDS = ("t", "o", "h", "l", "c", "v")

_TRADE = '{"e":"trade","E":%d,"s":"%s","t":%d,"p":"%.8f","q":"%d.%08d","T":%d,"m":%s,"M":true}'
_AGG_TRADE = (
    '{"e":"aggTrade","E":%d,"s":"%s","a":%d,"p":"%.8f","q":"%d.%08d","f":%d,"l":%d,"T":%d,'
    '"m":%s,"M":true}'
)
_KLINE = (
    '{"e":"kline","E":%d,"s":"%s","k":{"t":%d,"T":%d,"s":"%s","i":"1m","f":%d,"L":%d,'
    '"o":"%.8f","c":"%.8f","h":"%.8f","l":"%.8f","v":"%.8f","n":%d,"x":%s,'
    '"q":"%.8f","V":"%.8f","Q":"%.8f","B":"0"}}'
)


def trade_event(market: Market, trades: Trades, at: int, now: int) -> str:
    """Return the event of one trade.

    at: the index of the trade; now: milliseconds since 1970-01-01 UTC.
    """
    number = trades.first_id + at
    price, whole, part, when, maker = _trade(trades, at)
    return _TRADE % (now, market.id, number, price, whole, part, when, maker)


def agg_trade_event(market: Market, trades: Trades, at: int, now: int) -> str:
    """Return the event of one trade as an aggregate of itself; parameters as of `trade_event`."""
    number = trades.first_id + at
    price, whole, part, when, maker = _trade(trades, at)
    return _AGG_TRADE % (now, market.id, number, price, whole, part, number, number, when, maker)


def kline_event(market: Market, bar: MinuteBars, now: int, *, closed: bool) -> str:
    """Return the event of one bar.

    now: milliseconds since 1970-01-01 UTC; closed: whether the bar's minute has ended.
    """
    quote, bought, bought_quote = (float(column[0]) for column in taker_columns(bar))
    start = int(bar.minute[0]) * MINUTE_MS
    count = int(bar.trades[0])
    first = int(bar.minute[0]) * IDS_PER_MINUTE if count else -1
    prices = (float(column[0]) for column in (bar.open, bar.close, bar.high, bar.low, bar.volume))
    return _KLINE % (
        *(now, market.id, start, start + MINUTE_MS - 1, market.id),
        *(first, first + count - 1 if count else -1),
        *prices,
        *(count, "true" if closed else "false", quote, bought, bought_quote),
    )


def damaged_kline(event: str, damage: Damage) -> str:
    """Return the event of a bar with a damage."""
    value = json.loads(event)
    kline = value["k"]
    fields = damaged([kline.pop(name) for name in _FIELDS], damage)
    if isinstance(fields, list):
        kline.update(zip(_FIELDS, fields, strict=False))  # a short row has fewer fields
    else:
        value["k"] = fields
    return json.dumps(value, separators=(",", ":"))


def taker_columns(bars: MinuteBars) -> tuple[Floats, Floats, Floats]:
    """Return the volume in the quote currency, and the taker-bought part of both volumes."""
    quote = bars.volume * (bars.open + bars.high + bars.low + bars.close) / 4
    bought = (bars.close >= bars.open) * 0.16 + 0.42  # by takers, who drive the price
    return quote, bars.volume * bought, quote * bought


def _trade(trades: Trades, at: int) -> tuple[float, int, int, int, str]:
    units = int(trades.units[at])
    maker = "false" if trades.bought[at] else "true"
    return float(trades.price[at]), units // UNITS, units % UNITS, int(trades.at[at]), maker
