"""Rows from the lake where it is complete, and from the database where not, as one table."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, date, datetime
from datetime import time as time_of_day
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from feature_platform._adbc import TEXTS, Reader, one
from feature_platform.errors import UserError
from feature_platform.lake import delta
from feature_platform.lake.pieces import Piece, joined, pieces_of
from feature_platform.lake.read import micro, read, read_pieces, schema_of

if TYPE_CHECKING:
    from deltalake import DeltaTable

# With more days than these that wait for a sync, all rows come from the database.
_MOST_WAITING = 100

FromDatabase = Callable[[Sequence[str], datetime, datetime], pa.Table]


def read_both(
    source: Reader,
    name: str,
    time: str,
    symbols: Sequence[str],
    window: tuple[datetime, datetime],
    columns: Sequence[str],
    from_database: FromDatabase,
) -> pa.Table:
    """Return the rows of a table, sorted by symbol and time.

    columns: with the time, and with the symbol where several are read.
    The newest part and the days that wait for a sync come from the database, by `from_database`.
    The caller has frozen the database's snapshot, so that both parts fit each other.
    """
    start, end = window
    known = known_table(source, name)
    until = known["mirrored_until"] if known is not None and known["is_served"] else None
    waiting = waiting_days(source, name, symbols)
    if known is None or until is None or until <= start or len(waiting) > _MOST_WAITING:
        return from_database(symbols, start, end)
    until = min(until, end)
    table = _open(name, known)
    pieces = read_pieces(table, delta.uri_of(name), time, symbols, start, until, columns)
    stored = [from_database(symbols, until, end)] if until < end else []
    outdated: dict[str, list[tuple[datetime, datetime]]] = defaultdict(list)
    for symbol, first, after in waiting:
        lo, hi = max(first, start), min(after, until)
        if lo < hi:
            outdated[symbol].append((lo, hi))
            stored.append(from_database([symbol], lo, hi))
    one_symbol = None if "symbol" in columns else symbols[0]
    with delta.errors(name):
        kept = [part for piece in pieces for part in _without(piece, outdated[piece.symbol])]
        for rows in stored:
            kept += pieces_of(rows, time, columns, one_symbol)
        return joined(kept, schema_of(table, columns))


def _without(piece: Piece, spans: Sequence[tuple[datetime, datetime]]) -> list[Piece]:
    """Return the rows of a piece that lie outside of some spans of time."""
    kept = [piece]
    for start, end in spans:
        kept = [part for one in kept for part in one.outside(micro(start), micro(end))]
    return kept


def read_lake(
    source: Reader,
    name: str,
    time: str,
    symbols: Sequence[str],
    window: tuple[datetime, datetime],
    columns: Sequence[str],
) -> pa.Table:
    """Return the rows that the lake has, sorted by symbol and time; raises UserError."""
    return read(
        _open(name, known_table(source, name)), delta.uri_of(name), time, symbols, *window, columns
    )


def known_table(source: Reader, name: str) -> dict[str, Any] | None:
    """Return what the database knows of a table of this lake; see `frames_lake_until`."""
    place = one(delta.uri_of(name), pa.string())
    found = source.fetch("frames_lake_until", one(name, pa.string()), place).to_pylist()
    return found[0] if found else None


def waiting_days(
    source: Reader, name: str, symbols: Sequence[str]
) -> list[tuple[str, datetime, datetime]]:
    """Return the spans of symbols, start <= time < end, whose rows in the lake may differ."""
    found = source.fetch("frames_lake_waiting", one(name, pa.string()), one(symbols, TEXTS))
    columns = found.to_pydict().values()
    return [
        (symbol, _start(first), _start(after))
        for symbol, first, after in zip(*columns, strict=True)
    ]


def _open(name: str, known: Mapping[str, Any] | None) -> DeltaTable:
    """Return the version of a table that the database has written.

    Another program may have changed the newest one, or a sync may be at work.
    """
    if known is not None and not known["is_served"]:
        raise UserError(
            f"{delta.uri_of(name)} has rows of another version of {name}: run `feature-platform"
            " lake sync`"
        )
    table = delta.open_table(name, None if known is None else known["table_version"])
    if table is None:
        raise UserError(f"{delta.uri_of(name)} does not exist: run `feature-platform lake sync`")
    if known is None:
        delta.check_newest_commit(table, name)
    else:
        delta.check_owner(table, name, known["table_id"])
    return table


def _start(day: date) -> datetime:
    return datetime.combine(day, time_of_day(), UTC)
