"""The worker: the process that refreshes rows after commits and runs the refresh policy."""

from __future__ import annotations

import logging
import math
import signal
import time
from collections.abc import Callable
from contextlib import closing
from datetime import UTC, datetime, timedelta
from types import FrameType

import psycopg
from psycopg.rows import TupleRow
from tenacity import (
    RetryCallState,
    Retrying,
    retry_if_exception_type,
    wait_random_exponential,
)

from feature_platform._mark_watch import MarkWatch
from feature_platform.counted import counted
from feature_platform.database import connect
from feature_platform.errors import UserError
from feature_platform.policy import PolicyRun, fetch_row, run_policy
from feature_platform.queries import queries
from feature_platform.schema import prepare, require_version
from feature_platform.settings import get_settings
from feature_platform.stop_event import StopEvent
from feature_platform.trouble_log import TroubleLog

_log = logging.getLogger(__name__)

# The pause between two checks for the end of another worker, a new policy or schedule, and a lost
# connection.
_LOOK_SECONDS = 2.0

# The pause between two looks for new marks.
_LOOK_FOR_MARKS_SECONDS = 0.05

# After a refresh of new marks, the worker rests as long as the refresh took, within these limits,
# and refreshes the commits of that time together: a single bar is refreshed at once, a thousand
# bars in a row are refreshed in groups.
_SHORTEST_REST_SECONDS = 0.02
_LONGEST_REST_SECONDS = 0.25

# The pause before it connects again after an error: a server that accepts connections may still
# fail every statement.
_PAUSE_SECONDS = 1.0
# The additional pause when the disk is full, which needs an operator.
_DISK_FULL_SECONDS = 5.0

# The shortest time between two lines of the log about refreshed rows.
_LOG_SECONDS = 1.0

_LONG_AGO = datetime(1970, 1, 2, tzinfo=UTC)


class _Stopped(Exception):
    """A stop of the worker while it waited."""


