"""A simulated day of writers, refreshers and a model service, as fast as the machine allows.

`python -m feature_platform_tests.served_day URL SEED` is one refresher of it, which a test kills.
"""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from itertools import cycle
from typing import Any

import psycopg

from feature_platform.views import FeatureView, bar, lag
from feature_platform_tests.fix_engine import in_threads
from feature_platform_tests.fix_skew import VIEWS, serve
from feature_platform_tests.fix_views import add_bars

Conn = psycopg.Connection[Any]

SYMBOLS = ("A", "B", "C", "D", "TICKS")
MINUTE = timedelta(minutes=1)
START = datetime(2026, 3, 2, tzinfo=UTC)
HISTORY = 1500  # minutes before the start
# The rows of features_1m that depend on a bar do not reach as far as these.
LONG = FeatureView("long_1m", "1 minute", {"before": lag(bar.close, "1450 minutes")})
DAY_VIEWS = (*VIEWS, LONG)

_BAR = """
    INSERT INTO ohlcv_1m AS b (symbol, ts, open, high, low, close, vol)
    VALUES (%s, %s, 10, 12, 9, %s, %s)
    ON CONFLICT (symbol, ts) DO UPDATE SET close = excluded.close, vol = excluded.vol
    WHERE (b.close, b.vol) IS DISTINCT FROM (excluded.close, excluded.vol)
"""
_VIEW = """
    SELECT feature_platform.view_slice(
        v.id, feature_platform.view_from(v, %s), feature_platform.view_due(v.every, v.origin),
        slice_rows => %s)
    FROM feature_platform.feature_view v WHERE v.id = ANY (%s)
"""
# Writers of the same bars may wait for each other in a circle, also by prepared transactions.
_Busy = (psycopg.errors.DeadlockDetected, psycopg.errors.LockNotAvailable)
# The server has crashed: it ends all sessions, and accepts none during its recovery.
_Crashed = psycopg.OperationalError
_DELETE = "DELETE FROM ohlcv_1m WHERE symbol = %s AND ts >= %s AND ts < %s"


