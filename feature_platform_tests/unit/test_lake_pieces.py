"""Guards against rows that are lost, doubled or out of order where pieces of files are joined."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from random import Random

import pyarrow as pa
import pytest

from feature_platform.lake.pieces import Piece, joined, pieces_of

TIME = pa.timestamp("us", "UTC")
SCHEMA = pa.schema([("symbol", pa.string()), ("ts", TIME), ("x", pa.float64())])
KEYS = [("symbol", "ascending"), ("ts", "ascending")]
Division = Callable[[pa.Table, Random], list[pa.Table]]


def table_of(rows: list[tuple[str, int]]) -> pa.Table:
    symbols, times = zip(*rows, strict=True)
    values = [float(hash(row) % 1000) for row in rows]
    return pa.table([symbols, pa.array(times, TIME), values], schema=SCHEMA)


def in_days(rows: pa.Table, _: Random) -> list[pa.Table]:
    """Divide rows as the files of syncs do: in spans of time, each sorted."""
    return [rows.slice(at, 25).sort_by(KEYS) for at in range(0, rows.num_rows, 25)]


def with_repairs(rows: pa.Table, random: Random) -> list[pa.Table]:
    """Divide rows into sorted files of which one lies in the gaps of the other."""
    is_new = pa.array([random.random() < 0.2 for _ in range(rows.num_rows)])
    is_old = pa.array([not one for one in is_new.to_pylist()])
    return [rows.filter(kept).sort_by(KEYS) for kept in (is_old, is_new)]


def shuffled(rows: pa.Table, random: Random) -> list[pa.Table]:
    """Divide rows into files without an order."""
    order = list(range(rows.num_rows))
    random.shuffle(order)
    return [rows.take(order[::2]), rows.take(order[1::2])]


def pieces(files: list[pa.Table], columns: list[str]) -> Iterator[Piece]:
    for rows in files:
        yield from pieces_of(rows, "ts", columns)


@pytest.mark.parametrize("divide", [in_days, with_repairs, shuffled])
@pytest.mark.parametrize("columns", [["symbol", "ts", "x"], ["x", "symbol"], ["ts"]])
def test_joined_pieces_are_the_sorted_rows(divide: Division, columns: list[str]) -> None:
    random = Random(7)
    rows = table_of([(symbol, time) for time in range(100) for symbol in ("b", "a", "ä", "Z")])
    schema = pa.schema([SCHEMA.field(name) for name in columns])
    found = joined(pieces(divide(rows, random), columns), schema)
    assert found.equals(rows.sort_by(KEYS).select(columns))


def test_files_in_order_are_not_copied() -> None:
    rows = table_of([("a", time) for time in range(100)])
    found = joined(pieces(in_days(rows, Random()), ["x"]), pa.schema([SCHEMA.field("x")]))
    assert [len(chunk) for chunk in found["x"].chunks if len(chunk)] == [25, 25, 25, 25]


def test_a_row_that_two_files_have_stays_two_rows() -> None:
    rows = table_of([("a", time) for time in (1, 2, 2, 3)])
    assert joined(pieces([rows, rows.slice(1, 1)], SCHEMA.names), SCHEMA)["ts"].cast(
        pa.int64()
    ).to_pylist() == [1, 2, 2, 2, 3]


def test_a_piece_is_cut_at_times() -> None:
    (piece,) = pieces_of(table_of([("a", time) for time in (1, 3, 5)]), "ts", ["ts"], "a")
    cut = {
        (start, end): [part.times.tolist() for part in piece.between(start, end)]
        for start, end in ((0, 9), (1, 5), (2, 3), (3, 3), (6, 9))
    }
    assert cut == {(0, 9): [[1, 3, 5]], (1, 5): [[1, 3]], (2, 3): [], (3, 3): [], (6, 9): []}
    assert [part.times.tolist() for part in piece.outside(2, 4)] == [[1], [5]]
    assert [part.times.tolist() for part in piece.outside(0, 9)] == []


def test_times_before_1970_are_times() -> None:
    rows = table_of([("a", time) for time in range(-(10**15), -(10**15) + 5)])
    assert joined(pieces([rows], SCHEMA.names), SCHEMA).equals(rows)


def test_no_rows_have_the_columns() -> None:
    assert joined([], SCHEMA).schema == SCHEMA
    assert list(pieces_of(SCHEMA.empty_table(), "ts", ["x"])) == []
