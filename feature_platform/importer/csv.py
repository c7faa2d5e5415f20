"""Read bars from CSV text, block by block, with the line number of every row.

DuckDB parses each block from a pipe. It does not number the rows that it accepts, and gives up the
rest of a text after one unclosed quote. So a block with a fault is split here line by line, and
only the faulty lines are bad.
"""

from __future__ import annotations

import csv
import os
import re
import threading
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from functools import cached_property
from typing import NamedTuple, Protocol

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from feature_platform.bar_rules import PRICES, BadRow, Batch, Ints
from feature_platform.errors import UserError
from feature_platform.importer.columns import ColumnMap
from feature_platform.importer.duck import connect
from feature_platform.importer.layouts import (
    Head,
    Layout,
    is_header,
    looks_like_data,
    recognise,
)
from feature_platform.importer.rows import Columns, Judge, MakeJudge

# The longest record, in bytes. A quoted field may hold line ends, so an unclosed quote would
# extend to the end of the file. In place of a longer record, its first line alone is bad.
LONGEST_RECORD = 64 * 1024

# The longest line, in bytes: a longer one is not of a file of bars, and must not fill the memory.
LONGEST_LINE = 16 * 1024 * 1024

# The layout is recognised from this many bytes; the header is searched in this many lines.
_HEAD_BYTES = 256 * 1024
_HEAD_LINES = 100

_BOM = b"\xef\xbb\xbf"
_DELIMITERS = ",;\t|"
_BLANK = " \t"
_COMMENT = b"#"
_QUOTE, _NEWLINE, _RETURN = b'"\n\r'
_QUOTED = re.compile(r'"[^"]*"')
_UNDERSCORE = re.compile(rb"\d_\d")


class ByteStream(Protocol):
    """A source of bytes."""

    def read(self, size: int, /) -> bytes:
        """Return at most `size` bytes, none at the end."""


def read_csv(
    stream: ByteStream,
    file: str,
    *,
    columns: ColumnMap,
    judge: MakeJudge,
    stamp: str,
    block_size: int,
    done: Callable[[], float],
) -> Iterator[Batch]:
    """Read the bars of a CSV text.

    stream: the bytes, decompressed.
    file: its name in messages.
    judge: makes the judge of the rows, after the layout is recognised.
    stamp: "close" where a time is the end of its bar.
    block_size: the number of bytes to hold at a time.
    done: returns the share of the file that was read so far.
    Raises UserError where the text is not a CSV file of bars.
    """
    head, data = _read_head(stream, file, columns, stamp)
    with closing(_Parser(file, head, judge(file, head.layout))) as parser:
        line, final, ended = head.line, False, False
        while True:
            whole = final and ended
            limit = len(data) if whole else _end_of_block(data, block_size)
            block = data[:limit]
            if block:
                piece = parser.parse(block, line, final=whole, done=done())
                data, line = data[piece.size :], line + piece.lines
                if piece.batch is not None:
                    yield piece.batch
                if piece.size and len(data) > block_size:
                    continue
            if whole:
                return
            if len(data) > LONGEST_LINE and not block:
                raise UserError(
                    f"{file}:{line}: a line of over {len(data):,} bytes: not a file of bars"
                )
            if ended:
                final = True
                continue
            more = stream.read(block_size)
            ended = not more
            data += more


def _end_of_block(data: bytes, size: int) -> int:
    """Return the end of a block of whole lines that has about `size` bytes."""
    if len(data) > size:
        end = data.rfind(b"\n", 0, size) + 1
        return end or data.find(b"\n", size) + 1
    return data.rfind(b"\n") + 1


class _Head(NamedTuple):
    """The delimiter and layout of a file, and the number of its first line of data."""

    delimiter: str
    layout: Layout
    line: int


class _Piece(NamedTuple):
    """The parsed rows of a block, and the numbers of its bytes and lines that were parsed."""

    batch: Batch | None
    size: int
    lines: int