@dataclass
class Day:
    """The parts of the day, which run until `minutes` have been written.

    url: of a database for simulated bars, whose sessions share a clock by `clocked`.
    serves: the least number of rows to log.
    minute_seconds: of the wall clock in a simulated minute.
    upgrade: what makes an old database a current one, after a third of the minutes and beside the
        writers. Until then the versions of rows have no numbers, and no rows are logged.
    written, prepared, logged, killed, crashed: the finished minutes and prepared transactions, the
        rows in the log, the refreshers that were killed, and the crashes of the server.
    """

    url: str
    minutes: int
    serves: int
    seed: int = 0
    minute_seconds: float = 0.08
    upgrade: Callable[[Conn], None] | None = None
    written: int = 0
    logged: int = 0
    killed: int = 0
    crashed: int = 0
    prepared: int = 0
    counting: threading.Lock = field(default_factory=threading.Lock)
    upgraded: threading.Event = field(default_factory=threading.Event)
    done: threading.Event = field(default_factory=threading.Event)
    began: datetime = field(default_factory=lambda: datetime.now(UTC))

    @property
    def clock(self) -> str:
        """Return the sessions' clock: START when the day began, and fast from then on."""
        speed = 60 / self.minute_seconds
        return f"{START.isoformat()}@{self.began.isoformat()}x{speed:g}"

    @property
    def clocked(self) -> str:
        """Return the URL of the database for sessions with the clock."""
        join = "&" if "?" in self.url else "?"
        # A percent sign per character that a URL or `options` would split at.
        clock = self.clock.replace("+", "%2B").replace(":", "%3A").replace("@", "%40")
        return f"{self.url}{join}options=-cfeature_platform.clock%3D{clock}"

    def run(self) -> None:
        """Write history, then let all parts run to the end of the day."""
        with psycopg.connect(self.clocked, autocommit=True) as conn:
            add_bars(conn, START - HISTORY * MINUTE, HISTORY, SYMBOLS)
            refresh_once(conn)
        # From here the day begins, however long that took.
        self.began = datetime.now(UTC)
        writers = (self._slow_writer, self._prepared_writer)
        others = (self._views, self._empty_caches, self._log, self._log, self._kill)
        in_threads(
            self.clocked,
            self._ending(self._upgrade),
            self._ending(self._lasting(self._day)),
            *(self._ending(self._lasting(job)) for job in writers),
            *(self._ending(self._upgraded(self._lasting(job))) for job in others),
        )

    def _upgrade(self, conn: Conn) -> None:
        """Refresh an old database until it is upgraded."""
        try:
            if self.upgrade is not None:
                while self.written < self.minutes / 3 and not self.done.is_set():
                    refresh_once(conn)
                self.upgrade(conn)
        finally:
            self.upgraded.set()

    def _upgraded(self, job: Any) -> Any:
        """Return a job that begins after the upgrade."""

        def run(conn: Conn) -> None:
            self.upgraded.wait()
            job(conn)

        return run

    def _ending(self, job: Any) -> Any:
        """Return a job whose error ends the day."""

        def run(conn: Conn) -> None:
            try:
                job(conn)
            except BaseException:
                self.done.set()
                raise

        return run

    def _day(self, conn: Conn) -> None:
        """Write all minutes, and end the day after enough rows and a crash of the server."""
        self._write(conn)
        while (self.logged < self.serves or self.crashed == 0) and not self.done.wait(0.05):
            pass
        self.done.set()

    def _lasting(self, job: Any) -> Any:
        """Return a job that goes on with another session after a crash of the server."""

        def run(_: Conn) -> None:
            ended = False
            while not ended:
                try:
                    with psycopg.connect(self.clocked, autocommit=True) as conn:
                        job(conn)
                    ended = True
                except _Crashed:
                    time.sleep(0.05)

        return run

    def _now(self) -> int:
        """Return the minutes since the start."""
        passed = (datetime.now(UTC) - self.began).total_seconds()
        return int(passed / self.minute_seconds)

    def _write(self, conn: Conn) -> None:
        """Write each minute when it ends, and late, corrected and deleted bars of all ages."""
        rng = random.Random(f"{self.seed} {self.written}")
        conn.execute("SET lock_timeout = '200ms'")
        while self.written < self.minutes and not self.done.is_set():
            while self._now() <= self.written:
                time.sleep(self.minute_seconds / 10)
            with suppress(*_Busy):
                self._write_minute(conn, rng, self.written)
            self.written += 1

    def _write_minute(self, conn: Conn, rng: random.Random, minute: int) -> None:
        with conn.transaction(force_rollback=rng.random() < 0.05):
            for symbol in SYMBOLS:
                if rng.random() < 0.9:
                    _bar(conn, rng, symbol, minute)
                if symbol == "TICKS" and rng.random() < 0.5:
                    _bar(conn, rng, symbol, minute + rng.choice([0.25, 0.5, 0.75]))
        if rng.random() < 0.3:
            symbol, old = rng.choice(SYMBOLS), minute - rng.choice([1, 3, 30, 700, 1400, 1450])
            if rng.random() < 0.3:
                conn.execute(_DELETE, (symbol, _at(old), _at(old + rng.choice([1, 3]))))
            else:
                _bar(conn, rng, symbol, old)

    def _slow_writer(self, conn: Conn) -> None:
        """Keep transactions open, so that their bars are late at their commit."""
        rng = random.Random(self.seed + 1)
        conn.execute("SET lock_timeout = '200ms'")
        while not self.done.is_set():
            minute = max(self._now(), 0)
            with suppress(*_Busy), conn.transaction(force_rollback=rng.random() < 0.1):
                for _ in range(3):
                    _bar(conn, rng, rng.choice(SYMBOLS), minute - rng.choice([0, 1, 5, 90]))
                    self.done.wait(self.minute_seconds * rng.random() * 4)

    def _prepared_writer(self, conn: Conn) -> None:
        """Prepare transactions, and commit them in another order."""
        rng = random.Random(self.seed + 2)
        conn.execute("SET lock_timeout = '200ms'")
        prepared = conn.execute("SELECT substr(gid, 2)::integer FROM pg_prepared_xacts")
        waiting = [number for (number,) in prepared]
        while not self.done.is_set():
            self.prepared += 1
            number = self.prepared
            minute = max(self._now(), 0)
            conn.execute("BEGIN")
            try:
                _bar(conn, rng, SYMBOLS[number % 4], minute - number % 50)
                conn.execute(f"PREPARE TRANSACTION 'p{number}'".encode())
                waiting.append(number)
                most = 3
            except _Busy:
                conn.execute("ROLLBACK")
                most = 0  # the other session may wait for these
            while len(waiting) > most or (waiting and self.done.is_set()):
                name = waiting.pop(rng.randrange(len(waiting)))
                conn.execute(f"COMMIT PREPARED 'p{name}'".encode())
            self.done.wait(self.minute_seconds * 3)
        for name in waiting:
            conn.execute(f"COMMIT PREPARED 'p{name}'".encode())

    def _views(self, conn: Conn) -> None:
        rng = random.Random(self.seed + 3)
        while not self.done.is_set():
            ids = conn.execute("SELECT id FROM feature_platform.feature_view").fetchall()
            (view,) = rng.choice(ids)
            lo = "-infinity" if rng.random() < 0.5 else str(_at(self._now() - 60))
            conn.execute(_VIEW, (lo, rng.choice([10, 1000, 20000]), [view]))
            conn.execute("SELECT feature_platform.note_known()")

    def _empty_caches(self, conn: Conn) -> None:
        while not self.done.wait(self.minute_seconds * 40):
            with suppress(*_Busy):
                conn.execute("DELETE FROM feature_platform.symbol_state")
            with suppress(*_Busy):
                conn.execute("DELETE FROM feature_platform.features_1m_state")

    def _log(self, conn: Conn) -> None:
        while not self.done.is_set():
            rows = serve(conn, *SYMBOLS)
            with self.counting:
                self.logged += rows

    def _kill(self, conn: Conn) -> None:
        """Start refreshers, and kill one after another, and at times a process of the server."""
        rng = random.Random(self.seed + 4)
        command = [sys.executable, "-m", "feature_platform_tests.served_day", self.clocked]

        def start() -> subprocess.Popen[bytes]:
            return subprocess.Popen([*command, str(rng.random())])

        running = [start(), start()]
        try:
            for of_server in cycle([False, True, False, False]):
                if self.done.wait(self.minute_seconds * 40):
                    break
                if of_server:
                    self.crashed += 1
                    _crash(conn)
                one = running.pop(0)
                assert one.poll() is None, "a refresher has failed"
                one.kill()
                one.wait()
                self.killed += 1
                running.append(start())
        finally:
            for one in running:
                one.kill()
                one.wait()


