"""Guards against feature views that lose a change, block others, or show a mix of versions."""

from __future__ import annotations

import threading
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import psycopg
import pytest

from feature_platform.errors import UserError
from feature_platform.views import (
    FeatureView,
    aggregate,
    bar,
    catalog,
    lag,
    mean,
    where,
    zscore,
)
from feature_platform_tests.fix_engine import waits_for_a_lock
from feature_platform_tests.fix_processes import value, wait_until
from feature_platform_tests.fix_views import (
    CANDLES,
    RETURN,
    SHORT,
    add_bars,
    ago,
    check_views,
    refresh_all,
    retry_soon,
    rows_of,
    state_of,
)

DAY_1 = datetime(2026, 2, 1, tzinfo=UTC)
MINUTE = timedelta(minutes=1)


def minute(number: int) -> datetime:
    return DAY_1 + number * MINUTE


def correct(conn: psycopg.Connection, number: int, symbol: str = "A") -> None:
    statement = "UPDATE ohlcv_1m SET vol = vol + 100 WHERE symbol = %s AND ts = %s"
    assert conn.execute(statement, (symbol, minute(number))).rowcount == 1


def take_marks(conn: psycopg.Connection) -> None:
    """Have the refresh of features_1m send all changes to the views."""
    conn.execute("CALL refresh_features_1m(NULL, NULL)")


def run_policy(conn: psycopg.Connection) -> None:
    """Run the policy to its end, as the worker does."""
    run = conn.execute("SELECT feature_platform.policy_begin('worker')").fetchone()
    assert run is not None
    more = True
    while more:
        step = "SELECT feature_platform.policy_step(%s, feature_platform.dirty_horizon())"
        more = (conn.execute(step, run).fetchone() or (False,))[0]
        more |= (conn.execute("SELECT feature_platform.view_step(%s)", run).fetchone() or (0,))[0]


def test_a_view_is_built_by_the_policy_and_follows_its_bars(conn: psycopg.Connection) -> None:
    add_bars(conn, DAY_1, 300, ("A", "B"))
    catalog.apply(conn, [SHORT, CANDLES])
    assert state_of(conn, "short_1m") == [(1, "building", True)]
    run_policy(conn)
    run_policy(conn)
    assert state_of(conn, "short_1m") == [(1, "live", True)]
    assert check_views(conn) == 2 * 300 + 2 * 5
    add_bars(conn, minute(300), 30, ("A", "B", "C"))
    conn.execute("DELETE FROM ohlcv_1m WHERE symbol = 'A' AND ts = %s", [minute(150)])
    correct(conn, 20, "B")
    run_policy(conn)
    assert check_views(conn) == 2 * 330 + 30 - 1 + 2 * 6 + 1
    left = conn.execute("SELECT count(*) FROM feature_platform.view_change").fetchone()
    assert left == (0,)


def leave_a_mark(conn: psycopg.Connection) -> None:
    """Add a bar, and correct one that leaves the next window: the cached sums have its old volume.

    The mark of the correction is not processed.
    """
    add_bars(conn, DAY_1, 60)
    catalog.apply(conn, [SHORT])
    refresh_all(conn)
    add_bars(conn, minute(60), 1)
    take_marks(conn)
    correct(conn, 55)


def test_a_state_beside_an_unprocessed_mark_is_not_used(conn: psycopg.Connection) -> None:
    leave_a_mark(conn)
    written = conn.execute(
        "SELECT rows_written FROM feature_platform.feature_view v, "
        "feature_platform.view_slice(v.id, '-infinity', '2027-01-01', waits => false)"
    ).fetchone()
    assert written == (0,)
    dirty = conn.execute("SELECT dirty::text FROM feature_platform.view_symbol").fetchone()
    assert dirty != ("{}",)
    refresh_all(conn)
    assert check_views(conn) == 61


def test_a_refresh_of_views_takes_the_marks_that_its_rows_wait_for(
    conn: psycopg.Connection,
) -> None:
    leave_a_mark(conn)
    slice_ = conn.execute(
        "SELECT rows_written, more FROM feature_platform.feature_view v, "
        "feature_platform.view_slice(v.id, '-infinity', '2027-01-01')"
    ).fetchone()
    assert slice_ == (0, True)
    assert catalog.refresh_views(conn) == 6
    assert check_views(conn) == 61


