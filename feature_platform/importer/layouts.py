"""Recognise the layout of a file of bars: the column of each field, and the forms of values.

In a file with a header, columns are found by name, in any order. For a file without a header, the
table LAYOUTS holds the known orders of columns. To support another order, add an entry to it and
an example file to feature_platform_tests/data/import.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple

from feature_platform.bar_rules import PRICES
from feature_platform.errors import UserError
from feature_platform.importer.columns import (
    CLOCK_NAMES,
    INDEX_NAMES,
    KNOWN_NAMES,
    REQUIRED,
    ColumnMap,
    candidates,
    listed,
    plain,
)
from feature_platform.importer.times import is_clock, is_date, is_epoch, is_time

# The widths of Binance's klines: all columns, and only the first six, which are the bar's fields.
KLINES_WIDTHS = (6, 12)

NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?|[+-]?(nan|inf|infinity)", re.IGNORECASE)
_DECIMAL_COMMA = re.compile(r"[+-]?\d+,\d+")
_DOUBTFUL_DATE = re.compile(r"(\d{1,2})[/-](\d{1,2})[/-]\d{4}\b.*")

# The share of the first rows that must be valid bars in a layout. The usual layout of a width needs
# fewer than another layout, which is chosen only where most rows contradict the usual one.
_USUAL_SHARE, _OTHER_SHARE = 0.5, 0.9

# Fewer rows than this are no evidence against the usual layout.
_ENOUGH_ROWS = 3

# A layout is doubtful where the opens are this many times farther from the closes before them than
# in another order of the columns.
_DOUBT = 2.0


@dataclass(frozen=True, slots=True)
class Order:
    """The order of the columns of a file without a header.

    fields: the fields by position; `-` is a column that is not used, `clock` the time of day in
        files whose times are dates.
    hint: the time zone that the publisher states. The summary shows it; it is not applied.
    times: the form of the times, where only it distinguishes this layout from others of this width.
    """

    name: str
    fields: str
    hint: str = ""
    times: str = ""

    def used(self) -> dict[str, int]:
        """Return the position by field."""
        return {field: at for at, field in enumerate(self.fields.split()) if field != "-"}

    @property
    def width(self) -> int:
        """Return the number of columns."""
        return len(self.fields.split())


_HISTDATA = "HistData states EST without daylight saving: --timezone Etc/GMT+5"

# The first layout of a width is the usual one.
LAYOUTS = (
    Order("Binance klines", "ts open high low close vol - - - - - -"),
    Order("HistData", "ts open high low close vol", _HISTDATA, r"\d{8} \d{6}"),
    Order("six columns, as freqtrade and ccxt write", "ts open high low close vol"),
    Order("Bitfinex", "ts open close high low vol"),
    Order("Coinbase", "ts low high open close vol"),
    Order("Gate.io history", "ts vol close high low open"),
    Order("Kraken OHLCVT, Bybit", "ts open high low close vol -"),
    Order("KuCoin", "ts open close high low vol -"),
    Order("MetaTrader 4", "ts clock open high low close vol", _HISTDATA),
    Order("Kraken OHLC", "ts open high low close - vol -"),
    Order("Gate.io", "ts - close high low open vol -"),
    Order("OKX", "ts open high low close vol - - -"),
)


class Head(NamedTuple):
    """The beginning of a file.

    names: the header, or None.
    rows: the first rows as texts, without spaces around the values.
    where: the file and line for messages, e.g. "bars.csv:1".
    """

    names: Sequence[str] | None
    rows: Sequence[Sequence[str]]
    where: str


class Layout(NamedTuple):
    """How the rows of a file are read.

    used: the position of each field, counted from 0: `ts`, the prices, `vol` if the file has
        volumes, `symbol` if it has symbols, `clock` if the time of day has its own column.
    decimal: the decimal separator.
    day_first: whether 3/4/2024 is in April; None where the file has no such date.
    date_only: whether the first rows have dates without a time of day.
    """

    name: str
    width: int
    used: Mapping[str, int]
    decimal: str = "."
    day_first: bool | None = None
    date_only: bool = False
    hint: str = ""


def recognise(head: Head, columns: ColumnMap, *, stamp: str = "open", text: bool = True) -> Layout:
    """Return the layout of a file.

    stamp: "close" where a time is the end of its bar.
    text: whether numbers are texts, with a decimal separator.
    Raises UserError where a column is missing, or the order of the columns is doubtful.
    """
    names = head.names
    if names is not None and is_numbered(names):
        names = None
        skip = 1 if plain(head.names[0]) in INDEX_NAMES else 0  # type: ignore[index]
        width = len(head.names)  # type: ignore[arg-type]
        rows = [row[skip:] for row in head.rows]
        found = _without_header(Head(None, rows, head.where), width - skip, columns)
        used = {field: at + skip for field, at in found.used.items()}
        found = found._replace(width=width, used=used)
    elif names is not None:
        found = _by_names(names, head, columns, stamp)
    else:
        width = max((len(row) for row in head.rows[:1]), default=0)
        found = _without_header(head, width, columns)
    found = _with_clock(found, names, head)
    if text:
        found = found._replace(decimal=_decimal(found, head.rows))
    return found._replace(day_first=_day_first(found, head), date_only=_are_dates(found, head.rows))


def is_numbered(names: Sequence[str]) -> bool:
    """Return whether a header holds numbers from 0, as pandas writes it without names.

    Fewer numbers than the columns of a bar are a row of data.
    """
    numbers = list(names[1:]) if plain(names[0]) in INDEX_NAMES else list(names)
    return len(numbers) >= len(REQUIRED) and numbers == [str(at) for at in range(len(numbers))]


def is_header(cells: Sequence[str], columns: ColumnMap) -> bool:
    """Return whether a line is a header: it has the caller's columns, or three known names."""
    asked = [name for name in columns.given().values() if name in cells]
    if asked and not all(name.isdecimal() for name in asked):
        return len(asked) == len(set(columns.given().values())) or not looks_like_data(cells)
    if asked and len(asked) == len(set(columns.given().values())):
        return True
    if is_numbered(cells):
        return True
    spelt = {plain(cell) for cell in cells}
    known = [field for field, ranks in KNOWN_NAMES.items() if any(spelt & rank for rank in ranks)]
    return len(known) >= 3 and not looks_like_data(cells)


