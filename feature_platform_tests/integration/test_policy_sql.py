"""Guards against a policy that refreshes wrong rows, in a wrong order, or shows a wrong state."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime, timedelta

import psycopg
import pytest
from psycopg.rows import dict_row
from psycopg.sql import SQL

from feature_platform_tests.fix_database import Databases
from feature_platform_tests.fix_engine import Bench
from feature_platform_tests.fix_processes import wait_until
from feature_platform_tests.histories import bar, write

MINUTE = timedelta(minutes=1)


@pytest.fixture
def policy(bench: Bench) -> Iterator[Bench]:
    """Yield an empty database with the policy that a first set-up adds."""
    bench.empty()
    bench.conn.execute("SELECT remove_features_1m_policy(if_exists => true)")
    bench.conn.execute("SELECT add_features_1m_policy()")
    yield bench
    bench.conn.execute("SELECT remove_features_1m_policy(if_exists => true)")


def status(conn: psycopg.Connection) -> dict[str, object] | None:
    """Return the policy's state; None if there is no policy."""
    with conn.cursor(row_factory=dict_row) as cursor:
        return cursor.execute("SELECT * FROM feature_platform.policy_status").fetchone()


def write_bars_until_now(conn: psycopg.Connection, age: str, symbol: str = "A") -> datetime:
    """Write a bar for each minute from `age` ago to the open minute; return the open minute."""
    row = conn.execute(
        """INSERT INTO ohlcv_1m (symbol, ts, open, high, low, close, vol)
           SELECT %s, ts, 10, 11, 9, 10, 1 + extract(minute FROM ts)
           FROM (SELECT feature_platform.bucket_of(feature_platform.clock()) AS minute) AS open,
                generate_series(minute - %s::interval, minute, '1 minute') AS ts
           RETURNING ts""",
        (symbol, age),
    ).fetchall()
    newest: datetime = max(ts for (ts,) in row)
    return newest


def buckets(conn: psycopg.Connection) -> list[datetime]:
    return [ts for (ts,) in conn.execute("SELECT bucket FROM features_1m ORDER BY bucket")]


def run(conn: psycopg.Connection, most: int = 1000) -> int:
    """Run the policy as the worker does, and return the run's id."""
    row = conn.execute("SELECT feature_platform.policy_begin('worker')").fetchone()
    assert row is not None
    run_id: int = row[0]
    horizon = conn.execute("SELECT feature_platform.dirty_horizon()").fetchone()
    assert horizon is not None
    for _ in range(most):
        more = conn.execute(
            "SELECT feature_platform.policy_step(%s, %s)", (run_id, horizon[0])
        ).fetchone()
        if more == (False,):
            break
    conn.execute("SELECT feature_platform.policy_end(%s)", [run_id])
    return run_id


def test_a_first_set_up_adds_the_default_policy(databases: Databases) -> None:
    with databases.fresh() as url, psycopg.connect(url, autocommit=True) as conn:
        found = status(conn)
    assert found is not None
    assert found["start_offset"] == 60 * MINUTE
    assert found["end_offset"] == MINUTE
    assert found["schedule_interval"] == MINUTE
    assert found["running"] is False
    assert found["rows_dirty"] == 0
    assert found["last_error"] is None


def test_a_second_policy_is_rejected_or_ignored_by_option(policy: Bench) -> None:
    with pytest.raises(psycopg.errors.RaiseException, match="has a refresh policy already"):
        policy.conn.execute("SELECT add_features_1m_policy('2 hours')")
    policy.conn.execute("SELECT add_features_1m_policy('2 hours', if_not_exists => true)")
    found = status(policy.conn)
    assert found is not None
    assert found["start_offset"] == 60 * MINUTE


