"""Rows of the lake as Arrow tables.

Only the row groups that can have wanted rows are decoded, and their rows are not copied again.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import partial
from itertools import chain
from typing import TYPE_CHECKING, TypeVar

import pyarrow as pa
import pyarrow.parquet as pq

from feature_platform.lake import delta
from feature_platform.lake.pieces import Piece, joined, pieces_of
from feature_platform.lake.tables import months_between, part_of

if TYPE_CHECKING:
    from deltalake import DeltaTable
    from pyarrow.fs import FileSystem

_T = TypeVar("_T")
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


def moment_of(microseconds: int) -> datetime:
    """Return a time from microseconds since the epoch."""
    return _EPOCH + microseconds * _MICROSECOND


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
    window = micro(start), micro(end)

    def read_one(files: FileSystem, file: delta.File) -> list[Piece]:
        return _read_file(files, file.path, time, wanted[file.part], window, columns)

    yield from chain.from_iterable(_of_files(uri, found, read_one))


def read_spans(table: DeltaTable, uri: str, time: str) -> dict[str, tuple[int, int]]:
    """Return the first and the last time of each symbol, in microseconds since the epoch."""
    spans: dict[str, tuple[int, int]] = {}
    with delta.errors_at(uri):
        of_files = _of_files(uri, delta.files(table, uri), partial(_read_spans, time))
        for symbol, first, last in chain.from_iterable(of_files):
            least, most = spans.get(symbol, (first, last))
            spans[symbol] = min(least, first), max(most, last)
    return spans


def _of_files(
    uri: str, found: Sequence[delta.File], read_one: Callable[[FileSystem, delta.File], list[_T]]
) -> Iterator[list[_T]]:
    """Yield the result of each file, in their order."""
    files = delta.filesystem(uri, found)
    if not delta.is_remote(uri):
        yield from (read_one(files, file) for file in found)
        return
    with ThreadPoolExecutor(_REMOTE_FILES) as pool:
        yield from pool.map(partial(read_one, files), found)


def _read_spans(time: str, files: FileSystem, file: delta.File) -> list[tuple[str, int, int]]:
    """Return symbols of a file, with the first and the last time of some of their rows."""
    with files.open_input_file(file.path) as source:
        parquet = pq.ParquetFile(source, read_dictionary=["symbol"])
        found = []
        for number, group in enumerate(_extremes(parquet.metadata, time)):
            if group is not None and group.symbols[0] == group.symbols[1]:
                found.append((group.symbols[0].decode(), *group.times))
            else:
                rows = parquet.read_row_group(number, ["symbol", time])
                found += [(one.symbol, one.first, one.last) for one in pieces_of(rows, time, [])]
        return found


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


@dataclass(frozen=True)
class _Group:
    """The least and the greatest symbol and time of a row group, as bounds of its rows."""

    symbols: tuple[bytes, bytes]
    times: tuple[int, int]


def _groups(
    metadata: pq.FileMetaData, time: str, symbols: Sequence[str], window: tuple[int, int]
) -> list[int]:
    """Return the row groups that may have rows of symbols in a window."""
    sought = [symbol.encode() for symbol in symbols]

    def may_have(group: _Group | None) -> bool:
        if group is None:
            return True
        place = bisect_left(sought, group.symbols[0])
        is_there = place < len(sought) and sought[place] <= group.symbols[1]
        return is_there and group.times[0] < window[1] and group.times[1] >= window[0]

    return [number for number, one in enumerate(_extremes(metadata, time)) if may_have(one)]


def _extremes(metadata: pq.FileMetaData, time: str) -> Iterator[_Group | None]:
    """Yield the bounds of each row group; None for one whose writer has not noted them."""
    names = metadata.schema.names
    places = names.index("symbol"), names.index(time)
    for number in range(metadata.num_row_groups):
        group = metadata.row_group(number)
        noted = [group.column(place).statistics for place in places]
        if any(one is None or not one.has_min_max for one in noted):
            yield None
        else:
            yield _Group(*((one.min_raw, one.max_raw) for one in noted))
