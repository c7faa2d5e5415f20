"""Which column of a bar file is which."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import NamedTuple

from feature_platform.errors import UserError

PRICES = ("open", "high", "low", "close", "vol")
REQUIRED = ("ts", *PRICES)

# Exact names only: Binance's files also hold close_time, quote_volume and taker_buy_volume.
KNOWN_NAMES = {
    "ts": frozenset({"ts", "time", "timestamp", "open_time", "date", "datetime"}),
    "open": frozenset({"open"}),
    "high": frozenset({"high"}),
    "low": frozenset({"low"}),
    "close": frozenset({"close"}),
    "vol": frozenset({"vol", "volume"}),
    "symbol": frozenset({"symbol"}),
}

# Binance's klines, in which the first six columns are ours: whole, and cut to those six.
KLINES_WIDTHS = (6, 12)

_NUMBER = re.compile(
    r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?|[+-]?(nan|inf|infinity)", re.IGNORECASE
)
_ISO_TIME = re.compile(r"\d{4}-\d{2}-\d{2}([T ].*)?")


@dataclass(frozen=True, slots=True)
class ColumnMap:
    """Name the columns of a file that the platform would not recognise by itself.

    Each is the name in the header line or, for a CSV file without one, the position counted
    from 1; None leaves it to the names that are recognised (case and spaces do not matter):
    ts, time, timestamp, open_time, date or datetime; open; high; low; close; vol or volume;
    and symbol, which a file need not have.
    """

    ts: str | None = None
    open: str | None = None
    high: str | None = None
    low: str | None = None
    close: str | None = None
    vol: str | None = None
    symbol: str | None = None

    def given(self) -> dict[str, str]:
        """Return the columns that are named, by what they are."""
        named = ((field.name, getattr(self, field.name)) for field in fields(self))
        return {field: name for field, name in named if name is not None}


class Layout(NamedTuple):
    """Say how many fields a row has, and where the used ones stand, counted from 0.

    used: the position by field: the six of a bar, and `symbol` where the file has it.
    """

    width: int
    used: dict[str, int]


def looks_like_data(first: Sequence[str], columns: ColumnMap) -> bool:
    """Tell whether the first line of a CSV file is a row of bars rather than a header.

    No header calls a column by a number or a time, and one that has the names asked for is one.
    """
    names = set(first)
    asked = columns.given().values()
    if asked and all(name in names for name in asked):
        return False
    return any(_NUMBER.fullmatch(cell) or _ISO_TIME.fullmatch(cell) for cell in first)


def layout_of_header(names: Sequence[str], columns: ColumnMap, where: str) -> Layout:
    """Find the columns by the names in a header line, or of a Parquet schema.

    where: what a message names as the place, e.g. "bars.csv:1".
    Raises UserError where a column is missing, or more than one name fits.
    """
    asked = columns.given()
    found: dict[str, int] = {}
    for field, known in KNOWN_NAMES.items():
        if field in asked:
            fits = [at for at, name in enumerate(names) if name == asked[field]]
            if not fits:
                raise UserError(f"{where}: no column {asked[field]!r}; there are {_listed(names)}")
        else:
            fits = [at for at, name in enumerate(names) if _plain(name) in known]
        if len(fits) > 1:
            several = _listed([names[at] for at in fits])
            raise UserError(
                f"{where}: more than one column may be {field}: {several}; "
                f"say which with --column-{field} NAME"
            )
        if fits:
            found[field] = fits[0]
    missing = [field for field in REQUIRED if field not in found]
    if missing:
        raise UserError(
            f"{where}: no column for {', '.join(missing)} among {_listed(names)}; "
            f"say which it is with --column-{missing[0]} NAME"
        )
    return Layout(len(names), found)


def layout_without_header(width: int, columns: ColumnMap, where: str) -> Layout:
    """Find the columns of a CSV file that begins with data: Binance's order, or by position.

    Raises UserError where the number of columns is not one of Binance's and not all are given.
    """
    asked = columns.given()
    found = {field: at for at, field in enumerate(REQUIRED)} if width in KLINES_WIDTHS else {}
    for field, name in asked.items():
        if not name.isdecimal() or not 1 <= int(name) <= width:
            raise UserError(
                f"{where}: no column {name!r}: the file has no header line with that name; "
                f"give positions from 1 to {width}, as in --column-ts 1"
            )
        found[field] = int(name) - 1
    missing = [field for field in REQUIRED if field not in found]
    if missing:
        raise UserError(
            f"{where}: a line of {width} columns and no header: "
            "only Binance's klines, 12 columns or their first 6, are known without one; "
            f"give the position of {', '.join(missing)}, as in --column-{missing[0]} 1"
        )
    # Two fields may be asked from one column (a file of ticks has one price), but none by accident.
    wanted = {found[field]: field for field in asked}
    clashes = [field for field in found if field not in asked and found[field] in wanted]
    if clashes:
        field, other = clashes[0], wanted[found[clashes[0]]]
        raise UserError(
            f"{where}: column {found[field] + 1} is {field} in Binance's order and {other} by "
            f"--column-{other}; say where {field} is with --column-{field}"
        )
    return Layout(width, found)


def _plain(name: str) -> str:
    return re.sub(r"[\s_-]+", "_", name.strip().lower())


def _listed(names: Sequence[str]) -> str:
    shown = ", ".join(repr(name) for name in names[:20])
    return shown + (", …" if len(names) > 20 else "")
