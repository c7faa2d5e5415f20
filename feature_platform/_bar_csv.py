"""Bars out of CSV text, block by block, with the number of every line kept."""

from __future__ import annotations

import csv
import re
from collections.abc import Callable, Iterator
from functools import cached_property
from typing import NamedTuple, Protocol

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pa_csv

from feature_platform._bar_symbols import SymbolRule
from feature_platform.bar_columns import (
    PRICES,
    ColumnMap,
    Layout,
    layout_of_header,
    layout_without_header,
    looks_like_data,
)
from feature_platform.bar_rules import (
    ISO_TIME,
    ZONED_TIME,
    BadRow,
    Batch,
    Ints,
    Rows,
    epoch_times,
    judge,
    text_numbers,
    text_times,
    to_numpy,
    unit_times,
)
from feature_platform.errors import UserError

# A quoted field may hold line ends, so an unclosed quote would swallow the rest of a file.
# A record that goes on for longer than this ends at its first line, which is bad.
LONGEST_RECORD = 64 * 1024

# What has no line end for so long is no bar file, and must not fill the memory.
LONGEST_LINE = 16 * 1024 * 1024

_BOM = b"\xef\xbb\xbf"
_DELIMITERS = ",;\t"
_BLANK = " \t"
_QUOTE, _NEWLINE, _RETURN = b'"\n\r'
_QUOTED = re.compile(r'"[^"]*"')


class ByteStream(Protocol):
    """Give the next bytes, at most so many, and none at the end."""

    def read(self, size: int, /) -> bytes: ...


def read_csv(
    stream: ByteStream,
    file: str,
    *,
    columns: ColumnMap,
    symbol: SymbolRule,
    block_size: int,
    done: Callable[[], float],
) -> Iterator[Batch]:
    """Read the bars of a CSV text.

    stream: the bytes, decompressed.
    file: its name in messages.
    block_size: how many bytes to hold at a time.
    done: tells the share of the file that was read so far.
    Raises UserError where the text as a whole is no CSV file of bars.
    """
    head, data = _read_head(stream, block_size, file, columns)
    symbol.check(file, has_column="symbol" in head.layout.used)
    parser = _Parser(file, head, symbol)
    line, final = head.line, False
    while True:
        block = data if final else data[: data.rfind(b"\n") + 1]
        if block:
            piece = parser.parse(block, line, final=final)
            data, line = data[piece.size :], line + piece.lines
            if len(piece.rows.line) or piece.bad:
                yield judge(file, piece.rows, piece.bad, done())
        if final:
            return
        if len(data) > LONGEST_LINE:
            raise UserError(f"{file}:{line}: a line of over {len(data):,} bytes: no file of bars")
        more = stream.read(block_size)
        final = not more
        data += more


class _Head(NamedTuple):
    """Hold what the first line tells, and the number of the first line of data."""

    delimiter: str
    layout: Layout
    line: int


class _Piece(NamedTuple):
    """Hold the parsed rows of a block, and how many bytes and lines of it they took."""

    rows: Rows
    bad: list[BadRow]
    size: int
    lines: int


def _read_head(
    stream: ByteStream, block_size: int, file: str, columns: ColumnMap
) -> tuple[_Head, bytes]:
    """Read up to the first data; return what was read beyond too."""
    data = b""
    while len(data) <= LONGEST_LINE:
        more = stream.read(block_size)
        data = (data + more).removeprefix(_BOM)
        if not more or b"\n" in data.lstrip(b" \t\r\n"):
            break
    if data[:2] in (b"\xff\xfe", b"\xfe\xff"):
        raise UserError(f"{file}: the text is UTF-16; save it as UTF-8")
    content = data.lstrip(b" \t\r\n")
    if not content:
        raise UserError(f"{file}: the file is empty")
    # Spaces that begin the first line belong to it, as they may be an empty field.
    start = data.rfind(b"\n", 0, len(data) - len(content)) + 1
    end = data.find(b"\n", start)
    end = len(data) if end < 0 else end + 1
    line = data.count(b"\n", 0, start) + 1
    where = f"{file}:{line}"
    raw = data[start:end].rstrip(b"\r\n")
    if len(raw) > LONGEST_LINE:
        raise UserError(f"{where}: a line of over {len(raw):,} bytes: no file of bars")
    if b"\r" in raw:
        raise UserError(f"{where}: lines that end in a carriage return alone; save it with \\n")
    delimiter, cells = _split_first(raw, where)
    if looks_like_data(cells, columns):
        layout = layout_without_header(len(cells), columns, where)
        return _Head(delimiter, layout, line), data[start:]
    return _Head(delimiter, layout_of_header(cells, columns, where), line + 1), data[end:]


