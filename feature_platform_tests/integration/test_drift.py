"""Guards against drift that is not found, and against alarms without drift."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import dagster as dg
import numpy as np
import psycopg
import pytest

from benchmarks.drift import features, simulate, statistics
from feature_platform.drift import (
    BINS,
    DAY,
    FEATURES,
    HOUR,
    HOURS,
    Watch,
    day_counts,
    hour_statistics,
    table_of,
)
from feature_platform.settings import get_settings
from feature_platform.simulator.truth import GeneratedTruth, minute_from
from feature_platform.views import FeatureView, bar, catalog
from feature_platform_tests.fix_dagster import Platform, definitions
from feature_platform_tests.fix_views import refresh_all

Conn = psycopg.Connection[Any]

on_postgres = pytest.mark.parametrize("engine", ["postgres"], indirect=True)

SYMBOL = "BTC/USDT"
TRUTH = GeneratedTruth([SYMBOL], seed=5)
RANGES = FeatureView("ranges_1m", "1 minute", {"range": bar.high - bar.low, "volume": bar.vol})


def store_bars(conn: Conn, start: datetime, end: datetime) -> None:
    """Store the simulator's bars of a time, and refresh."""
    bars = TRUTH.bars(SYMBOL, start, end).drop(columns="trades")
    with conn.cursor().copy(
        "COPY ohlcv_1m (symbol, ts, open, high, low, close, vol) FROM STDIN"
    ) as copy:
        for row in bars.itertuples(index=False):
            copy.write_row((SYMBOL, *row))
    refresh_all(conn)


def midnight() -> datetime:
    return datetime.now(UTC).replace(hour=0, minute=0, second=0, microsecond=0)


@on_postgres
def test_the_hours_and_counts_of_sql_are_those_of_numpy(conn: Conn) -> None:
    start = midnight() - 3 * DAY
    store_bars(conn, start - DAY, start + 2 * DAY)
    window = {"symbol": SYMBOL, "start": start, "end": start + 2 * DAY}
    first = minute_from(start - DAY)
    columns = features(TRUTH.minutes(SYMBOL, first, first + 3 * 1440))
    found = hour_statistics(conn, FEATURES, window)
    edges = np.stack(
        [np.quantile(columns[name], np.arange(1, BINS) / BINS) for name in FEATURES.columns]
    )
    counts = day_counts(conn, FEATURES, window, edges)
    for number, name in enumerate(FEATURES.columns):
        values = columns[name].reshape(-1, HOURS, 60)
        # The step to the first minute is from the day before, which NumPy does not have.
        steps = np.abs(np.diff(columns[name], prepend=np.nan)).reshape(-1, HOURS, 60)
        expected = statistics(values, steps).reshape(-1, 4)
        np.testing.assert_allclose(found[1:, number], expected[1:], rtol=1e-6, atol=1e-9)
        assert np.isfinite(found[0, number]).all()
        bins = np.searchsorted(edges[number], columns[name], side="right").reshape(-1, 1440)
        for day in range(2):
            # Rounding may move the values that are equal to an edge.
            own = np.bincount(bins[day], minlength=BINS)
            assert np.abs(counts[day, number] - own).sum() <= 2 * BINS, name
        assert counts[:, number].sum() == 2 * 1440


@on_postgres
def test_a_shift_and_another_distribution_are_found(
    conn: Conn, instance: dg.DagsterInstance, database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FEATURE_PLATFORM_DATABASE_URL", database)
    monkeypatch.setenv("FEATURE_PLATFORM_DRIFT_DAYS", "10")
    get_settings.cache_clear()
    catalog.apply(conn, [RANGES])
    now = datetime.now(UTC)
    store_bars(conn, midnight() - 13 * DAY, now)
    platform = Platform(definitions(), instance, conn)

    # Without drift: all columns are judged, none drifts, and the next tick does not look again.
    data = platform.tick("watch_drift")
    for asset in ("features_1m", "ranges_1m"):
        evaluation = platform.evaluation("drift", asset)
        assert evaluation is not None
        assert evaluation.passed, evaluation.description
        assert "plot" in evaluation.metadata
    assert platform.tick("watch_drift", data.cursor).asset_events == []

    report = Watch().look(conn, FEATURES, get_settings())
    judged = {one.column for one in report.found if not np.isnan(one.shift + one.shift_limit)}
    assert {"vol", "log_return", "volume_z", "vwap_gap", "parkinson_vol"} <= judged
    assert judged.isdisjoint({"n_1d", "std_vol_1d"})

    # The last hour is shifted by one standard deviation.
    conn.execute(
        "UPDATE features_1m SET vol = vol + (SELECT stddev_pop(vol) FROM features_1m)"
        " WHERE bucket > %s",
        (report.end - HOUR,),
    )
    report = Watch().look(conn, FEATURES, get_settings())
    assert [(one.symbol, one.column) for one in report.alarms] == [(SYMBOL, "vol")]
    assert "the last hour is shifted by" in report.alarms[0].alarms[0]
    assert report.found[0] is report.alarms[0]

    # The last day of a view has another distribution.
    view = next(one for one in catalog.all_versions(conn) if one.name == "ranges_1m")
    conn.execute("UPDATE ranges_1m SET range = 0.01 * range WHERE bucket > %s", (report.end - DAY,))
    found = Watch().look(conn, table_of(view), get_settings())
    assert [one.column for one in found.alarms] == ["range"]
    assert any("stability index" in text for text in found.alarms[0].alarms)
    assert found.alarms[0].ks > 0.9

    # The sensor, and a click, report both as warnings.
    platform.tick("watch_drift", data.cursor.replace('"looked":1', '"looked":0'))
    for asset, column in (("features_1m", "vol"), ("ranges_1m", "range")):
        evaluation = platform.evaluation("drift", asset)
        assert evaluation is not None
        assert not evaluation.passed
        assert evaluation.severity is dg.AssetCheckSeverity.WARN
        assert f"{SYMBOL} {column}" in str(evaluation.description)


@on_postgres
def test_a_symbol_without_a_reference_is_not_judged(conn: Conn) -> None:
    report = Watch().look(conn, FEATURES, get_settings())
    assert report.found == []
    assert "no symbol has rows" in report.summary
    now = datetime.now(UTC)
    store_bars(conn, now - timedelta(hours=30), now)
    assert Watch().look(conn, FEATURES, get_settings()).found == []
    # A look without time for references counts the symbols that wait.
    assert Watch(seconds=0).look(conn, FEATURES, get_settings()).waiting == 1


def test_stationary_symbols_raise_no_alarm_and_shifts_are_found() -> None:
    """A small part of `python -m benchmarks --only drift`."""
    outcome = simulate(2, 30)
    assert outcome.alarms == 0
    for name, column in outcome.columns.items():
        if name not in ("n_1d", "ma_vol_1d", "std_vol_1d"):
            assert np.mean(column.judged) > 0.9, name
            assert column.found >= 0.9 * column.shifts > 0, name
