"""Guards against minutes that are neither stored nor listed as a gap, after any writes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from typing import Any

import psycopg
import pytest
from hypothesis import HealthCheck, Phase, example, given, settings
from hypothesis import strategies as st

from feature_platform.gaps import Gap, State, due_gaps, find_gaps, list_gaps, note_answer
from feature_platform_tests.fix_database import Databases
from feature_platform_tests.fix_processes import account_for_all, insert_bars, run_on, value

MINUTE = timedelta(minutes=1)
SYMBOL = "BTC/USDT"

# The minutes without a bar or a gap, with two gaps, or with both a bar and a gap.
WRONG = """
    WITH minute AS (
        SELECT s.symbol, m.minute,
               EXISTS (SELECT FROM ohlcv_1m b
                        WHERE b.symbol = s.symbol AND b.ts >= m.minute
                          AND b.ts < m.minute + interval '1 minute') AS present,
               (SELECT count(*) FROM ohlcv_1m_gaps g
                 WHERE g.symbol = s.symbol AND g.state <> 'filled'
                   AND g.start_ts <= m.minute AND g.end_ts > m.minute) AS explained
          FROM (SELECT symbol, date_trunc('minute', min(ts)) AS first
                  FROM ohlcv_1m GROUP BY symbol) AS s
         CROSS JOIN LATERAL generate_series(s.first, %s::timestamptz - interval '1 minute',
                                            interval '1 minute') AS m (minute))
    SELECT count(*) FROM minute WHERE present = (explained > 0) OR explained > 1
"""

# The minutes behind the watermark, without a pending change, that have neither a bar nor exactly
# one gap. There must be none at any moment, also while transactions are open.
UNACCOUNTED = """
    WITH minute AS (
        SELECT EXISTS (SELECT FROM ohlcv_1m b
                        WHERE b.symbol = w.symbol AND b.ts >= m.minute
                          AND b.ts < m.minute + interval '1 minute') AS present,
               (SELECT count(*) FROM ohlcv_1m_gaps g
                 WHERE g.symbol = w.symbol AND g.state <> 'filled'
                   AND g.start_ts <= m.minute AND g.end_ts > m.minute) AS listed
          FROM feature_platform.gap_watermark w
         CROSS JOIN LATERAL generate_series(w.since_ts, w.until_ts - interval '1 minute',
                                            interval '1 minute') AS m (minute)
         WHERE NOT EXISTS (SELECT FROM feature_platform.changed_minutes c
                            WHERE c.symbol = w.symbol AND c.minutes @> m.minute))
    SELECT count(*) FROM minute WHERE present::integer + listed <> 1
      AND NOT EXISTS (SELECT FROM feature_platform.gap_beginning)
