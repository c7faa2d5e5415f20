"""Guards against minutes that are lost between a writer and a search for gaps at the same time."""

from __future__ import annotations

import random
import time
from contextlib import suppress
from datetime import timedelta
from functools import partial
from typing import Any

import psycopg
import pytest

from feature_platform.gaps import find_gaps, note_answer
from feature_platform_tests.fix_engine import in_threads
from feature_platform_tests.fix_processes import account_for_all, insert_bars, value
from feature_platform_tests.integration.test_gaps import (
    MINUTE,
    SYMBOL,
    UNACCOUNTED,
    WRONG,
    cut,
    gaps,
)

READ_COMMITTED = psycopg.IsolationLevel.READ_COMMITTED
REPEATABLE_READ = psycopg.IsolationLevel.REPEATABLE_READ
NOW = "SELECT feature_platform.bucket_of(feature_platform.clock() - interval '2 minutes')"
Conn = psycopg.Connection[Any]


@pytest.mark.parametrize("looked_before", [True, False], ids=["later tick", "very first tick"])
def test_a_delete_that_commits_behind_the_watermark_is_accounted_for(
    conn: Conn, database: str, *, looked_before: bool
) -> None:
    now = value(conn, NOW)
    if looked_before:
        find_gaps(conn)
    insert_bars(conn, SYMBOL, now - 60 * MINUTE, 63)
    with psycopg.connect(database) as writer:
        cut(writer, now - 30 * MINUTE, 1)
        find_gaps(conn)
        writer.commit()
    account_for_all(conn)
    assert gaps(conn, "open") == [("open", now - 30 * MINUTE, 1)]


def test_a_delete_by_an_older_snapshot_is_accounted_for(conn: Conn, database: str) -> None:
    """The snapshot of the transaction has no watermark yet."""
    now = value(conn, NOW)
    insert_bars(conn, SYMBOL, now - 60 * MINUTE, 63)
    with psycopg.connect(database) as writer:
        writer.isolation_level = REPEATABLE_READ
        writer.execute("SELECT 1 FROM ohlcv_1m LIMIT 1")
        find_gaps(conn)
        cut(writer, now - 30 * MINUTE, 1)
        writer.commit()
    find_gaps(conn)
    assert gaps(conn, "open") == [("open", now - 30 * MINUTE, 1)]


@pytest.mark.parametrize("level", [READ_COMMITTED, REPEATABLE_READ], ids=lambda level: level.name)
def test_a_bar_that_commits_after_an_empty_answer_closes_its_minute(
    conn: Conn, database: str, level: psycopg.IsolationLevel
) -> None:
    now = value(conn, NOW)
    insert_bars(conn, SYMBOL, now - 60 * MINUTE, 63)
    cut(conn, now - 30 * MINUTE, 1)
    find_gaps(conn)
    with psycopg.connect(database) as writer:
        writer.isolation_level = level
        insert_bars(writer, SYMBOL, now - 30 * MINUTE, 1)
        note_answer(conn, SYMBOL, now - 40 * MINUTE, now - 20 * MINUTE)
        assert gaps(conn) == [("quiet", now - 30 * MINUTE, 1)]
        writer.commit()
    find_gaps(conn)
    assert gaps(conn) == [("filled", now - 30 * MINUTE, 1)]


def test_a_bar_closes_the_quiet_minute_of_an_earlier_answer(conn: Conn) -> None:
    now = value(conn, NOW)
    note_answer(conn, SYMBOL, now - 40 * MINUTE, now - 20 * MINUTE)
    insert_bars(conn, SYMBOL, now - 21 * MINUTE, 24)
    find_gaps(conn)
    assert gaps(conn) == [
        ("quiet", now - 40 * MINUTE, 19),
        ("filled", now - 21 * MINUTE, 1),
    ]


def test_changes_are_recorded_only_after_the_first_accounting(conn: Conn) -> None:
    """Records would pile up if no process reads them."""
    now = value(conn, NOW)
    insert_bars(conn, SYMBOL, now - 60 * MINUTE, 63)
    assert value(conn, "SELECT count(*) FROM feature_platform.bar_change") == 0
    find_gaps(conn)
    insert_bars(conn, "ETH/USDT", now - 60 * MINUTE, 63)
    assert value(conn, "SELECT count(*) FROM feature_platform.bar_change") == 1
    find_gaps(conn)
    assert value(conn, "SELECT count(*) FROM feature_platform.bar_change") == 0


@pytest.mark.slow
def test_slow_writers_and_accountants_at_once_lose_no_minute(conn: Conn, database: str) -> None:
    """Writers with open transactions, rollbacks and old snapshots, against ticks and answers."""
    now, span, symbols = value(conn, NOW), 60, ["A", "B", "C"]
    begin = now - span * MINUTE
    for symbol in symbols[:2]:
        insert_bars(conn, symbol, begin, span)
    until = time.monotonic() + 6

    def write(number: int, writer: Conn) -> None:
        chance = random.Random(number)
        writer.autocommit = False
        writer.isolation_level = REPEATABLE_READ if number % 2 else READ_COMMITTED
        while time.monotonic() < until:
            with suppress(psycopg.errors.SerializationFailure, psycopg.errors.DeadlockDetected):
                for _ in range(chance.randint(1, 4)):
                    change(writer, chance)
                    time.sleep(chance.choice([0, 0.01, 0.05]))
                if chance.random() < 0.7:
                    writer.commit()
            writer.rollback()

    def change(writer: Conn, chance: random.Random) -> None:
        start = begin + chance.randrange(span) * MINUTE
        end = start + chance.randint(1, 6) * MINUTE
        if chance.random() < 0.5:
            writer.execute(
                "DELETE FROM ohlcv_1m WHERE symbol = %s AND ts >= %s AND ts < %s",
                [chance.choice(symbols), start, min(end, now)],
            )
        else:
            writer.execute(
                """
                INSERT INTO ohlcv_1m (symbol, ts, open, high, low, close, vol)
                SELECT %s, m, 1, 1, 1, 1, 1
                  FROM generate_series(%s::timestamptz, %s::timestamptz - interval '1 minute',
                                       interval '1 minute') AS m
                ON CONFLICT DO NOTHING
                """,
                [chance.choice(symbols), start, min(end, now)],
            )

    def account(number: int, accountant: Conn) -> None:
        chance = random.Random(number)
        while time.monotonic() < until:
            if chance.random() < 0.5:
                budget = chance.choice([7, 50, 200000])
                accountant.execute("SELECT feature_platform.find_gaps('2 min', %s)", [budget])
            elif chance.random() < 0.9:
                start = begin + chance.randrange(span) * MINUTE
                end = start + timedelta(minutes=20)
                note_answer(accountant, chance.choice(symbols), start, end)
            else:
                accountant.execute("SELECT feature_platform.recheck_gaps()")

    def watch(watcher: Conn) -> None:
        while time.monotonic() < until:
            assert value(watcher, UNACCOUNTED) == 0

    writers = [partial(write, number) for number in range(5)]
    in_threads(database, *writers, partial(account, 5), partial(account, 6), watch)
    account_for_all(conn)
    while value(conn, "SELECT feature_platform.minutes_to_account()"):
        find_gaps(conn)
    assert value(conn, WRONG, now) == 0
    assert value(conn, UNACCOUNTED) == 0
