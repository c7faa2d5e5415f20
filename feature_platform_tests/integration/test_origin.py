"""Guards against bars of two exchanges under one symbol, and real bars among simulated ones."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

import psycopg
import pytest

from feature_platform import schema
from feature_platform.errors import UserError
from feature_platform.origin import exchange_settings
from feature_platform.settings import Settings, get_settings
from feature_platform.simulator.server import SimulatedExchange
from feature_platform.simulator.truth import GeneratedTruth
from feature_platform_tests.fix_processes import insert_bars, run, value

Conn = psycopg.Connection[Any]

START = datetime(2026, 3, 1, tzinfo=UTC)

pytestmark = pytest.mark.parametrize("engine", ["postgres"], indirect=True)

URL, URL_2 = "http://127.0.0.1:8090", "http://127.0.0.1:8091"


@pytest.fixture
def simulated(conn: Conn) -> Conn:
    """Return a connection to a database of simulated bars, as `make dev` creates it."""
    schema.apply(conn, simulated=True)
    exchange_settings(conn, settings(exchange_url=f"binance={URL},binanceus={URL_2}"))
    return conn


def settings(**chosen: Any) -> Settings:
    return Settings(**{"symbols": ("BTC/USDT",), **chosen})


def test_the_first_exchange_is_stored_and_another_one_rejected(conn: Conn) -> None:
    assert exchange_settings(conn, settings(exchange="binance")).exchange == "binance"
    insert_bars(conn, "BTC/USDT", START, 3)
    reject = (
        "has bars of binance for symbols without an exchange, and BTC/USDT would be of kraken:"
        " write it as kraken:BTC/USDT, or set FEATURE_PLATFORM_EXCHANGE=binance"
    )
    with pytest.raises(UserError, match=reject):
        exchange_settings(conn, settings(exchange="kraken"))
    # A symbol with a prefix names its exchange.
    chosen = exchange_settings(conn, settings(exchange="kraken", symbols=("kraken:BTC/USD",)))
    assert chosen.by_exchange() == {"kraken": ("kraken:BTC/USD",)}
    chosen = exchange_settings(conn, settings(exchange="kraken"), "bitfinex:BTC/USD")
    assert value(conn, "SELECT exchange FROM feature_platform.database_origin") == "binance"


def test_without_bars_another_exchange_replaces_the_first(conn: Conn) -> None:
    exchange_settings(conn, settings(exchange="binance"))
    exchange_settings(conn, settings(exchange="kraken"))
    assert value(conn, "SELECT exchange FROM feature_platform.database_origin") == "kraken"


def test_without_a_setting_the_stored_exchange_is_used(conn: Conn) -> None:
    exchange_settings(conn, settings(exchange="kraken"))
    insert_bars(conn, "BTC/USDT", START, 3)
    assert exchange_settings(conn, settings()).exchange == "kraken"


def test_commands_beside_make_dev_use_its_exchanges(simulated: Conn) -> None:
    chosen = exchange_settings(simulated, settings(), "binanceus:BTC/USDT")
    assert chosen.url_of("binance") == URL
    assert chosen.url_of("binanceus") == URL_2


@pytest.mark.parametrize(
    ("chosen", "symbol"),
    [
        ({"exchange": "binance"}, None),
        ({"exchange": "kraken"}, None),
        ({"exchange": "binance", "exchange_url": "https://api.example"}, None),
        ({}, "kraken:BTC/USD"),
        ({"symbols": ("BTC/USDT", "kraken:BTC/USD")}, None),
    ],
)
def test_a_real_exchange_is_rejected_for_a_simulated_database(
    simulated: Conn, chosen: dict[str, Any], symbol: str | None
) -> None:
    with pytest.raises(UserError, match=r"has simulated bars, and .* would be the real exchange"):
        exchange_settings(simulated, settings(**chosen), symbol)


@pytest.fixture
def exchange() -> Iterator[SimulatedExchange]:
    """Yield a running simulated exchange."""
    with SimulatedExchange(GeneratedTruth(["BTC/USDT"])) as running:
        yield running


def test_commands_use_the_stored_exchange_or_reject_another(
    database: str, simulated: Conn, exchange: SimulatedExchange, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Run commands without settings, and with the settings of the real exchange."""
    monkeypatch.setenv("FEATURE_PLATFORM_DATABASE_URL", database)
    monkeypatch.setenv("FEATURE_PLATFORM_SYMBOLS", "BTC/USDT")
    get_settings.cache_clear()
    simulated.execute(
        "UPDATE feature_platform.database_origin SET exchange_url = %s", [exchange.url]
    )
    backfill = ("backfill", "--symbol", "BTC/USDT", "--start", "2026-03-01", "--end", "2026-03-02")
    done = run(*backfill)
    assert done.returncode == 0, done.stderr
    assert value(simulated, "SELECT count(*) FROM ohlcv_1m") == 1440
    for command in (backfill, ("record",)):
        done = run(*command, FEATURE_PLATFORM_EXCHANGE="binance")
        assert done.returncode == 2, done.stderr
        assert "would be the real exchange" in done.stderr


def test_an_answer_without_any_bar_is_a_failure(
    database: str, simulated: Conn, exchange: SimulatedExchange
) -> None:
    exchange.set_faults({"kind": "malformed", "rows": 10_000, "damages": ["zero_price"]})
    done = run(
        *(
            "backfill",
            "--symbol",
            "BTC/USDT",
            "--start",
            "2026-03-01",
            "--end",
            "2026-03-01T01:00Z",
        ),
        FEATURE_PLATFORM_DATABASE_URL=database,
        FEATURE_PLATFORM_EXCHANGE_URL=exchange.url,
    )
    assert value(simulated, "SELECT count(*) FROM ohlcv_1m") == 0
    assert done.returncode == 1
    last = done.stderr.splitlines()[-1]
    assert last == "feature-platform: binance answered with 60 rows, and none is a bar"
