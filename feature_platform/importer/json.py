"""Read bars from JSON: an array of rows, rows as lines, or an exchange's response that has rows."""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Iterator
from contextlib import closing, suppress
from typing import Any

import duckdb
import numpy as np
import orjson
import pyarrow as pa
import pyarrow.compute as pc

from feature_platform.bar_rules import BadRow, Batch
from feature_platform.errors import UserError
from feature_platform.importer.columns import ColumnMap
from feature_platform.importer.duck import connect
from feature_platform.importer.layouts import Head, Layout, recognise
from feature_platform.importer.rows import Columns, Judge, MakeJudge

_SAMPLE_ROWS = 1000
_CHUNK = 1 << 20

# The largest response of an exchange, in bytes. It is read as a whole; exchanges send at most some
# thousand rows in one response.
_LARGEST_ANSWER = 64 << 20

# The most levels of a response in which rows are searched.
_DEEPEST = 4

_ARRAY = "SELECT json FROM read_json_objects($path, format => 'array')"
_LINES = "SELECT json FROM read_json_objects($path, format => 'newline_delimited')"
_CELLS = """SELECT CASE WHEN json_type(json) = 'ARRAY' THEN json_transform(json, '["VARCHAR"]') END
                AS cells FROM elements"""
_FIELDS = """SELECT CASE WHEN json_type(json) = 'OBJECT' THEN json_transform(json, $names) END
                 AS cells FROM elements"""


def read_json(
    stream: Any,
    file: str,
    *,
    columns: ColumnMap,
    judge: MakeJudge,
    stamp: str,
    batch_rows: int,
) -> Iterator[Batch]:
    """Read the bars of a JSON text; a row's number is its position in the array, from 1.

    Raises UserError where the text is damaged, or has no rows.
    """
    start = _peek(stream)
    with closing(connect()) as connection:
        try:
            if start.startswith(b"["):
                elements = _streamed(connection, _ARRAY, stream, batch_rows)
            elif _is_lines(start):
                elements = _streamed(connection, _LINES, stream, batch_rows)
            else:
                elements = _answered(stream, file, batch_rows)
            yield from _Reader(connection.cursor(), file, columns, judge, stamp).read(elements)
        except duckdb.Error as error:
            reason = str(error).splitlines()[0]
            raise UserError(f"{file}: the JSON cannot be read: {reason}") from None


def _peek(stream: Any) -> bytes:
    start: bytes = stream.peek(_CHUNK)
    return start.removeprefix(b"\xef\xbb\xbf").lstrip()


def _is_lines(start: bytes) -> bool:
    """Return whether each line is a row."""
    try:
        first = orjson.loads(start.split(b"\n", 1)[0])
    except orjson.JSONDecodeError:
        return False
    return (
        isinstance(first, dict)
        and bool(first)
        and not any(isinstance(v, dict | list) for v in first.values())
    )


def _streamed(
    connection: duckdb.DuckDBPyConnection, query: str, stream: Any, batch_rows: int
) -> Iterator[pa.Array]:
    """Yield rows as JSON texts; a thread writes the stream into a pipe that DuckDB reads."""
    end, begin = os.pipe()
    failures: list[BaseException] = []

    def write() -> None:
        try:
            with suppress(BrokenPipeError), os.fdopen(begin, "wb", buffering=0) as pipe:
                while chunk := stream.read(_CHUNK):
                    view = memoryview(chunk)
                    while view:
                        view = view[pipe.write(view) :]
        except Exception as error:  # noqa: BLE001 - the reading thread raises it
            failures.append(error)

    writer = threading.Thread(target=write, name="JSON to DuckDB", daemon=True)
    writer.start()
    try:
        found = connection.sql(query, params={"path": f"/dev/fd/{end}"})
        for batch in found.to_arrow_reader(batch_rows):
            yield batch.column(0).cast(pa.string())
    except duckdb.Error:
        if not failures:
            raise
    finally:
        os.close(end)
        writer.join()
    if failures:
        raise failures[0]


def _answered(stream: Any, file: str, batch_rows: int) -> Iterator[pa.Array]:
    """Yield the rows in an exchange's response as JSON texts."""
    text = stream.read(_LARGEST_ANSWER + 1)
    if len(text) > _LARGEST_ANSWER:
        raise UserError(
            f"{file}: an object of over {_LARGEST_ANSWER:,} bytes; write the rows as an array"
        )
    try:
        answer = orjson.loads(text.removeprefix(b"\xef\xbb\xbf"))
    except orjson.JSONDecodeError as error:
        raise UserError(f"{file}: the JSON cannot be read: {error}") from None
    found = list(_rows_in(answer, 0))
    if len(found) != 1:
        many = "several arrays" if found else "no array"
        raise UserError(f"{file}: {many} of rows in the JSON object; write the rows as one array")
    rows = [orjson.dumps(row).decode() for row in found[0]]
    for at in range(0, len(rows), batch_rows):
        yield pa.array(rows[at : at + batch_rows], pa.string())


