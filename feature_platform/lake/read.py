"""Rows of the lake as Arrow tables."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import TYPE_CHECKING

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as ds

from feature_platform.lake import delta
from feature_platform.lake.tables import MONTH, PART, months_between, part_of

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
    moment = ds.field(time)
    window = (moment >= pa.scalar(start, _TIME)) & (moment < pa.scalar(end, _TIME))
    read_columns = list(dict.fromkeys(["symbol", time, *columns]))
    with delta.errors(name):
        files = delta_table.to_pyarrow_dataset(file_pruning_predicate=predicate)
        wanted = ds.field("symbol").isin(list(symbols))
        rows = files.to_table(columns=read_columns, filter=wanted & window)
    if not _is_sorted(rows, time):
        rows = rows.sort_by([("symbol", "ascending"), (time, "ascending")])
    return rows.select(list(columns))


def _is_sorted(rows: pa.Table, time: str) -> bool:
    """Return whether the rows of one symbol are in the order of their times."""
    if rows.num_rows < 2:
        return True
    if len(rows["symbol"].unique()) > 1:
        return False
    moments = rows[time].combine_chunks().cast(pa.int64())
    return bool(pc.all(pc.less(moments[:-1], moments[1:])).as_py())
