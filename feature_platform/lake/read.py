"""Rows of the lake as Arrow tables.

Only the row groups that can have wanted rows are decoded, and their rows are not copied again.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import defaultdict
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from itertools import chain
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.parquet as pq

from feature_platform.lake import delta
from feature_platform.lake.pieces import Piece, joined, pieces_of
from feature_platform.lake.tables import months_between, part_of

if TYPE_CHECKING:
    from deltalake import DeltaTable
    from pyarrow.fs import FileSystem

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)
# Files of an object store that are read at once: an answer takes longer than its decoding.
_REMOTE_FILES = 16


def read(
    table: DeltaTable,
    uri: str,
    time: str,
    symbols: Sequence[str],
    start: datetime,
    end: datetime,
    columns: Sequence[str],
) -> pa.Table:
    """Return the rows of some symbols with start <= time < end, sorted by symbol and time."""
    with delta.errors_at(uri):
        pieces = read_pieces(table, uri, time, symbols, start, end, columns)
        return joined(pieces, schema_of(table, columns))


def schema_of(table: DeltaTable, columns: Sequence[str]) -> pa.Schema:
    """Return some columns of a table of the lake."""
    schema = pa.schema(table.schema().to_arrow())
    return pa.schema([schema.field(name) for name in columns])


def micro(moment: datetime) -> int:
    """Return a time in microseconds since the epoch."""
    return (moment - _EPOCH) // _MICROSECOND


def read_pieces(
    table: DeltaTable,
    uri: str,
    time: str,
    symbols: Sequence[str],
    start: datetime,
    end: datetime,
    columns: Sequence[str],
) -> Iterator[Piece]:
    """Yield the rows of some symbols with start <= time < end, in no order."""
    parts = delta.parts_of(table)
    wanted: dict[int, list[str]] = defaultdict(list)
    for symbol in sorted(set(symbols)):
        wanted[part_of(symbol, parts)].append(symbol)
    found = delta.files(table, uri, months_between(start, end), wanted)
    files = delta.filesystem(uri, found)
    window = micro(start), micro(end)
    with ThreadPoolExecutor(_REMOTE_FILES) as pool:
        in_turn = pool.map if delta.is_remote(uri) else map
        yield from chain.from_iterable(
            in_turn(
                lambda one: _read_file(files, one.path, time, wanted[one.part], window, columns),
                found,
            )
        )


def _read_file(
    files: FileSystem,
    path: str,
    time: str,
    symbols: Sequence[str],
    window: tuple[int, int],
    columns: Sequence[str],
) -> list[Piece]:
    """Return the rows of some symbols, which are sorted, in a window of time."""
    with files.open_input_file(path) as source:
        parquet = pq.ParquetFile(source, read_dictionary=["symbol"])
        groups = _groups(parquet.metadata, time, symbols, window)
        if not groups:
            return []
        rows = parquet.read_row_groups(groups, list(dict.fromkeys(["symbol", time, *columns])))
    found = pieces_of(rows, time, columns)
    return [part for one in found if one.symbol in symbols for part in one.between(*window)]


def _groups(
    metadata: pq.FileMetaData, time: str, symbols: Sequence[str], window: tuple[int, int]
) -> list[int]:
    """Return the row groups that may have rows of symbols in a window, by their extreme values."""
    names = metadata.schema.names
    of_symbol, of_time = names.index("symbol"), names.index(time)
    sought = [symbol.encode() for symbol in symbols]
    found = []
    for number in range(metadata.num_row_groups):
        group = metadata.row_group(number)
        least, most = _extremes(group.column(of_symbol), (sought[0], sought[-1]))
        earliest, latest = _extremes(group.column(of_time), window)
        place = bisect_left(sought, least)
        is_there = place < len(sought) and sought[place] <= most
        if is_there and earliest < window[1] and latest >= window[0]:
            found.append(number)
    return found


def _extremes(column: pq.ColumnChunkMetaData, otherwise: tuple[Any, Any]) -> tuple[Any, Any]:
    """Return the least and the greatest value of a column, where a file has them."""
    statistics = column.statistics
    if statistics is None or not statistics.has_min_max:
        return otherwise
    return statistics.min_raw, statistics.max_raw
