"""The writer thread of a recorder: store bars in order, also after a failure of the database."""

from __future__ import annotations

import logging
import queue
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import Any

import psycopg
from psycopg.rows import TupleRow
from tenacity import RetryCallState, Retrying, retry_if_exception_type, wait_random_exponential

from feature_platform.bars import StreamBar, store_stream
from feature_platform.counted import counted
from feature_platform.database import connect
from feature_platform.errors import UserError, one_line
from feature_platform.heartbeat import Heartbeat, Outage, begin_heartbeats, write_heartbeats
from feature_platform.recorder.spool import Spool
from feature_platform.schema import prepare
from feature_platform.trouble_log import TroubleLog

_log = logging.getLogger(__name__)

# Errors of a row that the database will always reject.
_ROW_ERRORS = (
    psycopg.DataError,
    psycopg.IntegrityError,
    psycopg.errors.CardinalityViolation,
    psycopg.errors.RaiseException,
)
# The longest wait between attempts to reach the database, in seconds.
_LONGEST_WAIT = 5.0

OnConflicting = Callable[[Sequence[tuple[str, int]]], None]


class BarWriter:
    """Store bars and heartbeats in a thread of its own.

    While the database is unavailable, bars wait in memory, and on disk once they are more than
    `in_memory`; when it is back, they are stored in the order in which they arrived. Bars that
    cannot be written to the disk stay in memory, and a warning is repeated.

    symbols: the recorded symbols, and the exchange of each.
    conflicting: called in the writer's thread with the symbol and `ts` of each bar that differs
        from a stored bar of REST or of a file.
    """

    def __init__(
        self,
        spool: Spool,
        symbols: Mapping[str, str],
        *,
        in_memory: int,
        conflicting: OnConflicting,
    ) -> None:
        self._spool = spool
        self._symbols = symbols
        self._in_memory = in_memory
        self._conflicting = conflicting
        self._items: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._bars: deque[list[StreamBar]] = deque()
        self._beats: dict[str, Heartbeat] = {}
        self._outages: list[Outage] = []
        self._stopping = self._begun = False
        self._trouble = TroubleLog(_log)
        self._connection: psycopg.Connection[TupleRow] | None = None

    def put(self, bars: list[StreamBar]) -> None:
        """Queue bars to be stored, none of them twice; from any thread."""
        self._items.put(lambda: self._bars.append(bars))

    def beat(self, beats: Sequence[Heartbeat], outages: Sequence[Outage]) -> None:
        """Queue heartbeats to be written; from any thread."""

        def add() -> None:
            self._beats.update((beat.symbol, beat) for beat in beats)
            self._outages += outages

        self._items.put(add)

    def stop(self) -> None:
        """End `run` once all queued bars are stored or on disk; from any thread."""
        self._items.put(None)

    def run(self) -> bool:
        """Write until `stop`; return whether all bars were stored or are on disk."""
        if self._spool.bars:
            _log.info("%d bars of an earlier run are on disk", self._spool.bars)
        while not self._stopping:
            if not self._spool.bars:
                self._receive(None)
            self._write_with_retries()
        if self._connection is not None:
            self._connection.close()
        return self._spill_rest()

    def _write_with_retries(self) -> None:
        """Write everything that waits; retry while the database is unavailable, until `stop`."""
        retrying = Retrying(
            retry=retry_if_exception_type((psycopg.Error, UserError)),
            wait=wait_random_exponential(multiplier=0.1, max=_LONGEST_WAIT),
            stop=lambda _state: self._stopping,
            sleep=self._pause,
            before_sleep=self._warn,
            reraise=True,
        )
        with suppress(psycopg.Error, UserError):
            retrying(self._write)

    def _write(self) -> None:
        """Write everything that waits, the oldest first."""
        connection = self._connected()
        if self._spool.bars:
            count = self._spool.bars
            for bars in self._spool.batches():
                self._store(connection, bars)
            self._spool.clear()
            _log.info("stored %d bars that were on disk", count)
        while self._bars:
            self._store(connection, self._bars[0])
            self._bars.popleft()
        if self._beats:
            write_heartbeats(connection, list(self._beats.values()), self._outages)
            self._beats, self._outages = {}, []

    def _store(self, connection: psycopg.Connection[Any], bars: list[StreamBar]) -> None:
        """Store bars; if the database rejects one of them, store the others."""
        try:
            stored = store_stream(connection, bars)
        except _ROW_ERRORS as error:
            if len(bars) > 1:
                middle = len(bars) // 2
                self._store(connection, bars[:middle])
                self._store(connection, bars[middle:])
            else:
                _log.error("the database rejects a bar: %s: %s", bars[0], one_line(error))
            return
        _log.info("%d bars stored, %d corrected", stored.inserted, stored.updated)
        if stored.conflicting:
            self._conflicting(stored.conflicting)

    def _connected(self) -> psycopg.Connection[TupleRow]:
        if self._connection is not None and not self._connection.broken:
            return self._connection
        self._connection = None
        connection = connect()
        try:
            prepare(connection)
            if not self._begun:
                begin_heartbeats(connection, self._symbols)
                self._begun = True
        except BaseException:
            connection.close()
            raise
        self._connection = connection
        return connection

    def _receive(self, seconds: float | None) -> None:
        """Wait up to `seconds` for an item, and process all queued ones; None: without a limit."""
        try:
            item = self._items.get(timeout=seconds)
            while True:
                if item is None:
                    self._stopping = True
                else:
                    item()
                item = self._items.get_nowait()
        except queue.Empty:
            return

    def _pause(self, seconds: float) -> None:
        """Wait, and process queued items meanwhile."""
        deadline = time.monotonic() + seconds
        while not self._stopping and (left := deadline - time.monotonic()) > 0:
            self._receive(left)
            if sum(map(len, self._bars)) > self._in_memory:
                self._spill()

    def _spill(self) -> bool:
        """Move all bars from memory to disk; return whether that was possible."""
        count = sum(map(len, self._bars))
        try:
            while self._bars:
                self._spool.append(self._bars[0])
                self._bars.popleft()
        except OSError as error:
            detail = (
                f"; in memory, and lost if this process ends before the database is back:"
                f" {counted(sum(map(len, self._bars)), 'bar')}"
            )
            self._trouble.warn(error, f"{self._spool.path} cannot be written", detail)
            return False
        _log.warning("moved %d bars to disk, %d are there now", count, self._spool.bars)
        return True

    def _spill_rest(self) -> bool:
        if not self._bars:
            return True
        return self._spill()

    def _warn(self, state: RetryCallState) -> None:
        assert state.outcome is not None
        error = state.outcome.exception()
        assert error is not None
        waiting = sum(map(len, self._bars))
        detail = f", {counted(waiting, 'bar')} in memory and {self._spool.bars:,} on disk"
        self._trouble.warn(error, "the database is unavailable", detail)
