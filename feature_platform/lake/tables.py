"""The tables that the lake mirrors, and the division of their rows into files.

A partition holds one month (UTC) of the symbols that share a hash. A month of one symbol is
3 MB at one row a minute, so that a file for each symbol would be a small one; a file for all
symbols would make a correction of one row rewrite gigabytes.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any
from zlib import crc32

import psycopg
from psycopg.rows import class_row

from feature_platform.errors import UserError
from feature_platform.near_names import near_names
from feature_platform.queries import queries

DAY = timedelta(days=1)
MONTH, PART = "lake_month", "lake_part"
"""The columns of the partitions, by names that no view has for its columns."""

# The number of parts of a month of one-minute rows. With 1,000 symbols each part has about 45 MB.
_PARTS = 64


@dataclass(frozen=True)
class MirroredTable:
    """A table or feature view of the database that the lake has a copy of.

    view: the version of the feature view; None for the tables of the platform.
    time: the name of the column of times.
    columns: all columns that the lake has.
    every: the time between two rows of a symbol.
    is_synced: whether a sync has begun to copy it.
    """

    name: str
    view: int | None
    time: str
    columns: list[str]
    every: timedelta
    is_synced: bool

    @property
    def parts(self) -> int:
        """Return the number of hashes: fewer for wide buckets, which have fewer rows."""
        return max(1, _PARTS * timedelta(minutes=1) // self.every)

    def part_of(self, symbol: str) -> int:
        """Return the hash of a symbol."""
        return part_of(symbol, self.parts)

    def rows_of(self, symbols: int, span: timedelta) -> int:
        """Return the most rows that so many symbols have in a span of time."""
        return symbols * max(1, span // self.every)


def mirrored_tables(
    connection: psycopg.Connection[Any], names: list[str] | None = None
) -> list[MirroredTable]:
    """Return the tables that the lake mirrors, or some of them: bars, then views by name.

    A view whose first history is still being built is not mirrored yet.
    Raises UserError for an unknown name.
    """
    with connection.cursor(row_factory=class_row(MirroredTable)) as cursor:
        found = {table.name: table for table in cursor.execute(queries["lake_tables"])}
    for name in names or []:
        if name not in found:
            raise UserError(
                f"the lake has no table {name!r}{near_names(name, list(found))};"
                f" it has {', '.join(found)}"
            )
    return [table for table in found.values() if names is None or table.name in names]


def part_of(symbol: str, parts: int) -> int:
    """Return the hash of a symbol, of so many."""
    return crc32(symbol.encode()) % parts


def month_of(moment: datetime) -> str:
    """Return the partition of a time, such as "2026-01"."""
    return f"{moment.astimezone(UTC):%Y-%m}"


def month_start(month: str) -> datetime:
    """Return the start of a month's partition."""
    return datetime.fromisoformat(f"{month}-01T00:00:00+00:00")


def month_end(month: str) -> datetime:
    """Return the exclusive end of a month's partition."""
    return (month_start(month) + 31 * DAY).replace(day=1)


def months_between(start: datetime, end: datetime) -> list[str]:
    """Return the months with a time from `start` up to before `end`."""
    months = []
    while start < end:
        months.append(month_of(start))
        start = month_end(months[-1])
    return months