def test_the_procedure_refreshes_one_view(conn: psycopg.Connection) -> None:
    add_bars(conn, ago(200), 190)
    catalog.apply(conn, [SHORT, CANDLES])
    conn.execute("CALL refresh_feature_view('short_1m', %s, NULL)", [ago(100)])
    assert 90 <= value(conn, "SELECT count(*) FROM short_1m") < 95
    conn.execute("CALL refresh_feature_view('short_1m', NULL, NULL)")
    assert value(conn, "SELECT count(*) FROM short_1m") == 190
    assert value(conn, "SELECT count(*) FROM candles_1h") == 0
    with pytest.raises(psycopg.errors.RaiseException, match="no feature view 'none'"):
        conn.execute("CALL refresh_feature_view('none', NULL, NULL)")


def test_a_view_gets_the_first_bar_of_a_symbol_that_appears_meanwhile(
    conn: psycopg.Connection, database: str
) -> None:
    """Its mark is under way to the views while the new view is applied."""
    add_bars(conn, DAY_1, 10)
    catalog.apply(conn, [CANDLES])
    refresh_all(conn)
    add_bars(conn, DAY_1, 10, ("NEW",))
    with (
        psycopg.connect(database, autocommit=True) as refresher,
        psycopg.connect(database, autocommit=True) as applier,
    ):
        thread = threading.Thread(target=catalog.apply, args=(applier, [SHORT]))
        with refresher.transaction():
            refresher.execute(
                "SELECT feature_platform.refresh_slice('-infinity', '2027-01-01', 1000000)"
            )
            thread.start()
            wait_until(lambda: waits_for_a_lock(conn, applier), "the apply waits for the refresh")
        thread.join()
    refresh_all(conn)
    assert check_views(conn) == 2 * 10 + 2
    symbols = "SELECT DISTINCT symbol FROM short_1m ORDER BY 1"
    assert conn.execute(symbols).fetchall() == [("A",), ("NEW",)]


def test_a_changed_view_is_served_when_complete_and_no_reader_stops_the_others(
    conn: psycopg.Connection, database: str
) -> None:
    add_bars(conn, DAY_1, 200)
    catalog.apply(conn, [SHORT])
    refresh_all(conn)
    before = rows_of(conn, "std_10m, corr_7m, ema_3m", "short_1m")
    columns = {
        **SHORT.columns,
        "mean_5m": mean(bar.vol, "6 minutes"),
        "z": zscore(RETURN, "1 hour"),
    }
    changed = FeatureView("short_1m", "1 minute", columns)
    (plan,) = catalog.plan(conn, [changed])
    assert (plan.action, plan.added, plan.changed) == ("changed", ["z"], ["mean_5m"])
    catalog.apply(conn, [changed])
    with psycopg.connect(database) as reader:
        count = "SELECT count(mean_5m) FROM short_1m"
        assert reader.execute(count).fetchone() == (196,)
        refresh_all(conn)
        assert state_of(conn, "short_1m") == [(1, "live", True), (2, "waiting", False)]
        # The reader's transaction holds up neither a writer nor a refresh, of the old version, too.
        add_bars(conn, minute(200), 1)
        refresh_all(conn)
        assert reader.execute(count).fetchone() == (197,)
    retry_soon(conn)
    refresh_all(conn)
    assert state_of(conn, "short_1m") == [(2, "live", True)]
    after = rows_of(conn, "std_10m, corr_7m, ema_3m", "short_1m")
    assert after[:-1] == before
    assert check_views(conn) == 201
    made = conn.execute(
        "SELECT count(*) FROM pg_class WHERE relnamespace = 'feature_views'::regnamespace"
        " AND relname LIKE 'v1\\_%'"
    ).fetchone()
    assert made == (0,)


def test_an_object_that_needs_the_old_columns_keeps_the_old_version(
    conn: psycopg.Connection,
) -> None:
    add_bars(conn, DAY_1, 20)
    catalog.apply(conn, [SHORT])
    refresh_all(conn)
    conn.execute("CREATE VIEW mine AS SELECT bucket, mean_5m FROM short_1m")
    conn.execute("GRANT SELECT ON short_1m TO PUBLIC")
    catalog.apply(conn, [FeatureView("short_1m", "1 minute", {"x": bar.vol})])
    refresh_all(conn)
    assert state_of(conn, "short_1m") == [(1, "live", True), (2, "waiting", False)]
    (error,) = conn.execute(
        "SELECT error FROM feature_platform.feature_view WHERE version = 2"
    ).fetchone() or ("",)
    assert "other objects depend on it" in error
    conn.execute("DROP VIEW mine")
    retry_soon(conn)
    refresh_all(conn)
    assert state_of(conn, "short_1m") == [(2, "live", True)]
    assert check_views(conn) == 20
    granted = conn.execute("SELECT has_table_privilege('public', 'short_1m', 'SELECT')")
    assert granted.fetchone() == (True,)


