"""Guards against bars that the recorder's writer loses or stores in the wrong order."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import psycopg
import pytest

from feature_platform.bars import Bars, StreamBar, store_bars, store_stream, ts_of
from feature_platform.heartbeat import Heartbeat, list_heartbeats
from feature_platform.recorder.spool import Spool
from feature_platform.recorder.writer import BarWriter
from feature_platform_tests.fix_processes import value, wait_until
from feature_platform_tests.fix_recorder import GoingDatabase, files_up_to

T = ts_of(datetime(2026, 3, 1, tzinfo=UTC))
MINUTE = 60_000_000
SYMBOLS = ("BTC/USDT", "XRP/ETH")


def bars(vol: float, *, minutes: range = range(3), symbol: str = "BTC/USDT") -> list[StreamBar]:
    return [StreamBar(symbol, T + at * MINUTE, 10.0, 12.0, 9.0, 11.0, vol) for at in minutes]


def stored(url: str) -> list[tuple[Any, ...]]:
    with psycopg.connect(url) as connection:
        return connection.execute(
            "SELECT symbol, vol, source FROM ohlcv_1m ORDER BY symbol, ts"
        ).fetchall()


class Running:
    """A writer that runs in a thread."""

    def __init__(self, path: Path, in_memory: int) -> None:
        self.conflicting: list[tuple[str, int]] = []
        self.spool = Spool(path)
        self.writer = BarWriter(
            self.spool,
            dict.fromkeys(SYMBOLS, "binance"),
            in_memory=in_memory,
            conflicting=self.conflicting.extend,
        )
        self.kept: bool | None = None
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def stop(self) -> bool | None:
        self.writer.stop()
        self._thread.join(60)
        self.spool.close()
        return self.kept

    def _run(self) -> None:
        self.kept = self.writer.run()


@pytest.fixture
def spool_path(tmp_path: Path) -> Path:
    return tmp_path / "spool"


@contextmanager
def running(path: Path, in_memory: int = 100) -> Iterator[Running]:
    writer = Running(path, in_memory)
    try:
        yield writer
    finally:
        if writer.kept is None:
            writer.stop()


def test_a_stream_corrects_bars_of_streams_and_of_no_other_source(conn: psycopg.Connection) -> None:
    first = store_stream(conn, bars(1.0) + bars(1.0, symbol="XRP/ETH"))
    assert (first.inserted, first.updated, first.unchanged, first.conflicting) == (6, 0, 0, ())
    again = store_stream(conn, bars(1.0, minutes=range(2)) + bars(2.0, symbol="XRP/ETH"))
    assert (again.inserted, again.updated, again.unchanged, again.conflicting) == (0, 3, 2, ())
    rest = [np.array([value]) for value in bars(5.0)[0][1:]]
    store_bars(conn, "BTC/USDT", Bars(*rest), "rest")
    late = store_stream(conn, bars(7.0))
    assert (late.inserted, late.updated, late.unchanged) == (0, 2, 1)
    assert late.conflicting == (("BTC/USDT", T),)
    vols = [vol for (vol,) in conn.execute("SELECT vol FROM ohlcv_1m ORDER BY symbol, ts")]
    assert vols == [5.0, 7.0, 7.0, 2.0, 2.0, 2.0]


def test_a_rejected_bar_does_not_prevent_others_from_being_stored(
    going: GoingDatabase, spool_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    bad = bars(-1.0, minutes=range(1, 2))
    twice = bars(1.0, minutes=range(4, 5)) * 2
    with running(spool_path) as run:
        run.writer.put(bars(1.0, minutes=range(1)) + bad + bars(1.0, minutes=range(2, 4)) + twice)
        assert run.stop() is True
    assert len(stored(going.url)) == 4
    assert "the database rejects a bar" in caplog.text
    assert "ohlcv_1m_vol_check" in caplog.text


@pytest.mark.parametrize("in_memory", [100, 4])
def test_all_bars_are_stored_in_order_after_the_database_was_down(
    going: GoingDatabase, spool_path: Path, in_memory: int
) -> None:
    with running(spool_path, in_memory) as run:
        run.writer.put(bars(1.0))
        wait_until(lambda: len(stored(going.url)) == 3, "bars are stored")
        with going.away():
            for vol in (2.0, 3.0, 4.0):
                run.writer.put(bars(vol, minutes=range(5)))
            if in_memory < 15:
                wait_until(lambda: run.spool.bars >= 5, "bars are on disk")
            run.writer.put(bars(5.0, minutes=range(2)))
        wait_until(lambda: [vol for _, vol, _ in stored(going.url)] == [5, 5, 4, 4, 4], "order")
        assert run.stop() is True
    assert spool_path.stat().st_size == 0


def test_the_next_writer_stores_the_bars_on_disk(going: GoingDatabase, spool_path: Path) -> None:
    with going.away(), running(spool_path) as run:
        run.writer.put(bars(1.0))
        assert run.stop() is True
    assert stored(going.url) == []
    with running(spool_path) as run:
        run.writer.put(bars(2.0, minutes=range(1)))
        assert run.stop() is True
    assert [vol for _, vol, _ in stored(going.url)] == [2.0, 1.0, 1.0]


def fill(path: Path) -> int:
    """Write a file that is larger than the other files of a test; return its size."""
    spool = Spool(path)
    spool.append(bars(9.0, minutes=range(10, 10_010)))
    spool.close()
    return path.stat().st_size


def test_a_full_disk_is_reported_and_loses_no_bar(
    going: GoingDatabase, spool_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    size = fill(spool_path)
    with going.away(), files_up_to(size), running(spool_path, in_memory=0) as run:
        run.writer.put(bars(1.0))
        run.writer.put(bars(2.0))
        wait_until(lambda: "cannot be written" in caplog.text, "the full disk is reported")
        assert "in memory, and lost if this process ends" in caplog.text
        going.come_back()
        wait_until(lambda: len(stored(going.url)) == 10_003, "bars are stored")
        assert run.stop() is True
    assert [vol for _, vol, _ in stored(going.url)][:4] == [2.0, 2.0, 2.0, 9.0]


def test_a_stop_without_database_and_disk_reports_a_loss(
    going: GoingDatabase, spool_path: Path
) -> None:
    size = fill(spool_path)
    with going.away(), files_up_to(size), running(spool_path, in_memory=0) as run:
        run.writer.put(bars(1.0))
        assert run.stop() is False


def test_the_last_heartbeat_is_stored_after_the_database_was_down(
    going: GoingDatabase, spool_path: Path
) -> None:
    now = datetime(2026, 3, 1, tzinfo=UTC)
    with running(spool_path) as run:
        run.writer.beat([Heartbeat(name, "live", now) for name in SYMBOLS], [])
        with going.away():
            run.writer.beat([Heartbeat(name, "catching_up", now) for name in SYMBOLS], [])
        assert run.stop() is True
    with psycopg.connect(going.url) as connection:
        feeds = list_heartbeats(connection)
        assert value(connection, "SELECT count(*) FROM feature_platform.feed_outage") == 0
    assert [(feed.symbol, feed.state) for feed in feeds] == [
        ("BTC/USDT", "catching_up"),
        ("XRP/ETH", "catching_up"),
    ]