def _read_head(
    stream: ByteStream, file: str, columns: ColumnMap, stamp: str
) -> tuple[_Head, bytes]:
    """Read the first lines; return the bytes behind the header, too."""
    data, more = b"", b"\n"
    while more and (len(data) < _HEAD_BYTES or b"\n" not in data.lstrip(b" \t\r\n")):
        more = stream.read(_HEAD_BYTES)
        data = (data + more).removeprefix(_BOM)
        if len(data) > LONGEST_LINE and b"\n" not in data.lstrip(b" \t\r\n"):
            break
    if data[:2] in (b"\xff\xfe", b"\xfe\xff"):
        raise UserError(f"{file}: the text is UTF-16; save it as UTF-8")
    content = data.lstrip(b" \t\r\n")
    if not content:
        raise UserError(f"{file}: the file is empty")
    first = data.count(b"\n", 0, len(data) - len(content))
    lines = data.split(b"\n")
    if more and len(lines) > 1:
        lines.pop()  # the last line is not complete
    _check_first(lines[first].rstrip(b"\r"), f"{file}:{first + 1}")
    texts = [_decoded(line) for line in lines]
    delimiter = _delimiter(texts[first:], columns, f"{file}:{first + 1}")
    cells = [_cells(text, delimiter) for text in texts]
    at, named = _start(cells, columns, first)
    where = f"{file}:{at + 1}"
    if named and '"' in texts[at]:
        try:
            _split(texts[at], delimiter)
        except csv.Error as error:
            raise UserError(f"{where}: {error}") from None
    names = cells[at] if named else None
    begin = at + 1 if named else at
    width = len(cells[at] or ())
    rows = [row for row in cells[begin:] if row is not None and len(row) == width]
    layout = recognise(Head(names, rows, where), columns, stamp=stamp)
    offset = sum(len(line) + 1 for line in lines[:begin])
    return _Head(delimiter, layout, begin + 1), data[offset:]


def _check_first(raw: bytes, where: str) -> None:
    if len(raw) > LONGEST_LINE:
        raise UserError(f"{where}: a line of over {len(raw):,} bytes: not a file of bars")
    if b"\r" in raw:
        raise UserError(f"{where}: the lines end in \\r without \\n; save the file with \\n")
    try:
        text = raw.decode()
    except UnicodeDecodeError:
        raise UserError(f"{where}: neither Parquet nor text in UTF-8") from None
    if "\0" in text:
        raise UserError(f"{where}: neither Parquet nor text: the line has NUL bytes")


def _decoded(line: bytes) -> str:
    return line.rstrip(b"\r").decode(errors="backslashreplace")


def _delimiter(texts: list[str], columns: ColumnMap, where: str) -> str:
    """Return the delimiter: the header's, or that which gives the most numbers and times.

    A decimal comma splits the lines of numbers as evenly as the delimiter does, but not the header
    or the times.
    """
    some = [text for text in texts[:_HEAD_LINES] if text.strip() and text[:1] != "#"]
    if not some:
        raise UserError(f"{where}: the file has only comments")
    unquoted = [_QUOTED.sub('""', text) for text in some]
    best, best_score = "", (False, 0, 0)
    for delimiter in _DELIMITERS + " ":
        counts = [text.count(delimiter) for text in unquoted]
        usual = max(counts, key=lambda count: (counts.count(count) if count else 0, count))
        if not usual or (delimiter == " " and (best or usual < 4)):
            continue
        readable = sum(
            looks_like_data([cell.strip('" \t')])
            for text, count in zip(some, counts, strict=True)
            for cell in (text.split(delimiter) if count == usual else ())
        )
        header = any(is_header(_cells(text, delimiter) or (), columns) for text in some)
        score = (header, readable, counts.count(usual) * usual)
        if not best or score > best_score:
            best, best_score = delimiter, score
    if not best:
        raise UserError(
            f"{where}: no comma, semicolon or tab in the first line: not a CSV file of bars"
        )
    return best


def _cells(text: str, delimiter: str) -> list[str] | None:
    """Return the fields of a line, without spaces; None for a blank line or a comment."""
    if not text.strip(_BLANK.replace(delimiter, "")):
        return None
    if text.startswith("#") and not (
        text.count(delimiter) >= 5 and looks_like_data(text.split(delimiter))
    ):
        return None
    try:
        cells = _split(text, delimiter)
    except csv.Error:
        cells = text.split(delimiter)
    return [cell.strip() for cell in cells]