def looks_like_data(cells: Sequence[str]) -> bool:
    """Return whether a line holds a number or a time, which no name of a column is."""
    return any(NUMBER.fullmatch(cell) or is_time(cell) for cell in cells)


def _by_names(names: Sequence[str], head: Head, columns: ColumnMap, stamp: str) -> Layout:
    asked = columns.given()
    found: dict[str, int] = {}
    for field in KNOWN_NAMES:
        if columns.absent(field, names):
            # The column of symbols is still read, because only a file of one symbol may be renamed.
            if field == "symbol" and candidates(field, names):
                found[field] = candidates(field, names)[0]
            continue
        if field in asked:
            fits = [at for at, name in enumerate(names) if name == asked[field]]
            if not fits:
                raise UserError(
                    f"{head.where}: no column {asked[field]!r}; there are {listed(names)}"
                )
        else:
            fits = candidates(field, names)
            if field == "ts":
                fits = _time_columns(fits, names, head.rows, stamp)
        if len(fits) > 1:
            several = listed([names[at] for at in fits])
            raise UserError(
                f"{head.where}: more than one column may be {field}: {several}; "
                f"choose one with --column-{field} NAME"
            )
        if fits:
            found[field] = fits[0]
    absent = [field for field in REQUIRED if columns.absent(field, names)]
    missing = [field for field in REQUIRED if field not in found and field not in absent]
    if missing:
        none = ", or --column-vol none to store a volume of 0" if missing == ["vol"] else ""
        closes = [n for n in names if plain(n) in ("close_time", "end_time", "closetime")]
        if missing[0] == "ts" and closes:
            none = (
                f"; to read the times of the bars' ends, use --column-ts {closes[0]} --time close"
            )
        raise UserError(
            f"{head.where}: no column for {', '.join(missing)} among {listed(names)}; "
            f"name it with --column-{missing[0]} NAME{none}"
        )
    return Layout(_name_of(names), len(names), found)


def _time_columns(
    fits: list[int], names: Sequence[str], rows: Sequence[Sequence[str]], stamp: str
) -> list[int]:
    """Choose among columns of times: epochs are preferred to texts, dates to times of day."""
    if not fits:
        spelt = [plain(name) for name in names]
        index = [at for at, name in enumerate(spelt) if name in INDEX_NAMES]
        if index and _all(rows, index[0], is_time):
            return index[:1]
        if stamp == "close":
            return [
                at for at, n in enumerate(spelt) if n in ("close_time", "end_time", "closetime")
            ]
        return []
    if len(fits) > 1:
        dates = [at for at in fits if _all(rows, at, is_date)]
        clocks = [at for at in fits if _all(rows, at, is_clock) and at not in dates]
        if len(dates) == 1 and len(dates) + len(clocks) == len(fits):
            return dates
        epochs = [at for at in fits if _all(rows, at, is_epoch)]
        if len(epochs) == 1:
            return epochs
    return fits


