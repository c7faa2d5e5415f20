"""Pieces of tables: rows of one symbol in the order of time, which join into one table.

The files of the lake are sorted, but for days that a repair wrote again. Pieces of them are put in
order as they are, without a sort of their rows and without a copy.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby, pairwise
from operator import attrgetter

import numpy as np
import numpy.typing as npt
import pyarrow as pa

_TIME = pa.timestamp("us", "UTC")


@dataclass(frozen=True)
class Piece:
    """Rows of one symbol, at least one, each later than the one before it.

    times: of the rows, in microseconds since the epoch.
    rows: their other columns, without the symbol.
    """

    symbol: str
    times: npt.NDArray[np.int64]
    rows: pa.Table

    @property
    def first(self) -> int:
        """Return the time of the first row."""
        return int(self.times[0])

    @property
    def last(self) -> int:
        """Return the time of the last row."""
        return int(self.times[-1])

    def between(self, start: int, end: int) -> Iterator[Piece]:
        """Yield the rows with start <= time < end, if there are any."""
        yield from self.parts(np.searchsorted(self.times, (start, end)).tolist())

    def outside(self, start: int, end: int) -> Iterator[Piece]:
        """Yield the rows before `start`, and those from `end` on, as far as there are any."""
        yield from self.between(self.first, start)
        yield from self.between(end, self.last + 1)

    def parts(self, places: Sequence[int]) -> Iterator[Piece]:
        """Yield the rows from each of some places, in their order, to the next one."""
        for low, high in pairwise(places):
            if low < high:
                yield Piece(self.symbol, self.times[low:high], self.rows.slice(low, high - low))


def pieces_of(
    rows: pa.Table, time: str, columns: Sequence[str], symbol: str | None = None
) -> Iterator[Piece]:
    """Yield the pieces of a table, in its order.

    symbol: of all rows, in a table without that column.
    columns: of the pieces.
    """
    if not rows.num_rows:
        return
    times = rows[time].cast(_TIME).to_numpy().view(np.int64)
    starts = np.ones(len(times), bool)
    starts[1:] = times[1:] <= times[:-1]
    names: list[str] = [symbol] if symbol is not None else []
    codes = np.zeros(1, np.int8)
    if symbol is None:
        coded = rows["symbol"]
        if not pa.types.is_dictionary(coded.type):
            coded = coded.dictionary_encode()
        coded = coded.combine_chunks()
        names = coded.dictionary.to_pylist()
        codes = coded.indices.to_numpy()
        starts[1:] |= codes[1:] != codes[:-1]
    kept = rows.select([name for name in columns if name != "symbol"])
    places = [*np.flatnonzero(starts).tolist(), rows.num_rows]
    for low, high in pairwise(places):
        name = names[codes[low if symbol is None else 0]]
        yield Piece(name, times[low:high], kept.slice(low, high - low))


def joined(pieces: Iterable[Piece], schema: pa.Schema) -> pa.Table:
    """Return the rows of pieces with these columns, sorted by symbol and time."""
    ordered = sorted(pieces, key=attrgetter("symbol", "first"))
    if not _are_apart(ordered):
        ordered = sorted(_cut(ordered), key=attrgetter("symbol", "first"))
    names = [name for name in schema.names if name != "symbol"]
    own = pa.schema([schema.field(name) for name in names])
    parts = [piece.rows if piece.rows.schema == own else piece.rows.cast(own) for piece in ordered]
    rows = pa.concat_tables([own.empty_table(), *parts])
    if "symbol" in schema.names:
        symbols = [
            pa.repeat(symbol, sum(len(piece.times) for piece in of_symbol))
            for symbol, of_symbol in groupby(ordered, attrgetter("symbol"))
        ]
        kind = schema.field("symbol").type
        column = pa.chunked_array([one.cast(kind) for one in symbols], kind)
        rows = rows.append_column("symbol", column).select(schema.names)
    return rows if _are_apart(ordered) else rows.take(_order(ordered))


def _are_apart(ordered: Sequence[Piece]) -> bool:
    """Return whether each piece of a symbol begins after the end of the one before it."""
    return all(
        before.symbol != after.symbol or before.last < after.first
        for before, after in pairwise(ordered)
    )


def _cut(ordered: Iterable[Piece]) -> Iterator[Piece]:
    """Yield pieces, cut where another one of the symbol begins or has ended.

    Days that were written again lie in a gap of another piece.
    """
    for _, of_symbol in groupby(ordered, attrgetter("symbol")):
        pieces = list(of_symbol)
        cuts = [moment for piece in pieces for moment in (piece.first, piece.last + 1)]
        for piece in pieces:
            yield from piece.parts(np.unique(np.searchsorted(piece.times, cuts)).tolist())


def _order(pieces: Sequence[Piece]) -> npt.NDArray[np.int64]:
    """Return the places of the rows in the order of symbol and time."""
    symbols = sorted({piece.symbol for piece in pieces})
    codes = [np.full(len(piece.times), symbols.index(piece.symbol)) for piece in pieces]
    times = [piece.times for piece in pieces]
    return np.lexsort((np.concatenate(times), np.concatenate(codes)))
