"""Checksums of rows by symbol and day, which do not depend on the order of the rows."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

_DAY_US = 86_400_000_000
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
# A constant of splitmix64; all arithmetic is modulo 2^64.
_ODD = np.uint64(0x9E3779B97F4A7C15)
_NULL = np.uint64(0xD1B54A32D192ED03)

Sums = dict[tuple[str, datetime], tuple[int, int]]


def sums_of(rows: pa.Table, time: str) -> Sums:
    """Return the number and the sum of the hashes of the rows of each symbol and UTC day.

    A hash covers the bits of each value, its column, and the time.
    """
    moments = rows[time].cast(pa.int64())
    hashes = np.zeros(rows.num_rows, np.uint64)
    for name in sorted(set(rows.column_names) - {"symbol"}):
        hashes = (hashes ^ _bits(rows[name])) * _ODD
        hashes ^= hashes >> np.uint64(29)
    days = moments.to_numpy() // _DAY_US
    keyed = pa.table({"symbol": rows["symbol"], "day": days, "hash": hashes.view(np.int64)})
    grouped = keyed.group_by(["symbol", "day"]).aggregate([("hash", "count"), ("hash", "sum")])
    columns = (grouped[name].to_pylist() for name in ("symbol", "day", "hash_count", "hash_sum"))
    return {
        (symbol, _EPOCH + timedelta(days=day)): (count, total)
        for symbol, day, count, total in zip(*columns, strict=True)
    }


def _bits(column: pa.ChunkedArray) -> NDArray[np.uint64]:
    """Return the eight bytes of each value as a number; NULL has a number of its own."""
    if not pa.types.is_floating(column.type):
        column = column.cast(pa.int64())
    values: NDArray[Any] = pc.fill_null(column, 0).to_numpy()
    bits = values.view(np.uint64)
    if column.null_count:
        bits = np.where(pc.is_null(column).to_numpy(), _NULL, bits)
    return bits
