"""A database whose clock a test moves, with a copy of all rows after each refresh."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from functools import cached_property
from typing import Any

import psycopg
import pytest
from hypothesis import strategies as st

from feature_platform.settings import get_settings
from feature_platform.views import FeatureView, catalog
from feature_platform.views.verify import served_views
from feature_platform_tests.fix_database import Databases, make_simulated
from feature_platform_tests.fix_views import CANDLES, SHORT, refresh_all

Conn = psycopg.Connection[Any]
Row = tuple[str, datetime, tuple[str, ...]]
# "write", "delete" or "refresh"; the symbol; the minute after START; the close.
Change = tuple[str, str, int, float]

START = datetime(2026, 3, 1, tzinfo=UTC)
MINUTE = timedelta(minutes=1)
SECOND = timedelta(seconds=1)
SYMBOLS = ["A", "B"]
MINUTES = 150

_WRITE = """
    INSERT INTO ohlcv_1m AS b (symbol, ts, open, high, low, close, vol)
    VALUES (%(symbol)s, %(ts)s, 10, 20, 5, %(close)s, %(vol)s)
    ON CONFLICT (symbol, ts) DO UPDATE SET close = excluded.close, vol = excluded.vol
"""
_WRITE_HOUR = """
    INSERT INTO ohlcv_1m (symbol, ts, open, high, low, close, vol)
    SELECT %(symbol)s, %(ts)s::timestamptz + m * interval '1 minute', 10, 20, 5, %(close)s, %(vol)s
    FROM generate_series(0, 59) AS m
