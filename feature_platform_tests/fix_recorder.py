"""Fixtures of recorder tests: a database that can be down, recorders, and a fast exchange."""

from __future__ import annotations

import asyncio
import resource
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from typing import Any, LiteralString, Self
from urllib.parse import urlsplit

import psycopg
import pytest
from psycopg import sql

from feature_platform.bars import time_of
from feature_platform.clock import SimulatedClock
from feature_platform.database import connect
from feature_platform.exchange.stream import BackOff, Kind
from feature_platform.heartbeat import StreamState, list_heartbeats
from feature_platform.recorder.recorder import Recorder
from feature_platform.settings import get_settings
from feature_platform.simulator.server import SimulatedExchange
from feature_platform.simulator.truth import Truth
from feature_platform_tests.fix_database import make_simulated
from feature_platform_tests.fix_exchange import quick
from feature_platform_tests.fix_processes import PATIENCE, WorkerProcess, value, wait_until


class GoingDatabase:
    """A database that can reject connections for a while, as during a restart.

    url: a superuser's URL.
    """

    def __init__(self, url: str) -> None:
        self.url = url
        self._name = urlsplit(url).path.lstrip("/")
        self._server = urlsplit(url)._replace(path="/postgres").geturl()

    def leave(self) -> None:
        """End all sessions, and reject new ones."""
        self._send("ALTER DATABASE {} ALLOW_CONNECTIONS false")
        with psycopg.connect(self._server, autocommit=True) as connection:
            connection.execute(
                "SELECT pg_terminate_backend(pid, 10000) FROM pg_stat_activity WHERE datname = %s",
                [self._name],
            )

    def come_back(self) -> None:
        """Accept sessions again."""
        self._send("ALTER DATABASE {} ALLOW_CONNECTIONS true")

    @contextmanager
    def away(self) -> Iterator[None]:
        """Reject connections while the body runs."""
        self.leave()
        try:
            yield
        finally:
            self.come_back()

    def _send(self, statement: str) -> None:
        with psycopg.connect(self._server, autocommit=True) as connection:
            connection.execute(sql.SQL(statement).format(sql.Identifier(self._name)))


@contextmanager
def files_up_to(size: int) -> Iterator[None]:
    """Limit the size of files, to behave like a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, handler)


@pytest.fixture
def going(database: str, monkeypatch: pytest.MonkeyPatch) -> GoingDatabase:
    """Return a fresh database, which the settings name and which can reject connections."""
    monkeypatch.setenv("FEATURE_PLATFORM_DATABASE_URL", database)
    get_settings.cache_clear()
    return GoingDatabase(database)


class RecorderProcess(WorkerProcess):
    """A process of `feature-platform record`, and its log."""

    arguments = ("record", "--days", "0")


BarKey = tuple[str, datetime]
BarValues = tuple[float, ...]

# So that the first minute of a recorder is not the first minute of the history.
_HISTORY = timedelta(minutes=5)


class RecorderThread:
    """A recorder in this process, with short waits between retries.

    Its settings are those of the environment.
    """

    def __init__(self, kind: Kind | None = None, history: timedelta = _HISTORY) -> None:
        self.kept: bool | None = None
        self._kind, self._history = kind, history
        self._ready = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._run()))

    def stop(self) -> None:
        """Stop it in order, and fail if it lost a received bar."""
        if self._thread.is_alive():
            self._loop.call_soon_threadsafe(self._recorder.stop)
        self._thread.join(PATIENCE)
        assert self.kept is True

    def waiting(self) -> set[BarKey]:
        """Return the symbols and minutes of the bars in memory, which wait for the database."""
        queued = list(self._recorder._writer._bars)
        return {(bar.symbol, time_of(bar.ts)) for bars in queued for bar in bars}

    def __enter__(self) -> Self:
        self._thread.start()
        assert self._ready.wait(PATIENCE)
        return self

    def __exit__(self, *_exc: object) -> None:
        if self.kept is None:
            self.stop()

    async def _run(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._recorder = Recorder(
            get_settings(),
            self._history,
            kind=self._kind,
            back_off=BackOff(0.05, 0.3),
            patience=quick(attempts=2),
        )
        self._ready.set()
        self.kept = await self._recorder.run()


@pytest.fixture
def fast_clock(monkeypatch: pytest.MonkeyPatch) -> SimulatedClock:
    """Set a clock on which a minute takes a second, for every process of the test."""
    return run_clock(monkeypatch, 60)


def run_clock(monkeypatch: pytest.MonkeyPatch, speed: float) -> SimulatedClock:
    """Set the platform's clock to a time in 2026, and its speed."""
    clock = SimulatedClock(datetime(2026, 3, 1, 12, 0, 20, tzinfo=UTC), datetime.now(UTC), speed)
    monkeypatch.setenv("FEATURE_PLATFORM_CLOCK", str(clock))
    get_settings.cache_clear()
    return clock


def stored_bars(
    connection: psycopg.Connection[Any], start: datetime, end: datetime
) -> dict[BarKey, BarValues]:
    """Return the bars of [start, end) by symbol and minute: OHLC and volume."""
    rows = connection.execute(
        "SELECT symbol, ts, open, high, low, close, vol FROM ohlcv_1m WHERE ts >= %s AND ts < %s",
        (start, end),
    ).fetchall()
    return {(row[0], row[1]): row[2:] for row in rows}


