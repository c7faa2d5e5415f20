"""Sync: write the days that are new or have changed into the lake.

Each commit replaces whole days of some symbols of one month, so that a reader sees them before
or after it. The database deletes its record of a change after the commit: a sync that dies
repeats its last commit the next time, with the same result.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any

import psycopg
import pyarrow as pa
from psycopg import sql
from psycopg.sql import SQL, Identifier

from feature_platform._adbc import Reader, reader
from feature_platform.lake import delta, state
from feature_platform.lake.state import Change
from feature_platform.lake.tables import (
    DAY,
    MONTH,
    PART,
    MirroredTable,
    mirrored_tables,
    month_end,
    month_of,
    month_start,
    months_between,
)
from feature_platform.queries import queries

if TYPE_CHECKING:
    from deltalake import DeltaTable

# Rows of one commit, about: 150 bytes of each are in memory.
_COMMIT_ROWS = 1_000_000


@dataclass
class Synced:
    """The work of a sync of one table.

    until: the lake has all rows before it; None where there are none yet.
    """

    name: str
    rows: int = 0
    commits: int = 0
    duration: timedelta = timedelta()
    until: datetime | None = None


@dataclass(frozen=True)
class Days:
    """Days of some symbols in one month, start <= time < end: the rows of one commit.

    every_symbol: these are all symbols of their partitions.
    """

    start: datetime
    end: datetime
    symbols: tuple[str, ...]
    every_symbol: bool = False

    def predicate(self, table: MirroredTable) -> str:
        """Return the condition of these rows in the lake."""
        month = month_of(self.start)
        parts = sorted({table.part_of(symbol) for symbol in self.symbols})
        terms = [f"{MONTH} = '{month}'", f"{PART} IN ({', '.join(map(str, parts))})"]
        if not self.every_symbol:
            quoted = ", ".join("'" + symbol.replace("'", "''") + "'" for symbol in self.symbols)
            terms.append(f"symbol IN ({quoted})")
        # Conditions on partitions alone replace files without a look at their rows.
        if not (self.every_symbol and self.start == month_start(month)):
            terms.append(f"{table.time} >= '{self.start.isoformat()}'")
        if not (self.every_symbol and self.end == month_end(month)):
            terms.append(f"{table.time} < '{self.end.isoformat()}'")
        return " AND ".join(terms)


def sync(
    connection: psycopg.Connection[Any],
    names: list[str] | None = None,
    *,
    until: datetime | None = None,
    rebuild: bool = False,
) -> Iterator[Synced]:
    """Bring the lake up to date for all tables, or some: days that are new, and that changed.

    until: the exclusive end of new days, by default the start of the current UTC day.
    rebuild: write the tables again from their first rows.
    Raises UserError for a lake that cannot be written, or that is not this database's.
    """
    tables = mirrored_tables(connection, names)
    row = connection.execute(queries["lake_today"]).fetchone()
    assert row is not None, "the statement always gives one row"
    end = row[0] if until is None else min(row[0], until)
    with reader() as source:
        for table in tables:
            yield _Sync(connection, source, table).run(end, rebuild=rebuild)


class _Sync:
    """A sync of one table."""

    def __init__(
        self, connection: psycopg.Connection[Any], source: Reader, table: MirroredTable
    ) -> None:
        self._connection = connection
        self._source = source
        self._table = table
        self._done = Synced(table.name)

    def run(self, until: datetime, *, rebuild: bool) -> Synced:
        """Write all that the lake lacks up to a time."""
        began = time.monotonic()
        self._prepare(until, rebuild=rebuild)
        state.record_until(self._connection, self._table.name, until)
        self._write_new_days(until)
        while self._write_changes():
            pass
        self._done.duration = timedelta(seconds=time.monotonic() - began)
        return self._done

    def _prepare(self, until: datetime, *, rebuild: bool) -> None:
        """Make the Delta table where there is none, or where the view has a new version."""
        name, view, uri = self._table.name, self._table.view, delta.uri_of(self._table.name)
        state.begin(self._connection, name, uri, view)
        with state.locked(self._connection, name) as known:
            table = delta.open_table(name)
            if table is not None and not rebuild:
                delta.check_owner(table, name, known.table_id)
            same = (known.location, known.view) == (uri, view)
            if table is not None:  # one of an earlier version of the platform may lack columns
                has = {field.name for field in table.schema().fields}
                same &= has.issuperset(self._table.columns)
            if table is None or known.table_version is None or not same or rebuild:
                schema = self._read((), until, until).schema
                table = delta.create(name, known.table_id, self._table.parts, schema)
                state.restart(self._connection, name, uri, view, table.version())
            else:
                delta.undo_later_commits(table, name, known.table_version)
                self._drop_damaged(table)

    def _drop_damaged(self, table: DeltaTable) -> None:
        """Remove damaged files, and have the days of their partitions written again."""
        damaged = {(file.month, file.part) for file in delta.damaged_files(table, self._table.name)}
        if not damaged:
            return
        delta.forget_lost_files(table, self._table.name)
        symbols, _ = symbols_of(self._connection, self._table)
        days = [
            (symbol, month_start(month) + number * DAY)
            for month, part in damaged
            for symbol in symbols
            if self._table.part_of(symbol) == part
            for number in range((month_end(month) - month_start(month)) // DAY)
        ]
        state.record(self._connection, self._table.name, days)
        state.written(self._connection, self._table.name, table.version())

    def _write_new_days(self, until: datetime) -> None:
        """Write the rows from `mirrored_until` on, month by month."""
        symbols, first = symbols_of(self._connection, self._table)
        while True:
            with state.locked(self._connection, self._table.name) as known:
                start = known.mirrored_until or first
                self._done.until = known.mirrored_until
                if start is None or start >= until:
                    return
                start = max(start, month_start(month_of(start)))
                month = Days(start, min(until, month_end(month_of(start))), symbols, True)
                table = delta.open_own(self._table.name, known.table_id, known.table_version)
                for days in commits_of(self._table, month):
                    self._write(table, days)
                state.written(self._connection, self._table.name, table.version(), month.end)

    def _write_changes(self) -> bool:
        """Write the oldest changes again; return whether there may be more."""
        with state.locked(self._connection, self._table.name) as known:
            changes = state.changes(self._connection, self._table.name)
            if not changes:
                return False
            table = delta.open_own(self._table.name, known.table_id, known.table_version)
            _, first = symbols_of(self._connection, self._table)
            # The lake may have older months than the database, of rows that a retention deleted.
            oldest = [
                month_start(part[MONTH]) for part in delta.partitions(table, self._table.name)
            ]
            start = min([*oldest, first] if first else oldest, default=None)
            if start is not None and known.mirrored_until is not None:
                for days in _changed_days(self._table, changes, start, known.mirrored_until):
                    self._write(table, days)
            state.settle(self._connection, self._table.name, changes)
            state.written(self._connection, self._table.name, table.version())
            return True

    def _write(self, table: DeltaTable, days: Days) -> None:
        rows = self._read(days.symbols, days.start, days.end)
        delta.replace(table, self._table.name, rows, days.predicate(self._table))
        self._done.rows += rows.num_rows
        self._done.commits += 1

    def _read(self, symbols: Sequence[str], start: datetime, end: datetime) -> pa.Table:
        """Return rows of one month, with the columns of their partition."""
        rows = rows_of(self._source, self._table, symbols, start, end)
        parts = {name: self._table.part_of(name) for name in rows["symbol"].unique().to_pylist()}
        part = [parts[name] for name in rows["symbol"].to_pylist()]
        month = pa.repeat(month_of(start), rows.num_rows)
        return rows.append_column(MONTH, month).append_column(PART, pa.array(part, pa.int32()))


def symbols_of(
    connection: psycopg.Connection[Any], table: MirroredTable
) -> tuple[tuple[str, ...], datetime | None]:
    """Return all symbols of the database, and the time of the first row of any in a table."""
    statement = SQL(queries["lake_symbols"]).format(
        table=Identifier("public", table.name), time=Identifier(table.time)
    )
    row = connection.execute(statement).fetchone()
    assert row is not None, "an aggregate gives one row"
    return tuple(row[0]), row[1]


def rows_of(
    source: Reader, table: MirroredTable, symbols: Sequence[str], start: datetime, end: datetime
) -> pa.Table:
    """Return rows of the database, sorted by symbol and time."""
    return source.stream(
        "lake_read",
        table=Identifier("public", table.name),
        time=Identifier(table.time),
        columns=SQL(", ").join(map(Identifier, table.columns)),
        symbols=sql.Literal(list(symbols)),
        start=sql.Literal(start),
        end=sql.Literal(end),
    )


def commits_of(table: MirroredTable, days: Days) -> Iterator[Days]:
    """Divide days into commits of a bounded number of rows, each of whole partitions."""
    by_part: dict[int, list[str]] = defaultdict(list)
    for symbol in days.symbols:
        by_part[table.part_of(symbol)].append(symbol)
    batch: list[str] = []
    for symbols in by_part.values():
        if batch and table.rows_of(len(batch) + len(symbols), days.end - days.start) > _COMMIT_ROWS:
            yield replace(days, symbols=tuple(batch))
            batch = []
        batch += symbols
    if batch:
        yield replace(days, symbols=tuple(batch))


def _changed_days(
    table: MirroredTable, changes: Iterable[Change], start: datetime, end: datetime
) -> Iterator[Days]:
    """Return the commits for some changes between two times, month by month.

    A commit has the same days for all of its symbols: from the first to the last that changed.
    """
    months: dict[str, list[Change]] = defaultdict(list)
    for change in changes:
        for month in months_between(max(change.start, start), min(change.end, end)):
            months[month].append(change)
    for month, changed in sorted(months.items()):
        days = Days(
            max(min(change.start for change in changed), start, month_start(month)),
            min(max(change.end for change in changed), end, month_end(month)),
            tuple(sorted({change.symbol for change in changed})),
        )
        yield from commits_of(table, days)
