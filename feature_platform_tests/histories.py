"""Random histories of a table of bars: operations of writers and refreshers in any order.

Minutes come from a few clusters at 00:00 and 12:00 of eight days. So a history of some dozen bars
spans days, and often has two bars that are exactly a day, or a day less a minute, apart. The days
contain a change of daylight saving time in Europe and the end of a chunk of TimescaleDB.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta

import psycopg
from hypothesis import strategies as st
from psycopg.sql import SQL, Identifier

from feature_platform_tests.fix_engine import STOPS, Bench, Stop
from feature_platform_tests.oracle import MINUTE, Bar, Key, expected_features, mismatches

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
DAY_0 = int((datetime(2023, 10, 24, tzinfo=UTC) - EPOCH) / timedelta(minutes=1))
SYMBOLS = ("A", "B", "Ä/B")

# The columns of a bar as arrays, one parameter each, so that any number is one statement.
_GIVEN = SQL("""
    SELECT symbol COLLATE "C" AS symbol, to_timestamp(us / 1e6) AS ts, open, high, low, close, vol
    FROM unnest(%s::text[], %s::bigint[], %s::float8[], %s::float8[], %s::float8[], %s::float8[],
                %s::float8[]) AS given (symbol, us, open, high, low, close, vol)
""")
_INSERT = SQL("INSERT INTO ohlcv_1m AS b (symbol, ts, open, high, low, close, vol) {}")
_REPLACE = SQL("""
    ON CONFLICT (symbol, ts) DO UPDATE SET open = excluded.open, high = excluded.high,
        low = excluded.low, close = excluded.close, vol = excluded.vol
""")
_WHERE_DIFFERENT = SQL("""
    WHERE (b.open, b.high, b.low, b.close, b.vol) IS DISTINCT FROM
          (excluded.open, excluded.high, excluded.low, excluded.close, excluded.vol)
""")
_MERGE = SQL("""
    MERGE INTO ohlcv_1m AS b USING ({}) AS g ON b.symbol = g.symbol AND b.ts = g.ts
    WHEN MATCHED AND g.vol = 7 THEN DELETE
    WHEN MATCHED THEN UPDATE SET open = g.open, high = g.high, low = g.low, close = g.close,
                                 vol = g.vol
    WHEN NOT MATCHED THEN INSERT (symbol, ts, open, high, low, close, vol)
                          VALUES (g.symbol, g.ts, g.open, g.high, g.low, g.close, g.vol)