def test_a_view_that_fails_stops_only_itself(conn: psycopg.Connection) -> None:
    conn.execute("""
        CREATE FUNCTION public.add_or_fail(double precision, double precision)
            RETURNS double precision IMMUTABLE LANGUAGE plpgsql AS $$
        BEGIN
            IF $2 > 100 THEN RAISE EXCEPTION 'too much'; END IF;
            RETURN coalesce($1, 0) + $2;
        END $$;
        CREATE AGGREGATE public.careful_sum(double precision) (
            SFUNC = public.add_or_fail, STYPE = double precision)
    """)
    careful = FeatureView(
        "careful", "1 minute", {"x": aggregate("public.careful_sum", bar.vol, "3 minutes")}
    )
    add_bars(conn, DAY_1, 30)
    catalog.apply(conn, [careful, SHORT])
    refresh_all(conn)
    assert check_views(conn) == 60
    correct(conn, 10)
    refresh_all(conn)
    assert state_of(conn, "careful") == [(1, "failed", True)]
    (status,) = catalog.versions_of(conn, "careful")
    assert status.error == "too much"
    stored = conn.execute("SELECT count(*) FROM short_1m WHERE mean_5m > 20").fetchone()
    assert stored == (5,)
    conn.execute("UPDATE ohlcv_1m SET vol = 1 WHERE vol > 100")
    (plan,) = catalog.apply(conn, [careful])
    assert plan.action == "restarted"
    refresh_all(conn)
    assert check_views(conn) == 60


@pytest.mark.parametrize(
    ("name", "complaint"),
    [
        ("public.no_such", "aggregate public.no_such does not exist"),
        ("pg_catalog.bit_and", "aggregate pg_catalog.bit_and does not exist"),
        ("pg_catalog.array_agg", "aggregate pg_catalog.array_agg does not"),
        ("percentile_cont", "aggregate pg_catalog.percentile_cont does not exist"),
        ("public.noisy", "aggregate public.noisy is not immutable"),
    ],
)
def test_an_aggregate_that_must_not_be_used_is_rejected(
    conn: psycopg.Connection, name: str, complaint: str
) -> None:
    conn.execute("""
        CREATE FUNCTION public.add_noise(double precision, double precision)
            RETURNS double precision VOLATILE LANGUAGE sql AS 'SELECT $1 + $2 * random()';
        CREATE AGGREGATE public.noisy(double precision) (
            SFUNC = public.add_noise, STYPE = double precision, INITCOND = 0)
    """)
    bad = FeatureView("bad", "1 minute", {"x": aggregate(name, bar.vol, "3 minutes")})
    with pytest.raises(UserError, match=f"bad\\.x: {complaint}"):
        catalog.apply(conn, [SHORT, bad])
    assert catalog.list_views(conn) == []


def test_a_name_that_is_taken_is_rejected(conn: psycopg.Connection) -> None:
    conn.execute("CREATE TABLE public.mine (x integer)")
    with pytest.raises(UserError, match=r"public\.mine exists and is not a feature view"):
        catalog.apply(conn, [FeatureView("mine", "1 minute", {"x": bar.vol})])
    with pytest.raises(UserError, match="there is no feature view 'shortt_1m'"):
        catalog.drop(conn, "shortt_1m")


def test_a_candle_appears_when_its_bucket_has_closed(conn: psycopg.Connection) -> None:
    """And a late bar rewrites the one bucket that it touches."""
    day = FeatureView("candles_1d", "1 day", {"close": bar.close, "n": bar.n}, offset="16 hours")
    start = ago(3 * 1440)
    add_bars(conn, start, 3 * 1440 - 1, ("A", "B"))
    catalog.apply(conn, [CANDLES, day])
    refresh_all(conn)
    check_views(conn)
    newest = "SELECT max(bucket) + interval '1 hour' <= now() FROM candles_1h"
    assert conn.execute(newest).fetchone() == (True,)
    hours = "SELECT DISTINCT extract(hour FROM bucket AT TIME ZONE 'UTC') FROM candles_1d"
    assert conn.execute(hours).fetchall() == [(16,)]
    conn.execute(
        "UPDATE ohlcv_1m SET close = 11.5 WHERE symbol = 'A' AND ts = %s", [start + 59 * MINUTE]
    )
    take_marks(conn)
    written = conn.execute(
        "SELECT v.name, s.rows_written FROM feature_platform.feature_view v, LATERAL "
        "feature_platform.view_slice(v.id, '-infinity',"
        " feature_platform.view_due(v.every, v.origin)) AS s ORDER BY 1"
    ).fetchall()
    assert [name for name, _ in written] == ["candles_1d", "candles_1h"]
    assert all(rows <= 1 for _, rows in written)
    check_views(conn)


