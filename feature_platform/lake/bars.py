"""The bars of the lake: which symbols there are, and the bars of one of them."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta
from functools import cache

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.dataset

from feature_platform.errors import UserError
from feature_platform.lake import delta
from feature_platform.lake.columnar import Bars
from feature_platform.lake.tables import part_of

DAY = timedelta(days=1) // timedelta(microseconds=1)
"""A day in microseconds."""

_TABLE = "ohlcv_1m"

_SPANS = """
    SELECT symbol, epoch_us(min(ts)) AS first, epoch_us(max(ts)) AS last
      FROM bars GROUP BY symbol ORDER BY symbol
"""
_BARS = """
    SELECT epoch_us(ts) AS ts, open, high, low, close, vol FROM bars
     WHERE lake_part = $part AND symbol = $symbol
       AND ts >= make_timestamptz($start) AND ts < make_timestamptz($until)
     ORDER BY ts
"""


@dataclass(frozen=True)
class Span:
    """The first and the last bar of a symbol, in microseconds since the epoch."""

    symbol: str
    first: int
    last: int


@dataclass(frozen=True)
class LakeBars:
    """A version of the Delta table of bars.

    uri: its directory or URL.
    parts: the number of hashes of symbols that it is divided by.
    """

    uri: str
    version: int
    parts: int

    def spans(self) -> list[Span]:
        """Return the symbols of the table."""
        rows = self._query(_SPANS, {}).to_pylist()
        return [Span(**row) for row in rows]

    def read(self, symbol: str, start: int, until: int) -> Bars:
        """Return the bars of a symbol with start <= ts < until, in microseconds since the epoch."""
        found = self._query(
            _BARS,
            {"part": part_of(symbol, self.parts), "symbol": symbol, "start": start, "until": until},
        )
        return Bars(
            found["ts"].to_numpy().astype(np.int64, copy=False),
            *(found[name].to_numpy() for name in ("open", "high", "low", "close", "vol")),
        )

    def _query(self, query: str, parameters: dict[str, str | int]) -> pa.Table:
        with delta.errors_at(self.uri), duckdb.connect() as connection:
            connection.execute("SET enable_progress_bar = false")
            connection.register("bars", _dataset(self.uri, self.version))
            return connection.sql(query, params=parameters).to_arrow_table()


@cache
def _dataset(uri: str, version: int) -> pa.dataset.Dataset:
    table = delta.open_at(uri, version)
    if table is None:
        raise UserError(f"{uri} is no longer there")
    return table.to_pyarrow_dataset()


def newest_bars() -> LakeBars:
    """Return the newest version of the lake's bars; raises UserError where there are none."""
    table = delta.open_table(_TABLE)
    if table is None:
        raise UserError(f"{delta.location()} has no bars yet: `feature-platform lake sync`")
    return LakeBars(delta.uri_of(_TABLE), table.version(), delta.parts_of(table))
