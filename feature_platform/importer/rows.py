"""Split the rows of a part of a file into valid bars and bad rows."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from feature_platform.bar_rules import (
    NO_TIME,
    PRICES,
    BadRow,
    Batch,
    Floats,
    Ints,
    Mask,
    Rows,
    epoch_times,
    judge,
    to_numpy,
    unit_times,
)
from feature_platform.importer.layouts import Layout
from feature_platform.importer.numbers import text_numbers
from feature_platform.importer.symbols import SymbolRule, Symbols
from feature_platform.importer.times import (
    TimeRule,
    finish_times,
    float_times,
    is_hour,
    join_clock,
    shown_text,
    text_times,
)

# Texts that stand for a missing value.
_ABSENT = pa.array(["", "nan", "null", "none", "na", "n/a", "-"])

_PER_SECOND = {"s": 1, "ms": 1_000, "us": 1_000_000, "ns": 1_000_000_000}


@dataclass(frozen=True, slots=True)
class Columns:
    """Parsed rows.

    line: the line number of each row.
    values: the columns by field. Texts have no spaces at their ends and are not null; numbers and
        timestamps may be null.
    text: returns the text of the row at an index.
    """

    line: Ints
    values: Mapping[str, pa.Array]
    text: Callable[[int], str]

    def take(self, kept: Mask) -> Columns:
        """Return the rows where a mask, of one value for each row, is true."""
        indices = np.flatnonzero(kept)
        which = pa.array(kept)
        values = {name: column.filter(which) for name, column in self.values.items()}
        return Columns(self.line[kept], values, lambda at: self.text(int(indices[at])))


class Judge:
    """Judge the rows of one stream of bars.

    local: whether one of the times had no offset from UTC.
    hours: whether each batch so far began with a time that is an hour without minutes.
    """

    def __init__(self, file: str, layout: Layout, symbol: SymbolRule, rule: TimeRule) -> None:
        symbol.check(file, has_column="symbol" in layout.used)
        self.layout = layout
        self.local = False
        self.hours = True
        self._file = file
        self._symbol = symbol
        self._rule = replace(rule, day_first=layout.day_first)

    def batch(self, rows: Columns, unread: Iterable[BadRow], done: float) -> Batch:
        """Separate valid bars from bad rows, and count rows with a time and no values.

        unread: rows that the parser has rejected.
        """
        empty = _empty_rows(rows)
        count = int(empty.sum())
        if count:
            rows = rows.take(~empty)
        faults: dict[int, str] = {}
        size = len(rows.line)
        symbols = self._symbols(rows, faults)
        ts = self._times(rows, faults)
        prices = {
            name: _numbers(name, rows.values[name], faults, self.layout.decimal)
            if name in rows.values
            else np.zeros(size)
            for name in PRICES
        }
        found = Rows(
            line=rows.line,
            ts=ts,
            **prices,
            symbols=symbols.names,
            symbol=symbols.codes,
            faults=faults,
            text=rows.text,
        )
        return replace(judge(self._file, found, unread, done), empty=count)

    def _symbols(self, rows: Columns, faults: dict[int, str]) -> Symbols:
        if "symbol" not in rows.values:
            return self._symbol.constant(len(rows.line))
        return self._symbol.of_column(_texts(rows.values["symbol"]), faults)

    def _times(self, rows: Columns, faults: dict[int, str]) -> Ints:
        column = _plain(rows.values["ts"])
        if "clock" in rows.values:
            column = join_clock(_texts(column), _texts(rows.values["clock"]))
        for at in np.flatnonzero(to_numpy(column.is_null())).tolist():
            faults.setdefault(at, "ts is missing")
        local = np.zeros(len(column), np.bool_)
        if _is_text(column):
            texts = _texts(column)
            times, local = text_times(texts, faults, self._rule)
            shown = shown_text(texts)
            self.hours = self.hours and bool(len(texts)) and is_hour(texts[0].as_py())
        else:
            self.hours = False
            shown = lambda at: str(column[at])  # noqa: E731
            if pa.types.is_date(column.type):
                column = column.cast(pa.timestamp("ms"))
            if pa.types.is_timestamp(column.type):
                values = to_numpy(column.cast(pa.int64()).fill_null(NO_TIME))
                times = unit_times(values, _PER_SECOND[column.type.unit], faults)
                local[:] = column.type.tz is None
            elif pa.types.is_floating(column.type):
                times = float_times(to_numpy(column.cast(pa.float64()).fill_null(np.nan)), faults)
            else:
                times = epoch_times(to_numpy(column.cast(pa.int64()).fill_null(NO_TIME)), faults)
        self.local = self.local or bool((local & (times != NO_TIME)).any())
        return finish_times(times, local, faults, self._rule, shown)


MakeJudge = Callable[[str, Layout], Judge]


def _empty_rows(rows: Columns) -> Mask:
    """Return a mask of the rows with a time and no values: minutes without trades."""
    empty = np.ones(len(rows.line), np.bool_)
    for name in PRICES:
        if name in rows.values:
            empty &= _absent(rows.values[name], zero=name == "vol")
            if not empty.any():
                return empty
    if _is_text(rows.values["ts"]):
        empty &= to_numpy(pc.not_equal(_texts(rows.values["ts"]), ""))
    return empty


def _absent(column: pa.Array, *, zero: bool) -> Mask:
    """Return a mask of the missing values; zero: 0 counts as missing, too."""
    if _is_text(column):
        texts = pc.utf8_lower(_texts(column))
        absent: Mask = to_numpy(pc.is_in(texts, value_set=_ABSENT))
        if zero:
            absent |= to_numpy(pc.match_substring_regex(texts, r"^0(\.0*)?$"))
        return absent
    if pa.types.is_floating(column.type):
        values = to_numpy(column.cast(pa.float64()).fill_null(np.nan))
        missing: Mask = np.isnan(values)
        return missing | (values == 0) if zero else missing
    nulls: Mask = to_numpy(column.is_null())
    return nulls


def _numbers(name: str, column: pa.Array, faults: dict[int, str], decimal: str) -> Floats:
    column = _plain(column)
    for at in np.flatnonzero(to_numpy(column.is_null())).tolist():
        faults.setdefault(at, f"{name} is missing")
    if pa.types.is_floating(column.type):
        return to_numpy(column.cast(pa.float64()).fill_null(np.nan))
    # Decimals and large integers are converted by their texts, which rounds them only once.
    texts = _texts(column)
    if decimal == ",":
        for at in np.flatnonzero(to_numpy(pc.match_substring(texts, "."))).tolist():
            shown = texts[at].as_py()
            faults.setdefault(at, f"{name} {shown!r} is not a number with a decimal comma")
        texts = pc.replace_substring(texts, ",", ".")
    return text_numbers(name, texts, faults)


def _plain(column: pa.Array) -> pa.Array:
    kind = column.type
    return column.cast(kind.value_type) if pa.types.is_dictionary(kind) else column


def _is_text(column: pa.Array) -> bool:
    kind = column.type.value_type if pa.types.is_dictionary(column.type) else column.type
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind))


def _texts(column: pa.Array) -> pa.Array:
    return pc.utf8_trim_whitespace(_plain(column).cast(pa.string()).fill_null(""))