def test_a_change_reaches_across_a_gap_of_any_length(conn: psycopg.Connection) -> None:
    view = FeatureView(
        "lags_1m",
        "1 minute",
        {"previous": lag(bar.close), "third": mean(lag(bar.vol, 3), "5 minutes")},
    )
    add_bars(conn, DAY_1, 5)
    add_bars(conn, DAY_1 + timedelta(days=40), 5)
    catalog.apply(conn, [view])
    refresh_all(conn)
    conn.execute("UPDATE ohlcv_1m SET close = 11.9, vol = 77 WHERE ts = %s", [minute(4)])
    refresh_all(conn)
    assert check_views(conn) == 10
    first = "SELECT previous FROM lags_1m WHERE bucket = %s"
    assert conn.execute(first, [DAY_1 + timedelta(days=40)]).fetchone() == (11.9,)


def test_a_negative_zero_is_a_zero(conn: psycopg.Connection) -> None:
    view = FeatureView(
        "zeros", "1 minute", {"x": (bar.open - 10) * -1, "y": where(bar.vol > 0, -0.0, 1) * 5}
    )
    add_bars(conn, DAY_1, 5)
    catalog.apply(conn, [view])
    refresh_all(conn)
    assert check_views(conn) == 5
    assert conn.execute("SELECT DISTINCT x::text, y::text FROM zeros").fetchall() == [("0", "0")]


def test_retention_keeps_the_longest_look_back_of_all_views(conn: psycopg.Connection) -> None:
    long = FeatureView(
        "long_1m",
        "1 minute",
        {"z": zscore(RETURN, "3 days"), "old": lag(bar.close, "4 days"), "lag": lag(bar.close, 7)},
    )
    days = 9
    add_bars(conn, ago(days * 1440), days * 1440 - 1, ("A", "B"))
    conn.execute(
        "DELETE FROM ohlcv_1m WHERE symbol = 'B' AND ts > %s AND ts < %s", (ago(6000), ago(2000))
    )
    catalog.apply(conn, [long, SHORT, CANDLES])
    refresh_all(conn)
    before = rows_of(conn, "z, old, lag", "long_1m")
    conn.execute("SELECT set_features_1m_retention(bars => '2 days', features => '1 day')")
    conn.execute("CALL feature_platform.apply_retention()")
    refresh_all(conn)
    assert check_views(conn) > 2 * 1440
    kept = rows_of(conn, "z, old, lag", "long_1m")
    assert set(kept) <= set(before)
    oldest = conn.execute("SELECT min(ts) FROM ohlcv_1m WHERE symbol = 'A'").fetchone()
    assert oldest is not None
    assert ago(days * 1440) < oldest[0] < ago(5 * 1440 - 2)
    # The next bucket reads inner values that retention left.
    add_bars(conn, ago(1), 1, ("A", "B"))
    conn.execute("UPDATE ohlcv_1m SET vol = vol + 1 WHERE ts = %s", [ago(1400)])
    refresh_all(conn)
    check_views(conn)


@pytest.mark.parametrize("engine", ["postgres"], indirect=True)
def test_retention_looks_once_for_the_bars_that_all_views_need(conn: psycopg.Connection) -> None:
    add_bars(conn, ago(3000), 2999, ("A", "B"))
    views = [replace(SHORT, name=f"short_{number}") for number in range(4)]
    catalog.apply(conn, [*views, CANDLES])
    refresh_all(conn)
    conn.execute("SELECT set_features_1m_retention(features => '1 day')")  # all bars are kept
    conn.execute("SET track_functions = 'all'")
    conn.execute("SELECT feature_platform.retention_step()")
    conn.execute("SELECT pg_stat_force_next_flush()")
    calls = conn.execute(
        "SELECT calls FROM pg_stat_user_functions WHERE funcname = 'views_need_from'"
    ).fetchone()
    assert calls == (2,)  # symbols
    assert conn.execute("SELECT min(bucket) FROM short_3").fetchone() == (ago(1440),)
    check_views(conn)