def test_alter_changes_only_the_given_parts(policy: Bench) -> None:
    policy.conn.execute("SELECT alter_features_1m_policy(end_offset => '5 minutes')")
    policy.conn.execute("SELECT alter_features_1m_policy(schedule_interval => '30 seconds')")
    found = status(policy.conn)
    assert found is not None
    assert found["start_offset"] == 60 * MINUTE
    assert found["end_offset"] == 5 * MINUTE
    assert found["schedule_interval"] == MINUTE / 2


def test_a_removed_policy_refreshes_no_row(policy: Bench) -> None:
    policy.conn.execute("SELECT remove_features_1m_policy()")
    assert status(policy.conn) is None
    with pytest.raises(psycopg.errors.RaiseException, match="has no refresh policy"):
        policy.conn.execute("SELECT remove_features_1m_policy()")
    policy.conn.execute("SELECT remove_features_1m_policy(if_exists => true)")
    with pytest.raises(psycopg.errors.RaiseException, match="has no refresh policy"):
        policy.conn.execute("SELECT alter_features_1m_policy('2 hours')")
    write_bars_until_now(policy.conn, "5 minutes")
    run(policy.conn)
    assert not buckets(policy.conn)


@pytest.mark.parametrize(
    ("offsets", "message"),
    [
        (("1 minute", "1 minute", "1 minute"), "less than start_offset"),
        (("1 hour", "2 hours", "1 minute"), "less than start_offset"),
        (("1 hour", "-1 minute", "1 minute"), "at least 0"),
        (("1 hour", "1 minute", "0"), "at least 1 second"),
        (("1 hour", "1 minute", "999 milliseconds"), "at least 1 second"),
        ((None, "1 minute", "1 minute"), "none may be NULL"),
        (("1 hour", None, "1 minute"), "none may be NULL"),
        (("1 hour", "1 minute", None), "none may be NULL"),
    ],
)
def test_a_policy_with_impossible_offsets_is_rejected(
    policy: Bench, offsets: tuple[str | None, ...], message: str
) -> None:
    policy.conn.execute("SELECT remove_features_1m_policy()")
    with pytest.raises(psycopg.errors.RaiseException, match=message):
        policy.conn.execute("SELECT add_features_1m_policy(%s, %s, %s)", offsets)
    assert status(policy.conn) is None
    if None in offsets:
        return  # NULL in alter means unchanged
    policy.conn.execute("SELECT add_features_1m_policy()")
    with pytest.raises(psycopg.errors.RaiseException, match=message):
        policy.conn.execute("SELECT alter_features_1m_policy(%s, %s, %s)", offsets)
    found = status(policy.conn)
    assert found is not None
    assert found["start_offset"] == 60 * MINUTE


@pytest.mark.parametrize(
    "offsets",
    [
        ("1 hour", "1 minute"),
        ("1 hour", "0"),
        ("30 seconds", "0"),
        ("59 seconds", "10 seconds"),
        ("2 minutes", "90 seconds"),
        ("1 day", "10 minutes"),
        ("1 day", "10 minutes 30 seconds"),
    ],
)
def test_a_row_is_due_when_its_bucket_is_as_old_as_the_end_offset(
    policy: Bench, offsets: tuple[str, str]
) -> None:
    policy.conn.execute("SELECT alter_features_1m_policy(%s, %s)", offsets)
    # The test's clock stands still during a transaction.
    for second in (0, 1, 29, 31, 59):
        with policy.conn.transaction(force_rollback=True):
            policy.conn.execute(
                SQL(
                    "CREATE OR REPLACE FUNCTION feature_platform.clock() RETURNS timestamptz"
                    " LANGUAGE sql VOLATILE PARALLEL SAFE"
                    " RETURN date_trunc('minute', now()) + make_interval(secs => {})"
                ).format(second + 0.25)
            )
            open_minute = write_bars_until_now(policy.conn, "20 minutes")
            run(policy.conn)
            row = policy.conn.execute(
                "SELECT feature_platform.clock() - greatest(%s::interval, '1 minute')",
                [offsets[1]],
            ).fetchone()
            assert row is not None
            due = [open_minute - m * MINUTE for m in range(20, -1, -1)]
            assert buckets(policy.conn) == [bucket for bucket in due if bucket <= row[0]], second