def _start(cells: list[list[str] | None], columns: ColumnMap, first: int) -> tuple[int, bool]:
    """Return the line where the table begins, and whether it is a header.

    Lines before it, such as the publisher's address, are not part of the table.
    """
    places = [at for at, row in enumerate(cells) if row is not None and at >= first]
    places = places[:_HEAD_LINES]
    for at in places:
        if is_header(cells[at] or (), columns):
            return at, True
        if len(cells[at] or ()) >= 5 and looks_like_data(cells[at] or ()):
            break
    widths = [len(cells[at] or ()) for at in places]
    usual = max(widths, key=lambda width: (widths.count(width), width))
    for before, at in zip([None, *places], places, strict=False):
        row = cells[at] or []
        if looks_like_data(row) and (len(row) == usual or len(row) >= 5 or at == first):
            header = before is not None and len(cells[before] or ()) == len(row)
            return (before, True) if header and before is not None else (at, False)
    return places[0], True


def _split(text: str, delimiter: str) -> list[str]:
    if '"' not in text:
        return text.split(delimiter)
    return next(csv.reader((text,), delimiter=delimiter, strict=True))


class _Parser:
    """Parse blocks of lines: with DuckDB, or line by line where a block has a fault."""

    def __init__(self, file: str, head: _Head, judge: Judge) -> None:
        self._file = file
        self._delimiter = head.delimiter
        self._width = head.layout.width
        self._used = head.layout.used
        self._decimal = head.layout.decimal
        self._judge = judge
        # DuckDB uses one thread, because PostgreSQL needs the other core.
        self._duckdb = connect()
        self._types = {
            f"c{at}": "DOUBLE" if at in self._number_columns() else "VARCHAR"
            for at in range(self._width)
        }

    def close(self) -> None:
        """Free the memory of DuckDB."""
        self._duckdb.close()

    def parse(self, block: bytes, line: int, *, final: bool, done: float) -> _Piece:
        """Parse a block of whole lines, of which the first has the number `line`.

        final: whether this is the last block. Otherwise a record that is not complete at the end
            belongs to the next block.
        """
        lines = block.count(b"\n")
        found = self._parse_typed(block, line, lines)
        if found is None:
            return self._parse_texts(block, line, final=final, done=done)
        batch = self._judge.batch(found, (), done) if len(found.line) else None
        return _Piece(batch, len(block), lines)

    def _number_columns(self) -> set[int]:
        return {self._used[name] for name in PRICES if name in self._used}

    def _parse_typed(self, block: bytes, first: int, ends: int) -> Columns | None:
        """Convert whole columns, or return None where rows must be parsed one by one."""
        if not _is_plain(block, self._delimiter) or self._decimal != ".":
            return None
        try:
            table = self._by_duckdb(block)
        except duckdb.Error:
            return None
        lines = _Lines(block, first)
        numbers = lines.numbers(table.num_rows, ends)
        if numbers is None:
            return None
        columns: dict[str, pa.Array] = {}
        for name, at in self._used.items():
            column = table[f"c{at}"].combine_chunks()
            columns[name] = column if name in PRICES else _trimmed(column.fill_null(""))
        blank = [column.null_count for name, column in columns.items() if name in PRICES]
        if any(count != blank[0] for count in blank):
            return None
        # A volume of 1e-400 is converted to 0; only its text shows that it is not 0.
        quiet = "vol" in columns and pc.any(pc.equal(columns["vol"], 0.0)).as_py()
        if quiet and (b"e-" in block or b"E-" in block):
            return None
        return Columns(numbers, columns, lambda at: lines.text(int(numbers[at])))

    def _by_duckdb(self, block: bytes) -> pa.Table:
        """Parse a block through a pipe, so that no file remains."""
        end, begin = os.pipe()

        def write() -> None:
            with suppress(BrokenPipeError), os.fdopen(begin, "wb", buffering=0) as pipe:
                view = memoryview(block)
                while view:
                    view = view[pipe.write(view) :]

        writer = threading.Thread(target=write, name="bars to DuckDB")
        writer.start()
        try:
            found = self._duckdb.read_csv(
                f"/dev/fd/{end}",
                columns=self._types,
                header=False,
                auto_detect=False,
                delimiter=self._delimiter,
                quotechar='"',
                escapechar='"',
                strict_mode=True,
                parallel=False,
            )
            used = sorted({f"c{at}" for at in self._used.values()})
            return found.select(*used).to_arrow_table()
        finally:
            os.close(end)
            writer.join()

    def _parse_texts(self, block: bytes, first: int, *, final: bool, done: float) -> _Piece:
        """Parse each record of a block, and each value where a column cannot be converted."""
        lines = block.split(b"\n")
        if not lines[-1]:
            lines.pop()
        records: list[list[str]] = []
        texts: list[str] = []
        numbers: list[int] = []
        bad: list[BadRow] = []
        at = 0
        while at < len(lines):
            if lines[at].startswith(_COMMENT) and not self._has_fields(lines[at]):
                at += 1
                continue
            span = _span(lines, at)
            if span is None and not final and _is_short(lines, at):
                break
            raw = b"\n".join(lines[at : at + (span or 1)]).removesuffix(b"\r")
            text = raw.decode(errors="backslashreplace")
            fault = None if span else "a quote is not closed"
            if fault is None and text.strip(_BLANK.replace(self._delimiter, "")):
                fault = self._add_record(raw, records)
                if fault is None:
                    numbers.append(first + at)
                    texts.append(text)
            if fault is not None:
                bad.append(BadRow(self._file, first + at, fault, text))
            at += span or 1
        size = sum(map(len, lines[:at])) + at
        columns = {
            name: _trimmed(pa.array([cells[at] for cells in records], pa.string()))
            for name, at in self._used.items()
        }
        found = Columns(np.array(numbers, np.int64), columns, texts.__getitem__)
        batch = self._judge.batch(found, bad, done) if numbers or bad else None
        return _Piece(batch, min(size, len(block)), at)

    def _has_fields(self, line: bytes) -> bool:
        """Return whether a line that begins with # is a row, not a comment: a symbol may be #1."""
        return line.decode(errors="replace").count(self._delimiter) == self._width - 1

    def _add_record(self, raw: bytes, records: list[list[str]]) -> str | None:
        """Split a record and add it, or return the reason why it is bad."""
        try:
            cells = _split(raw.decode(), self._delimiter)
        except UnicodeDecodeError:
            return "not text in UTF-8"
        except csv.Error as error:
            return f"not CSV: {error}"
        if len(cells) != self._width:
            return f"{len(cells)} fields where {self._width} are expected"
        records.append(cells)
        return None


