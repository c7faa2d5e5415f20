"""Rows of the lake as Arrow tables."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import TYPE_CHECKING

import pyarrow as pa
import pyarrow.dataset as ds

from feature_platform.lake import delta
from feature_platform.lake.tables import (
    MONTH,
    PART,
    month_end,
    month_start,
    months_between,
    part_of,
)

if TYPE_CHECKING:
    from deltalake import DeltaTable

_TIME = pa.timestamp("us", "UTC")


def read(
    delta_table: DeltaTable,
    name: str,
    time: str,
    symbols: Sequence[str],
    start: datetime,
    end: datetime,
    columns: Sequence[str],
) -> pa.Table:
    """Return the rows of some symbols with start <= time < end, sorted by symbol and time."""
    months = months_between(start, end)
    schema = pa.schema(delta_table.schema().to_arrow())
    if not months or not symbols:
        return pa.schema([schema.field(column) for column in columns]).empty_table()
    hashes = delta.parts_of(delta_table)
    parts = sorted({part_of(symbol, hashes) for symbol in symbols})
    predicate = (
        f"{MONTH} >= '{months[0]}' AND {MONTH} <= '{months[-1]}'"
        f" AND {PART} IN ({', '.join(map(str, parts))})"
    )
    wanted = ds.field("symbol").isin(list(symbols))
    if len(symbols) == 1:
        wanted = ds.field("symbol") == symbols[0]
    # Days inside of a month; files of other months are not read.
    if start > month_start(months[0]):
        wanted &= ds.field(time) >= pa.scalar(start, _TIME)
    if end < month_end(months[-1]):
        wanted &= ds.field(time) < pa.scalar(end, _TIME)
    keys = ["symbol", time] if len(symbols) > 1 else [time]
    with delta.errors(name):
        files = delta_table.to_pyarrow_dataset(file_pruning_predicate=predicate)
        rows = files.to_table(columns=list(dict.fromkeys([*keys, *columns])), filter=wanted)
    if len(symbols) > 1 or not _is_sorted(rows[time]):
        rows = rows.sort_by([(key, "ascending") for key in keys])
    return rows.select(list(columns))


def _is_sorted(times: pa.ChunkedArray) -> bool:
    """Return whether each time is after the one before it."""
    moments = times.cast(pa.int64()).to_numpy()
    return bool((moments[1:] > moments[:-1]).all())