def test_the_live_window_is_refreshed_before_older_rows(policy: Bench) -> None:
    newest = write_bars_until_now(policy.conn, "3 days")
    run(policy.conn, most=1)
    assert buckets(policy.conn)[0] >= newest - 61 * MINUTE
    assert buckets(policy.conn)[-1] >= newest - 2 * MINUTE
    run(policy.conn)
    assert len(buckets(policy.conn)) in (3 * 1440, 3 * 1440 + 1)


def test_rows_of_any_age_are_repaired(policy: Bench) -> None:
    write(policy.conn, [bar("A", m) for m in range(5)])
    run(policy.conn)
    policy.check()
    policy.conn.execute("UPDATE ohlcv_1m SET vol = 5")
    run(policy.conn)
    policy.check()


def test_a_live_minute_during_a_long_run_is_refreshed_next(policy: Bench) -> None:
    for symbol in "ABCDE":
        write(policy.conn, (bar(symbol, m) for m in range(100)))
    begun = policy.conn.execute(
        "SELECT feature_platform.policy_begin('worker'), feature_platform.dirty_horizon()"
    ).fetchone()
    step = "SELECT feature_platform.policy_step(%s, %s)"
    newest = write_bars_until_now(policy.conn, "5 minutes", symbol="Z")
    assert policy.conn.execute(step, begun).fetchone() == (True,)
    assert min(buckets(policy.conn)) >= newest - 6 * MINUTE


def test_the_view_shows_the_result_of_a_run(policy: Bench) -> None:
    write(policy.conn, [bar("A", m) for m in range(5)])
    before = status(policy.conn)
    assert before is not None
    assert before["rows_dirty"] == 5
    assert isinstance(before["oldest_dirty_age"], timedelta)
    assert before["oldest_dirty_age"] > timedelta(0)
    assert before["last_start"] is None
    run(policy.conn)
    after = status(policy.conn)
    assert after is not None
    assert after["rows_dirty"] == 0
    assert after["oldest_dirty_age"] is None
    assert after["last_runner"] == "worker"
    assert after["last_rows_written"] == 5
    assert after["last_slices"] in (1, 2)  # the live window may have no row
    assert after["running"] is False
    assert after["last_error"] is None
    assert isinstance(after["last_duration"], timedelta)
    assert timedelta(0) < after["last_duration"] < MINUTE


def test_the_view_shows_a_run_in_progress_and_an_interrupted_one(policy: Bench) -> None:
    with psycopg.connect(policy.url, autocommit=True) as worker:
        # The claim ends with its session.
        worker.execute("SELECT feature_platform.claim_runner('worker')")
        worker.execute("SELECT feature_platform.policy_begin('worker')")
        found = status(policy.conn)
        assert found is not None
        assert found["running"] is True
        died = found["last_start"]
    wait_until(lambda: (status(policy.conn) or {})["running"] is False, "the run is over")
    run(policy.conn)
    found = status(policy.conn)
    assert found is not None
    assert found["running"] is False
    assert found["last_error"] == "the run was interrupted"
    assert found["last_error_at"] == died


def test_the_view_shows_the_last_error_after_a_later_run(policy: Bench) -> None:
    policy.conn.execute(
        "SELECT feature_platform.policy_end(feature_platform.policy_begin('worker'), 'disk full')"
    )
    run(policy.conn)
    found = status(policy.conn)
    assert found is not None
    assert found["last_error"] == "disk full"


def test_a_step_rejects_repeatable_read(policy: Bench) -> None:
    policy.conn.execute("SET default_transaction_isolation = 'repeatable read'")
    with pytest.raises(psycopg.errors.RaiseException, match="needs READ COMMITTED"):
        policy.conn.execute("SELECT feature_platform.policy_step(1, 0)")
    policy.conn.execute("RESET default_transaction_isolation")
