"""Guards against wrong rows, repeated work and blocked sessions when several write and refresh."""

from __future__ import annotations

import random
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import psycopg
import pytest

from feature_platform_tests.fix_engine import (
    Bench,
    in_threads,
    read_features,
    refresh,
    waits_for_a_lock,
)
from feature_platform_tests.fix_processes import wait_until
from feature_platform_tests.histories import at, bar, copy, write

DAY = 1440


def writer(seed: int, commits: int) -> Callable[[psycopg.Connection], None]:
    """Return a job that writes as a recorder, a backfill and a clean-up do."""
    rng = random.Random(seed)

    def job(conn: psycopg.Connection) -> None:
        for i in range(commits):
            symbol = rng.choice("ABC")
            start = rng.choice([0, DAY, 2 * DAY]) + rng.randrange(30)
            volumes = [rng.choice([0.0, 1.0, 2.5, 1e12]) for _ in range(8)]
            bars = (
                bar(symbol, start + m + rng.choice([0, 0, 0, 0.5]), 9 + v % 3, v)
                for m, v in enumerate(volumes)
            )
            kind = rng.randrange(8)
            with conn.transaction(force_rollback=kind == 7):
                if kind == 0:
                    conn.execute(
                        "DELETE FROM ohlcv_1m WHERE symbol = %s AND ts >= %s AND ts < %s",
                        (symbol, at(start), at(start + 3)),
                    )
                elif kind == 1:
                    conn.execute(
                        "UPDATE ohlcv_1m SET vol = %s WHERE symbol = %s AND ts >= %s AND ts < %s",
                        (i, symbol, at(start), at(start + 9)),
                    )
                else:
                    write(conn, bars)

    return job


def refresher(seed: int, done: threading.Event) -> Callable[[psycopg.Connection], None]:
    """Return a job that refreshes random windows until `done` is set."""
    rng = random.Random(seed)

    def job(conn: psycopg.Connection) -> None:
        while not done.is_set():
            if rng.random() < 0.5:
                refresh(conn)
            elif rng.random() < 0.5:
                conn.execute(
                    "SELECT feature_platform.refresh_slice('-infinity', 'infinity',"
                    " feature_platform.dirty_horizon(), slice_rows => %s, slice_symbols => %s)",
                    (rng.choice([1, 10, 1000]), rng.choice([1, 2])),
                )
            else:
                lo = rng.randrange(2 * DAY)
                refresh(conn, at(lo), at(lo + rng.choice([5, DAY])), force=rng.random() < 0.3)

    return job


@pytest.mark.parametrize("seed", range(3))
def test_rows_are_exact_after_two_writers_and_two_refreshers(bench: Bench, seed: int) -> None:
    bench.empty()
    done = threading.Event()

    def writers(_: psycopg.Connection) -> None:
        try:
            in_threads(bench.url, *(writer(seed * 10 + i, 150) for i in range(2)))
        finally:
            done.set()

    in_threads(bench.url, writers, *(refresher(seed * 10 + i, done) for i in range(2)))
    bench.refresh()
    bench.check()
    bench.check_build()


SLICE = """
    SELECT symbols, rows_written, more
    FROM feature_platform.refresh_slice('-infinity', 'infinity', feature_platform.dirty_horizon())
"""


def slices(conn: psycopg.Connection) -> Iterator[tuple[int, int]]:
    """Refresh slice by slice, and yield the numbers of symbols and rows of each."""
    more = True
    while more:
        row = conn.execute(SLICE).fetchone()
        assert row is not None
        symbols, rows, more = row
        yield symbols, rows


@contextmanager
def another_refresher(bench: Bench) -> Iterator[tuple[list[tuple[int, int]], Callable[[], None]]]:
    """Yield the slices that another session takes, and a function that starts it.

    That function returns when the session waits for a lock. At the end the session is over.
    """
    taken: list[tuple[int, int]] = []
    with psycopg.connect(bench.url, autocommit=True) as waiter:
        thread = threading.Thread(target=lambda: taken.extend(slices(waiter)))

        def start() -> None:
            thread.start()
            wait_until(lambda: waits_for_a_lock(bench.holder, waiter), "it waits for a lock")

        yield taken, start
        thread.join()