def _with_clock(layout: Layout, names: Sequence[str] | None, head: Head) -> Layout:
    """Find the column of times of day where the column of times has only dates."""
    if names is None or "ts" not in layout.used or not _all(head.rows, layout.used["ts"], is_date):
        return layout
    taken = set(layout.used.values())
    clocks = [
        at
        for at, name in enumerate(names)
        if plain(name) in CLOCK_NAMES and at not in taken and _all(head.rows, at, is_clock)
    ]
    return layout._replace(used={**layout.used, "clock": clocks[0]}) if clocks else layout


def _name_of(names: Sequence[str]) -> str:
    """Return the name for the summary of a file with a header."""
    spelt = [plain(name) for name in names]
    for name, marks in HEADERS.items():
        if all(mark in spelt for mark in marks.split()):
            return name
    return "columns by name"


# The publishers of files with a header, by columns that no other publisher has. They are only
# shown in the summary; the columns are found by name.
HEADERS = {
    "Binance klines": "open_time close_time quote_volume",
    "MetaTrader 5": "date time tickvol spread",
    "Kaggle Bitcoin": "timestamp volume_(btc) volume_(currency)",
    "CryptoDataDownload": "unix date symbol",
    "Dukascopy": "gmt_time",
    "Yahoo": "adj_close",
    "Polygon": "window_start transactions",
    "Databento": "ts_event rtype",
    "backtrader": "openinterest",
    "Bybit": "turnover",
}


def _without_header(head: Head, width: int, columns: ColumnMap) -> Layout:
    """Find the columns of a file without a header: by the caller's positions, or by LAYOUTS."""
    asked = {f: n for f, n in columns.given().items() if not columns.absent(f, ())}
    if asked:
        return _by_position(asked, columns, width, head.where)
    orders = [order for order in LAYOUTS if order.width == width and _has_times(order, head.rows)]
    if not orders:
        raise UserError(
            f"{head.where}: a line of {width} columns and no header: "
            "without a header, only Binance's klines (12 columns or their first 6) and a few other "
            f"layouts are known; give the position of {', '.join(REQUIRED)}, as in --column-ts 1"
        )
    shares = {order.name: _share(order, head.rows) for order in orders}
    fitting = [order for order in orders if shares[order.name] >= _OTHER_SHARE]
    usual = orders[0]
    readable = any(_values(order, head.rows) for order in orders)
    if shares[usual.name] >= _USUAL_SHARE or not readable:
        chosen = usual
    elif fitting:
        chosen = fitting[0]
    else:
        reason = "the first rows fit no known layout"
        raise UserError(_doubtful(head.where, width, reason))
    rivals = [
        order
        for order in fitting
        if order is not chosen and _values(order, head.rows) != _values(chosen, head.rows)
    ]
    if len(_values(chosen, head.rows)) < _ENOUGH_ROWS:
        rivals = []
    for rival in rivals:
        if _jumps(rival, head.rows) * _DOUBT < _jumps(chosen, head.rows):
            chosen = rival
        elif not _jumps(chosen, head.rows) * _DOUBT < _jumps(rival, head.rows):
            reason = f"the first rows fit both {chosen.name} and {rival.name}"
            raise UserError(_doubtful(head.where, width, reason))
    swapped = _jumps(chosen, head.rows, swapped=True)
    if swapped * _DOUBT < _jumps(chosen, head.rows):
        reason = (
            f"read as {chosen.name}, open and close seem to be swapped: the opens are far from the "
            "closes before them"
        )
        raise UserError(_doubtful(head.where, width, reason))
    return Layout(chosen.name, width, chosen.used(), hint=chosen.hint)


def _doubtful(where: str, width: int, reason: str) -> str:
    return (
        f"{where}: a line of {width} columns and no header, and their order is doubtful: {reason}; "
        f"give the position of {', '.join(REQUIRED)}, as in --column-ts 1"
    )