""")
_SPAN = SQL(" WHERE symbol = %s AND ts >= %s AND ts < %s")
_THE_SAME = SQL("SELECT symbol, ts, open, high, low, close, vol FROM ohlcv_1m") + _SPAN
_WRITERS = {
    "insert": _INSERT.format(_GIVEN) + SQL("ON CONFLICT DO NOTHING"),
    "upsert": _INSERT.format(_GIVEN) + _REPLACE,
    "guarded upsert": _INSERT.format(_GIVEN) + _REPLACE + _WHERE_DIFFERENT,
    "merge": _MERGE.format(_GIVEN),
}


def at(minute: float) -> datetime:
    """Return the time `minute` minutes after the start of the first day."""
    return EPOCH + timedelta(minutes=DAY_0 + minute)


def bar(symbol: str, minute: float, close: float = 10, vol: float = 1, **prices: float) -> Bar:
    """Return a bar `minute` minutes after the start of the first day."""
    known = {"open": close, "high": close, "low": close, "close": close, "vol": vol, **prices}
    ts = round((DAY_0 + minute) * MINUTE)
    return Bar(symbol, ts, **{column: float(value) for column, value in known.items()})


def write(conn: psycopg.Connection, bars: Iterable[Bar], how: str = "upsert") -> None:
    """Write bars by one statement, the last of each key if several are given."""
    by_key = {(bar.symbol, bar.ts): bar for bar in bars}
    columns: Sequence[Sequence[object]] = list(zip(*by_key.values(), strict=True)) or [()] * 7
    conn.execute(_WRITERS[how], [list(column) for column in columns])


def copy(conn: psycopg.Connection, bars: Iterable[Bar]) -> None:
    """Write bars by COPY, which rejects minutes that are stored."""
    with (
        conn.cursor() as cursor,
        cursor.copy("COPY ohlcv_1m (symbol, ts, open, high, low, close, vol) FROM STDIN") as rows,
    ):
        for one in bars:
            moment = EPOCH + timedelta(microseconds=one.ts)
            rows.write_row((one.symbol, moment, *one[2:]))


class Operation:
    """A change of a database, or a refresh, in one or more transactions."""

    def __call__(self, bench: Bench) -> None:
        raise NotImplementedError


class Statement(Operation):
    """An operation that can be part of a transaction."""


@dataclass(frozen=True)
class Write(Statement):
    """Write bars."""

    how: str
    bars: tuple[Bar, ...]

    def __call__(self, bench: Bench) -> None:
        if self.how == "merge" and bench.engine == "timescaledb":
            # TimescaleDB has no MERGE with a columnstore.
            write(bench.conn, self.bars)
        elif self.how == "copy":
            there = {(bar.symbol, bar.ts) for bar in bench.bars()}
            by_key = {(bar.symbol, bar.ts): bar for bar in self.bars}
            copy(bench.conn, (by_key[key] for key in by_key.keys() - there))
        else:
            write(bench.conn, self.bars, self.how)


@dataclass(frozen=True)
class WriteRun(Statement):
    """Write, or replace, the bars of consecutive minutes."""

    symbol: str
    start: int
    count: int
    volumes: tuple[float, ...]

    def __call__(self, bench: Bench) -> None:
        volumes = self.volumes
        write(
            bench.conn,
            (
                bar(self.symbol, self.start + i, 100 + i % 7, volumes[i % len(volumes)], low=99)
                for i in range(self.count)
            ),
        )


@dataclass(frozen=True)
class Replay(Statement):
    """Write stored bars again, unchanged."""

    symbol: str
    lo: int
    hi: int

    def __call__(self, bench: Bench) -> None:
        bench.conn.execute(
            _INSERT.format(_THE_SAME) + _REPLACE,
            (self.symbol, at(self.lo), at(self.hi)),
        )


@dataclass(frozen=True)
class Correct(Statement):
    """Change the volume and close of some bars."""

    symbol: str
    lo: int
    hi: int
    vol: float

    def __call__(self, bench: Bench) -> None:
        bench.conn.execute(
            SQL("UPDATE ohlcv_1m SET vol = %s, close = (high + low) / 2") + _SPAN,
            (self.vol, self.symbol, at(self.lo), at(self.hi)),
        )


@dataclass(frozen=True)
class Delete(Statement):
    """Delete some bars."""

    symbol: str
    lo: int
    hi: int

    def __call__(self, bench: Bench) -> None:
        bench.conn.execute(
            SQL("DELETE FROM ohlcv_1m") + _SPAN, (self.symbol, at(self.lo), at(self.hi))
        )


@dataclass(frozen=True)
class DeleteFirst(Statement):
    """Delete the first bars of a symbol."""

    symbol: str
    count: int

    def __call__(self, bench: Bench) -> None:
        bench.conn.execute(
            "DELETE FROM ohlcv_1m WHERE symbol = %s AND ts IN"
            " (SELECT ts FROM ohlcv_1m WHERE symbol = %s ORDER BY ts LIMIT %s)",
            (self.symbol, self.symbol, self.count),
        )


@dataclass(frozen=True)
class Move(Statement):
    """Move some bars to another key, unless a bar has it."""

    symbol: str
    lo: int
    hi: int
    to: str
    by: timedelta

    def __call__(self, bench: Bench) -> None:
        try:
            with bench.conn.transaction():
                bench.conn.execute(
                    SQL("UPDATE ohlcv_1m SET symbol = %s, ts = ts + %s") + _SPAN,
                    (self.to, self.by, self.symbol, at(self.lo), at(self.hi)),
                )
        except psycopg.errors.UniqueViolation:
            pass
        except psycopg.errors.CheckViolation:
            if bench.engine != "timescaledb":  # TimescaleDB moves no row to another chunk
                raise
        except psycopg.errors.InternalError_ as error:
            # TimescaleDB rejects an UPDATE of a compressed row's key in a partly compressed chunk.
            if bench.engine != "timescaledb" or "tuple operation result" not in str(error):
                raise


@dataclass(frozen=True)
class Truncate(Operation):
    """Delete all bars by TRUNCATE."""

    def __call__(self, bench: Bench) -> None:
        bench.conn.execute("TRUNCATE ohlcv_1m")


@dataclass(frozen=True)
class Transaction(Operation):
    """Several statements, committed or rolled back together."""

    statements: tuple[Statement, ...]
    committed: bool

    def __call__(self, bench: Bench) -> None:
        try:
            with bench.conn.transaction(force_rollback=not self.committed):
                for statement in self.statements:
                    statement(bench)
        except psycopg.errors.InternalError_ as error:
            # TimescaleDB fails so for some transactions that write to a columnstore twice.
            if "unexpected tuple operation result" not in str(error):
                raise


@dataclass(frozen=True)
class ForgetCache(Operation):
    """Empty one of the caches of the refresh, or both."""

    tables: tuple[str, ...] = ("symbol_state", "features_1m_state")

    def __call__(self, bench: Bench) -> None:
        for table in self.tables:
            bench.conn.execute(SQL("DELETE FROM {}").format(Identifier("feature_platform", table)))


@dataclass(frozen=True)
class SetTimeZone(Operation):
    """Change the session's time zone."""

    name: str

    def __call__(self, bench: Bench) -> None:
        bench.conn.execute("SELECT set_config('timezone', %s, false)", [self.name])


