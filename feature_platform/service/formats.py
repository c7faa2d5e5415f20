"""The formats of many rows: JSON, CSV and Arrow, each written part by part."""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, Literal, Protocol

import pyarrow as pa
import pyarrow.csv
import pyarrow.ipc

from feature_platform.service.answers import dump_json
from feature_platform.service.rows import COLUMNS

Format = Literal["json", "csv", "arrow"]

MEDIA_TYPES: Mapping[Format, str] = MappingProxyType(
    {"json": "application/json", "csv": "text/csv", "arrow": "application/vnd.apache.arrow.stream"}
)

_Rows = Sequence[Sequence[Any]]


class Writer(Protocol):
    """A writer of rows: `begin`, `add` for each part, `end`; their bytes make the answer."""

    def begin(self) -> bytes:
        """Return the bytes before the rows."""
        ...

    def add(self, rows: _Rows) -> bytes:
        """Return the bytes of one or more rows, with values in the order of the columns."""
        ...

    def end(self) -> bytes:
        """Return the bytes after the rows."""
        ...


def schema_of(columns: Sequence[str], **kinds: pa.DataType) -> pa.Schema:
    """Return the schema of rows with these columns; the first two are symbol and bucket.

    kinds: the types of columns that are not numbers of double precision.
    """
    return pa.schema(
        [
            ("symbol", pa.string()),
            ("bucket", pa.timestamp("s", "UTC")),
            *((name, kinds.get(name, pa.float64())) for name in columns[2:]),
        ]
    )


FEATURES = schema_of(COLUMNS, n_1d=pa.int32(), refresh_no=pa.int64())


class _JsonWriter:
    def __init__(self, columns: Sequence[str], fields: Mapping[str, Any]) -> None:
        self._columns = columns
        self._fields = fields
        self._comma = b""

    def begin(self) -> bytes:
        return b'{"rows":['

    def add(self, rows: _Rows) -> bytes:
        objects = dump_json([dict(zip(self._columns, row, strict=True)) for row in rows])
        comma, self._comma = self._comma, b","
        return comma + objects[1:-1]

    def end(self) -> bytes:
        return b"]," + dump_json(self._fields)[1:]


class _TableWriter:
    """Write by one of pyarrow's writers, and pass each batch on at once."""

    def __init__(self, make: Callable[[io.BytesIO, pa.Schema], Any], schema: pa.Schema) -> None:
        self._sink = io.BytesIO()
        self._schema = schema
        self._writer = make(self._sink, schema)

    def begin(self) -> bytes:
        return self._take()

    def add(self, rows: _Rows) -> bytes:
        columns = zip(zip(*rows, strict=True), self._schema.types, strict=True)
        arrays = [pa.array(values, kind) for values, kind in columns]
        self._writer.write_batch(pa.record_batch(arrays, schema=self._schema))
        return self._take()

    def end(self) -> bytes:
        self._writer.close()
        return self._take()

    def _take(self) -> bytes:
        written = self._sink.getvalue()
        self._sink.seek(0)
        self._sink.truncate()
        return written


def make_writer(form: Format, schema: pa.Schema, fields: Mapping[str, Any]) -> Writer:
    """Return a new writer.

    schema: of the rows.
    fields: those of a page beside its rows, which only JSON holds.
    """
    if form == "json":
        return _JsonWriter(schema.names, fields)
    make = pyarrow.csv.CSVWriter if form == "csv" else pyarrow.ipc.new_stream
    return _TableWriter(make, schema)


def choose(accept: str) -> Format | None:
    """Return the format that a header Accept prefers, None if it accepts none of them.

    Among equals, JSON before CSV before Arrow; an empty header accepts all.
    """
    weights = {form: _weight(accept, media) for form, media in MEDIA_TYPES.items()}
    best = max(weights, key=lambda form: weights[form])
    return best if weights[best] > 0 else None


def _weight(accept: str, media_type: str) -> float:
    """Return the q of the most specific range that a media type lies in (RFC 9110, 12.5.1)."""
    if not accept.strip():
        return 1.0
    by_range: dict[str, float] = {}
    for one in accept.split(","):
        name, *parameters = (part.strip().lower() for part in one.split(";"))
        q = next((part[2:] for part in parameters if part.startswith("q=")), "1")
        try:
            by_range[name] = min(1.0, max(0.0, float(q)))
        except ValueError:
            by_range[name] = 0.0
    ranges = (media_type, media_type.split("/")[0] + "/*", "*/*")
    return next((by_range[name] for name in ranges if name in by_range), 0.0)