def test_a_deleted_bar_deletes_no_bucket_after_a_retention_within_a_bucket(
    conn: psycopg.Connection,
) -> None:
    """Of most of these rows, only the column of a day has to be computed again."""
    view = FeatureView(
        "hours", "1 hour", {"near": mean(bar.vol, "2 hours"), "far": mean(bar.vol, "24 hours")}
    )
    add_bars(conn, DAY_1, 3 * 1440)
    catalog.apply(conn, [view])
    refresh_all(conn)
    conn.execute("UPDATE feature_platform.retention SET features_from = %s", [minute(1440 + 17)])
    conn.execute("DELETE FROM ohlcv_1m WHERE ts = %s", [minute(1435)])
    refresh_all(conn)
    assert check_views(conn) == 47


def test_no_bucket_continues_a_state_of_before_the_retention(conn: psycopg.Connection) -> None:
    add_bars(conn, DAY_1, 600)
    catalog.apply(conn, [SHORT])
    refresh_all(conn)
    conn.execute("UPDATE feature_platform.retention SET features_from = %s", [minute(600)])
    correct(conn, 599)
    refresh_all(conn)
    add_bars(conn, minute(600), 1)
    refresh_all(conn)
    assert check_views(conn) == 1


def test_no_bucket_continues_a_state_whose_inner_values_the_retention_deleted(
    conn: psycopg.Connection,
) -> None:
    move = "UPDATE feature_platform.retention SET features_from = %s"
    add_bars(conn, DAY_1, 600)
    catalog.apply(conn, [SHORT])
    refresh_all(conn)
    conn.execute(move, [minute(700)])
    conn.execute("SELECT feature_platform.delete_old_view_rows(%s, 100000)", [minute(700)])
    # A longer retention whose mark no refresh has processed yet.
    conn.execute(move, ["-infinity"])
    add_bars(conn, minute(600), 1)
    refresh_all(conn)
    newest = "SELECT * FROM short_1m WHERE bucket = %s"
    stepped = conn.execute(newest, [minute(600)]).fetchone()
    assert stepped is not None
    conn.execute("SELECT feature_platform.mark_window('-infinity', 'infinity')")
    refresh_all(conn)
    assert check_views(conn) == 601
    assert conn.execute(newest, [minute(600)]).fetchone() == stepped


def test_forget_deletes_the_rows_of_a_symbol_from_all_views(conn: psycopg.Connection) -> None:
    add_bars(conn, DAY_1, 60, ("A", "B"))
    catalog.apply(conn, [SHORT, CANDLES])
    refresh_all(conn)
    conn.execute("SELECT feature_platform.forget_symbol('A')")
    refresh_all(conn)
    assert conn.execute("SELECT DISTINCT symbol FROM short_1m").fetchall() == [("B",)]
    assert check_views(conn) == 61


def test_truncate_and_force_reach_all_views(conn: psycopg.Connection) -> None:
    add_bars(conn, DAY_1, 60)
    catalog.apply(conn, [SHORT])
    refresh_all(conn)
    conn.execute("UPDATE short_1m SET mean_5m = 1")
    conn.execute("CALL refresh_features_1m(NULL, NULL, true)")
    refresh_all(conn)
    assert check_views(conn) == 60
    conn.execute("TRUNCATE ohlcv_1m")
    refresh_all(conn)
    assert conn.execute("SELECT count(*) FROM short_1m").fetchone() == (0,)


def test_a_bucket_that_appears_inside_a_window_of_lags_is_counted(
    conn: psycopg.Connection,
) -> None:
    """The value of the lag at that bucket does not depend on its bar, but exists only with it."""
    view = FeatureView("lags_1m", "1 minute", {"x": mean(lag(bar.vol, "5 minutes"), "4 minutes")})
    add_bars(conn, DAY_1, 40)
    conn.execute("DELETE FROM ohlcv_1m WHERE ts = %s", [minute(20)])
    catalog.apply(conn, [view])
    refresh_all(conn)
    add_bars(conn, minute(20), 1)
    refresh_all(conn)
    assert check_views(conn) == 40
    conn.execute("DELETE FROM ohlcv_1m WHERE ts = %s", [minute(30)])
    refresh_all(conn)
    assert check_views(conn) == 39


