"""Guards against values outside of the database that differ from the stored ones in any bit."""

from __future__ import annotations

import math
import struct
from random import Random
from typing import Any

import numpy as np
import psycopg
import pytest

from feature_platform.lake.columnar import Bars, Columns, buckets_of, needed_from
from feature_platform.views import FeatureView, catalog
from feature_platform_tests.fix_engine import stored_bars
from feature_platform_tests.view_histories import SYMBOLS, History, random_views

Rows = dict[int, list[bytes | None]]


@pytest.mark.slow
def test_values_of_random_views_equal_the_stored_ones_bit_for_bit(conn: psycopg.Connection) -> None:
    conn.prepare_threshold = None  # views of one name have other types after a while
    compared = 0
    for seed in range(25):
        random = Random(seed)
        for name in {view.name for view in catalog.list_views(conn)}:
            catalog.drop(conn, name)
        views = random_views(random)
        catalog.apply(conn, views)
        history = History(conn, views, random)
        history.fill(25)
        bars = {symbol: bars_of(conn, symbol) for symbol in SYMBOLS}
        for view in views:
            stored = history.stored(view)
            for symbol in SYMBOLS:
                expected = {
                    bucket: [bits(row[name]) for name in view.columns]
                    for (of, bucket), row in stored.items()
                    if of == symbol
                }
                assert same_rows(view, rows_of(view, bars[symbol]), expected, seed)
                assert same_rows(view, *later(view, bars[symbol], expected, random), seed)
                compared += len(expected)
    assert compared > 2000


def same_rows(view: FeatureView, found: Rows, expected: Rows, seed: int) -> bool:
    """Fail with the first value that differs."""
    assert found.keys() == expected.keys(), f"seed {seed}: {view}"
    for bucket, row in expected.items():
        for at, (name, expression) in enumerate(view.columns.items()):
            assert found[bucket][at] == row[at], (
                f"seed {seed}, {view.name}.{name} {bucket}: {number(found[bucket][at])!r}, stored"
                f" {number(row[at])!r}: {expression}"
            )
    return True


def later(view: FeatureView, bars: Bars, expected: Rows, random: Random) -> tuple[Rows, Rows]:
    """Return the rows from a random bucket on, from no more bars than they need, and as stored."""
    if not len(bars.ts):
        return {}, {}
    buckets = np.unique(buckets_of(view, bars.ts))
    wanted = int(random.choice(buckets.tolist()))
    needed = needed_from(view, buckets, wanted)
    kept = bars.ts >= (needed if needed is not None else bars.ts[0])
    part = Bars(*(getattr(bars, name)[kept] for name in Bars.__annotations__))
    found = rows_of(view, part, first=int(buckets[0]))
    return (
        {bucket: row for bucket, row in found.items() if bucket >= wanted},
        {bucket: row for bucket, row in expected.items() if bucket >= wanted},
    )


def rows_of(view: FeatureView, bars: Bars, first: int | None = None) -> Rows:
    """Return the values of a view by bucket, in bits."""
    if not len(bars.ts):
        return {}
    columns = Columns(view, bars, int(buckets_of(view, bars.ts)[0]) if first is None else first)
    values = [columns.values(expression).tolist() for expression in view.columns.values()]
    return {
        bucket: [None if math.isnan(value) else bits(value) for value in row]
        for bucket, *row in zip(columns.buckets.tolist(), *values, strict=True)
    }


def bars_of(conn: psycopg.Connection[Any], symbol: str) -> Bars:
    """Return the bars of a symbol in the database."""
    found = sorted(
        (one.ts, one.open, one.high, one.low, one.close, one.vol)
        for one in stored_bars(conn)
        if one.symbol == symbol
    )
    columns = list(zip(*found, strict=True)) if found else [()] * 6
    return Bars(np.array(columns[0], np.int64), *(np.array(one, float) for one in columns[1:]))


def bits(value: float | None) -> bytes | None:
    """Return the eight bytes of a double, as float8send does."""
    return None if value is None else struct.pack(">d", value)


def number(value: bytes | None) -> float | None:
    """Return the double of eight bytes."""
    return None if value is None else float(struct.unpack(">d", value)[0])
