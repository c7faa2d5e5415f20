"""The worker: the process that refreshes what a commit made due, and runs the refresh policy."""

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
from feature_platform.errors import UserError
from feature_platform.queries import queries
from feature_platform.schema import prepare, require_version
from feature_platform.settings import get_settings, redact
from feature_platform.stop_event import Bell
from feature_platform.trouble_log import TroubleLog, is_disk_full

_log = logging.getLogger(__name__)

# How long a worker waits before it looks again: another worker may have gone, somebody may have
# added a policy or changed its schedule, the database may have gone away.
_LOOK_SECONDS = 2.0

# How often the worker looks for new marks of commits.
_LOOK_FOR_MARKS_SECONDS = 0.05

# After a refresh of new marks, the worker rests as long as that took, but not longer than this, and
# takes the commits of that time together: one bar is refreshed at once, a thousand that come one by
# one are not refreshed one by one.
_LONGEST_REST_SECONDS = 0.25

# How long it leaves a database alone that went away or refused: what accepts connections may
# still fail all that is sent over them.
_PAUSE_SECONDS = 1.0
# How much longer where the disk is full, which takes somebody to mend.
_DISK_FULL_SECONDS = 5.0

# Between two attempts to get a lock, each of which waits for 2 s.
_LOCK_PAUSE_SECONDS = 0.1

_LONG_AGO = datetime(1970, 1, 2, tzinfo=UTC)


class _Stopped(Exception):
    """The worker was asked to stop while it waited."""


@dataclass
class _Run:
    """The last run of the policy. rows: that it wrote by itself, without the wakes after it."""

    id: int
    began: datetime
    rows: int = 0
    failed: bool = False