"""


@pytest.fixture
def now(conn: psycopg.Connection[Any]) -> datetime:
    """Return the end of the minutes that are old enough to be accounted for."""
    moment = value(
        conn, "SELECT feature_platform.bucket_of(feature_platform.clock() - interval '2 minutes')"
    )
    assert isinstance(moment, datetime)
    return moment.astimezone(UTC)


def gaps(connection: psycopg.Connection[Any], *states: State) -> list[tuple[State, datetime, int]]:
    """Return state, start and minutes of the gaps in these states, by default of all."""
    return [
        (gap.state, gap.start.astimezone(UTC), minutes(gap)) for gap in listed(connection, states)
    ]


def listed(connection: psycopg.Connection[Any], states: Sequence[State]) -> list[Gap]:
    return list_gaps(connection, states=list(states) or None)


def minutes(gap: Gap) -> int:
    return int((gap.end - gap.start) / MINUTE)


def cut(connection: psycopg.Connection[Any], start: datetime, count: int) -> None:
    connection.execute(
        "DELETE FROM ohlcv_1m WHERE symbol = %s AND ts >= %s AND ts < %s",
        (SYMBOL, start, start + count * MINUTE),
    )


def fail(connection: psycopg.Connection[Any], start: datetime, count: int, attempts: int) -> None:
    """Store a failed request for these minutes, with a limit of attempts."""
    connection.execute(
        "SELECT feature_platform.gap_failed(%s, %s, %s, 'HTTP 503', %s)",
        (SYMBOL, start, start + count * MINUTE, attempts),
    )


def test_without_bars_there_are_no_gaps(conn: psycopg.Connection[Any]) -> None:
    assert find_gaps(conn) == 0
    assert gaps(conn) == []


def test_missing_minutes_inside_and_at_the_end_are_found(
    conn: psycopg.Connection[Any], now: datetime
) -> None:
    first = now - 60 * MINUTE
    insert_bars(conn, SYMBOL, first, 50)  # the newest ten minutes are missing
    cut(conn, first + 20 * MINUTE, 5)
    assert find_gaps(conn) == 2
    assert gaps(conn)[0] == ("open", first + 20 * MINUTE, 5)
    state, start, count = gaps(conn)[1]
    assert (state, start) == ("open", first + 50 * MINUTE)
    assert count in (10, 11)  # a minute may have passed since
    assert value(conn, WRONG, now) == 0


def test_a_continuing_outage_is_one_gap(conn: psycopg.Connection[Any], now: datetime) -> None:
    insert_bars(conn, SYMBOL, now - 60 * MINUTE, 30)
    for grace in (40, 20, 2):
        conn.execute("SELECT feature_platform.find_gaps(%s * interval '1 minute')", (grace,))
    ((state, start, count),) = gaps(conn)
    assert (state, start) == ("open", now - 30 * MINUTE)
    assert count in (30, 31)


def test_a_deleted_bar_opens_a_gap(conn: psycopg.Connection[Any], now: datetime) -> None:
    insert_bars(conn, SYMBOL, now - 60 * MINUTE, 63)
    assert find_gaps(conn) == 0
    cut(conn, now - 30 * MINUTE, 2)
    assert find_gaps(conn) == 1
    assert gaps(conn) == [("open", now - 30 * MINUTE, 2)]


def test_a_later_bar_closes_only_its_minute(conn: psycopg.Connection[Any], now: datetime) -> None:
    insert_bars(conn, SYMBOL, now - 60 * MINUTE, 63)
    cut(conn, now - 30 * MINUTE, 5)
    find_gaps(conn)
    insert_bars(conn, SYMBOL, now - 28 * MINUTE, 1)
    assert find_gaps(conn) == 2
    assert sorted(gaps(conn), key=lambda gap: gap[1]) == [
        ("open", now - 30 * MINUTE, 2),
        ("filled", now - 28 * MINUTE, 1),
        ("open", now - 27 * MINUTE, 2),
    ]


@pytest.mark.parametrize("state", ["quiet", "unavailable"])
def test_an_explained_minute_is_not_requested_again_and_a_bar_closes_it(
    conn: psycopg.Connection[Any], now: datetime, state: State
) -> None:
    insert_bars(conn, SYMBOL, now - 60 * MINUTE, 63)
    missing = now - 30 * MINUTE
    cut(conn, missing, 3)
    find_gaps(conn)
    if state == "quiet":
        assert note_answer(conn, SYMBOL, missing, missing + 3 * MINUTE) == 3
    else:
        fail(conn, missing, 3, attempts=1)
    assert gaps(conn) == [(state, missing, 3)]
    assert due_gaps(conn, [SYMBOL]) == []
    assert find_gaps(conn) == 0
    insert_bars(conn, SYMBOL, missing, 3)
    find_gaps(conn)
    assert gaps(conn) == [("filled", missing, 3)]


def test_failed_requests_back_off_and_are_then_given_up(
    conn: psycopg.Connection[Any], now: datetime
) -> None:
    insert_bars(conn, SYMBOL, now - 60 * MINUTE, 63)
    missing = now - 30 * MINUTE
    cut(conn, missing, 3)
    find_gaps(conn)
    waits = []
    for attempt in range(1, 5):
        assert len(due_gaps(conn, [SYMBOL])) == 1
        fail(conn, missing, 3, attempts=5)
        (gap,) = listed(conn, ["open"])
        assert (gap.attempts, gap.last_error, due_gaps(conn, [SYMBOL])) == (attempt, "HTTP 503", [])
        assert gap.next_attempt_at is not None
        waits.append((gap.next_attempt_at - gap.changed_at) / MINUTE)
        conn.execute("UPDATE ohlcv_1m_gaps SET next_attempt_at = NULL")  # the gap is due
    for attempt, wait in enumerate(waits):
        assert 0.5 * 2**attempt <= wait + 0.01
        assert wait <= 1.5 * 2**attempt
    fail(conn, missing, 3, attempts=5)
    (gap,) = listed(conn, ["unavailable"])
    assert (gap.attempts, gap.last_error, gap.next_attempt_at) == (5, "HTTP 503", None)


def test_an_answer_for_the_newest_minutes_is_not_final(
    conn: psycopg.Connection[Any], now: datetime
) -> None:
    """Exchanges may still publish minutes that are younger than ten minutes."""
    insert_bars(conn, SYMBOL, now - 60 * MINUTE, 40)
    find_gaps(conn)
    note_answer(conn, SYMBOL, now - 20 * MINUTE, now)
    quiet, still_open = gaps(conn)
    assert quiet[:2] == ("quiet", now - 20 * MINUTE)
    assert still_open[:2] == ("open", now - 20 * MINUTE + quiet[2] * MINUTE)
    assert quiet[2] in (12, 13)
    assert due_gaps(conn, [SYMBOL]) == []  # requested again a little later


def test_an_empty_answer_does_not_count_as_a_failure(
    conn: psycopg.Connection[Any], now: datetime
) -> None:
    """A symbol that is quiet for hours is still requested, and its minutes are not given up."""
    insert_bars(conn, SYMBOL, now - 60 * MINUTE, 40)
    find_gaps(conn)
    for _ in range(12):
        note_answer(conn, SYMBOL, now - 20 * MINUTE, now)
    (gap,) = listed(conn, ["open"])
    assert gap.next_attempt_at is not None
    assert gap.next_attempt_at - gap.changed_at < 5 * MINUTE
    fail(conn, gap.start, minutes(gap), attempts=10)
    (gap,) = listed(conn, ["open"])
    assert (gap.attempts, gap.last_error) == (2, "HTTP 503")


def test_an_answer_for_a_part_explains_that_part(
    conn: psycopg.Connection[Any], now: datetime
) -> None:
    insert_bars(conn, SYMBOL, now - 60 * MINUTE, 63)
    missing = now - 30 * MINUTE
    cut(conn, missing, 10)
    find_gaps(conn)
    note_answer(conn, SYMBOL, missing + 4 * MINUTE, missing + 6 * MINUTE)
    assert gaps(conn) == [
        ("open", missing, 4),
        ("quiet", missing + 4 * MINUTE, 2),
        ("open", missing + 6 * MINUTE, 4),
    ]
    assert [gap.attempts for gap in listed(conn, ["open"])] == [0, 0]
    assert len(due_gaps(conn, [SYMBOL])) == 2  # no request has covered them


def test_older_history_is_accounted_for_from_its_first_bar(
    conn: psycopg.Connection[Any], now: datetime
) -> None:
    insert_bars(conn, SYMBOL, now - 60 * MINUTE, 63)
    assert find_gaps(conn) == 0
    insert_bars(conn, SYMBOL, now - 200 * MINUTE, 100)
    assert find_gaps(conn) == 1
    assert gaps(conn) == [("open", now - 100 * MINUTE, 40)]


def test_a_symbol_that_loses_all_bars_has_no_gaps(
    conn: psycopg.Connection[Any], now: datetime
) -> None:
    insert_bars(conn, SYMBOL, now - 60 * MINUTE, 30)
    assert find_gaps(conn) == 1
    conn.execute("DELETE FROM ohlcv_1m")
    assert find_gaps(conn) == 0
    assert gaps(conn) == []


def test_a_row_inside_a_minute_counts_for_the_minute(
    conn: psycopg.Connection[Any], now: datetime
) -> None:
    insert_bars(conn, SYMBOL, now - 10 * MINUTE, 13)
    conn.execute("UPDATE ohlcv_1m SET ts = ts + interval '20 seconds'")
    insert_bars(conn, SYMBOL, now - 10 * MINUTE, 5)
    assert find_gaps(conn) == 0


def test_a_long_new_history_is_accounted_for_in_parts(
    conn: psycopg.Connection[Any], now: datetime
) -> None:
    insert_bars(conn, SYMBOL, now - 600 * MINUTE, 1)
    found = []
    for _ in range(4):
        conn.execute("SELECT feature_platform.find_gaps('2 minutes', 200)")
        ((_, start, count),) = gaps(conn)
        assert start == now - 599 * MINUTE
        found.append(count)
    assert found[:2] == [199, 399]
    assert found[3] in (599, 600)


def test_the_audit_finds_a_bar_that_was_deleted_without_triggers(
    conn: psycopg.Connection[Any], now: datetime
) -> None:
    """A restore may delete a bar without the triggers."""
    insert_bars(conn, SYMBOL, now - 60 * MINUTE, 63)
    assert find_gaps(conn) == 0
    with conn.transaction():
        conn.execute("SET LOCAL session_replication_role = replica")
        cut(conn, now - 30 * MINUTE, 1)
    assert find_gaps(conn) == 0
    conn.execute("SELECT feature_platform.recheck_gaps()")
    assert find_gaps(conn) == 1
    assert gaps(conn) == [("open", now - 30 * MINUTE, 1)]


def test_two_searches_at_once_find_a_gap_once(
    conn: psycopg.Connection[Any], now: datetime, database: str
) -> None:
    insert_bars(conn, SYMBOL, now - 60 * MINUTE, 63)
    cut(conn, now - 30 * MINUTE, 2)
    with psycopg.connect(database) as one, psycopg.connect(database, autocommit=True) as other:
        find_gaps(one)  # in a transaction that is still open
        other.execute("SET lock_timeout = '100ms'")
        with pytest.raises(psycopg.errors.LockNotAvailable):
            find_gaps(other)
        one.commit()
        assert find_gaps(other) == 1
    assert gaps(conn) == [("open", now - 30 * MINUTE, 2)]


# ---- any history ----


@pytest.fixture(scope="module")
def shared_database(databases: Databases) -> Iterator[str]:
    with databases.fresh() as url:
        yield url


_SPAN = 120
_PLACE = st.integers(0, _SPAN - 1)
_LENGTH = st.integers(1, 20)
_STEPS = st.lists(
    st.tuples(
        st.sampled_from(
            [
                *["insert", "insert to the end", "cut", "answer", "fail", "give up", "look"],
                *["audit", "slow insert", "slow cut", "commit", "roll back"],
            ]
        ),
        _PLACE,
        _LENGTH,
    ),
    min_size=1,
    max_size=16,
)


@given(steps=_STEPS)
# A quiet range before the first bar; a change that commits after the watermark has passed it; an
# answer of the exchange while a bar is not committed yet.
@example([("answer", 40, 20), ("insert to the end", 50, 1)])
@example([("insert to the end", 0, 1), ("slow cut", 50, 2), ("look", 0, 1), ("commit", 0, 1)])
@example(
    [
        *[("insert to the end", 0, 1), ("cut", 50, 1), ("look", 0, 1), ("slow insert", 50, 1)],
        *[("answer", 40, 20), ("commit", 0, 1)],
    ]
)
@settings(
    phases=[Phase.explicit, Phase.generate, Phase.shrink],
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
def test_every_minute_is_stored_or_a_gap_after_any_steps(
    shared_database: str, steps: list[tuple[str, int, int]]
) -> None:
    """Run steps of a session and of one with an open transaction, in any order."""
    with (
        psycopg.connect(shared_database, autocommit=True) as conn,
        psycopg.connect(shared_database) as slow,
    ):
        conn.execute("TRUNCATE ohlcv_1m; SET lock_timeout = '20ms'")
        now = value(
            conn, "SELECT feature_platform.bucket_of(feature_platform.clock() - interval '2 min')"
        )
        begin = now - _SPAN * MINUTE
        for kind, place, length in steps:
            start = begin + place * MINUTE
            length = min(length, _SPAN - place)
            # A row that the slow session has locked cannot be written; the step then does nothing.
            with suppress(psycopg.errors.LockNotAvailable):
                step(conn, slow, kind, start, length, now)
            assert value(conn, UNACCOUNTED) == 0
        slow.commit()
        account_for_all(conn)
        assert value(conn, WRONG, now) == 0
        assert value(conn, UNACCOUNTED) == 0


def step(
    conn: psycopg.Connection[Any],
    slow: psycopg.Connection[Any],
    kind: str,
    start: datetime,
    length: int,
    now: datetime,
) -> None:
    """Run one step on the minutes from `start` on."""
    end = start + length * MINUTE
    match kind:
        case "insert" | "insert to the end":
            length = length if kind == "insert" else int((now - start) / MINUTE) + 3
            with conn.transaction():
                cut(conn, start, length)
                insert_bars(conn, SYMBOL, start, length)
        case "cut":
            cut(conn, start, length)
        case "slow insert":  # half-way through the minute, where no other row is
            with slow.transaction():
                for at in range(length):
                    ts = start + at * MINUTE + timedelta(seconds=30)
                    slow.execute(
                        "INSERT INTO ohlcv_1m (symbol, ts, open, high, low, close, vol)"
                        " VALUES (%s, %s, 1, 1, 1, 1, 1) ON CONFLICT DO NOTHING",
                        [SYMBOL, ts],
                    )
        case "slow cut":
            with slow.transaction():
                cut(slow, start, length)
        case "commit":
            slow.commit()
        case "roll back":
            slow.rollback()
        case "answer":
            note_answer(conn, SYMBOL, start, end)
        case "fail" | "give up":
            fail(conn, start, length, attempts=10 if kind == "fail" else 1)
        case "look":
            find_gaps(conn)
        case "audit":
            conn.execute("SELECT feature_platform.recheck_gaps()")


def test_an_unknown_symbol_is_an_error_with_the_nearest_name(
    database: str, conn: psycopg.Connection[Any], now: datetime
) -> None:
    insert_bars(conn, SYMBOL, now - 5 * MINUTE, 3)
    done = run_on(database, "gaps", "--symbol", "BTCUSDT")
    assert done.returncode == 2
    assert done.stderr == (
        "feature-platform: there are no bars of 'BTCUSDT' (did you mean 'BTC/USDT'?):"
        " `feature-platform status` lists the symbols\n"
    )