def _split_first(raw: bytes, where: str) -> tuple[str, list[str]]:
    try:
        text = raw.decode()
    except UnicodeDecodeError:
        raise UserError(f"{where}: neither Parquet nor a text in UTF-8") from None
    if "\0" in text:
        raise UserError(f"{where}: neither Parquet nor a text: it holds NUL bytes")
    unquoted = _QUOTED.sub("", text)
    delimiter = max(_DELIMITERS, key=unquoted.count)
    if delimiter not in unquoted:
        raise UserError(
            f"{where}: no comma, semicolon or tab in the first line: not a CSV file of bars"
        )
    try:
        cells = _split(text, delimiter)
    except csv.Error as error:
        raise UserError(f"{where}: {error}") from None
    return delimiter, [cell.strip() for cell in cells]


def _split(text: str, delimiter: str) -> list[str]:
    if '"' not in text:
        return text.split(delimiter)
    return next(csv.reader((text,), delimiter=delimiter, strict=True))


class _Parser:
    """Turn blocks of lines into rows, the fast way where a block has nothing odd in it."""

    def __init__(self, file: str, head: _Head, symbol: SymbolRule) -> None:
        self._file = file
        self._delimiter = head.delimiter
        self._width = head.layout.width
        self._used = head.layout.used
        self._symbol = symbol

    def parse(self, block: bytes, line: int, *, final: bool) -> _Piece:
        """Parse a block of whole lines, of which the first has the number `line`.

        final: whether nothing follows. Otherwise a record that is still open at the end is left
        for the next block.
        """
        rows = self._parse_typed(block, line)
        if rows is None:
            return self._parse_texts(block, line, final=final)
        return _Piece(rows, [], len(block), block.count(b"\n"))

    def _parse_typed(self, block: bytes, first: int) -> Rows | None:
        """Convert whole columns at once, or return None where a row needs a closer look."""
        if not _is_plain(block, self._delimiter):
            return None
        kind = self._time_kind(block)
        types = {str(self._used[name]): pa.float64() for name in PRICES}
        types[str(self._used["ts"])] = kind
        if "symbol" in self._used:
            types[str(self._used["symbol"])] = pa.string()
        try:
            table = pa_csv.read_csv(
                pa.BufferReader(block),
                # One chunk on this thread: the other core has PostgreSQL to run.
                pa_csv.ReadOptions(
                    use_threads=False,
                    block_size=len(block) + 1,
                    column_names=[str(at) for at in range(self._width)],
                ),
                pa_csv.ParseOptions(delimiter=self._delimiter),
                pa_csv.ConvertOptions(
                    column_types=types, include_columns=list(types), null_values=[]
                ),
            )
        except pa.ArrowInvalid:
            return None
        lines = _Lines(block, first)
        numbers = lines.numbers(table.num_rows)
        prices = {name: to_numpy(table[str(self._used[name])]) for name in PRICES}
        # A volume of 1e-400 reads as 0, and only its text tells.
        underflow = b"e-" in block or b"E-" in block
        if numbers is None or (underflow and not prices["vol"].all()):
            return None
        faults: dict[int, str] = {}
        times = to_numpy(table[str(self._used["ts"])].cast(pa.int64()))
        if kind == pa.int64():
            ts = epoch_times(times, faults)
        else:
            ts = unit_times(times, 1_000_000, faults)
            if faults:
                return None  # to name such a time as it is written
        if "symbol" in self._used:
            column = table[str(self._used["symbol"])].combine_chunks()
            symbols = self._symbol.of_column(pc.utf8_trim(column, _BLANK), faults)
        else:
            symbols = self._symbol.constant(table.num_rows)
        return Rows(
            line=numbers,
            ts=ts,
            **prices,
            symbols=symbols.names,
            symbol=symbols.codes,
            faults=faults,
            text=lambda at: lines.text(int(numbers[at])),
        )

    def _time_kind(self, block: bytes) -> pa.DataType:
        """Guess from its first row how a block writes its times."""
        first = block.lstrip(b"\r\n").split(b"\n", 1)[0].decode()
        cells = first.split(self._delimiter)
        at = self._used["ts"]
        cell = cells[at].strip('"\r') if at < len(cells) else ""
        if not re.search(ISO_TIME, cell):
            return pa.int64()
        return pa.timestamp("us", "UTC" if re.search(ZONED_TIME, cell) else None)

    def _parse_texts(self, block: bytes, first: int, *, final: bool) -> _Piece:
        """Look at every record of a block by itself, and at every value where a column fails."""
        lines = block.split(b"\n")
        if not lines[-1]:
            lines.pop()
        records: list[list[str]] = []
        texts: list[str] = []
        numbers: list[int] = []
        bad: list[BadRow] = []
        at = 0
        while at < len(lines):
            span = _span(lines, at)
            if span is None and not final and _is_short(lines, at):
                break
            raw = b"\n".join(lines[at : at + (span or 1)]).removesuffix(b"\r")
            text = raw.decode(errors="backslashreplace")
            fault = None if span else "a quote is opened and not closed"
            if fault is None and text.strip(_BLANK.replace(self._delimiter, "")):
                fault = self._add_record(raw, records)
                if fault is None:
                    numbers.append(first + at)
                    texts.append(text)
            if fault is not None:
                bad.append(BadRow(self._file, first + at, fault, text))
            at += span or 1
        size = sum(map(len, lines[:at])) + at
        rows = self._convert(records, np.array(numbers, np.int64), texts)
        return _Piece(rows, bad, min(size, len(block)), at)

    def _add_record(self, raw: bytes, records: list[list[str]]) -> str | None:
        """Split a record and add it, or return why it cannot be."""
        try:
            cells = _split(raw.decode(), self._delimiter)
        except UnicodeDecodeError:
            return "not a text in UTF-8"
        except csv.Error as error:
            return f"not CSV: {error}"
        if len(cells) != self._width:
            return f"{len(cells)} fields where {self._width} are expected"
        records.append(cells)
        return None

    def _convert(self, records: list[list[str]], numbers: Ints, texts: list[str]) -> Rows:
        columns = {
            name: pc.utf8_trim(pa.array([cells[at] for cells in records], pa.string()), _BLANK)
            for name, at in self._used.items()
        }
        faults: dict[int, str] = {}
        if "symbol" in columns:
            symbols = self._symbol.of_column(columns["symbol"], faults)
        else:
            symbols = self._symbol.constant(len(records))
        ts = text_times(columns["ts"], faults)
        prices = {name: text_numbers(name, columns[name], faults) for name in PRICES}
        return Rows(
            line=numbers,
            ts=ts,
            **prices,
            symbols=symbols.names,
            symbol=symbols.codes,
            faults=faults,
            text=texts.__getitem__,
        )


