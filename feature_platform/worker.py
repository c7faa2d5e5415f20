"""The worker: the process that refreshes rows after commits and runs the refresh policy."""

from __future__ import annotations

import logging
import signal
import time
from contextlib import closing
from dataclasses import dataclass
from datetime import UTC, datetime
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
from feature_platform.database import connect
from feature_platform.errors import UserError, one_line
from feature_platform.queries import queries
from feature_platform.schema import prepare, require_version
from feature_platform.settings import get_settings
from feature_platform.stop_event import StopEvent
from feature_platform.trouble_log import TroubleLog, is_disk_full

_log = logging.getLogger(__name__)

# The pause before the worker looks again for the end of another worker, a new policy or schedule,
# and a lost connection.
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

# The pause between two attempts to get a lock, each of which waits for 2 s.
_LOCK_PAUSE_SECONDS = 0.1

_LONG_AGO = datetime(1970, 1, 2, tzinfo=UTC)


class _Stopped(Exception):
    """A stop of the worker while it waited."""


@dataclass
class _Run:
    """The last run of the policy. rows: written by the run, without later wake-ups."""

    id: int
    began: datetime
    rows: int = 0
    failed: bool = False


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
        self._clock = get_settings().clock
        self._due = _LONG_AGO

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
        _log.info("connected again")
        return connection

    def _work(self, connection: psycopg.Connection[TupleRow], first: bool) -> None:
        """Work on this connection until it fails or the worker has to stop."""
        ready = False
        try:
            prepare(connection)
            ready = True
            connection.execute(queries["worker_session"])
            self._become_the_one(connection)
            marks = MarkWatch()
            run = _Run(0, _LONG_AGO)
            while True:
                if self._wait_until_due(connection, run, marks) or self._wake(connection, run):
                    self._log_wakes(connection, run)
                    run = self._run_now(connection)
        except _Stopped:
            return
        except psycopg.Error as error:
            if first and not ready:
                raise
            kind = "the database went away" if connection.broken else "the database failed"
            self._trouble.warn(error, kind)
            if is_disk_full(error):
                self._stop.wait(_DISK_FULL_SECONDS)

    def _become_the_one(self, connection: psycopg.Connection[TupleRow]) -> None:
        logged = False
        while not self._row(connection, "worker_claim")[0]:
            if not logged:
                _log.info("another worker is at work: standing by")
                logged = True
            self._sleep(_LOOK_SECONDS)
        _log.info("at work")

    def _wait_until_due(
        self, connection: psycopg.Connection[TupleRow], run: _Run, marks: MarkWatch
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
            if next_run <= 0 or (now_due != self._due and not run.failed):
                self._due = now_due
                return bool(next_run <= 0)
            seconds = self._clock.wall_seconds(min(next_run, next_due))
            if (
                self._wait_for_marks(connection, marks, min(seconds, _LOOK_SECONDS))
                and not run.failed
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

    def _wake(self, connection: psycopg.Connection[TupleRow], run: _Run) -> bool:
        """Refresh one slice of the due rows and rest; return whether there is more.

        After an error that leaves the connection intact, return True: the next run then records
        the error.
        """
        began = time.monotonic()
        try:
            more = bool(self._row(connection, "worker_wake", {"run_id": run.id})[0])
        except psycopg.Error:
            if connection.broken:
                raise
            return True
        took = time.monotonic() - began
        self._sleep(min(max(took, _SHORTEST_REST_SECONDS), _LONGEST_REST_SECONDS))
        return more

    def _run_now(self, connection: psycopg.Connection[TupleRow]) -> _Run:
        """Run the policy once.

        An error that leaves the connection intact ends only the run.
        """
        require_version(connection)  # a newer schema may have been set up since the last run
        run_id, horizon, began = self._row(connection, "worker_begin")
        run = _Run(run_id, began)
        problem: str | None = None
        try:
            more = True
            while more and not self._stop.is_set():
                step = {"run_id": run_id, "horizon": horizon}
                more = bool(self._row(connection, "worker_step", step)[0])
        except psycopg.Error as error:
            if connection.broken:
                raise
            problem = one_line(error)
            run.failed = True
            self._trouble.warn(error, "the refresh failed, its rows wait for the next one")
        self._row(connection, "worker_end", {"run_id": run_id, "error": problem})
        slices, run.rows, took, _ = self._row(connection, "worker_run", {"run_id": run_id})
        if slices:
            milliseconds = took.total_seconds() * 1000
            _log.info("refreshed %d rows in %d slices, %.0f ms", run.rows, slices, milliseconds)
        if self._stop.is_set():
            raise _Stopped
        return run

    def _log_wakes(self, connection: psycopg.Connection[TupleRow], run: _Run) -> None:
        """Log the refreshes after writes since the last run, one line per run."""
        _, rows, _, wakes = self._row(connection, "worker_run", {"run_id": run.id})
        if wakes and rows > run.rows:
            times = "a write" if wakes == 1 else f"{wakes:,} writes"
            _log.info("refreshed %d rows after %s", rows - run.rows, times)

    def _log_retry(self, state: RetryCallState) -> None:
        if state.outcome is not None and (error := state.outcome.exception()) is not None:
            self._trouble.warn(error, "no connection; trying again")

    def _row(
        self,
        connection: psycopg.Connection[TupleRow],
        query: str,
        parameters: dict[str, object] | None = None,
    ) -> TupleRow:
        """Return the one row of a query; all None if it has none.

        A query that cannot get a lock in time is sent again until it gets the lock.
        Raises _Stopped if the worker has to stop meanwhile.
        """
        waited = False
        while True:
            try:
                cursor = connection.execute(queries[query], parameters)
            except psycopg.errors.LockNotAvailable as error:
                if not waited:
                    _log.warning("waiting for a lock: %s", one_line(error))
                waited = True
                self._sleep(_LOCK_PAUSE_SECONDS)
            else:
                return cursor.fetchone() or (None,) * len(cursor.description or ())

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