def test_a_refresh_that_waited_does_not_repeat_the_work(bench: Bench) -> None:
    bench.empty()
    write(bench.conn, (bar(s, m) for s in "AB" for m in range(10)))
    with another_refresher(bench) as (taken, start), bench.conn.transaction():
        assert list(slices(bench.conn)) == [(2, 20)]
        start()
    assert sum(rows for _, rows in taken) == 0
    bench.check()


def test_other_symbols_are_refreshed_before_a_wait(bench: Bench) -> None:
    bench.empty()
    write(bench.conn, [bar("B", 0)])
    with another_refresher(bench) as (taken, start), bench.conn.transaction():
        assert list(slices(bench.conn)) == [(1, 1)]
        write(bench.holder, [bar(s, 1) for s in "ABC"])
        start()
        assert {symbol for symbol, _ in read_features(bench.holder)} == {"A", "C"}
        assert taken == [(2, 2)]
    assert sum(rows for _, rows in taken) == 3
    bench.check()


def test_a_slice_of_many_symbols_takes_few_locks(bench: Bench) -> None:
    bench.empty()
    symbols = 6000
    write(bench.conn, (bar(f"S{number}", 0) for number in range(symbols)))
    with bench.conn.transaction():
        taken = bench.conn.execute(
            """SELECT symbols FROM feature_platform.refresh_slice('-infinity', %s,
                          feature_platform.dirty_horizon(), slice_symbols => %s)""",
            (at(DAY), symbols),
        ).fetchone()
        locks = bench.conn.execute(
            """SELECT count(*) FROM pg_locks
               WHERE locktype <> 'relation' AND pid = pg_backend_pid()"""
        ).fetchone()
    assert taken == (symbols,)
    assert locks is not None
    assert locks[0] < 20


def test_advisory_locks_do_not_block_a_refresh(bench: Bench) -> None:
    """Any user of the database can take such locks, also a reader."""
    bench.empty()
    write(bench.conn, [bar("A", 0)])
    bench.conn.execute("SET statement_timeout = '30s'")
    with bench.holder.transaction():
        bench.holder.execute(
            "SELECT count(pg_advisory_xact_lock(7521, n)) FROM generate_series(0, 4095) AS n"
        )
        bench.refresh()
    bench.check()


def test_a_slice_waits_for_another_refresh_only_some_seconds(bench: Bench) -> None:
    bench.empty()
    write(bench.conn, [bar("A", 0)])
    with bench.holder.transaction():
        assert next(slices(bench.holder)) == (1, 1)
        bench.conn.execute("SET statement_timeout = '30s'")
        assert bench.conn.execute(SLICE).fetchone() == (0, 0, True)
    assert bench.conn.execute(SLICE).fetchone() == (0, 0, False)
    bench.check()


def test_a_refresh_does_not_block_writers(bench: Bench) -> None:
    bench.empty()
    write(bench.conn, (bar("A", m) for m in range(100)))
    bench.refresh()
    writer = bench.holder
    writer.execute("SET lock_timeout = '500ms'")
    try:
        with bench.conn.transaction():
            write(bench.conn, (bar("A", m, vol=2) for m in range(50)))
            list(slices(bench.conn))
            write(writer, (bar("A", m, vol=3) for m in range(50, 150)))
            copy(writer, (bar("B", m) for m in range(50, 150)))
            copy(writer, [bar("A", 40 * DAY)])  # in another chunk of TimescaleDB
            writer.execute("DELETE FROM ohlcv_1m WHERE ts >= %s AND ts < %s", (at(60), at(70)))
            writer.execute("UPDATE ohlcv_1m SET close = low WHERE ts >= %s", [at(90)])
    finally:
        writer.execute("RESET lock_timeout")
    bench.refresh()
    bench.check()


