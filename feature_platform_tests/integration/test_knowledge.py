"""Guards against versions of rows that differ from what a reader saw."""

from __future__ import annotations

import random
import threading
from collections.abc import Callable
from typing import Any

import psycopg

from feature_platform_tests.fix_engine import Bench, in_threads
from feature_platform_tests.histories import bar, write
from feature_platform_tests.integration.test_refresh_concurrency import DAY, refresher, writer

Seen = tuple[str, int, list[Any]]

# The number and the rows of one symbol, as a reader sees them in one statement.
_SEEN = """
    SELECT %(symbol)s, feature_platform.number_of(%(symbol)s),
           (SELECT array_agg(f::text ORDER BY f.bucket)
            FROM (SELECT bucket, last_close, vol, log_return, n_1d, ma_vol_1d, volume_z, vwap_gap,
                         refresh_no
                  FROM features_1m WHERE symbol = %(symbol)s) AS f)
"""
_AS_OF = """
    SELECT array_agg(f::text ORDER BY f.bucket)
    FROM (SELECT bucket, last_close, vol, log_return, n_1d, ma_vol_1d, volume_z, vwap_gap, since
          FROM feature_platform.features_1m_versions
          WHERE symbol = %(symbol)s AND since <= %(no)s AND (until IS NULL OR until > %(no)s)) AS f
"""
_AT = """
    SELECT v.vol
    FROM feature_platform.known_at(%(moment)s) AS k, feature_platform.features_1m_versions v
    WHERE v.symbol = 'A' AND v.since <= k.upto AND v.since <> ALL (k.late)
      AND (v.until IS NULL OR v.until > k.upto OR v.until = ANY (k.late))
    ORDER BY v.bucket
"""


def reader(
    seed: int, done: threading.Event, seen: list[Seen]
) -> Callable[[psycopg.Connection], None]:
    """Return a job that remembers what it sees until `done` is set."""
    rng = random.Random(seed)

    def job(conn: psycopg.Connection) -> None:
        while not done.is_set():
            row = conn.execute(_SEEN, {"symbol": rng.choice("ABC")}).fetchone()
            assert row is not None
            seen.append(row)

    return job


def test_rows_as_of_a_number_are_what_a_reader_saw(bench: Bench) -> None:
    bench.empty()
    done = threading.Event()
    seen: list[Seen] = []

    def writers(_: psycopg.Connection) -> None:
        try:
            in_threads(bench.url, *(writer(70 + i, 150) for i in range(2)))
        finally:
            done.set()

    refreshers = (refresher(i, done) for i in range(2))
    readers = (reader(i, done, seen) for i in range(2))
    in_threads(bench.url, writers, *refreshers, *readers)
    bench.refresh()
    bench.check()
    assert len(seen) > 100
    for symbol, number, rows in seen:
        of = {"symbol": symbol, "no": number}
        assert bench.conn.execute(_AS_OF, of).fetchone() == (rows,), (symbol, number)


def test_a_time_after_a_refresh_is_noted_gives_its_rows(bench: Bench) -> None:
    bench.empty()
    write(bench.conn, [bar("A", minute, 9, 1) for minute in range(DAY)])
    bench.refresh()
    before = bench.conn.execute("SELECT clock_timestamp()").fetchone() or ()
    write(bench.conn, [bar("A", 5, 9, 7)])
    bench.refresh()
    (after,) = bench.conn.execute("SELECT clock_timestamp()").fetchone() or (None,)
    values = [
        [row[0] for row in bench.conn.execute(_AT, {"moment": moment})]
        for moment in (*before, after)
    ]
    assert [row[5] for row in values] == [1, 7]
    assert [len(row) for row in values] == [DAY, DAY]