def _rows_in(value: Any, depth: int) -> Iterator[list[Any]]:
    """Find the lists of rows in a response."""
    if depth > _DEEPEST:
        return
    if isinstance(value, list):
        if value and all(isinstance(row, list | dict) for row in value):
            yield value
    elif isinstance(value, dict):
        inner = list(value.values())
        columns = {name: one for name, one in value.items() if isinstance(one, list) and one}
        plain = not any(isinstance(one[0], list | dict) for one in columns.values())
        if len(columns) > 4 and plain and len({len(one) for one in columns.values()}) == 1:
            yield [
                dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)
            ]
            return
        if len(inner) > 1 and all(_is_flat(one) for one in inner):
            # An object of rows, whose keys are the times.
            yield [{"": key, **one} for key, one in value.items()]
            return
        for one in inner:
            yield from _rows_in(one, depth + 1)


def _is_flat(value: Any) -> bool:
    """Return whether a value is an object without objects or arrays in it."""
    return isinstance(value, dict) and not any(isinstance(v, dict | list) for v in value.values())


class _Reader:
    """Convert JSON rows, which are arrays or objects, to columns."""

    def __init__(
        self,
        connection: duckdb.DuckDBPyConnection,
        file: str,
        columns: ColumnMap,
        judge: MakeJudge,
        stamp: str,
    ) -> None:
        self._connection = connection
        self._file = file
        self._columns = columns
        self._make_judge = judge
        self._stamp = stamp
        self._names: list[str] | None = None
        self._layout: Layout | None = None
        self._judge: Judge | None = None

    def read(self, batches: Iterator[pa.Array]) -> Iterator[Batch]:
        row = 1
        for elements in batches:
            if not len(elements):
                continue
            if self._judge is None:
                self._recognise([json.loads(text) for text in elements[:_SAMPLE_ROWS].to_pylist()])
            yield self._batch(elements, row)
            row += len(elements)
        if self._judge is None:
            raise UserError(f"{self._file}: the JSON holds no row")

    def _recognise(self, sample: list[Any]) -> None:
        where = f"{self._file}:1"
        rows: list[list[str]]
        if isinstance(sample[0], dict):
            self._names = list(
                dict.fromkeys(n for row in sample if isinstance(row, dict) for n in row)
            )
            rows = [
                [_shown(row.get(name)) for name in self._names]
                for row in sample
                if isinstance(row, dict)
            ]
        elif isinstance(sample[0], list):
            rows = [[_shown(cell) for cell in row] for row in sample if isinstance(row, list)]
        else:
            raise UserError(f"{where}: the elements of the JSON are neither arrays nor objects")
        head = Head(self._names, rows, where)
        self._layout = recognise(head, self._columns, stamp=self._stamp, text=False)
        self._judge = self._make_judge(self._file, self._layout)

    def _batch(self, elements: pa.Array, first: int) -> Batch:
        assert self._layout is not None
        assert self._judge is not None
        self._connection.register("elements", pa.table({"json": elements}))
        if self._names is None:
            cells = self._connection.sql(_CELLS).to_arrow_table().column(0).combine_chunks()
            sizes = pc.fill_null(pc.list_value_length(cells), -1)
            fits = pc.equal(sizes, self._layout.width)
        else:
            names = json.dumps(dict.fromkeys(self._names, "VARCHAR"))
            found = self._connection.sql(_FIELDS, params={"names": names})
            cells = found.to_arrow_table().column(0).combine_chunks()
            sizes, fits = None, pc.is_valid(cells)
        bad = [
            BadRow(self._file, first + at, self._fault(sizes, at), elements[at].as_py())
            for at in np.flatnonzero(~np.array(fits.to_pylist(), np.bool_)).tolist()
        ]
        numbers = np.arange(first, first + len(elements), dtype=np.int64)
        if bad:
            cells, elements = cells.filter(fits), elements.filter(fits)
            numbers = numbers[np.array(fits.to_pylist(), np.bool_)]
        values = {
            name: pc.utf8_trim_whitespace(self._column(cells, at).cast(pa.string()).fill_null(""))
            for name, at in self._layout.used.items()
        }
        found_rows = Columns(numbers, values, lambda at: str(elements[at].as_py()))
        return self._judge.batch(found_rows, bad, 0.5)

    def _column(self, cells: pa.Array, at: int) -> pa.Array:
        if self._names is None:
            return pc.list_element(cells, at) if len(cells) else pa.array([], pa.string())
        return pc.struct_field(cells, at)

    def _fault(self, sizes: pa.Array | None, at: int) -> str:
        assert self._layout is not None
        if sizes is None:
            return "not an object like the first row"
        size = sizes[at].as_py()
        if size < 0:
            return "not an array like the first row"
        return f"{size} fields where {self._layout.width} are expected"


def _shown(value: Any) -> str:
    if value is None:
        return ""
    return value.strip() if isinstance(value, str) else json.dumps(value)
