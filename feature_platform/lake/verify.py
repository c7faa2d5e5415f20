"""The proof that the lake's rows equal the database's, by count and checksum, and by sample."""

from __future__ import annotations

import random
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any
from zlib import crc32

import psycopg
from psycopg.sql import SQL, Identifier

from feature_platform._adbc import Reader, reader
from feature_platform.lake import delta, state
from feature_platform.lake.checksum import Sums, sums_of
from feature_platform.lake.read import read
from feature_platform.lake.state import Change
from feature_platform.lake.sync import Days, commits_of, rows_of, symbols_of
from feature_platform.lake.tables import (
    DAY,
    MONTH,
    MirroredTable,
    mirrored_tables,
    month_end,
    month_start,
    months_between,
)
from feature_platform.queries import queries
from feature_platform.settings import get_settings

if TYPE_CHECKING:
    from deltalake import DeltaTable

# The age of files whose days every night compares, and the nights that compare all others.
_YOUNG = timedelta(days=2)
_NIGHTS = 30

Span = tuple[datetime, datetime]
Chosen = Callable[[str, int], list[Span]]


@dataclass(frozen=True)
class Difference:
    """A day of a symbol whose rows differ: their numbers in the lake and in the database."""

    symbol: str
    day: datetime
    rows_in_lake: int
    rows_in_database: int


@dataclass
class LakeReport:
    """The comparison of one table.

    rows: of the database that were compared.
    days: pairs of a symbol and a day whose count and checksum were compared.
    pending: of these, those that a sync still has to write.
    sampled: rows that were compared value by value.
    lost_files: files that the table has, and the lake does not.
    """

    name: str
    rows: int = 0
    days: int = 0
    pending: int = 0
    sampled: int = 0
    lost_files: int = 0
    duration: timedelta = timedelta()
    differences: list[Difference] = field(default_factory=list)

    @property
    def equal(self) -> bool:
        """Return whether nothing differs."""
        return not self.differences and not self.lost_files


def verify(
    connection: psycopg.Connection[Any],
    names: list[str] | None = None,
    *,
    start: datetime | None = None,
    end: datetime | None = None,
    nightly: bool = False,
) -> Iterator[LakeReport]:
    """Compare the rows with start <= day < end of all tables, or some; by default all rows.

    nightly: of these, only the days of files that are younger than two days, and one thirtieth of
        the partitions, each night another one: thirty nights compare all of them.
    The next sync writes each day that differs again.
    Raises UserError for a lake that cannot be read.
    """
    with reader() as source:
        for table in mirrored_tables(connection, names):
            if not table.is_synced:
                continue
            began = time.monotonic()
            report = _verify(connection, source, table, start, end, nightly=nightly)
            report.duration = timedelta(seconds=time.monotonic() - began)
            yield report


def _verify(
    connection: psycopg.Connection[Any],
    source: Reader,
    table: MirroredTable,
    start: datetime | None,
    end: datetime | None,
    *,
    nightly: bool,
) -> LakeReport:
    report = LakeReport(table.name)
    with state.locked(connection, table.name) as known:
        delta_table = delta.open_own(table.name, known.table_id, known.table_version)
        report.lost_files = delta.forget_lost_files(delta_table, table.name)
        state.written(connection, table.name, delta_table.version())
    symbols, first = symbols_of(connection, table)
    in_lake = [month_start(one[MONTH]) for one in delta.partitions(delta_table, table.name)]
    starts = [moment for moment in (first, *in_lake) if moment is not None]
    if known.mirrored_until is None or not starts:
        return report
    begin = max(filter(None, (min(starts), start)))
    until = min(filter(None, (known.mirrored_until, end))).astimezone(UTC)
    chosen = _tonight(table, delta_table) if nightly else _whole
    candidates: list[tuple[str, datetime]] = []
    for month in months_between(begin, until):
        spans: dict[tuple[datetime, datetime], list[str]] = defaultdict(list)
        for symbol in symbols:
            for first, last in chosen(month, table.part_of(symbol)):
                span = max(begin, first), min(until, last)
                if span[0] < span[1]:
                    spans[span].append(symbol)
        for (first, last), of_span in sorted(spans.items()):
            for days in commits_of(table, Days(first, last, tuple(of_span))):
                compared = _compare(connection, source, table, delta_table, days, report)
                candidates += random.sample(compared, min(1, len(compared)))
    if candidates:
        _sample(connection, table, *random.choice(candidates), report)
    if report.differences:
        found = [(one.symbol, one.day) for one in report.differences]
        state.record(connection, table.name, found)
    return report


def _whole(month: str, _: int) -> list[Span]:
    """Return the span of a partition."""
    return [(month_start(month), month_end(month))]


