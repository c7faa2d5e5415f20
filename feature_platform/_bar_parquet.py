"""Bars out of a Parquet file, batch by batch."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from feature_platform._bar_symbols import SymbolRule, Symbols
from feature_platform.bar_columns import PRICES, ColumnMap, layout_of_header
from feature_platform.bar_rules import (
    NO_TIME,
    Batch,
    Floats,
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

# Pages are read through a buffer of this size rather than a whole row group at once.
_BUFFER = 1024 * 1024

_PER_SECOND = {"s": 1, "ms": 1_000, "us": 1_000_000, "ns": 1_000_000_000}


def read_parquet(
    path: Path, *, columns: ColumnMap, symbol: SymbolRule, batch_rows: int
) -> Iterator[Batch]:
    """Read the bars of a Parquet file; a row's number is its line.

    Raises UserError where the file is damaged, or has no columns of bars.
    """
    try:
        with pq.ParquetFile(path, buffer_size=_BUFFER, pre_buffer=False) as parquet:
            yield from _read(parquet, str(path), columns, symbol, batch_rows)
    except (pa.ArrowException, UnicodeDecodeError, OSError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError(f"{path}: the Parquet file cannot be read: {reason}") from None


def _read(
    parquet: pq.ParquetFile, file: str, columns: ColumnMap, symbol: SymbolRule, batch_rows: int
) -> Iterator[Batch]:
    schema = parquet.schema_arrow
    used = layout_of_header(schema.names, columns, file).used
    symbol.check(file, has_column="symbol" in used)
    for name, at in used.items():
        _check_kind(name, schema.field(at), file)
    wanted = list(dict.fromkeys(schema.names[at] for at in used.values()))
    total, row = parquet.metadata.num_rows, 1
    for batch in parquet.iter_batches(batch_rows, columns=wanted, use_threads=False):
        fields = {name: batch.column(schema.names[at]) for name, at in used.items()}
        rows = _convert(batch, fields, symbol, row)
        row += batch.num_rows
        yield judge(file, rows, (), (row - 1) / total)


def _check_kind(name: str, field: pa.Field, file: str) -> None:
    kind = field.type.value_type if pa.types.is_dictionary(field.type) else field.type
    text = pa.types.is_string(kind) or pa.types.is_large_string(kind)
    if name == "symbol":
        fits = text
    elif name == "ts":
        fits = text or pa.types.is_integer(kind) or pa.types.is_timestamp(kind)
        fits = fits or pa.types.is_date(kind)
    else:
        fits = text or pa.types.is_integer(kind) or pa.types.is_floating(kind)
        fits = fits or pa.types.is_decimal(kind)
    if not fits:
        raise UserError(f"{file}: the column {field.name!r}, to be {name}, is of type {field.type}")


def _convert(
    batch: pa.RecordBatch, fields: dict[str, pa.Array], symbol: SymbolRule, first: int
) -> Rows:
    faults: dict[int, str] = {}
    if "symbol" in fields:
        column = fields["symbol"]
        symbols: Symbols = symbol.of_column(column.cast(pa.string()).fill_null(""), faults)
    else:
        symbols = symbol.constant(batch.num_rows)
    ts = _times(fields["ts"], faults)
    prices = {name: _numbers(name, fields[name], faults) for name in PRICES}

    def text(at: int) -> str:
        line = io.StringIO()
        csv.writer(line, lineterminator="").writerow(batch.slice(at, 1).to_pylist()[0].values())
        return line.getvalue()

    return Rows(
        line=np.arange(first, first + batch.num_rows, dtype=np.int64),
        ts=ts,
        **prices,
        symbols=symbols.names,
        symbol=symbols.codes,
        faults=faults,
        text=text,
    )


def _times(column: pa.Array, faults: dict[int, str]) -> Ints:
    for at in np.flatnonzero(to_numpy(column.is_null())).tolist():
        faults.setdefault(at, "ts is missing")
    if pa.types.is_dictionary(column.type):
        column = column.cast(column.type.value_type)
    if pa.types.is_string(column.type) or pa.types.is_large_string(column.type):
        return text_times(column.cast(pa.string()).fill_null(""), faults)
    if pa.types.is_date(column.type):
        column = column.cast(pa.timestamp("ms"))
    if pa.types.is_timestamp(column.type):
        values = to_numpy(column.cast(pa.int64()).fill_null(NO_TIME))
        return unit_times(values, _PER_SECOND[column.type.unit], faults)
    return epoch_times(to_numpy(column.cast(pa.int64()).fill_null(NO_TIME)), faults)


def _numbers(name: str, column: pa.Array, faults: dict[int, str]) -> Floats:
    for at in np.flatnonzero(to_numpy(column.is_null())).tolist():
        faults.setdefault(at, f"{name} is missing")
    if pa.types.is_dictionary(column.type):
        column = column.cast(column.type.value_type)
    if pa.types.is_floating(column.type):
        return to_numpy(column.cast(pa.float64()).fill_null(np.nan))
    # By way of text: a decimal or a large integer is then rounded once, to the nearest double.
    return text_numbers(name, column.cast(pa.string()).fill_null(""), faults)