def _by_position(asked: Mapping[str, str], columns: ColumnMap, width: int, where: str) -> Layout:
    found = {field: at for at, field in enumerate(REQUIRED)} if width in KLINES_WIDTHS else {}
    if columns.absent("vol", ()):
        found.pop("vol", None)
    for field, name in asked.items():
        if not name.isdecimal() or not 1 <= int(name) <= width:
            raise UserError(
                f"{where}: no column {name!r}: the file has no header line with that name; "
                f"give positions from 1 to {width}, as in --column-ts 1"
            )
        found[field] = int(name) - 1
    missing = [f for f in REQUIRED if f not in found and not columns.absent(f, ())]
    if missing:
        raise UserError(
            f"{where}: a line of {width} columns and no header: "
            f"give the position of {', '.join(missing)}, as in --column-{missing[0]} 1"
        )
    # The caller may give one column to several fields (a file of ticks has one price), but a column
    # that he gives must not be used for another field, too.
    wanted = {found[field]: field for field in asked}
    clashes = [field for field in found if field not in asked and found[field] in wanted]
    if clashes:
        field, other = clashes[0], wanted[found[clashes[0]]]
        raise UserError(
            f"{where}: column {found[field] + 1} is {field} in Binance's order and {other} by "
            f"--column-{other}; give the position of {field} with --column-{field}"
        )
    return Layout("columns by position", width, found)


def _has_times(order: Order, rows: Sequence[Sequence[str]]) -> bool:
    """Return whether the times of rows have the form that a layout requires, if any."""
    if not order.times:
        return True
    form = re.compile(order.times)
    return _all(rows, order.used()["ts"], lambda cell: form.fullmatch(cell) is not None)


def _rows_of(order: Order, rows: Sequence[Sequence[str]]) -> list[tuple[str, tuple[float, ...]]]:
    """Return the time and the values of each row whose values are numbers, by a layout."""
    used = order.used()
    found = []
    for row in rows:
        if len(row) != order.width or not is_time(row[used["ts"]]):
            continue
        if "clock" in used and not is_clock(row[used["clock"]]):
            continue
        values = tuple(_number(row[used[name]]) for name in PRICES)
        if not any(map(math.isnan, values)):
            clock = row[used["clock"]] if "clock" in used else ""
            found.append((row[used["ts"]] + clock, values))
    return found


def _number(cell: str) -> float:
    text = cell.replace(",", ".") if _DECIMAL_COMMA.fullmatch(cell) else cell
    return float(text) if NUMBER.fullmatch(text) else math.nan


def _values(order: Order, rows: Sequence[Sequence[str]]) -> list[tuple[float, ...]]:
    return [values for _, values in _rows_of(order, rows)]


def _share(order: Order, rows: Sequence[Sequence[str]]) -> float:
    """Return the share of the rows with numbers that are valid bars in a layout."""
    found = _values(order, rows)
    good = sum(
        high >= max(opens, close, low) and low <= min(opens, close) and low > 0 and vol >= 0
        for opens, high, low, close, vol in found
    )
    return good / len(found) if found else 0.0


def _jumps(order: Order, rows: Sequence[Sequence[str]], *, swapped: bool = False) -> float:
    """Return the sum of the distances between opens and the closes before them.

    swapped: sum the distances between closes and the opens before them instead.
    """
    found = sorted(_rows_of(order, rows))
    first, last = (0, 3) if swapped else (3, 0)
    return sum(
        abs(values[last] - before[first])
        for (earlier, before), (time, values) in pairwise(found)
        if time != earlier
    )


def _decimal(layout: Layout, rows: Sequence[Sequence[str]]) -> str:
    """Return the decimal separator: a comma where prices have commas and no point."""
    places = [layout.used[name] for name in PRICES if name in layout.used]
    cells = [row[at] for row in rows for at in places if at < len(row)]
    commas = any(_DECIMAL_COMMA.fullmatch(cell) for cell in cells)
    points = any("." in cell and NUMBER.fullmatch(cell) for cell in cells)
    return "," if commas and not points else "."


def _day_first(layout: Layout, head: Head) -> bool | None:
    """Return whether the day precedes the month in dates such as 31/1/2024.

    Raises UserError where each date of the sample is valid in both orders.
    """
    at = layout.used["ts"]
    dates = [m for row in head.rows if at < len(row) and (m := _DOUBTFUL_DATE.fullmatch(row[at]))]
    if not dates:
        return None
    first, second = (max(int(match[group]) for match in dates) for group in (1, 2))
    if (first > 12) == (second > 12):
        raise UserError(
            f"{head.where}: the date {dates[0][0]!r} may have the day or the month first, and no "
            "date nearby shows which; write dates as 2024-01-31"
        )
    return first > 12


def _are_dates(layout: Layout, rows: Sequence[Sequence[str]]) -> bool:
    return "clock" not in layout.used and _all(rows, layout.used["ts"], is_date)


def _all(rows: Sequence[Sequence[str]], at: int, test: Callable[[str], bool]) -> bool:
    cells = [row[at] for row in rows if at < len(row) and row[at]]
    return bool(cells) and all(map(test, cells))