def true_bars(truth: Truth, start: datetime, end: datetime) -> dict[BarKey, BarValues]:
    """Return the bars that the exchange traded in [start, end), in the form of `stored_bars`."""
    bars: dict[BarKey, BarValues] = {}
    for symbol in truth.markets:
        frame = truth.bars(symbol, start, end)
        minutes = (minute.to_pydatetime() for minute in frame["ts"])
        values = frame.iloc[:, 1:6].itertuples(index=False, name=None)
        bars.update(zip(((symbol, minute) for minute in minutes), values, strict=True))
    return bars


def differences(stored: dict[BarKey, BarValues], true: dict[BarKey, BarValues]) -> list[str]:
    """Return a line for each bar whose stored values differ from the true ones."""
    return [
        f"{symbol} {ts:%H:%M}: stored {stored.get((symbol, ts))}, traded {true.get((symbol, ts))}"
        for symbol, ts in sorted(stored.keys() | true.keys())
        if stored.get((symbol, ts)) != true.get((symbol, ts))
    ]


class Live:
    """A simulated exchange whose minutes take a second, and the database of its bars.

    start: the minute of its creation; a recorder that starts then stores all bars from there on.
    """

    def __init__(self, venue: SimulatedExchange, database: GoingDatabase) -> None:
        self.venue = venue
        self.database = database
        self.clock = get_settings().clock
        self.start = self.clock.now().replace(second=0, microsecond=0)

    def pass_minutes(self, count: int) -> datetime:
        """Wait until so many more minutes are over; return the end of the last one."""
        end = self.clock.now().replace(second=0, microsecond=0) + timedelta(minutes=count)
        seconds = (end - self.clock.now()).total_seconds()
        time.sleep(self.clock.wall_seconds(seconds))
        return end

    def value(self, query: LiteralString, *parameters: object) -> Any:
        """Return the single value of a query's result."""
        with connect(self.database.url) as connection:
            return value(connection, query, *parameters)

    def wait_for_states(self, state: StreamState) -> None:
        """Wait until the heartbeat of every symbol has this state."""

        def is_so() -> bool:
            with connect(self.database.url) as connection:
                feeds = list_heartbeats(connection)
            return bool(feeds) and all(feed.state == state for feed in feeds)

        wait_until(is_so, f"all symbols are {state}")

    def wait_for_stream_bars(self, count: int) -> None:
        """Wait until so many bars that came by the stream are stored."""

        def are_stored() -> bool:
            stored = self.value("SELECT count(*) FROM ohlcv_1m WHERE source = 'stream'")
            return bool(stored >= count)

        wait_until(are_stored, f"{count} bars of the stream are stored")

    @contextmanager
    def venue_away(self) -> Iterator[None]:
        """Stop the simulated exchange while the body runs, and start another at the same port."""
        port = urlsplit(self.venue.url).port
        assert port is not None
        self.venue.__exit__()
        try:
            yield
        finally:
            self.venue = SimulatedExchange(self.venue.truth, seed=7, clock=self.clock, port=port)
            self.venue.__enter__()

    def wait_for_truth(
        self, end: datetime, start: datetime | None = None, *, quiet_left_out: bool = False
    ) -> None:
        """Wait until the stored bars of all symbols in [start, end) are the true ones."""
        found: list[str] = []

        def is_true() -> bool:
            found[:] = self.differences(start or self.start, end, quiet_left_out)
            return not found

        try:
            wait_until(is_true, "the bars are the true ones")
        except AssertionError:
            raise AssertionError("\n".join(found[:20])) from None

    def stored(self, end: datetime | None = None) -> dict[BarKey, BarValues]:
        """Return the stored bars of [start, end), by default until now."""
        with connect(self.database.url) as connection:
            return stored_bars(connection, self.start, end or self.clock.now())

    def differences(
        self, start: datetime, end: datetime, quiet_left_out: bool = False
    ) -> list[str]:
        """Compare the stored bars with the true ones.

        quiet_left_out: whether the exchange publishes no bar of a minute without trades.
        """
        with connect(self.database.url) as connection:
            stored = stored_bars(connection, start, end)
        true = {
            key: bar
            for key, bar in true_bars(self.venue.truth, start, end).items()
            if bar[-1] or not quiet_left_out
        }
        return differences(stored, true)


@pytest.fixture
def live(
    going: GoingDatabase,
    fast_clock: SimulatedClock,
    exchange_truth: Truth,
    monkeypatch: pytest.MonkeyPatch,
) -> Iterator[Live]:
    """Yield a running exchange and a simulated database, which the settings name."""
    make_simulated(going.url)
    with SimulatedExchange(exchange_truth, seed=7, clock=fast_clock) as venue:
        monkeypatch.setenv("FEATURE_PLATFORM_EXCHANGE_URL", venue.url)
        monkeypatch.setenv("FEATURE_PLATFORM_SYMBOLS", ",".join(venue.truth.markets))
        get_settings.cache_clear()
        made = Live(venue, going)
        yield made
    if made.venue is not venue:
        made.venue.__exit__()