@dataclass(frozen=True)
class Compress(Operation):
    """Compress chunks into the columnstore, on TimescaleDB."""

    table: str

    def __call__(self, bench: Bench) -> None:
        if bench.engine == "timescaledb":
            bench.conn.execute(
                "SELECT compress_chunk(c) FROM show_chunks(%s::regclass) AS c", [self.table]
            )


@dataclass(frozen=True)
class Refresh(Operation):
    """Refresh a window and check its rows; rows elsewhere may still be dirty."""

    lo: int | None
    hi: int | None
    force: bool = False

    def __call__(self, bench: Bench) -> None:
        window = [None if end is None else at(end) for end in (self.lo, self.hi)]
        bench.refresh(*window, force=self.force)
        check_window(bench, self.lo, self.hi)


@dataclass(frozen=True)
class RefreshSlices(Operation):
    """Refresh a window in small slices, perhaps not to its end."""

    lo: int
    hi: int
    minutes: int
    symbols: int
    most: int

    def __call__(self, bench: Bench) -> None:
        for _ in range(self.most):
            row = bench.conn.execute(
                """SELECT more FROM feature_platform.refresh_slice(%s, %s,
                       feature_platform.dirty_horizon(), slice_rows => %s, slice_symbols => %s)
                """,
                (at(self.lo), at(self.hi), self.minutes, self.symbols),
            ).fetchone()
            assert row is not None
            if not row[0]:
                check_window(bench, self.lo, self.hi)
                break


@dataclass(frozen=True)
class RefreshAmidst(Operation):
    """Refresh a window, and let writers commit while the refresh waits half-way."""

    stop: Stop
    lo: int | None
    hi: int | None
    statements: tuple[Statement, ...] = field(default=())

    def __call__(self, bench: Bench) -> None:
        window = [None if end is None else at(end) for end in (self.lo, self.hi)]
        with bench.refresh_stopped_at(self.stop, *window):
            for statement in self.statements:
                statement(bench)


def check_window(bench: Bench, lo: int | None, hi: int | None) -> None:
    """Fail unless every row of a window equals the features of the bars."""
    expected = expected_features(bench.bars())
    stored = bench.features()

    def inside(key: Key) -> bool:
        minute = key[1] // MINUTE - DAY_0
        return (lo is None or lo <= minute) and (hi is None or minute < hi)

    wrong = mismatches(
        {key: row for key, row in stored.items() if inside(key)},
        {key: row for key, row in expected.items() if inside(key)},
    )
    assert not wrong, "after a refresh of the window:\n" + "\n".join(wrong)


def check_history(bench: Bench, history: Sequence[Operation]) -> None:
    """Fail unless a refresh after all operations stores exact rows and leaves nothing dirty."""
    bench.empty()
    for operation in history:
        operation(bench)
    bench.refresh()
    bench.check()
    left = bench.conn.execute("SELECT * FROM feature_platform.dirty_log").fetchall()
    assert not left, f"left dirty: {left}"
    bench.check_build()


# ==== strategies ====

symbols = st.sampled_from(SYMBOLS[:1] * 3 + SYMBOLS)
# All times of one history are near a few anchors; otherwise two operations seldom meet.
_anchors = st.shared(
    st.lists(
        st.sampled_from([half_day * 720 for half_day in range(16)] + [30 * 1440]),
        min_size=1,
        max_size=5,
    ),
    key="anchors",
)
minutes = st.builds(
    lambda anchor, offset: anchor + offset, _anchors.flatmap(st.sampled_from), st.integers(-3, 3)
)
_seconds = st.sampled_from([0.0] * 12 + [0.5, 10, 30, 59.999999])
_volumes = st.one_of(
    st.sampled_from([0.0, 1.0, 5.0, 5.0, 0.1, 0.3, 7.0, 1e12, 1e12 + 0.1, 1e-100, 1e100]),
    st.floats(1e-3, 1e6),
)
_prices = st.one_of(
    st.sampled_from([1.0, 10.0, 10.5, 1e-100, 1e100]), st.floats(0.01, 1e5, allow_subnormal=False)
)