def _trimmed(texts: pa.Array) -> pa.Array:
    return pc.utf8_trim(texts, _BLANK)


class _Lines:
    """Find the lines of a block by number."""

    def __init__(self, block: bytes, first: int) -> None:
        self._block = block
        self._first = first

    @cached_property
    def _bounds(self) -> Ints:
        """Return the start of each line, and the end of the last."""
        ends = np.flatnonzero(np.frombuffer(self._block, np.uint8) == _NEWLINE) + 1
        tail = [] if self._block.endswith(b"\n") else [len(self._block)]
        return np.concatenate([[0], ends, tail]).astype(np.int64)

    def numbers(self, rows: int, ends: int) -> Ints | None:
        """Return the line number of each row, or None where rows and lines differ in number.

        ends: the number of line ends.
        """
        if rows == ends + (not self._block.endswith(b"\n")):
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
    """Return the number of lines of the record at `start`, None where a quote is not closed."""
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
    """Return whether a later line may close the quote of the record at `start`."""
    size = 0
    for at in range(start, len(lines)):
        size += len(lines[at]) + 1
        if size > LONGEST_RECORD:
            return False
    return True


def _is_plain(block: bytes, delimiter: str) -> bool:
    """Return whether each line is one record, with quotes only around whole fields."""
    # A search for one byte is ten times as fast as a search for two.
    if b"\r" in block and block.count(b"\r") != block.count(b"\r\n"):
        return False
    if b"#" in block and (block.startswith(_COMMENT) or b"\n#" in block):
        return False
    # DuckDB reads 1_0 as 10.
    if b"_" in block and _UNDERSCORE.search(block):
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
