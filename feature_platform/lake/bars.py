"""The bars of the lake: which symbols there are, and the bars of one of them."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta
from functools import cache
from typing import TYPE_CHECKING

import numpy as np

from feature_platform.errors import UserError
from feature_platform.lake import delta
from feature_platform.lake.columnar import Bars
from feature_platform.lake.read import moment_of, read, read_spans

if TYPE_CHECKING:
    from deltalake import DeltaTable

DAY = timedelta(days=1) // timedelta(microseconds=1)
"""A day in microseconds."""

_TABLE = "ohlcv_1m"
_COLUMNS = ("open", "high", "low", "close", "vol")


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
        """Return the symbols of the table, sorted."""
        found = read_spans(_table(self.uri, self.version), self.uri, "ts")
        return [Span(symbol, *found[symbol]) for symbol in sorted(found)]

    def read(self, symbol: str, start: int, until: int) -> Bars:
        """Return the bars of a symbol with start <= ts < until, in microseconds since the epoch."""
        found = read(
            _table(self.uri, self.version),
            self.uri,
            "ts",
            [symbol],
            moment_of(start),
            moment_of(until),
            ["ts", *_COLUMNS],
        )
        return Bars(
            found["ts"].to_numpy().astype(np.int64),
            *(found[name].to_numpy() for name in _COLUMNS),
        )


@cache
def _table(uri: str, version: int) -> DeltaTable:
    table = delta.open_at(uri, version)
    if table is None:
        raise UserError(f"{uri} is no longer there")
    return table


def newest_bars() -> LakeBars:
    """Return the newest version of the lake's bars; raises UserError where there are none."""
    table = delta.open_table(_TABLE)
    if table is None:
        raise UserError(f"{delta.location()} has no bars yet: `feature-platform lake sync`")
    delta.check_newest_commit(table, _TABLE)
    return LakeBars(delta.uri_of(_TABLE), table.version(), delta.parts_of(table))