def _tonight(table: MirroredTable, delta_table: DeltaTable) -> Chosen:
    """Return the choice of the spans of each partition that this night compares."""
    written = delta.recently_written(delta_table, delta.uri_of(table.name), table.time, _YOUNG)
    night = get_settings().clock.now().toordinal()

    def chosen(month: str, part: int) -> list[Span]:
        if has_turn(month, part, night):
            return _whole(month, part)
        if (month, part) not in written:
            return []
        span = written[month, part]
        return _whole(month, part) if span is None else [span]

    return chosen


def has_turn(month: str, part: int, night: int) -> bool:
    """Return whether a partition is compared in a night, which has the number of its day."""
    return (crc32(f"{month} {part}".encode()) + night) % _NIGHTS == 0


def _compare(
    connection: psycopg.Connection[Any],
    source: Reader,
    table: MirroredTable,
    delta_table: DeltaTable,
    days: Days,
    report: LakeReport,
) -> list[tuple[str, datetime]]:
    """Compare count and checksum of each symbol and day; return the symbols and days."""
    compared = _compared(connection, source, table, delta_table, days)
    report.rows += compared.rows
    report.days += len(compared.days)
    report.pending += compared.pending
    if compared.differences:
        # A sync may have written changes in the meantime. Under the lock there is none.
        with state.locked(connection, table.name) as known:
            newest = delta.open_own(table.name, known.table_id, known.table_version)
            again = _compared(connection, source, table, newest, days)
        report.differences += again.differences
    return compared.days


@dataclass
class _Compared:
    """A comparison: rows of the database, symbols with their days, those that wait for a sync."""

    rows: int
    days: list[tuple[str, datetime]]
    pending: int = 0
    differences: list[Difference] = field(default_factory=list)


def _compared(
    connection: psycopg.Connection[Any],
    source: Reader,
    table: MirroredTable,
    delta_table: DeltaTable,
    days: Days,
) -> _Compared:
    mirrored = read(
        delta_table,
        delta.uri_of(table.name),
        table.time,
        days.symbols,
        days.start,
        days.end,
        table.columns,
    )
    stored = rows_of(source, table, days.symbols, days.start, days.end)
    lake, database = sums_of(mirrored, table.time), sums_of(stored, table.time)
    # After the rows: a change that these have is recorded by then.
    waiting = _by_symbol(state.waiting(connection, table.name))
    compared = _Compared(stored.num_rows, list(lake.keys() | database.keys()))
    for symbol, day in compared.days:
        if any(change.start <= day < change.end for change in waiting.get(symbol, ())):
            compared.pending += 1
        elif lake.get((symbol, day)) != database.get((symbol, day)):
            counts = _count(lake, symbol, day), _count(database, symbol, day)
            compared.differences.append(Difference(symbol, day, *counts))
    return compared


def _sample(
    connection: psycopg.Connection[Any],
    table: MirroredTable,
    symbol: str,
    day: datetime,
    report: LakeReport,
) -> None:
    """Compare one day of one symbol row by row, over another path than the checksums."""
    window = {"symbol": symbol, "start": day, "end": day + DAY}
    statement = SQL(queries["lake_sample"]).format(
        columns=SQL(", ").join(map(Identifier, table.columns)),
        table=Identifier("public", table.name),
        time=Identifier(table.time),
    )
    with state.locked(connection, table.name) as known:  # no sync is at work
        newest = delta.open_own(table.name, known.table_id, known.table_version)
        uri = delta.uri_of(table.name)
        mirrored = read(newest, uri, table.time, [symbol], day, day + DAY, table.columns)
        stored = connection.execute(statement, window).fetchall()
        waits = any(
            change.symbol == symbol and change.start <= day < change.end
            for change in state.waiting(connection, table.name)
        )
    rows = list(zip(*mirrored.to_pydict().values(), strict=True))
    report.sampled += len(stored)
    is_found = any((one.symbol, one.day) == (symbol, day) for one in report.differences)
    if rows != [_in_utc(row) for row in stored] and not waits and not is_found:
        report.differences.append(Difference(symbol, day, len(rows), len(stored)))


def _in_utc(row: tuple[Any, ...]) -> tuple[Any, ...]:
    """Return a row whose times are in UTC: in other zones an hour of a year repeats."""
    return tuple(one.astimezone(UTC) if isinstance(one, datetime) else one for one in row)


def _by_symbol(changes: list[Change]) -> dict[str, list[Change]]:
    found: dict[str, list[Change]] = {}
    for change in changes:
        found.setdefault(change.symbol, []).append(change)
    return found


def _count(sums: Sums, symbol: str, day: datetime) -> int:
    return sums.get((symbol, day), (0, 0))[0]