"""


@dataclass
class Table:
    """All rows of a view, as a cursor gave them.

    columns: their names.
    """

    columns: list[str]
    given: list[tuple[Any, ...]]

    @cached_property
    def rows(self) -> list[Row]:
        """Return them sorted and in the form of `shown`; tests look at few of the tables."""
        keys = ("symbol", "bucket", "refresh_no")
        values = [place for place, name in enumerate(self.columns) if name not in keys]
        return sorted(
            (row[0], row[1], tuple(shown(row[place]) for place in values)) for row in self.given
        )


@dataclass
class Past:
    """All rows as a reader saw them after each refresh.

    conn: a connection to a database for simulated bars, in which no other session writes.
    seen: the time and the rows after each refresh, by view.
    """

    conn: Conn
    seen: list[tuple[datetime, dict[str, Table]]] = field(default_factory=list)

    def set_clock(self, moment: datetime) -> None:
        """Let the clock of the session show a time; it then hardly moves."""
        now = datetime.now(UTC)
        clock = f"{moment.isoformat()}@{now.isoformat()}x0.001"
        self.conn.execute("SELECT set_config('feature_platform.clock', %s, false)", [clock])

    def write(self, symbol: str, minute: float, close: float = 10, vol: float = 1) -> None:
        """Write one bar, a new one or a correction."""
        given = {"symbol": symbol, "ts": START + minute * MINUTE, "close": close, "vol": vol}
        self.conn.execute(_WRITE, given)

    def write_hour(self, symbol: str, hour: int, close: float, vol: float) -> None:
        """Write the bars of an hour after START by one statement."""
        given = {"symbol": symbol, "ts": START + 60 * hour * MINUTE, "close": close, "vol": vol}
        self.conn.execute(_WRITE_HOUR, given)

    def delete(self, symbol: str, minute: int) -> None:
        """Delete one bar."""
        given = (symbol, START + minute * MINUTE)
        self.conn.execute("DELETE FROM ohlcv_1m WHERE symbol = %s AND ts = %s", given)

    def change(self, changes: Sequence[Change], vol: float) -> None:
        """Change bars and refresh, each a second after the other, and refresh at the end."""
        last = self.seen[-1][0]
        for number, (kind, symbol, minute, close) in enumerate(changes, 1):
            moment = last + number * SECOND
            self.set_clock(moment)
            if kind == "write":
                self.write(symbol, minute, close, vol)
            elif kind == "delete":
                self.delete(symbol, minute)
            else:
                self.refresh(moment)
        self.refresh(last + 20 * SECOND)

    def refresh(self, moment: datetime) -> None:
        """Refresh all rows at a time, and remember what readers see."""
        self.set_clock(moment)
        refresh_all(self.conn)
        self.set_clock(moment + timedelta(milliseconds=100))
        tables = {"features_1m": self._read("features_1m")}
        tables |= {view.name: self._read(view.name) for view in served_views(self.conn)}
        self.seen.append((moment + timedelta(milliseconds=50), tables))

    def known_at(self, view: str, moment: datetime) -> list[Row]:
        """Return all rows of a view that a reader saw at a time."""
        found = [tables for at, tables in self.seen if at <= moment]
        return found[-1][view].rows if found and view in found[-1] else []

    def known_after_close(self, view: str, every: timedelta, delay: timedelta) -> list[Row]:
        """Return each row of a view as a reader saw it some time after the close of its bucket."""
        buckets = {
            row[:2] for _, tables in self.seen if view in tables for row in tables[view].given
        }
        found = []
        for symbol, bucket in sorted(buckets):
            rows = self.known_at(view, bucket + every + delay)
            found += [row for row in rows if row[:2] == (symbol, bucket)]
        return found

    def _read(self, view: str) -> Table:
        cursor = self.conn.execute(f"TABLE public.{view}".encode())
        assert cursor.description is not None
        return Table([column.name for column in cursor.description], cursor.fetchall())


def shown(number: float | None) -> str:
    """Return a number in a form that distinguishes all values, and has one for NULL and NaN."""
    return repr(float("nan") if number is None else float(number))


def changes(first: int, last: int) -> st.SearchStrategy[list[Change]]:
    """Return a strategy of changes of bars of some minutes."""
    change = st.tuples(
        st.sampled_from(["write", "delete", "refresh"]),
        st.sampled_from(SYMBOLS),
        st.integers(first, last),
        st.integers(6, 19),
    )
    return st.lists(change, min_size=1, max_size=12)


@contextmanager
def live_past(
    databases: Databases, seed: int, views: Sequence[FeatureView] = (SHORT, CANDLES)
) -> Iterator[Past]:
    """Yield the past of a live database, which has some views since before its first bar."""
    with databases.fresh() as url, psycopg.connect(url, autocommit=True) as conn:
        make_simulated(url)
        past = Past(conn)
        past.set_clock(START - MINUTE)
        catalog.apply(conn, list(views))
        refresh_all(conn)
        live(past, seed)
        yield past


def live(past: Past, seed: int) -> None:
    """Let bars come minute by minute, some of them late, wrong at first or deleted again."""
    rng = random.Random(seed)
    waiting: list[tuple[str, int]] = []
    for minute in range(MINUTES):
        closed = START + (minute + 1) * MINUTE
        for symbol in SYMBOLS:
            if rng.random() < 0.1:
                waiting.append((symbol, minute))
            else:
                past.write(symbol, minute, rng.randint(6, 19), rng.randint(0, 5))
        past.refresh(closed + rng.choice([1, 1, 1, 5, 30]) * SECOND)
        if rng.random() < 0.3:
            if waiting:
                past.write(*waiting.pop(0), close=rng.randint(6, 19))
            past.write(rng.choice(SYMBOLS), rng.randrange(minute + 1), rng.randint(6, 19))
            if rng.random() < 0.3:
                past.delete(rng.choice(SYMBOLS), rng.randrange(minute + 1))
            past.refresh(closed + 45 * SECOND)


@pytest.fixture
def new_past(simulated_database: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Past]:
    """Yield a past without bars, of a database that the settings name."""
    monkeypatch.setenv("FEATURE_PLATFORM_DATABASE_URL", simulated_database)
    get_settings.cache_clear()
    with psycopg.connect(simulated_database, autocommit=True) as conn:
        past = Past(conn)
        past.set_clock(START - MINUTE)
        yield past