class Worker:
    """Refresh what becomes due when it does, and run the policy on its schedule, until `stop`.

    It looks for new marks in the dirty log many times a second, and refreshes those whose rows are
    due; rows of earlier marks are refreshed at the moment they come due.

    Only one worker of a database is at work; further ones stand by and take over when it ends.
    A database that goes away is waited for, with back-off; what was being refreshed then stays
    dirty and is done by the next run.
    """

    def __init__(self) -> None:
        self._stop = Bell()
        self._trouble = TroubleLog(_log)
        self._clock = get_settings().clock
        self._due = _LONG_AGO

    def stop(self) -> None:
        """Ask the worker to end after the slice in hand; a signal handler may do so."""
        self._stop.ring()

    def run(self) -> None:
        """Work until `stop`.

        Raises UserError or psycopg.Error when the database cannot be used at the start, and
        UserError when, after its return, its schema is not the one that this code needs.
        """
        connection: psycopg.Connection[TupleRow] | None = connect()
        first = True
        while connection is not None:
            with closing(connection):
                self._work(connection, first)
            connection, first = self._connect_again(), False

    def _connect_again(self) -> psycopg.Connection[TupleRow] | None:
        """Connect once there is a database again; None when asked to stop before."""
        retrying = Retrying(
            retry=retry_if_exception_type(UserError),
            wait=wait_random_exponential(multiplier=0.5, max=30),
            stop=lambda _state: self._stop.rung,
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
        """Work on this connection until it fails or the worker is asked to stop."""
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
                    self._tell_wakes(connection, run)
                    run = self._run_now(connection)
        except _Stopped:
            return
        except psycopg.Error as error:
            if first and not ready:
                raise
            kind = "the database went away" if connection.broken else "the database refused"
            self._trouble.warn(error, kind)
            if is_disk_full(error):
                self._stop.wait(_DISK_FULL_SECONDS)

    def _become_the_one(self, connection: psycopg.Connection[TupleRow]) -> None:
        told = False
        while not self._row(connection, "worker_claim")[0]:
            if not told:
                _log.info("another worker is at work: standing by")
                told = True
            self._sleep(_LOOK_SECONDS)
        _log.info("at work")

    def _wait_until_due(
        self, connection: psycopg.Connection[TupleRow], run: _Run, marks: MarkWatch
    ) -> bool:
        """Wait until something is to be done; return whether that is the next run of the schedule.

        Else a commit has made rows due, or time has.
        """
        told = False
        while True:
            next_run, now_due, next_due = self._row(
                connection, "worker_next_run", {"began": run.began}
            )
            if next_run is None:
                if not told:
                    _log.info("there is no refresh policy: waiting for add_features_1m_policy()")
                told = True
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
        """Wait so long for new marks of rows that are due; return whether there are any."""
        until = time.monotonic() + seconds
        with connection.cursor() as cursor:  # one for all looks: less CPU
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
        """Tell whether rows are due by a mark after this one."""
        return bool(self._row(connection, "worker_any_due", {"after": after})[0])

    def _wake(self, connection: psycopg.Connection[TupleRow], run: _Run) -> bool:
        """Refresh what is due by now, and rest; return whether there is more than one slice of it.

        An error that leaves the connection whole is for the run that follows to meet and record.
        """
        began = time.monotonic()
        try:
            more = bool(self._row(connection, "worker_wake", {"run_id": run.id})[0])
        except psycopg.Error:
            if connection.broken:
                raise
            return True
        took = time.monotonic() - began
        self._sleep(min(max(took, _LOOK_FOR_MARKS_SECONDS), _LONGEST_REST_SECONDS))
        return more

    def _run_now(self, connection: psycopg.Connection[TupleRow]) -> _Run:
        """Run the policy once.

        An error that leaves the connection whole ends the run only.
        """
        require_version(connection)  # a newer schema may have been set up since the last run
        run_id, horizon, began = self._row(connection, "worker_begin")
        run = _Run(run_id, began)
        problem: str | None = None
        try:
            more = True
            while more and not self._stop.rung:
                step = {"run_id": run_id, "horizon": horizon}
                more = bool(self._row(connection, "worker_step", step)[0])
        except psycopg.Error as error:
            if connection.broken:
                raise
            problem = _one_line(error)
            run.failed = True
            self._trouble.warn(error, "the refresh failed, its rows stay dirty")
        self._row(connection, "worker_end", {"run_id": run_id, "error": problem})
        slices, run.rows, took, _ = self._row(connection, "worker_run", {"run_id": run_id})
        if slices:
            _log.info("refreshed %d rows in %d slices, %s", run.rows, slices, took)
        if self._stop.rung:
            raise _Stopped
        return run

    def _tell_wakes(self, connection: psycopg.Connection[TupleRow], run: _Run) -> None:
        _, rows, _, wakes = self._row(connection, "worker_run", {"run_id": run.id})
        if wakes and rows > run.rows:
            _log.info("woken %d times since, refreshed %d rows", wakes, rows - run.rows)

    def _log_retry(self, state: RetryCallState) -> None:
        if state.outcome is not None and (error := state.outcome.exception()) is not None:
            self._trouble.warn(error, "no connection; trying again")

    def _row(
        self,
        connection: psycopg.Connection[TupleRow],
        query: str,
        parameters: dict[str, object] | None = None,
    ) -> TupleRow:
        """Return the one row that a query gives; all None where it gives none.

        A query that a lock keeps waiting is sent again until it gets the lock.
        Raises _Stopped when the worker is asked to stop meanwhile.
        """
        waited = False
        while True:
            try:
                cursor = connection.execute(queries[query], parameters)
            except psycopg.errors.LockNotAvailable as error:
                if not waited:
                    _log.warning("waiting for a lock: %s", _one_line(error))
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
    """Run a worker in this process until SIGTERM or SIGINT; the slice in hand is finished."""
    worker = Worker()

    def stop(_number: int, _frame: FrameType | None) -> None:
        _log.info("stopping after the slice in hand")
        worker.stop()

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, stop)
    worker.run()
    _log.info("stopped")


def _one_line(error: psycopg.Error) -> str:
    return " ".join(redact(str(error)).split())