@st.composite
def bars(draw: st.DrawFn) -> Bar:
    """Draw a bar; some bars are not at the start of their minute."""
    prices = sorted(draw(st.lists(_prices, min_size=4, max_size=4)))
    first, last = draw(st.sampled_from([(1, 2), (2, 1), (0, 3), (3, 0), (0, 0)]))
    when = draw(minutes) + draw(_seconds) / 60
    return bar(
        draw(symbols),
        when,
        prices[last],
        draw(_volumes),
        open=prices[first],
        low=prices[0],
        high=prices[3],
    )


@st.composite
def spans(draw: st.DrawFn) -> tuple[int, int]:
    """Draw a span of one minute, of some minutes, or of days."""
    lo = draw(minutes)
    hi = draw(st.one_of(st.just(lo + 1), st.integers(lo + 1, lo + 6), minutes))
    return min(lo, hi), max(lo, hi) + (lo == hi)


@st.composite
def statements(draw: st.DrawFn) -> Statement:
    """Draw an operation of a writer."""
    kind = draw(
        st.sampled_from(
            ["write", "write", "run", "run", "replay", "correct", "delete", "first", "move"]
        )
    )
    if kind == "write":
        how = draw(st.sampled_from(["copy", *_WRITERS]))
        return Write(how, tuple(draw(st.lists(bars(), min_size=1, max_size=8))))
    symbol = draw(symbols)
    if kind == "run":
        volumes = draw(st.sampled_from([(5.0,), (0.0,), (1.0, 2.0, 1e12), (0.1, 0.2, 0.3, 7.0)]))
        return WriteRun(symbol, draw(minutes), draw(st.integers(1, 30)), volumes)
    if kind == "first":
        return DeleteFirst(symbol, draw(st.integers(1, 4)))
    lo, hi = draw(spans())
    if kind == "replay":
        return Replay(symbol, lo, hi)
    if kind == "correct":
        return Correct(symbol, lo, hi, draw(_volumes))
    if kind == "delete":
        return Delete(symbol, lo, hi)
    by = st.sampled_from([0, 30, 60, -60, 86340, 86400, -86400, 5 * 86400])
    return Move(symbol, lo, hi, draw(symbols), timedelta(seconds=draw(by)))


_several = st.lists(statements(), min_size=1, max_size=3).map(tuple)
_stops = st.sampled_from(STOPS)
_ends = st.one_of(st.tuples(st.none(), st.none()), spans())


@st.composite
def refreshes(draw: st.DrawFn) -> Operation:
    """Draw a refresh."""
    kind = draw(st.sampled_from(["window", "window", "slices", "amidst", "amidst"]))
    if kind == "slices":
        return RefreshSlices(
            *draw(spans()),
            draw(st.sampled_from([1, 2, 7, 1000, 200_000])),
            draw(st.sampled_from([1, 2, 1000])),
            draw(st.sampled_from([1, 2, 5])),
        )
    lo, hi = draw(_ends)
    if kind == "amidst":
        return RefreshAmidst(draw(_stops), lo, hi, draw(_several))
    return Refresh(lo, hi, draw(st.sampled_from([False, False, False, True])))


_transactions = st.builds(Transaction, _several, st.booleans())
_rare = st.sampled_from(
    [
        Truncate(),
        ForgetCache(),
        ForgetCache(),
        SetTimeZone("Europe/Berlin"),
        SetTimeZone("Asia/Kathmandu"),
        Compress("ohlcv_1m"),
        Compress("features_1m"),
    ]
)

operations: st.SearchStrategy[Operation] = st.integers(0, 19).flatmap(
    lambda kind: (
        statements()
        if kind < 9
        else refreshes()
        if kind < 17
        else (_transactions, _transactions, _rare)[kind - 17]
    )
)


@st.composite
def overtaken_refreshes(draw: st.DrawFn) -> list[Operation]:
    """Draw a history in which writers change a day during a refresh of the next day."""
    newest = draw(minutes)
    few = st.lists(bars(), max_size=3).map(tuple)
    lo, hi = draw(_ends)
    return [
        WriteRun("A", newest - 2880, 3, (1.0, 2.0)),
        Write("upsert", draw(few)),
        WriteRun("A", newest - 5, 6, (3.0, 5.0, 11.0)),
        Refresh(None, None),
        Write("upsert", draw(few)),
        WriteRun("A", newest + 1, draw(st.integers(0, 3)), (4.0, 9.0)),
        # The window of the last of these bars begins among the bars that are corrected below.
        WriteRun("A", newest + 1430, draw(st.integers(5, 11)), (4.0, 9.0)),
        RefreshAmidst(
            draw(_stops),
            lo,
            hi,
            (
                Correct("A", newest - 6, newest - draw(st.integers(0, 5)), draw(_volumes)),
                *draw(st.lists(statements(), max_size=2)),
            ),
        ),
    ]
