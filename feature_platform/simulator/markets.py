"""The symbols of the simulated exchange and their traits."""

from __future__ import annotations

import re
from dataclasses import dataclass

from feature_platform.errors import UserError
from feature_platform.simulator._noise import key_of, uniform_at

_SYMBOL = re.compile(r"([A-Z0-9]{1,12})/([A-Z0-9]{1,8})")


@dataclass(frozen=True)
class Market:
    """The traits of one symbol.

    symbol: such as "BTC/USDT".
    price: the centre of its prices, in the quote currency.
    price_decimals, volume_decimals: the decimals that the exchange publishes.
    volume: the volume of a usual minute, in the base currency.
    quiet: the part of the minutes without trades.
    """

    symbol: str
    price: float
    price_decimals: int
    volume: float
    volume_decimals: int
    quiet: float = 0.0

    @property
    def id(self) -> str:
        """Return its id at Binance, such as "BTCUSDT"."""
        return self.symbol.replace("/", "")

    @property
    def base(self) -> str:
        """Return the currency that is traded."""
        return self.symbol.partition("/")[0]

    @property
    def quote(self) -> str:
        """Return the currency of the price."""
        return self.symbol.partition("/")[2]


_KNOWN = {
    market.symbol: market
    for market in (
        Market("BTC/USDT", 68_000.0, 2, 14.0, 5),
        Market("ETH/USDT", 2_600.0, 2, 210.0, 4),
        Market("SOL/USDT", 145.0, 2, 2_600.0, 3),
        Market("XRP/USDT", 1.9, 4, 160_000.0, 1),
        Market("LINK/USDT", 13.5, 3, 2_900.0, 2, quiet=0.01),
        Market("ALGO/USDT", 0.18, 5, 90_000.0, 1, quiet=0.03),
        Market("XRP/ETH", 0.0007, 8, 900.0, 1, quiet=0.3),
    )
}


def market_of(symbol: str) -> Market:
    """Return the traits of a symbol; those of an unknown one depend on its name.

    Raises UserError if it is not a spot symbol.
    """
    if symbol in _KNOWN:
        return _KNOWN[symbol]
    if not _SYMBOL.fullmatch(symbol):
        raise UserError(f"{symbol!r} is not a symbol of a spot market; write it as in BTC/USDT")
    key = key_of("market", symbol)
    magnitude = int(uniform_at(key, 0) * 7) - 3
    return Market(
        symbol=symbol,
        price=round(10**magnitude * (1 + 8 * uniform_at(key, 1)), 3 - magnitude),
        price_decimals=max(2, 4 - magnitude),
        volume=round(10 ** (4 - magnitude) * (1 + 8 * uniform_at(key, 2)), 2),
        volume_decimals=min(5, max(0, magnitude + 1)),
        quiet=0.05 * uniform_at(key, 3) ** 2,
    )
