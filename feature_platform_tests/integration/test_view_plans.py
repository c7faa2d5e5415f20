"""Guards against a new bucket of a feature view whose cost grows with the history or the span."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import psycopg
import pytest

from feature_platform import views as v
from feature_platform.views import FeatureView, bar, catalog, corr, ema, lag, mean, std, zscore
from feature_platform_tests.fix_plans import SYMBOLS, about_as_many, explain, pages_of
from feature_platform_tests.fix_views import RETURN, check_views, refresh_all

Conn = psycopg.Connection[Any]


def view(name: str, span: str) -> FeatureView:
    """Return a view whose windows and lags all have one span."""
    return FeatureView(
        name,
        "1 minute",
        {
            "mean": mean(bar.vol, span),
            "std": std(RETURN, span),
            "z": zscore(bar.vol, span),
            "corr": corr(RETURN, bar.vol, span),
            "lag": lag(bar.close, span),
            "high": v.max(bar.high, span),
            "ema": ema(bar.close, "1 hour"),
        },
    )


SHORT_SPAN, LONG_SPAN = view("short_span", "30 minutes"), view("long_span", "2 days")
CANDLES = FeatureView("candles", "1 hour", {"close": bar.close, "vol": bar.vol})

_NEW_MINUTE = """
    INSERT INTO ohlcv_1m (symbol, ts, open, high, low, close, vol)
    SELECT 'S' || s, current_setting('tests.newest')::timestamptz + %(after)s::interval,
           10, 10, 10, 10, 3
    FROM generate_series(1, 20) AS s
"""
_SLICE = """
    SELECT * FROM feature_platform.view_slice(
        $1, '-infinity', feature_platform.due_until() + interval '1 minute', true)
"""


@pytest.fixture(scope="module")
def with_views(histories: tuple[Conn, Conn]) -> Iterator[tuple[Conn, Conn]]:
    for conn in histories:
        catalog.apply(conn, [SHORT_SPAN, LONG_SPAN, CANDLES])
        refresh_all(conn)
    yield histories
    for conn in histories:
        check_views(conn)


def pages_of_a_new_minute(conn: Conn, name: str, *, after: str = "10 minutes") -> int:
    """Return how many pages the refresh reads; after: the time from the bucket before."""
    number = conn.execute(
        "SELECT id FROM feature_platform.feature_view WHERE name = %s", [name]
    ).fetchone()
    assert number is not None
    pages = 0
    for _ in range(2):  # the session's first call reads the catalogues, too
        with conn.transaction(force_rollback=True):
            conn.execute(_NEW_MINUTE, {"after": after})
            conn.execute(
                "SELECT feature_platform.refresh_slice('-infinity', feature_platform.due_until(),"
                " feature_platform.dirty_horizon())"
            )
            plan = explain(conn, _SLICE, number[0])
            written = f"SELECT count(*) FROM {name}"  # noqa: S608
            conn.execute(written.encode())
            pages = pages_of(plan)
    return pages


@pytest.mark.parametrize("analyzed", [False, True], ids=["no statistics", "fresh statistics"])
@pytest.mark.parametrize("name", ["short_span", "long_span", "candles"])
def test_a_new_minute_costs_the_same_at_ten_times_the_history(
    with_views: tuple[Conn, Conn], name: str, analyzed: bool
) -> None:
    pages = []
    for conn in with_views:
        if analyzed:
            conn.execute("ANALYZE")
        pages.append(pages_of_a_new_minute(conn, name))
    assert about_as_many(pages), pages


def test_a_new_minute_costs_the_same_with_a_span_of_two_days(
    with_views: tuple[Conn, Conn],
) -> None:
    short, long = (
        pages_of_a_new_minute(with_views[0], name) for name in ("short_span", "long_span")
    )
    assert long <= short * 1.5, (short, long)
    assert long < 200 * SYMBOLS


def test_a_new_minute_without_a_gap_reads_no_more_with_a_long_span(
    with_views: tuple[Conn, Conn],
) -> None:
    short, long = (
        pages_of_a_new_minute(with_views[0], name, after="1 minute")
        for name in ("short_span", "long_span")
    )
    assert long <= short * 1.5, (short, long)
    assert long < 200 * SYMBOLS


@pytest.mark.parametrize("after", ["1 minute", "10 minutes"])
def test_a_new_minute_looks_for_no_start_of_its_values(
    with_views: tuple[Conn, Conn], after: str
) -> None:
    """The start of a value over lags costs a look-up a lag; only bars inside minutes need it."""
    conn = with_views[0]
    conn.execute("SET track_functions = 'all'")
    pages_of_a_new_minute(conn, "short_span", after=after)
    calls = dict(
        conn.execute(
            "SELECT funcname, calls FROM pg_stat_xact_user_functions"
            " UNION ALL SELECT funcname, calls FROM pg_stat_user_functions"
        ).fetchall()
    )
    assert "bucket_before" not in calls, calls
