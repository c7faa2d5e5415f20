"""Compaction: one sorted file for each partition, and no files of old versions.

A sync adds a file a day to each partition; a repair may leave files that are out of order.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import psycopg

from feature_platform.lake import delta, state
from feature_platform.lake.tables import MONTH, PART, MirroredTable, mirrored_tables, month_of
from feature_platform.settings import get_settings

if TYPE_CHECKING:
    from deltalake import DeltaTable

# The current month gets files every day: its partitions are written again once a week.
_MOST_FILES_NOW = 7


@dataclass
class Compacted:
    """The work of a compaction of one table.

    partitions: that were written again.
    files, size: of the table afterwards; size in bytes.
    deleted: files of old versions.
    """

    name: str
    partitions: int
    files: int
    size: int
    deleted: int


def compact(
    connection: psycopg.Connection[Any], names: list[str] | None = None
) -> Iterator[Compacted]:
    """Write each partition of several files as one, and delete files that a week ago were old.

    A reader that has opened a version may read it for that week.
    Raises UserError for a lake that cannot be written.
    """
    for table in mirrored_tables(connection, names):
        if not table.is_synced:
            continue
        partitions = 0
        while _compact_one(connection, table):
            partitions += 1
        with state.locked(connection, table.name) as known:
            delta_table = delta.open_own(table.name, known.table_id, known.table_version)
            deleted = delta.delete_old_files(delta_table, table.name)
            state.written(connection, table.name, delta_table.version())
            files = delta.files(delta_table, delta.uri_of(table.name))
        size = sum(file.size for file in files)
        yield Compacted(table.name, partitions, len(files), size, deleted)


def _compact_one(connection: psycopg.Connection[Any], table: MirroredTable) -> bool:
    """Write the next partition of too many files again; return whether there was one."""
    with state.locked(connection, table.name) as known:
        delta_table = delta.open_own(table.name, known.table_id, known.table_version)
        partition = _due(delta_table, table.name)
        if partition is None:
            return False
        month, part = partition
        predicate = f"{MONTH} = '{month}' AND {PART} = {part}"
        with delta.errors(table.name):
            rows = delta_table.to_pyarrow_dataset(file_pruning_predicate=predicate).to_table()
        rows = rows.sort_by([("symbol", "ascending"), (table.time, "ascending")])
        delta.replace(delta_table, table.name, rows, predicate)
        state.written(connection, table.name, delta_table.version())
        return True


def _due(delta_table: DeltaTable, name: str) -> tuple[str, int] | None:
    """Return a partition of too many files."""
    counts = Counter(
        (file.month, file.part) for file in delta.files(delta_table, delta.uri_of(name))
    )
    now = month_of(get_settings().clock.now())
    for (month, part), count in sorted(counts.items()):
        if count > (_MOST_FILES_NOW if month == now else 1):
            return month, part
    return None
