"""Read bars from a Parquet or a Feather file, batch by batch."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from pyarrow import ipc

from feature_platform.bar_rules import Batch
from feature_platform.errors import UserError
from feature_platform.importer.columns import ColumnMap
from feature_platform.importer.layouts import Head, Layout, recognise
from feature_platform.importer.rows import Columns, Judge, MakeJudge

# The size of the buffer through which pages are read, in bytes; without one, a whole row group is
# read at once.
_BUFFER = 1024 * 1024

_SAMPLE_ROWS = 1000

# The name that pandas gives to the column of an index without a name.
_INDEX = "__index_level_0__"


def read_parquet(
    stream: Any, file: str, *, columns: ColumnMap, judge: MakeJudge, stamp: str, batch_rows: int
) -> Iterator[Batch]:
    """Read the bars of a Parquet file; a row's number is its line.

    Raises UserError where the file is damaged, or has no columns of bars.
    """
    with (
        _damage_explained(file, "Parquet"),
        pq.ParquetFile(_Seekable(stream), buffer_size=_BUFFER, pre_buffer=False) as parquet,
    ):
        reader = _Reader(parquet.schema_arrow, file, columns, judge, stamp)
        some = parquet.iter_batches(_SAMPLE_ROWS, columns=reader.sampled, use_threads=False)
        reader.recognise(next(some, None))
        batches = parquet.iter_batches(batch_rows, columns=reader.wanted, use_threads=False)
        yield from reader.read(batches, parquet.metadata.num_rows)


def read_feather(
    stream: Any, file: str, *, columns: ColumnMap, judge: MakeJudge, stamp: str, batch_rows: int
) -> Iterator[Batch]:
    """Read the bars of a Feather file, version 2; a row's number is its line.

    Raises UserError where the file is damaged, or has no columns of bars.
    """
    with _damage_explained(file, "Feather"), ipc.open_file(_Seekable(stream)) as feather:
        count = feather.num_record_batches
        reader = _Reader(feather.schema, file, columns, judge, stamp)
        first = feather.get_batch(0).slice(0, _SAMPLE_ROWS) if count else None
        reader.recognise(None if first is None else first.select(reader.sampled))

        def batches() -> Iterator[pa.RecordBatch]:
            for at in range(count):
                whole = feather.get_batch(at).select(reader.wanted)
                for start in range(0, whole.num_rows, batch_rows):
                    yield whole.slice(start, batch_rows)

        total = sum(feather.get_batch(at).num_rows for at in range(count)) if count < 2 else None
        yield from reader.read(batches(), total)


class _Reader:
    """Read batches of typed columns.

    sampled: the columns by which the layout is recognised.
    wanted: the columns of the layout.
    """

    def __init__(
        self, schema: pa.Schema, file: str, columns: ColumnMap, judge: MakeJudge, stamp: str
    ) -> None:
        self._schema = schema
        self._file = file
        self._columns = columns
        self._make_judge = judge
        self._stamp = stamp
        self._names = ["" if name == _INDEX else name for name in schema.names]
        self.sampled = [field.name for field in schema if not pa.types.is_nested(field.type)]
        self.wanted: list[str] = []
        self._layout: Layout | None = None
        self._judge: Judge | None = None

    def recognise(self, sample: pa.RecordBatch | None) -> None:
        """Recognise the layout by the columns' names and the first rows."""
        texts: list[list[str]] = []
        if sample is not None:
            places = {name: at for at, name in enumerate(sample.schema.names)}
            shown = [
                [_shown(value) for value in sample.column(places[name]).to_pylist()]
                if name in places
                else [""] * sample.num_rows
                for name in self._schema.names
            ]
            texts = [list(row) for row in zip(*shown, strict=True)]
        head = Head(self._names, texts, self._file)
        self._layout = recognise(head, self._columns, stamp=self._stamp, text=False)
        self._judge = self._make_judge(self._file, self._layout)
        for name, at in self._layout.used.items():
            _check_kind(name, self._schema.field(at), self._file)
        self.wanted = list(
            dict.fromkeys(self._schema.names[at] for at in self._layout.used.values())
        )

    def read(self, batches: Iterator[pa.RecordBatch], total: int | None) -> Iterator[Batch]:
        """Judge batches; total is the number of all rows, None if unknown."""
        assert self._layout is not None
        assert self._judge is not None
        row = 1
        for batch in batches:
            fields = {
                name: batch.column(self._schema.names[at]) for name, at in self._layout.used.items()
            }
            line = np.arange(row, row + batch.num_rows, dtype=np.int64)
            row += batch.num_rows
            found = Columns(line, fields, _text_of(batch))
            yield self._judge.batch(found, (), (row - 1) / total if total else 0.5)


@contextmanager
def _damage_explained(file: str, kind: str) -> Iterator[None]:
    try:
        yield
    except UserError:
        raise
    except (pa.ArrowException, UnicodeDecodeError, OSError, ValueError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError(f"{file}: the {kind} file cannot be read: {reason}") from None


def _text_of(batch: pa.RecordBatch) -> Callable[[int], str]:
    def text(at: int) -> str:
        line = io.StringIO()
        csv.writer(line, lineterminator="").writerow(batch.slice(at, 1).to_pylist()[0].values())
        return line.getvalue()

    return text


def _shown(value: Any) -> str:
    return "" if value is None else str(value)


def _check_kind(name: str, field: pa.Field, file: str) -> None:
    kind = field.type.value_type if pa.types.is_dictionary(field.type) else field.type
    text = pa.types.is_string(kind) or pa.types.is_large_string(kind)
    number = pa.types.is_integer(kind) or pa.types.is_floating(kind)
    if name in ("symbol", "clock"):
        fits = text
    elif name == "ts":
        fits = text or number or pa.types.is_timestamp(kind) or pa.types.is_date(kind)
    else:
        fits = text or number or pa.types.is_decimal(kind)
    if not fits:
        raise UserError(
            f"{file}: the column {field.name!r} cannot be read as {name}: its type is {field.type}"
        )


class _Seekable(io.RawIOBase):
    """A view of a stream for Arrow, which closes the view and not the stream."""

    def __init__(self, stream: Any) -> None:
        self._stream = stream
        self._stream.seek(0)

    def readable(self) -> bool:
        """Return True: the stream can be read."""
        return True

    def seekable(self) -> bool:
        """Return True: the stream has positions."""
        return True

    def seek(self, offset: int, whence: int = 0) -> int:
        """Move to a position."""
        return int(self._stream.seek(offset, whence))

    def tell(self) -> int:
        """Return the position."""
        return int(self._stream.tell())

    def read(self, size: int = -1) -> bytes:
        """Return the next bytes."""
        found: bytes = self._stream.read(size)
        return found
