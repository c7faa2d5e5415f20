"""Symbols: their limits, and their optional exchange prefix, as in `kraken:BTC/USD`."""

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
    """The parts of a symbol.

    exchange: ccxt's id; None without a prefix, for the configured exchange.
    name: ccxt's name of the symbol at that exchange.
    """

    exchange: str | None
    name: str


def fault_of(symbol: str) -> str | None:
    """Return the reason why a text cannot be a symbol, None if it can."""
    if not symbol:
        return "it is empty"
    if len(symbol) > LONGEST:
        return f"it has {len(symbol):,} characters, and at most {LONGEST} are allowed"
    if not is_text(symbol):
        return "it is not valid UTF-8"
    if _CONTROL.search(symbol):
        return "it has a control character"
    if symbol != symbol.strip():
        return "it begins or ends with a space"
    return None


def check_symbol(symbol: str) -> str:
    """Return the symbol. Raises ValueError, with one line, where the text cannot be a symbol."""
    fault = fault_of(symbol)
    if fault is not None:
        shown = symbol if len(symbol) <= 40 else symbol[:40] + "…"
        raise ValueError(f"{shown!r} is not a symbol: {fault}; write it as in BTC/USDT")
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

    A colon after a slash does not end a prefix: BTC/USDT:USDT is a swap.
    Raises ValueError where ccxt knows no exchange of that prefix.
    """
    match = _PREFIX.fullmatch(symbol)
    if match is None:
        return Symbol(None, symbol)
    exchange, name = match["exchange"], match["name"]
    check_exchange(exchange, symbol)
    if not name or name != name.strip():
        raise ValueError(
            f"{symbol!r} has no symbol after {exchange}; write it as in kraken:BTC/USD"
        )
    return Symbol(exchange, name)


def check_exchange(exchange: str, where: str) -> None:
    """Raise ValueError where ccxt knows no such exchange; its message begins with `where`."""
    import ccxt  # takes half a second, and most symbols have no prefix

    if exchange not in ccxt.exchanges:
        hint = near_names(exchange, ccxt.exchanges)
        raise ValueError(f"{where!r}: ccxt knows no exchange {exchange!r}{hint}")


def by_exchange(symbols: Iterable[str], configured: str) -> dict[str, tuple[str, ...]]:
    """Return symbols by exchange, in their order.

    configured: the exchange of symbols without a prefix.
    """
    found: dict[str, list[str]] = {}
    for symbol in symbols:
        found.setdefault(exchange_of(symbol, configured), []).append(symbol)
    return {exchange: tuple(some) for exchange, some in found.items()}


def exchange_of(symbol: str, configured: str) -> str:
    """Return the exchange of a symbol. Raises UserError where ccxt knows no such exchange."""
    try:
        return split_symbol(symbol).exchange or configured
    except ValueError as error:
        raise UserError(str(error)) from None


def name_at(exchange: str, symbol: str) -> str:
    """Return the symbol without the prefix of its exchange."""
    return symbol.removeprefix(f"{exchange}:")
