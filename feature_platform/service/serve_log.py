"""The log of serves: the rows of the answers of `/latest`, in the table feature_platform.served.

`feature-platform skew` computes the logged rows again from their numbers.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from datetime import timedelta
from itertools import islice
from typing import Any

import psycopg
from psycopg.rows import TupleRow
from psycopg.types.multirange import Multirange

from feature_platform.errors import UserError
from feature_platform.queries import queries
from feature_platform.service.pool import CONNECTION, hang_up
from feature_platform.service.rows import OF_THE_NEWEST
from feature_platform.trouble_log import Repeats, TroubleLog

MOST_ROWS = 10_000  # in memory; of a view with 100 columns some 40 MB

_GATHER_SECONDS = 0.5  # from the first row of a batch to its transactions
_RETRY_SECONDS = 2.0
_PATIENCE = 5.0  # seconds for a transaction
_CHUNK = 100  # rows of a transaction; formatting them takes a millisecond, in which no answer can
_LAST_SECONDS = 2.0  # for the rest of the rows when the service stops

# The columns of the COPY.
TYPES = (
    "text",
    "int4",
    "text",
    "timestamptz",
    "int8",
    "int8",
    "tstzmultirange",
    "int8",
    "float8[]",
    "timestamptz",
)
_NUMBERS = 1 + len(OF_THE_NEWEST)  # refresh_no and the numbers after it

_log = logging.getLogger(__name__)


class ServeLog:
    """A log of served rows, which a task writes in batches.

    An answer appends to a queue in memory and never waits. Rows that the queue has no room for,
    since the database does not store them in time, are dropped and counted.

    conninfo: returns the connection string; called before each connection.
    rate: the part of the answers that are logged, 0 to 1.
    most: the rows that the queue has room for.
    """

    def __init__(
        self, conninfo: Callable[[], Awaitable[str]], rate: float, *, most: int = MOST_ROWS
    ) -> None:
        self.written = 0
        self.dropped = 0
        self._conninfo = conninfo
        self._rate = rate
        self._most = most
        self._queue: deque[tuple[Any, ...]] = deque()
        self._has_rows = asyncio.Event()
        self._closing = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._connection: psycopg.AsyncConnection[TupleRow] | None = None
        self._trouble = TroubleLog(_log)
        self._repeats = Repeats()

    @property
    def is_on(self) -> bool:
        """Whether any answer is logged."""
        return self._rate > 0

    def add(self, view: str, version: int, width: timedelta, rows: Sequence[TupleRow]) -> None:
        """Add the rows of one answer, or none of them if the answer is not in the sample.

        version: of the view; 0 for features_1m. width: of a bucket.
        rows: as of the query `service_latest`.
        """
        if random.random() >= self._rate:
            return
        room = self._most - len(self._queue)
        for row in rows[:room]:
            symbol, bucket, *values = row[:-_NUMBERS]
            refresh_no, symbol_no, waiting, waiting_no, age = row[-_NUMBERS:]
            self._queue.append(
                (
                    view,
                    version,
                    symbol,
                    bucket,
                    refresh_no,
                    symbol_no,
                    Multirange() if waiting is None else waiting,
                    waiting_no,
                    [None if value is None else float(value) for value in values],
                    bucket + width + timedelta(seconds=age),
                )
            )
        self._has_rows.set()
        if len(rows) > room:
            self._drop(len(rows) - room, "the database does not store them in time")

    async def open(self) -> None:
        """Begin to write, if the log is on."""
        if self.is_on:
            self._task = asyncio.create_task(self._run())

    async def close(self) -> None:
        """Write the rest of the rows, for a short time, and stop."""
        if self._task is None:
            return
        self._closing.set()
        self._has_rows.set()
        _, late = await asyncio.wait({self._task}, timeout=_LAST_SECONDS)
        for task in late:
            task.cancel()
            await asyncio.wait(late)
        await self._disconnect()
        if self._queue:
            self._drop(len(self._queue), "the service stops")

    async def _run(self) -> None:
        while not self._closing.is_set():
            await self._has_rows.wait()
            await self._pause(_GATHER_SECONDS)
            try:
                while self._queue:
                    await self._write(list(islice(self._queue, _CHUNK)))
                self._has_rows.clear()
            except (psycopg.Error, UserError, OSError) as error:
                self._trouble.warn(
                    error,
                    "the log of serves cannot be written",
                    f" (rows that wait: {len(self._queue)})",
                )
                await self._disconnect()
                await self._pause(_RETRY_SECONDS)

    async def _write(self, rows: list[tuple[Any, ...]]) -> None:
        """Write the first rows of the queue in a transaction, and remove them from it."""
        connection = await self._connect()
        # The server ends a statement that is too slow. After this time it does not answer at all.
        alarm = asyncio.get_running_loop().call_later(2 * _PATIENCE, hang_up, connection)
        try:
            async with connection.cursor().copy(queries["service_log"]) as copy:
                copy.set_types(TYPES)
                for row in rows:
                    await copy.write_row(row)
        finally:
            alarm.cancel()
        for _ in rows:
            self._queue.popleft()
        self.written += len(rows)

    async def _connect(self) -> psycopg.AsyncConnection[TupleRow]:
        if self._connection is None:
            self._connection = await psycopg.AsyncConnection.connect(
                await self._conninfo(), **CONNECTION
            )
            await self._connection.execute(
                queries["service_log_session"], {"statement_timeout": f"{_PATIENCE * 1000:.0f}ms"}
            )
        return self._connection

    async def _disconnect(self) -> None:
        if self._connection is not None:
            await self._connection.close()
            self._connection = None

    async def _pause(self, seconds: float) -> None:
        """Wait for some seconds, or until the service stops."""
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._closing.wait()

    def _drop(self, rows: int, reason: str) -> None:
        self.dropped += rows
        line = self._repeats.take(
            reason, f"the log of serves dropped rows, {self.dropped} so far: {reason}"
        )
        if line is not None:
            _log.warning("%s", line)
