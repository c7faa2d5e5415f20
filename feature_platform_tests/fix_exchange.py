"""A simulated exchange on loopback, and clients of it that do not wait between retries."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import pytest

from feature_platform.clock import Clock, WallClock
from feature_platform.exchange.client import Exchange, Patience
from feature_platform.simulator.server import SimulatedExchange
from feature_platform.simulator.truth import GeneratedTruth, Truth

# XRP/ETH trades rarely: three of ten minutes have no trade.
SYMBOLS = ("BTC/USDT", "XRP/ETH", "LINK/USDT")

MakeExchange = Callable[..., Exchange]


@pytest.fixture
def exchange_clock() -> Clock:
    """Return the clock of the simulated exchange; a test may override it."""
    return WallClock()


@pytest.fixture
def exchange_truth() -> Truth:
    """Return the bars of the simulated exchange; a test may override it."""
    return GeneratedTruth(SYMBOLS, seed=7)


@pytest.fixture
def simulator(exchange_truth: Truth, exchange_clock: Clock) -> Iterator[SimulatedExchange]:
    """Yield a running simulated exchange, with its `url`, its `truth` and `set_faults`."""
    with SimulatedExchange(exchange_truth, seed=7, clock=exchange_clock) as running:
        yield running


@pytest.fixture
def make_exchange(simulator: SimulatedExchange) -> Iterator[MakeExchange]:
    """Yield a function that makes clients of the simulated exchange, as ccxt's binance.

    It takes the options of Exchange; by default a client has no rate limit, and tries four times
    without a wait.
    """
    with ExitStack() as stack:

        def make(name: str = "binance", **options: Any) -> Exchange:
            chosen: dict[str, Any] = {
                "symbols": tuple(simulator.truth.markets),
                "url": simulator.url,
                "patience": quick(),
                "rate_limit": False,
                **options,
            }
            return stack.enter_context(Exchange(name, **chosen))

        yield make


@pytest.fixture
def exchange(make_exchange: MakeExchange) -> Exchange:
    """Return a client of the simulated exchange."""
    return make_exchange()


def quick(attempts: int = 4, **options: Any) -> Patience:
    """Return retries without waits."""
    return Patience(attempts=attempts, **{"sleep": lambda _seconds: None, **options})