def test_a_refresh_survives_a_deadlock_with_a_maintenance_job(bench: Bench) -> None:
    """TimescaleDB locks so when it moves a chunk into the columnstore."""
    bench.empty()
    write(bench.conn, [bar("A", m) for m in (0, 1)])
    bench.holder.execute("SET deadlock_timeout = '1min'")  # so that the refresh yields
    failed: list[BaseException] = []

    def run() -> None:
        try:
            refresh(bench.refresher)
        except psycopg.Error as error:
            failed.append(error)

    thread = threading.Thread(target=run)
    with bench.holder.transaction():
        bench.holder.execute("LOCK TABLE public.features_1m IN EXCLUSIVE MODE")
        thread.start()
        wait_until(lambda: waits_for_a_lock(bench.conn, bench.refresher), "it waits for a lock")
        bench.holder.execute("LOCK TABLE feature_platform.dirty_log IN ACCESS EXCLUSIVE MODE")
    thread.join()
    bench.holder.execute("RESET deadlock_timeout")
    assert not failed
    bench.check()


def test_an_open_transaction_of_a_writer_does_not_block_a_refresh(bench: Bench) -> None:
    bench.empty()
    write(bench.conn, (bar("A", m) for m in range(100)))
    with bench.holder.transaction():
        write(bench.holder, (bar("A", m, vol=2) for m in range(50, 150)))
        bench.conn.execute("SET lock_timeout = '500ms'")
        bench.refresh()
        bench.conn.execute("RESET lock_timeout")
        bench.check()
    bench.refresh()
    bench.check()


REFRESHER = """
import sys, psycopg
with psycopg.connect(sys.argv[1], autocommit=True) as conn:
    print(conn.info.backend_pid, flush=True)
    more = True
    while more:
        more, = conn.execute(
            "SELECT more FROM feature_platform.refresh_slice('-infinity', 'infinity',"
            " feature_platform.dirty_horizon(), slice_rows => 7, slice_symbols => 2)"
        ).fetchone()
"""


@pytest.mark.parametrize("killed", ["the client", "the session"])
@pytest.mark.parametrize("when", ["during a slice", "after some slices"])
def test_the_work_of_a_killed_refresh_stays_dirty(bench: Bench, killed: str, when: str) -> None:
    bench.empty()
    write(bench.conn, (bar(s, m, 10 + m % 3, 1 + m % 7) for s in "ABCD" for m in range(400)))
    write(bench.conn, (bar("A", DAY + m) for m in range(30)))
    with subprocess.Popen(
        [sys.executable, "-c", REFRESHER, bench.url], stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        backend = int(process.stdout.readline())
        wait_until(lambda: bool(bench.features()), "the first rows")
        if when == "during a slice":
            bench.holder.execute("BEGIN")
            bench.holder.execute("LOCK TABLE features_1m IN SHARE MODE")
        if killed == "the client":
            process.kill()
        else:
            bench.conn.execute("SELECT pg_terminate_backend(%s, 60000)", [backend])
        process.wait()
        bench.holder.execute("ROLLBACK")
    done = len(bench.features())
    bench.refresh()  # may wait for the session of the client that was killed
    assert 0 < done < 1630
    bench.check()
    bench.check_build()


def test_a_refresh_reaches_older_rows_beside_corrections_of_the_newest_bar(bench: Bench) -> None:
    bench.empty()
    write(bench.conn, (bar("A", m, vol=1 + m % 7) for m in range(2 * DAY)))
    bench.refresh()
    write(bench.conn, [bar("A", 2 * DAY - 200, vol=50)])
    slice_ = SLICE.replace("())", "(), slice_rows => %s)")
    # The newest rows of the correction, which leave states, and two slices that find a new mark.
    for vol, rows in enumerate([20, 50_000, 50_000]):
        bench.conn.execute(slice_, [rows])
        write(bench.conn, [bar("A", 2 * DAY - 1, vol=90 + vol)])
    left = "SELECT lower(buckets) FROM feature_platform.dirty_log"
    assert bench.conn.execute(left).fetchall() == [(at(2 * DAY - 1),)]
    bench.refresh()
    bench.check()
