"""Bars in memory, and the functions that store them in `ohlcv_1m`."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass, fields
from datetime import UTC, datetime, timedelta
from typing import Any, Literal, NamedTuple, Self

import numpy as np
import psycopg
from psycopg import adapters
from psycopg.abc import DumperKey, PyFormat
from psycopg.adapt import Dumper
from psycopg.pq import Format
from psycopg.rows import tuple_row

from feature_platform.bar_rules import Floats, Ints, Mask
from feature_platform.queries import queries

Source = Literal["stream", "rest", "import"]

_TYPES = {
    np.dtype(np.int64): adapters.types["int8"],
    np.dtype(np.float64): adapters.types["float8"],
}

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)


@dataclass(frozen=True, slots=True)
class Bars:
    """Bars of one symbol as arrays, ascending in time, one entry for each bar.

    ts: the beginning of the bar's minute, in microseconds since 1970-01-01 UTC.
    open, high, low, close: prices; vol: the traded volume.
    """

    ts: Ints
    open: Floats
    high: Floats
    low: Floats
    close: Floats
    vol: Floats

    def __len__(self) -> int:
        return len(self.ts)

    def take(self, which: Ints | Mask | slice) -> Self:
        """Return the bars at some indices, or those where a mask is true."""
        return type(self)(*(getattr(self, field.name)[which] for field in fields(self)))


@dataclass(frozen=True, slots=True)
class Stored:
    """How bars were stored: each bar is in exactly one count."""

    inserted: int = 0
    updated: int = 0
    unchanged: int = 0

    def __add__(self, other: Stored) -> Stored:
        return Stored(
            self.inserted + other.inserted,
            self.updated + other.updated,
            self.unchanged + other.unchanged,
        )


def store_bars(
    connection: psycopg.Connection[Any], symbol: str, bars: Bars, source: Source
) -> Stored:
    """Store up to some thousand bars of one symbol in one statement.

    A stored bar with equal values is not changed. A stored bar with other values is corrected, and
    gets this source and the current time as `inserted_at`.

    Raises psycopg.errors.CheckViolation, and stores no bar, if one breaks a rule of the table.
    """
    if not len(bars):
        return Stored()
    columns = {field.name: getattr(bars, field.name) for field in fields(bars)}
    ends = {"first": time_of(int(bars.ts[0])), "last": time_of(int(bars.ts[-1]))}
    with connection.cursor(row_factory=tuple_row) as cursor:
        cursor.adapters.register_dumper(np.ndarray, _ArrayDumper)
        parameters = {**columns, **ends, "symbol": symbol, "source": source}
        row = cursor.execute(queries["bars_store"], parameters).fetchone()
    assert row is not None, "the statement always gives one row"
    inserted, updated = int(row[0]), int(row[1])
    return Stored(inserted, updated, len(bars) - inserted - updated)


class StreamBar(NamedTuple):
    """One bar of a stream; `ts` is as in `Bars`."""

    symbol: str
    ts: int
    open: float
    high: float
    low: float
    close: float
    vol: float


@dataclass(frozen=True, slots=True)
class StreamStored(Stored):
    """How bars of a stream were stored.

    conflicting: symbol and ts of bars that differ from a stored bar of REST or of a file. The
        stored bar stays; they count as unchanged.
    """

    conflicting: tuple[tuple[str, int], ...] = ()


def store_stream(connection: psycopg.Connection[Any], bars: Sequence[StreamBar]) -> StreamStored:
    """Store bars of a stream, of any symbols and none twice, in one statement.

    A stored bar of a stream is corrected. A stored bar of REST or of a file stays as it is, because
    the update of the stream may be older.

    Raises psycopg.errors.CheckViolation, and stores no bar, if one breaks a rule of the table.
    """
    if not bars:
        return StreamStored()
    columns = dict(zip(StreamBar._fields, map(list, zip(*bars, strict=True)), strict=True))
    ends = {"first": time_of(min(columns["ts"])), "last": time_of(max(columns["ts"]))}
    with connection.cursor(row_factory=tuple_row) as cursor:
        row = cursor.execute(queries["recorder_store"], {**columns, **ends}).fetchone()
    assert row is not None, "the statement always gives one row"
    inserted, updated, symbols, times = row
    conflicting = tuple(zip(symbols, times, strict=True))
    return StreamStored(inserted, updated, len(bars) - inserted - updated, conflicting)


class _ArrayDumper(Dumper):
    """Send a NumPy array of int64 or float64 in PostgreSQL's binary form.

    Conversion to a list of Python's numbers would take longer than the rest of a fetch.
    """

    format = Format.BINARY

    def get_key(self, obj: Any, format: PyFormat) -> DumperKey:  # noqa: A002, ARG002
        return type(obj), obj.dtype.type

    def upgrade(self, obj: Any, format: PyFormat) -> _ArrayDumper:  # noqa: A002, ARG002
        dumper = type(self)(type(obj))
        dumper.oid = _TYPES[obj.dtype].array_oid
        return dumper

    def dump(self, obj: Any) -> bytes:
        items = np.empty(len(obj), [("size", ">i4"), ("value", obj.dtype.newbyteorder(">"))])
        items["size"] = obj.dtype.itemsize
        items["value"] = obj
        one_dimension = struct.pack("!iiIii", 1, 0, _TYPES[obj.dtype].oid, len(obj), 1)
        return one_dimension + items.tobytes()


def time_of(ts: int) -> datetime:
    """Return the time, in UTC, of a `ts` in microseconds since 1970-01-01 UTC, exactly."""
    return _EPOCH + ts * _MICROSECOND


def ts_of(when: datetime) -> int:
    """Return the microseconds from 1970-01-01 UTC to a time with an offset, exactly."""
    return (when - _EPOCH) // _MICROSECOND
