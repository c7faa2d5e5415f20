"""Guards against archives of the exchange that are loaded in part, twice, or without need."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import psycopg
import pytest
import requests

from feature_platform.clock import Clock, ManualClock
from feature_platform.errors import UserError
from feature_platform.importer.archives import ArchiveReport, import_archives
from feature_platform.settings import get_settings
from feature_platform.simulator.server import SimulatedExchange

Connection = psycopg.Connection[Any]

pytestmark = pytest.mark.parametrize("engine", ["postgres"], indirect=True)

SYMBOL = "BTC/USDT"
NOW = datetime(2025, 1, 20, 12, tzinfo=UTC)
DAY = 1440


@pytest.fixture
def exchange_clock() -> Clock:
    """Return a time after the end of December and before that of January."""
    return ManualClock(NOW)


@pytest.fixture(autouse=True)
def archive_url(simulator: SimulatedExchange, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FEATURE_PLATFORM_ARCHIVE_URL", simulator.url)
    get_settings.cache_clear()


def load(conn: Connection, start: str, end: str | None = None, **options: Any) -> ArchiveReport:
    return import_archives(conn, options.pop("symbol", SYMBOL), start, end, pause=0.01, **options)


def stored(conn: Connection) -> list[tuple[Any, ...]]:
    query = "SELECT ts, open, high, low, close, vol FROM ohlcv_1m WHERE symbol = %s ORDER BY ts"
    return conn.execute(query, (SYMBOL,)).fetchall()


def truth(simulator: SimulatedExchange, start: datetime, end: datetime) -> list[tuple[Any, ...]]:
    bars = simulator.truth.bars(SYMBOL, start, end).drop(columns="trades")
    return [(ts.to_pydatetime(), *values) for ts, *values in bars.itertuples(index=False)]


def names(report: ArchiveReport) -> list[str]:
    return [str(one.path) for one in report.imported.files]


def test_single_days_are_loaded_once(conn: Connection, simulator: SimulatedExchange) -> None:
    progress: list[tuple[int, int]] = []
    report = load(conn, "2024-12-30", "2025-01-02", progress=lambda *at: progress.append(at))
    assert names(report) == [
        f"BTCUSDT-1m-{day}.zip" for day in ("2024-12-30", "2024-12-31", "2025-01-01", "2025-01-02")
    ]
    start = datetime(2024, 12, 30, tzinfo=UTC)
    # From 2025 on the archives are in microseconds.
    assert stored(conn) == truth(simulator, start, start + timedelta(days=4))
    assert progress[-1] == (4, 4)
    again = load(conn, "2024-12-30", "2025-01-02")
    assert (names(again), again.present) == ([], 4)


def test_only_days_with_missing_bars_are_loaded(conn: Connection) -> None:
    load(conn, "2024-12-30", "2025-01-02")
    conn.execute("DELETE FROM ohlcv_1m WHERE ts = '2024-12-31 07:00+00'")
    report = load(conn, "2024-12-29", "2025-01-03")
    days = ("2024-12-29", "2024-12-31", "2025-01-03")
    assert names(report) == [f"BTCUSDT-1m-{day}.zip" for day in days]
    assert [one.inserted for one in report.imported.files] == [DAY, 1, DAY]
    assert report.imported.files[1].unchanged == DAY - 1


@pytest.mark.slow
def test_a_whole_month_is_one_archive(conn: Connection) -> None:
    report = load(conn, "2024-12", "2024-12")
    assert names(report) == ["BTCUSDT-1m-2024-12.zip"]
    assert report.imported.total.inserted == 31 * DAY


def test_an_unpublished_month_is_loaded_by_days(
    conn: Connection, simulator: SimulatedExchange
) -> None:
    simulator.set_faults({"kind": "not_published", "count": 1})
    report = load(conn, "2024-12-29", "2024-12-31")
    assert len(names(report)) == 3
    assert report.absent == ()


def test_an_unpublished_day_is_reported_as_absent(
    conn: Connection, simulator: SimulatedExchange
) -> None:
    simulator.set_faults({"kind": "not_published"})
    report = load(conn, "2025-01-18", "2025-01-19")
    assert report.absent == ("BTCUSDT-1m-2025-01-18.zip", "BTCUSDT-1m-2025-01-19.zip")
    assert stored(conn) == []


@pytest.mark.parametrize(
    ("fault", "reason"),
    [
        ({"kind": "wrong_checksum"}, "wrong checksum: "),
        ({"kind": "reset", "endpoint": "archive", "at": 0.6}, "the download failed"),
        ({"kind": "server_error", "endpoint": "archive"}, "the exchange answered with status 503"),
    ],
)
def test_a_failed_archive_is_reported_and_loaded_by_the_next_import(
    conn: Connection, simulator: SimulatedExchange, fault: dict[str, Any], reason: str
) -> None:
    simulator.set_faults(fault)
    report = load(conn, "2025-01-18", "2025-01-18")
    assert list(report.failed) == ["BTCUSDT-1m-2025-01-18.zip"]
    assert reason in report.failed["BTCUSDT-1m-2025-01-18.zip"]
    assert stored(conn) == []
    # After the fault has ended, the same command loads the missing days.
    simulator.set_faults({**fault, "count": 2})
    assert names(load(conn, "2025-01-18", "2025-01-18")) == ["BTCUSDT-1m-2025-01-18.zip"]
    assert len(stored(conn)) == DAY


def test_a_dry_run_stores_nothing(conn: Connection) -> None:
    report = load(conn, "2025-01-18", "2025-01-18", dry_run=True)
    assert report.imported.total.inserted == DAY
    assert stored(conn) == []


@pytest.mark.parametrize(
    ("symbol", "start", "message"),
    [
        ("BTCUSDT", "2024-12", "write a symbol of Binance as in BTC/USDT"),
        (SYMBOL, "December", "--start December: write a month or a day"),
        (SYMBOL, "2024-13", "--start 2024-13: write a month or a day"),
        (SYMBOL, "2999-01", "no day from then to"),
    ],
)
def test_a_wrong_symbol_or_start_is_rejected(
    conn: Connection, symbol: str, start: str, message: str
) -> None:
    with pytest.raises(UserError, match=message):
        load(conn, start, symbol=symbol)


def test_archives_need_the_prefix_of_their_exchange(
    conn: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FEATURE_PLATFORM_EXCHANGE", "kraken")
    get_settings.cache_clear()
    with pytest.raises(UserError, match="write --symbol binance:BTC/USDT"):
        load(conn, "2025-01-18")
    assert load(conn, "2025-01-18", "2025-01-18", symbol="binance:BTC/USDT").imported.files


@pytest.mark.usefixtures("database")
def test_the_simulator_publishes_archives_as_binance_does(simulator: SimulatedExchange) -> None:
    base = f"{simulator.url}/data/spot/daily/klines/BTCUSDT/1m"
    name = "BTCUSDT-1m-2025-01-18.zip"
    assert requests.get(f"{base}/{name}.CHECKSUM", timeout=30).text.split()[1] == name
    for absent in ("BTCUSDT-1m-2025-01-20.zip", "BTCUSDT-1m-2025-01.zip", "../x", "x.zip"):
        assert requests.get(f"{base}/{absent}", timeout=30).status_code == 404


def test_downloaded_files_are_deleted(
    conn: Connection, simulator: SimulatedExchange, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    simulator.set_faults({"kind": "reset", "endpoint": "archive", "at": 0.6, "after": 1})
    load(conn, "2025-01-17", "2025-01-18")
    assert list(tmp_path.iterdir()) == []