def _crash(conn: Conn) -> None:
    """Kill the session of another one, which makes the server restart and recover."""
    query = """SELECT pid FROM pg_stat_activity
               WHERE backend_type = 'client backend' AND pid <> pg_backend_pid()
               ORDER BY random() LIMIT 1"""
    row = conn.execute(query).fetchone()
    assert row is not None
    os.kill(row[0], signal.SIGKILL)


def refresh_once(conn: Conn) -> None:
    """Refresh features_1m and each view once, by statements that old versions have, too."""
    conn.execute("CALL refresh_features_1m(NULL, NULL)")
    ids = conn.execute("SELECT id FROM feature_platform.feature_view ORDER BY id").fetchall()
    conn.execute(_VIEW, ("-infinity", 20000, [view for (view,) in ids]))


def _at(minute: float) -> datetime:
    return START + minute * MINUTE


def _bar(conn: Conn, rng: random.Random, symbol: str, minute: float) -> None:
    conn.execute(_BAR, (symbol, _at(minute), rng.choice([9.5, 10, 11]), rng.choice([0, 1, 2.5])))


def _refresher(url: str, seed: str) -> None:
    """Refresh random windows and slices for ever."""
    rng = random.Random(seed)
    while True:
        with suppress(_Crashed), psycopg.connect(url, autocommit=True) as conn:
            _refresh_for_ever(conn, rng)


def _refresh_for_ever(conn: Conn, rng: random.Random) -> None:
    while True:
        row = conn.execute("SELECT feature_platform.due_until()").fetchone()
        assert row is not None
        due: datetime = row[0]
        lo: Any = due - rng.choice([5, 60, 1500]) * MINUTE
        if rng.random() < 0.3:
            lo = "-infinity"
        hi = due - rng.choice([0, 0, 0, 0, 7]) * MINUTE
        conn.execute(
            "SELECT feature_platform.refresh_slice(%s, %s, feature_platform.dirty_horizon(),"
            " slice_rows => %s, slice_symbols => %s, newest_first => %s)",
            (lo, hi, rng.choice([1, 50, 5000, 50000]), rng.choice([1, 3]), rng.random() < 0.5),
        )
        conn.execute("SELECT feature_platform.note_known()")


if __name__ == "__main__":
    _refresher(*sys.argv[1:])