class _Lines:
    """Find the lines of a block by number."""

    def __init__(self, block: bytes, first: int) -> None:
        self._block = block
        self._first = first

    @cached_property
    def _bounds(self) -> Ints:
        """Return where each line begins, and where the one after the last would."""
        ends = np.flatnonzero(np.frombuffer(self._block, np.uint8) == _NEWLINE) + 1
        tail = [] if self._block.endswith(b"\n") else [len(self._block)]
        return np.concatenate([[0], ends, tail]).astype(np.int64)

    def numbers(self, rows: int) -> Ints | None:
        """Return the line of each of so many rows, or None where lines and rows do not agree."""
        if rows == self._block.count(b"\n") + (not self._block.endswith(b"\n")):
            return np.arange(self._first, self._first + rows, dtype=np.int64)
        data = np.frombuffer(self._block, np.uint8)
        starts = self._bounds[:-1]
        blank = (data[starts] == _NEWLINE) | (
            (data[starts] == _RETURN) & (np.diff(self._bounds) <= 2)
        )
        written = np.flatnonzero(~blank)
        return self._first + written if len(written) == rows else None

    def text(self, number: int) -> str:
        """Return a line, without its end."""
        at = number - self._first
        raw = self._block[self._bounds[at] : self._bounds[at + 1]]
        return raw.rstrip(b"\r\n").decode(errors="backslashreplace")


def _span(lines: list[bytes], start: int) -> int | None:
    """Return how many lines the record at `start` takes, None where its quote is not closed."""
    quotes = size = 0
    for at in range(start, len(lines)):
        quotes += lines[at].count(b'"')
        size += len(lines[at]) + 1
        if quotes % 2 == 0:
            return at - start + 1
        if size > LONGEST_RECORD:
            break
    return None


def _is_short(lines: list[bytes], start: int) -> bool:
    """Tell whether the record at `start`, still open, may yet be closed by a later line."""
    size = 0
    for at in range(start, len(lines)):
        size += len(lines[at]) + 1
        if size > LONGEST_RECORD:
            return False
    return True


def _is_plain(block: bytes, delimiter: str) -> bool:
    """Tell whether lines are records, and quotes stand only around whole fields."""
    if block.count(b"\r") != block.count(b"\r\n"):
        return False
    if not block.isascii():
        try:
            block.decode()
        except UnicodeDecodeError:
            return False
    if b'"' not in block:
        return True
    data = np.frombuffer(block, np.uint8)
    quotes = np.flatnonzero(data == _QUOTE)
    ends = np.flatnonzero(data == _NEWLINE)
    if len(quotes) % 2 or (np.searchsorted(quotes, ends) % 2).any():
        return False
    padded = np.concatenate([[_NEWLINE], data, [_NEWLINE]])
    around = np.array([ord(delimiter), _NEWLINE, _RETURN, _QUOTE])
    before, after = padded[quotes[0::2]], padded[quotes[1::2] + 2]
    return bool(np.isin(before, around).all() and np.isin(after, around).all())