class RefreshLog:
    """A log of refreshed rows: at most one line a second; between two lines, counts add up.

    clock: seconds that never go back.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._logged_at = -math.inf
        self._clear()

    def add_run(self, rows: int, slices: int, took: timedelta) -> None:
        """Add a run of the policy: its rows, its slices and its duration."""
        self._rows += rows
        self._slices += slices
        self._took += took

    def add_writes(self, rows: int, writes: int) -> None:
        """Add the rows that were refreshed at once after writes."""
        self._rows_of_writes += rows
        self._writes += writes

    def log(self, *, at_once: bool = False) -> None:
        """Log the counts since the last line, unless that was less than a second ago."""
        parts = []
        if self._rows_of_writes:
            times = "a write" if self._writes == 1 else f"{self._writes:,} writes"
            parts.append(f"{counted(self._rows_of_writes, 'row')} after {times}")
        if self._slices:
            milliseconds = self._took / timedelta(milliseconds=1)
            slices = "a slice" if self._slices == 1 else f"{self._slices:,} slices"
            parts.append(f"{counted(self._rows, 'row')} in {slices}, {milliseconds:,.0f} ms")
        now = self._clock()
        if parts and (at_once or now - self._logged_at >= _LOG_SECONDS):
            self._logged_at = now
            _log.info("refreshed %s", " and ".join(parts))
            self._clear()

    def _clear(self) -> None:
        self._rows = self._slices = self._rows_of_writes = self._writes = 0
        self._took = timedelta()


class Worker:
    """Refresh rows as soon as they are due, and run the policy on its schedule, until `stop`.

    It looks for new marks in the dirty log 20 times a second and refreshes their due rows; rows of
    earlier marks are refreshed when they become due.

    One worker of a database is active; others wait until it ends. After a lost connection it
    connects again with back-off; rows of an interrupted refresh stay dirty for the next run.
    """

    def __init__(self) -> None:
        self._stop = StopEvent()
        self._trouble = TroubleLog(_log)
        self._refreshed = RefreshLog()
        self._clock = get_settings().clock
        self._due = _LONG_AGO
        # Since an error of a full disk, until a run succeeds: a server that cannot write may be
        # restarted every few seconds, and is worth no line each time.
        self._disk_full = False

    def stop(self) -> None:
        """Stop the worker after the current slice; safe in a signal handler."""
        self._stop.set()

    def run(self) -> None:
        """Work until `stop`.

        Raises UserError or psycopg.Error when the database cannot be used at the start, and
        UserError when its schema has become newer or older than this code.
        """
        connection: psycopg.Connection[TupleRow] | None = connect()
        first = True
        while connection is not None:
            with closing(connection):
                self._work(connection, first)
            connection, first = self._connect_again(), False
        self._refreshed.log(at_once=True)

    def _connect_again(self) -> psycopg.Connection[TupleRow] | None:
        """Connect as soon as there is a database again; None if the worker has to stop before."""
        retrying = Retrying(
            retry=retry_if_exception_type(UserError),
            wait=wait_random_exponential(multiplier=0.5, max=30),
            stop=lambda _state: self._stop.is_set(),
            sleep=self._pause,
            before_sleep=self._log_retry,
            reraise=True,
        )
        if self._stop.wait(_PAUSE_SECONDS):
            return None
        try:
            connection = retrying(connect)
        except UserError:
            return None
        self._log_progress("connected again")
        return connection

    def _work(self, connection: psycopg.Connection[TupleRow], first: bool) -> None:
        """Work on this connection until it fails or the worker has to stop."""
        ready = False
        try:
            prepare(connection)
            ready = True
            connection.execute(queries["worker_session"])
            self._wait_for_claim(connection)
            marks = MarkWatch()
            run = PolicyRun(0, _LONG_AGO)
            while True:
                if self._wait_until_due(connection, run, marks) or self._wake(connection, run):
                    self._note_writes(connection, run)
                    run = self._run_now(connection)
                    self._refreshed.log()
        except _Stopped:
            return
        except psycopg.Error as error:
            if first and not ready:
                raise
            kind = "the connection was lost" if connection.broken else "the database failed"
            self._warn(error, kind)
            if self._disk_full:
                self._stop.wait(_DISK_FULL_SECONDS)

    def _wait_for_claim(self, connection: psycopg.Connection[TupleRow]) -> None:
        logged = False
        while not self._row(connection, "worker_claim")[0]:
            if not logged:
                self._log_progress("another worker is active: waiting until it ends")
                logged = True
            self._sleep(_LOOK_SECONDS)
        self._log_progress("active: refreshes features after each write")

    def _wait_until_due(
        self, connection: psycopg.Connection[TupleRow], run: PolicyRun, marks: MarkWatch
    ) -> bool:
        """Wait until rows are due; return whether the next run of the schedule is due, too."""
        logged = False
        while True:
            next_run, now_due, next_due = self._row(
                connection, "worker_next_run", {"began": run.began}
            )
            if next_run is None:
                if not logged:
                    _log.info("there is no refresh policy: waiting for add_features_1m_policy()")
                logged = True
                self._sleep(_LOOK_SECONDS)
                continue
            if next_run <= 0 or (now_due != self._due and run.error is None):
                self._due = now_due
                return bool(next_run <= 0)
            seconds = self._clock.wall_seconds(min(next_run, next_due))
            if (
                self._wait_for_marks(connection, marks, min(seconds, _LOOK_SECONDS))
                and run.error is None
            ):
                return False

    def _wait_for_marks(
        self, connection: psycopg.Connection[TupleRow], marks: MarkWatch, seconds: float
    ) -> bool:
        """Wait up to `seconds` for new marks of due rows; return whether there are any."""
        until = time.monotonic() + seconds
        with connection.cursor() as cursor:  # one cursor for all looks costs less CPU
            while True:
                mark, running = cursor.execute(queries["worker_look"]).fetchone() or (0, [])
                after = marks.look(mark, running)
                if after is not None and self._any_due(connection, after):
                    return True
                left = until - time.monotonic()
                if left <= 0:
                    return False
                self._sleep(min(left, _LOOK_FOR_MARKS_SECONDS))

    def _any_due(self, connection: psycopg.Connection[TupleRow], after: int) -> bool:
        """Return whether rows are due by a mark after this one."""
        return bool(self._row(connection, "worker_any_due", {"after": after})[0])

    def _wake(self, connection: psycopg.Connection[TupleRow], run: PolicyRun) -> bool:
        """Refresh one slice of the due rows and rest; return whether there is more.

        After an error that leaves the connection intact, return True: the next run then records
        the error.
        """
        began = time.monotonic()
        try:
            more = bool(self._row(connection, "worker_wake", {"run_id": run.id})[0])
            # A transaction of its own, so that the rows of features_1m are readable before.
            self._row(connection, "refresh_known")
            more |= bool(self._row(connection, "policy_views", {"run_id": run.id})[0])
            self._row(connection, "refresh_known")
        except psycopg.Error:
            if connection.broken:
                raise
            return True
        took = time.monotonic() - began
        self._sleep(min(max(took, _SHORTEST_REST_SECONDS), _LONGEST_REST_SECONDS))
        return more

    def _run_now(self, connection: psycopg.Connection[TupleRow]) -> PolicyRun:
        """Run the policy once.

        An error that leaves the connection intact ends only the run.
        """
        require_version(connection)  # a newer schema may have been set up since the last run
        run = run_policy(connection, "worker", self._stop.wait)
        if run.error is not None:
            self._warn(run.error, "the refresh failed; its rows wait for the next refresh")
        self._refreshed.add_run(run.rows_written, run.slices, run.took)
        if self._disk_full and run.error is None:
            self._disk_full = False
            _log.info("active again: the disk has space")
        if self._stop.is_set():
            raise _Stopped
        return run

    def _note_writes(self, connection: psycopg.Connection[TupleRow], run: PolicyRun) -> None:
        """Add the refreshes after writes since the last run to the log."""
        _, rows, _, wakes = self._row(connection, "policy_run", {"run_id": run.id})
        if wakes:
            self._refreshed.add_writes(rows - run.rows_written, wakes)

    def _log_retry(self, state: RetryCallState) -> None:
        if state.outcome is not None and (error := state.outcome.exception()) is not None:
            self._warn(error, "no connection; trying again")

    def _warn(self, error: BaseException, kind: str) -> None:
        if self._trouble.warn(error, kind):
            self._disk_full = True

    def _log_progress(self, text: str) -> None:
        if not self._disk_full:
            _log.info(text)

    def _row(
        self,
        connection: psycopg.Connection[TupleRow],
        query: str,
        parameters: dict[str, object] | None = None,
    ) -> TupleRow:
        """Return the one row of a query, as `fetch_row` does.

        Raises _Stopped if the worker has to stop while it waits for a lock.
        """
        try:
            return fetch_row(connection, query, parameters or {}, self._stop.wait)
        except psycopg.errors.LockNotAvailable:
            raise _Stopped from None

    def _pause(self, seconds: float) -> None:
        self._stop.wait(seconds)

    def _sleep(self, seconds: float) -> None:
        if self._stop.wait(seconds):
            raise _Stopped


def run_worker() -> None:
    """Run a worker in this process until SIGTERM or SIGINT; the current slice is finished."""
    worker = Worker()

    def stop(_number: int, _frame: FrameType | None) -> None:
        _log.info("stopping after the current slice")
        worker.stop()

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, stop)
    worker.run()
    _log.info("stopped")
