"""A database that a test fills, compares and empties many times."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Literal, LiteralString

import psycopg
import pytest

from feature_platform_tests.fix_database import Databases, Engine
from feature_platform_tests.fix_processes import wait_until
from feature_platform_tests.oracle import (
    Bar,
    Features,
    Key,
    expected_features,
    mismatches,
    name_of,
)

# Far faster than TRUNCATE. The marks of the deleted bars are deleted, too.
_EMPTY = """
    DELETE FROM public.ohlcv_1m;
    DELETE FROM public.features_1m;
    DELETE FROM feature_platform.symbol_state;
    DELETE FROM feature_platform.features_1m_state;
    DELETE FROM feature_platform.dirty_log;
    DELETE FROM feature_platform.bar_history;
    DELETE FROM feature_platform.bar_refresh;
    DELETE FROM feature_platform.bar_known;
    DELETE FROM feature_platform.knowledge_floor;
    DELETE FROM feature_platform.features_1m_history;
    DELETE FROM feature_platform.symbol_number;
    DELETE FROM feature_platform.policy_run;
    RESET ALL;
"""
_BARS = """
    SELECT symbol, (extract(epoch FROM ts) * 1000000)::bigint, open, high, low, close, vol
    FROM public.ohlcv_1m
"""
_FEATURES = """
    SELECT symbol, (extract(epoch FROM bucket) * 1000000)::bigint, last_close, vol, log_return,
           n_1d, ma_vol_1d, std_vol_1d, volume_z, vwap_gap, parkinson_vol
    FROM public.features_1m
"""

Stop = Literal["features", "state", "rows of features", "rows of state"]
_STOPS: dict[Stop, LiteralString] = {
    "features": "LOCK TABLE public.features_1m IN SHARE MODE",
    "state": "LOCK TABLE feature_platform.symbol_state IN SHARE MODE",
    "rows of features": "SELECT FROM public.features_1m FOR UPDATE",
    "rows of state": "SELECT FROM feature_platform.symbol_state FOR UPDATE",
}
STOPS = tuple(_STOPS)


@dataclass
class Bench:
    """A database with the schema, and connections to it that outlive a test.

    conn: writes and reads; refresher, holder: for refreshes that are stopped half-way.
    """

    engine: Engine
    url: str
    conn: psycopg.Connection
    refresher: psycopg.Connection
    holder: psycopg.Connection

    def empty(self) -> None:
        """Delete all bars, features and marks."""
        self.conn.execute(_EMPTY)

    def bars(self) -> list[Bar]:
        """Return all bars."""
        return stored_bars(self.conn)

    def features(self) -> dict[Key, Features]:
        """Return all feature rows."""
        return read_features(self.conn)

    def refresh(self, *window: object, force: bool = False) -> None:
        """Refresh a window, by default all of time."""
        refresh(self.conn, *window, force=force)

    def check(self) -> None:
        """Fail unless the stored rows equal the features of the stored bars."""
        check(self.conn)

    def check_build(self) -> None:
        """Fail unless a build of an empty table stores the same values to the last bit."""
        stored = self.features()
        self.conn.execute(
            """DELETE FROM public.features_1m; DELETE FROM feature_platform.symbol_state;
               DELETE FROM feature_platform.features_1m_state"""
        )
        self.refresh(force=True)
        assert_same_bits(stored, self.features())

    @contextmanager
    def refresh_stopped_at(self, stop: Stop, *window: object) -> Iterator[None]:
        """Stop a refresh at its first write to a table, and finish it after the body.

        stop: the table, or "rows of" it; then the refresh stops at its first write to such a row.
        The body must take no lock that conflicts with the reads of a refresh. When the context
        ends, the refresh is over and has not failed.
        """
        raised: list[psycopg.Error] = []

        def run() -> None:
            try:
                refresh(self.refresher, *window)
            except psycopg.Error as error:
                raised.append(error)

        thread = threading.Thread(target=run)
        with self.holder.transaction():
            self.holder.execute(_STOPS["features" if self._no_row_locks(stop) else stop])
            thread.start()
            wait_until(
                lambda: not thread.is_alive() or waits_for_a_lock(self.conn, self.refresher),
                "the refresh waits for a lock, or is over",
            )
            yield
        thread.join()
        if raised:
            raise AssertionError(f"the refresh failed: {raised[0]}") from raised[0]

    def _no_row_locks(self, stop: Stop) -> bool:
        """Return whether the rows to lock may be in a columnstore, which locks none."""
        if stop != "rows of features" or self.engine != "timescaledb":
            return False
        chunks = "SELECT FROM timescaledb_information.chunks WHERE is_compressed"
        return self.conn.execute(chunks).fetchone() is not None


def waits_for_a_lock(conn: psycopg.Connection, waiter: psycopg.Connection) -> bool:
    """Return whether the session of `waiter` waits for a lock."""
    sought = "SELECT 1 FROM pg_locks WHERE pid = %s AND NOT granted"
    return conn.execute(sought, [waiter.info.backend_pid]).fetchone() is not None


def refresh(conn: psycopg.Connection, *window: object, force: bool = False) -> None:
    """Refresh a window, by default all of time."""
    lo, hi = window or (None, None)
    conn.execute("CALL refresh_features_1m(%s::timestamptz, %s::timestamptz, %s)", (lo, hi, force))


def stored_bars(conn: psycopg.Connection) -> list[Bar]:
    """Return all bars."""
    return [Bar(*row) for row in conn.execute(_BARS)]


def read_features(conn: psycopg.Connection) -> dict[Key, Features]:
    """Return all feature rows."""
    return {(symbol, bucket): Features(*row) for symbol, bucket, *row in conn.execute(_FEATURES)}


def check(conn: psycopg.Connection) -> None:
    """Fail unless the stored rows equal the features of the stored bars, all minutes closed."""
    wrong = mismatches(read_features(conn), expected_features(stored_bars(conn)))
    assert not wrong, "\n".join(wrong)


def assert_same_bits(left: dict[Key, Features], right: dict[Key, Features]) -> None:
    """Fail unless both hold the same rows with the same values to the last bit."""
    for key in sorted(left.keys() | right.keys()):
        # repr distinguishes -0 from 0.
        a, b = (tuple(map(repr, rows.get(key, ()))) for rows in (left, right))
        assert a == b, f"{name_of(key)}: {left.get(key)} is not {right.get(key)}"


@pytest.fixture(scope="module")
def bench(databases: Databases) -> Iterator[Bench]:
    """Yield a database for all tests of a module, which empty it before each use."""
    with databases.fresh() as url, ExitStack() as stack:
        conn, refresher, holder = (
            stack.enter_context(psycopg.connect(url, autocommit=True)) for _ in range(3)
        )
        yield Bench(databases.engine, url, conn, refresher, holder)


def in_threads(url: str, *jobs: Callable[[psycopg.Connection], None]) -> None:
    """Run each job in its own thread and connection, and raise the first error."""
    raised: list[BaseException] = []

    def run(job: Callable[[psycopg.Connection], None]) -> None:
        try:
            with psycopg.connect(url, autocommit=True) as conn:
                job(conn)
        except BaseException as error:  # noqa: BLE001
            raised.append(error)

    threads = [threading.Thread(target=run, args=[job]) for job in jobs]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if raised:
        raise raised[0]