def test_candles_of_a_symbol_with_an_open_bucket_are_built_to_the_end(
    conn: psycopg.Connection,
) -> None:
    add_bars(conn, ago(3000), 3000, ("A", "B"))
    catalog.apply(conn, [CANDLES])
    take_marks(conn)
    slice_of = """
        SELECT s.rows_written, s.more FROM feature_platform.feature_view v, LATERAL
            feature_platform.view_slice(v.id, '-infinity',
                feature_platform.view_due(v.every, v.origin), slice_rows => 400) AS s
    """
    slices = 0
    while (done := conn.execute(slice_of).fetchone()) != (0, False):
        slices += 1
        assert slices < 100, done
    assert check_views(conn) >= 2 * 49


TWO_SPANS = FeatureView(
    "two_spans_1m",
    "1 minute",
    {"near": mean(bar.vol, "5 minutes"), "far": mean(RETURN, "400 minutes"), "vol": bar.vol},
)


def two_spans(conn: psycopg.Connection) -> str:
    """Build TWO_SPANS of minutes 0 to 999 without 600 to 609; return the prefix of its tables."""
    add_bars(conn, DAY_1, 600)
    add_bars(conn, minute(610), 390)
    catalog.apply(conn, [TWO_SPANS])
    refresh_all(conn)
    row = conn.execute("SELECT 'feature_views.v' || id FROM feature_platform.feature_view")
    return str((row.fetchone() or ("",))[0])


def change_close(conn: psycopg.Connection, number: int) -> None:
    statement = "UPDATE ohlcv_1m SET close = close + 0.001 WHERE symbol = 'A' AND ts = %s"
    assert conn.execute(statement, [minute(number)]).rowcount == 1


def slice_of_two_spans(conn: psycopg.Connection, rows: int) -> None:
    statement = (
        "SELECT feature_platform.view_slice(id, '-infinity', '2027-01-01', slice_rows => %s)"
        " FROM feature_platform.feature_view"
    )
    conn.execute(statement, [rows])


def test_beyond_a_short_span_a_correction_computes_only_long_columns(
    conn: psycopg.Connection,
) -> None:
    prefix = two_spans(conn)
    spoil = f"UPDATE {prefix}_rows SET near = -near WHERE bucket = %s"  # noqa: S608
    for number in (402, 405, 500):
        conn.execute(spoil.encode(), [minute(number)])
    change_close(conn, 400)
    refresh_all(conn)
    left = conn.execute("SELECT bucket FROM two_spans_1m WHERE near < 0 ORDER BY bucket")
    assert left.fetchall() == [(minute(405),), (minute(500),)]
    for number in (405, 500):
        conn.execute(spoil.encode(), [minute(number)])
    assert check_views(conn) == 990
    states = conn.execute(f"SELECT count(*) FROM {prefix}_state".encode())  # noqa: S608
    assert states.fetchone() == (7,)


def test_a_change_of_pending_long_columns_computes_all_that_it_reaches(
    conn: psycopg.Connection,
) -> None:
    two_spans(conn)
    change_close(conn, 300)
    take_marks(conn)
    slice_of_two_spans(conn, 50)
    left = conn.execute("SELECT long_only, dirty FROM feature_platform.view_symbol").fetchone()
    assert left is not None
    long_only, dirty = left
    assert long_only[-1].lower == minute(305)
    assert dirty[-1] == type(dirty[-1])(minute(300), long_only[-1].upper)
    correct(conn, 500)
    take_marks(conn)
    slice_of_two_spans(conn, 50)
    refresh_all(conn)
    assert check_views(conn) == 990


def test_a_bar_beside_pending_long_columns_has_no_part_of_a_row(conn: psycopg.Connection) -> None:
    """The reach of the correction covers a gap; bars that fill it have no processed mark yet."""
    two_spans(conn)
    change_close(conn, 400)
    take_marks(conn)
    add_bars(conn, minute(600), 10)
    slice_of_two_spans(conn, 100_000)
    rows = "SELECT count(*) FROM two_spans_1m WHERE bucket >= %s AND bucket < %s"
    assert conn.execute(rows, [minute(600), minute(610)]).fetchone() == (0,)
    refresh_all(conn)
    assert check_views(conn) == 1000


def test_a_build_from_pending_long_columns_computes_all(conn: psycopg.Connection) -> None:
    prefix = two_spans(conn)
    change_close(conn, 300)
    take_marks(conn)
    slice_of_two_spans(conn, 50)
    conn.execute(f"DELETE FROM {prefix}_rows".encode())  # noqa: S608
    conn.execute("SELECT feature_platform.begin_view_build(id) FROM feature_platform.feature_view")
    refresh_all(conn)
    assert check_views(conn) == 990
