"""Symbols: their limits, and the exchange that one may carry, as in `kraken:BTC/USD`."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import NamedTuple

from feature_platform.errors import UserError
from feature_platform.near_names import near_names

LONGEST = 200  # characters

# As in 020_bars.sql, where every new symbol is checked; a test keeps them equal.
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f]")
_PREFIX = re.compile(r"(?P<exchange>[^/:]*):(?P<name>.*)", re.DOTALL)


class Symbol(NamedTuple):
    """A symbol in its parts.

    exchange: ccxt's id, None for the configured exchange.
    name: ccxt's name for it at that exchange.
    """

    exchange: str | None
    name: str


def fault_of(symbol: str) -> str | None:
    """Return why a text cannot be a symbol, None where it can be one."""
    if not symbol:
        return "it is empty"
    if len(symbol) > LONGEST:
        return f"it has {len(symbol):,} characters, and {LONGEST} are the most"
    if not is_text(symbol):
        return "it is not valid UTF-8"
    if _CONTROL.search(symbol):
        return "it has a control character"
    if symbol != symbol.strip():
        return "it begins or ends with a space"
    return None


def check_symbol(symbol: str) -> str:
    """Return a symbol. Raises ValueError, in one line, where it is none."""
    fault = fault_of(symbol)
    if fault is not None:
        shown = symbol if len(symbol) <= 40 else symbol[:40] + "…"
        raise ValueError(f"{shown!r} is no symbol: {fault}; write it as in BTC/USDT")
    return symbol


def is_text(text: str) -> bool:
    """Return whether a text of the environment or the command line is valid UTF-8."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def split_symbol(symbol: str) -> Symbol:
    """Return the parts of a symbol.

    A colon after a slash is no prefix: BTC/USDT:USDT is a swap.
    Raises ValueError where the prefix is no exchange that ccxt knows.
    """
    match = _PREFIX.fullmatch(symbol)
    if match is None:
        return Symbol(None, symbol)
    exchange, name = match["exchange"], match["name"]
    check_exchange(exchange, symbol)
    if not name or name != name.strip():
        raise ValueError(f"{symbol!r} names no symbol of {exchange}; write it as in kraken:BTC/USD")
    return Symbol(exchange, name)


def check_exchange(exchange: str, where: str) -> None:
    """Raise ValueError, naming a place, where ccxt does not know an exchange."""
    import ccxt  # takes half a second, and most symbols have no prefix

    if exchange not in ccxt.exchanges:
        hint = near_names(exchange, ccxt.exchanges)
        raise ValueError(f"{where!r}: ccxt knows no exchange {exchange!r}{hint}")


def by_exchange(symbols: Iterable[str], configured: str) -> dict[str, tuple[str, ...]]:
    """Return symbols by the exchange that they belong to, in their order.

    configured: the exchange of those without a prefix.
    """
    found: dict[str, list[str]] = {}
    for symbol in symbols:
        found.setdefault(exchange_of(symbol, configured), []).append(symbol)
    return {exchange: tuple(some) for exchange, some in found.items()}


def exchange_of(symbol: str, configured: str) -> str:
    """Return the exchange of a symbol. Raises UserError where ccxt does not know it."""
    try:
        return split_symbol(symbol).exchange or configured
    except ValueError as error:
        raise UserError(str(error)) from None


def name_at(exchange: str, symbol: str) -> str:
    """Return a symbol by its exchange's own name for it."""
    return symbol.removeprefix(f"{exchange}:")
