"""The worker: the process that runs the refresh policy where the database has no jobs."""

from __future__ import annotations

import logging
import signal
from contextlib import closing
from datetime import UTC, datetime
from types import FrameType
from typing import Any

import psycopg
from psycopg.rows import TupleRow
from tenacity import (
    RetryCallState,
    Retrying,
    retry_if_exception_type,
    wait_random_exponential,
)

from feature_platform._bell import Bell
from feature_platform.database import connect
from feature_platform.errors import UserError
from feature_platform.queries import queries
from feature_platform.schema import prepare
from feature_platform.settings import get_settings, redact

_log = logging.getLogger(__name__)

# How long a worker waits before it looks again: another worker may have gone, somebody may have
# added a policy or changed its schedule, the database may have gone away.
_LOOK_SECONDS = 2.0

# How long it leaves a database alone that went away or refused: what accepts connections may
# still fail all that is sent over them.
_PAUSE_SECONDS = 1.0

_LONG_AGO = datetime(1970, 1, 2, tzinfo=UTC)


class _Stopped(Exception):
    """The worker was asked to stop while it waited."""


class Worker:
    """Run the refresh policy on its schedule until asked to stop.

    Only one worker of a database is at work; further ones stand by and take over when it ends.
    A database that goes away is waited for, with back-off; what was being refreshed then stays
    dirty and is done by the next run.
    """

    def __init__(self) -> None:
        self._stop = Bell()
        self._clock = get_settings().clock

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
            before_sleep=_log_retry,
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
            self._become_the_one(connection)
            began = _LONG_AGO
            while True:
                self._wait_until_due(connection, began)
                began = self._run_now(connection)
        except _Stopped:
            return
        except psycopg.Error as error:
            if first and not ready:
                raise
            trouble = "the database went away" if connection.broken else "the database refused"
            _log.warning("%s: %s", trouble, " ".join(redact(str(error)).split()))

    def _become_the_one(self, connection: psycopg.Connection[TupleRow]) -> None:
        told = False
        while not _value(connection, "worker_try_lock"):
            if not told:
                _log.info("another worker is at work: standing by")
                told = True
            self._sleep(_LOOK_SECONDS)
        _log.info("at work")

    def _wait_until_due(self, connection: psycopg.Connection[TupleRow], began: datetime) -> None:
        """Wait for the first moment of the schedule after the last run began, if not past."""
        told = False
        while True:
            seconds = _value(connection, "worker_next_run", {"began": began})
            if seconds is None and not told:
                _log.info("there is no refresh policy: waiting for add_features_1m_policy()")
                told = True
            elif seconds is not None and seconds <= 0:
                return
            wait = _LOOK_SECONDS if seconds is None else self._clock.wall_seconds(seconds)
            self._sleep(min(wait, _LOOK_SECONDS))

    def _run_now(self, connection: psycopg.Connection[TupleRow]) -> datetime:
        """Run the policy once, and return when the run began.

        An error that leaves the connection whole ends the run only.
        """
        row = connection.execute(queries["worker_begin"]).fetchone()
        assert row is not None, "the statement always gives one row"
        run_id, horizon, began = row
        problem: str | None = None
        try:
            more = True
            while more and not self._stop.rung:
                step = {"run_id": run_id, "horizon": horizon}
                more = bool(_value(connection, "worker_step", step))
        except psycopg.Error as error:
            if connection.broken:
                raise
            problem = " ".join(str(error).split())
            _log.error("the refresh failed, its rows stay dirty: %s", problem)
        connection.execute(queries["worker_end"], {"run_id": run_id, "error": problem})
        done = connection.execute(queries["worker_run"], {"run_id": run_id}).fetchone()
        if done is not None and done[0]:
            _log.info("refreshed %d rows in %d slices, %s", done[1], done[0], done[2])
        if self._stop.rung:
            raise _Stopped
        assert isinstance(began, datetime)
        return began

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


def _value(
    connection: psycopg.Connection[TupleRow],
    query: str,
    parameters: dict[str, object] | None = None,
) -> Any:
    row = connection.execute(queries[query], parameters).fetchone()
    return None if row is None else row[0]


def _log_retry(state: RetryCallState) -> None:
    if state.outcome is not None:
        _log.warning("%s; trying again", state.outcome.exception())
