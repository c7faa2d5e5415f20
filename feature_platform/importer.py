"""Store the bars of files: each file whole or not at all, and equal bars left alone."""

from __future__ import annotations

import time
from bisect import bisect_left
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import closing, nullcontext
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Literal, LiteralString

import numpy as np
import psycopg
from numpy.typing import NDArray
from psycopg import errors
from psycopg.pq import TransactionStatus

from feature_platform._read_ahead import read_ahead
from feature_platform._skip_file import SkipFile
from feature_platform.bar_columns import PRICES
from feature_platform.bar_rules import Ints
from feature_platform.bars_file import BadRow, Batch, ColumnMap, read_bars
from feature_platform.errors import UserError
from feature_platform.queries import queries

Connection = psycopg.Connection[Any]
Source = Literal["stream", "rest", "import"]
Span = tuple[datetime, datetime]

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)
_NEVER = np.int64(2**62)

# The binary format of COPY: a header, and in a row the number of fields and, before each, its size.
_COPY_HEADER = b"PGCOPY\n\xff\r\n\0" + bytes(8)
_COPY_TRAILER = b"\xff\xff"
_COPY_FIELDS = {"row_number": ">i8", "symbol_id": ">i4", "ts": ">i8"} | dict.fromkeys(PRICES, ">f8")
_COPY_ROW = np.dtype(
    [("fields", ">i2")]
    + [
        part
        for name, kind in _COPY_FIELDS.items()
        for part in ((f"{name}_size", ">i4"), (name, kind))
    ]
)
_POSTGRES_EPOCH_US = int(datetime(2000, 1, 1, tzinfo=UTC).timestamp()) * 1_000_000

# A storing that meets another writer's in a deadlock is repeated; the staged rows are still there.
_ATTEMPTS = 3


@dataclass(frozen=True, slots=True)
class Progress:
    """Say how far an import is.

    share: of the file in hand that has been read, from 0 to 1.
    rows: of the file in hand that have been read.
    """

    path: Path
    phase: Literal["reading", "storing", "stored"]
    share: float
    rows: int


@dataclass(frozen=True, slots=True)
class FileReport:
    """Say what became of the rows of one file; every one of `rows` is in exactly one count.

    duplicates: rows that repeat a bar of the same file with equal values.
    bad: rows that were left out, and written to the file of bad rows.
    spans: the times of the first and last good bar, in UTC, by symbol.
    """

    path: Path
    rows: int
    inserted: int
    updated: int
    unchanged: int
    duplicates: int
    bad: int
    seconds: float
    spans: Mapping[str, Span]

    @property
    def bars_per_second(self) -> float:
        """Return the speed, the storing included."""
        return self.rows / self.seconds if self.seconds else 0.0


@dataclass(frozen=True, slots=True)
class ImportReport:
    """Say what an import did, file by file in the order they were given."""

    files: tuple[FileReport, ...]

    @property
    def total(self) -> FileReport:
        """Return the sums over all files, under the path of the current directory."""
        spans: dict[str, Span] = {}
        for report in self.files:
            for symbol, (first, last) in report.spans.items():
                known = spans.get(symbol, (first, last))
                spans[symbol] = (min(known[0], first), max(known[1], last))
        return FileReport(
            path=Path(),
            rows=sum(report.rows for report in self.files),
            inserted=sum(report.inserted for report in self.files),
            updated=sum(report.updated for report in self.files),
            unchanged=sum(report.unchanged for report in self.files),
            duplicates=sum(report.duplicates for report in self.files),
            bad=sum(report.bad for report in self.files),
            seconds=sum(report.seconds for report in self.files),
            spans=spans,
        )


def import_bars(
    conn: Connection,
    paths: Sequence[Path],
    *,
    symbol: str | None = None,
    columns: ColumnMap | None = None,
    skip_bad: Path | None = None,
    source: Source = "import",
    progress: Callable[[Progress], None] | None = None,
) -> ImportReport:
    """Store the bars of files in `ohlcv_1m`, each file in a transaction of its own.

    A bar that is stored already with equal values is not touched; one with other values is
    corrected. An import that fails, or is killed, stores nothing of the file in hand; the files
    before it stay stored, and to import them again changes nothing.

    conn: a connection that is in no transaction.
    symbol: whose bars they are, for files without a column that says it.
    columns: the columns that are not recognised by name.
    skip_bad: a new CSV file for rows that cannot be stored (file, line, reason, text); without
        it, one such row stops the import.
    source: what the rows are marked with.
    progress: called now and then.
    Raises UserError for a file that cannot be read or has a bad row, with file, line and reason,
    and psycopg.OperationalError where the database fails.
    """
    if conn.info.transaction_status != TransactionStatus.IDLE:
        raise ValueError("an import needs a connection that is in no transaction")
    for path in paths:
        if not path.exists():
            raise UserError(f"{path}: no such file")
    reports: list[FileReport] = []
    with SkipFile(skip_bad) if skip_bad else nullcontext() as skip:
        for path in paths:
            job = _FileImport(
                conn, path, symbol, columns or ColumnMap(), skip, source, progress or _ignore
            )
            try:
                reports.append(job.run())
            except UserError as error:
                if not reports:
                    raise
                stored = f"{len(reports)} of {len(paths)} files before it"
                raise UserError(f"{error}; stored are the {stored}") from None
    return ImportReport(tuple(reports))


def _ignore(_progress: Progress) -> None:
    pass


class _FileImport:
    """Import one file."""

    def __init__(
        self,
        conn: Connection,
        path: Path,
        symbol: str | None,
        columns: ColumnMap,
        skip: SkipFile | None,
        source: Source,
        progress: Callable[[Progress], None],
    ) -> None:
        self._conn = conn
        self._path = path
        self._symbol = symbol
        self._columns = columns
        self._skip = skip
        self._source = source
        self._progress = progress
        self._contents = _Contents()
        self._bad = 0
        self._first_bad: BadRow | None = None

    def run(self) -> FileReport:
        started = time.perf_counter()
        stored = False
        try:
            with self._conn.transaction():
                self._conn.execute(queries["import_check_table"])
                duplicates = self._stage()
                inserted, updated = self._store()
                stored = True
        except psycopg.Error as error:
            raise _explained(error, self._path, committing=stored) from error
        if self._skip is not None:
            self._skip.keep()
        rows = self._contents.rows
        self._progress(Progress(self._path, "stored", 1.0, rows))
        return FileReport(
            path=self._path,
            rows=rows,
            inserted=inserted,
            updated=updated,
            unchanged=rows - self._bad - duplicates - inserted - updated,
            duplicates=duplicates,
            bad=self._bad,
            seconds=time.perf_counter() - started,
            spans=self._contents.spans(),
        )

    def _stage(self) -> int:
        """Bring the good rows into the staging table; return how many duplicates were left out."""
        self._conn.execute(queries["import_create_staging"])
        with (
            self._conn.cursor() as cursor,
            cursor.copy(queries["import_copy"]) as copy,
            closing(read_ahead(self._packed())) as pieces,
        ):
            copy.write(_COPY_HEADER)
            for rows, told in pieces:
                copy.write(rows)
                self._progress(told)
            copy.write(_COPY_TRAILER)
        duplicates = 0 if self._contents.ascending else self._refuse_repeats()
        if self._first_bad is not None and self._skip is None:
            raise UserError(self._refusal(self._first_bad))
        return duplicates

    def _batches(self) -> Generator[Batch, None, None]:
        return read_bars(self._path, symbol=self._symbol, columns=self._columns)

    def _packed(self) -> Generator[tuple[bytes, Progress], None, None]:
        """Read the file, and yield its rows as COPY takes them."""
        for batch in self._batches():
            rows = self._contents.add(batch)
            self._refuse(batch.bad)
            yield rows, Progress(self._path, "reading", batch.done, self._contents.rows)

    def _refuse(self, rows: Sequence[BadRow]) -> None:
        self._bad += len(rows)
        first = [self._first_bad] if self._first_bad is not None else []
        self._first_bad = min([*first, *rows[:1]], key=self._contents.order, default=None)
        if self._skip is not None:
            self._skip.add(rows)

    def _refusal(self, first: BadRow) -> str:
        others = f"{self._bad:,} bad rows in all" if self._bad > 1 else "the only bad row"
        return (
            f"{first.file}:{first.line}: {first.reason} ({others}; nothing of the file is stored; "
            "--skip-bad FILE stores the good rows and writes the bad ones there)"
        )

    def _refuse_repeats(self) -> int:
        """Leave out rows with the symbol and time of an earlier one; return how many agree."""
        self._conn.execute(queries["import_find_repeats"])
        agreeing, contradicting = self._row(queries["import_count_repeats"])
        if contradicting:
            self._refuse_conflicts()
        if agreeing or contradicting:
            self._conn.execute(queries["import_delete_repeats"])
        return int(agreeing)

    def _refuse_conflicts(self) -> None:
        """Read the file again, for the text of the rows that contradict an earlier one."""
        numbering = _Numbering()
        with (
            self._conn.cursor("import_conflicts") as cursor,
            closing(self._batches()) as batches,
        ):
            conflicts = iter(cursor.execute(queries["import_conflicts"]))
            conflict = next(conflicts, None)
            for batch in batches:
                numbers = numbering.of(batch)
                while conflict is not None and len(numbers) and conflict[0] <= numbers[-1]:
                    at = int(np.searchsorted(numbers, conflict[0]))
                    if numbers[at] != conflict[0]:
                        break
                    file, line = numbering.place(conflict[1])
                    where = f"line {line}" if file == batch.file else f"{file}:{line}"
                    reason = f"other values than {where} for the same symbol and time"
                    self._refuse([BadRow(batch.file, int(batch.line[at]), reason, batch.text(at))])
                    conflict = next(conflicts, None)
            if conflict is not None:
                raise UserError(f"{self._path}: the file was changed while it was read")

    def _store(self) -> tuple[int, int]:
        """Move what is staged into the table; return how many bars were inserted and updated."""
        spans = self._contents.spans()
        if not spans:
            return 0, 0
        self._progress(Progress(self._path, "storing", 1.0, self._contents.rows))
        ranges = {
            "symbols": list(self._contents.symbols),
            "first": [first for first, _ in spans.values()],
            "last": [last for _, last in spans.values()],
            "source": self._source,
        }
        (overlaps,) = self._row(queries["import_overlaps"], ranges)
        deadlocks = 0
        while True:
            try:
                with self._conn.transaction():
                    return self._upsert(ranges) if overlaps else self._insert(ranges)
            except errors.UniqueViolation:
                if overlaps:
                    raise
                overlaps = True  # another writer came in between
            except errors.DeadlockDetected:
                deadlocks += 1
                if deadlocks == _ATTEMPTS:
                    raise

    def _insert(self, ranges: dict[str, Any]) -> tuple[int, int]:
        insert = "import_insert_in_order" if self._contents.in_order else "import_insert"
        return self._conn.execute(queries[insert], ranges).rowcount, 0

    def _upsert(self, ranges: dict[str, Any]) -> tuple[int, int]:
        self._conn.execute(queries["import_analyze"])
        inserted, updated = self._row(queries["import_upsert"], ranges)
        return int(inserted), int(updated)

    def _row(self, query: LiteralString, values: dict[str, Any] | None = None) -> tuple[Any, ...]:
        row = self._conn.execute(query, values).fetchone()
        assert row is not None
        return tuple(row)


def _explained(error: psycopg.Error, path: Path, *, committing: bool) -> Exception:
    """Say what a failure of the database means for the file in hand."""
    reason = " ".join(str(error).split()) or type(error).__name__
    if committing:
        return psycopg.OperationalError(
            f"{path}: the database failed while it committed the file, so all of it is stored or "
            f"nothing; import it again, as what is stored is left alone: {reason}"
        )
    if isinstance(error, psycopg.OperationalError):
        return type(error)(f"{path}: nothing of it is stored: {reason}")
    if isinstance(error, errors.UndefinedTable | errors.InvalidSchemaName):
        return UserError(
            f"the database is not set up: run `feature-platform db apply` first ({reason})"
        )
    return UserError(f"{path}: nothing of it is stored: the database refuses it: {reason}")


class _Numbering:
    """Number the rows of all files in a zip through, so that each has a number of its own."""

    def __init__(self) -> None:
        self._files: list[str] = []
        self._before: list[int] = []
        self._last = 0

    def of(self, batch: Batch) -> Ints:
        """Return the numbers of the good rows of the next batch."""
        # A zip may even hold two files of one name.
        begun = bool(self._files) and self._files[-1] == batch.file
        if begun and len(batch.line) and batch.line[0] + self._before[-1] <= self._last:
            begun = False
        if not begun:
            self._files.append(batch.file)
            self._before.append(self._last)
        numbers = batch.line + self._before[-1]
        if len(numbers):
            self._last = int(numbers[-1])
        return numbers

    def place(self, number: int) -> tuple[str, int]:
        """Return the file and the line of a row that was numbered."""
        at = bisect_left(self._before, number) - 1
        return self._files[at], number - self._before[at]

    def order(self, row: BadRow) -> tuple[int, int]:
        """Return what sorts rows as the file has them."""
        return self._files.index(row.file), row.line


class _Contents:
    """Know what was staged of a file.

    symbols: each symbol with its number, from 1.
    rows: how many were read, good or bad.
    ascending: whether the times of every symbol only went up, so that no two rows can have the
        same key.
    """

    def __init__(self) -> None:
        self.symbols: dict[str, int] = {}
        self.rows = 0
        self.ascending = True
        self._numbering = _Numbering()
        self._first = np.empty(0, np.int64)
        self._last = np.empty(0, np.int64)

    @property
    def in_order(self) -> bool:
        """Tell whether the rows came in the order of the table's key."""
        return self.ascending and len(self.symbols) == 1

    def add(self, batch: Batch) -> bytes:
        """Take note of a batch; return its good rows as COPY takes them."""
        self.rows += batch.rows
        numbers = self._numbering.of(batch)
        if not len(numbers):
            return b""
        # Not every name of a batch need be a good row's.
        id_of = np.zeros(len(batch.symbols), np.int32)
        for code in np.flatnonzero(np.bincount(batch.symbol)).tolist():
            id_of[code] = self.symbols.setdefault(batch.symbols[code], len(self.symbols) + 1)
        ids = id_of[batch.symbol]
        self._note_times(ids, batch.ts)
        return _pack(numbers, ids, batch)

    def spans(self) -> dict[str, Span]:
        """Return the first and last time of every symbol."""
        return {
            name: (_EPOCH + first * _MICROSECOND, _EPOCH + last * _MICROSECOND)
            for name, first, last in zip(
                self.symbols, self._first.tolist(), self._last.tolist(), strict=True
            )
        }

    def order(self, row: BadRow) -> tuple[int, int]:
        """Return what sorts rows as the file has them."""
        return self._numbering.order(row)

    def _note_times(self, ids: NDArray[np.int32], ts: Ints) -> None:
        new = len(self.symbols) - len(self._first)
        if new:
            self._first = np.append(self._first, np.full(new, _NEVER))
            self._last = np.append(self._last, np.full(new, -_NEVER))
        if len(self.symbols) > 1:
            by_symbol = np.argsort(ids, kind="stable")
            ids, ts = ids[by_symbol], ts[by_symbol]
        starts = np.flatnonzero(np.diff(ids, prepend=0))
        present = ids[starts] - 1
        steps = np.diff(ts, prepend=ts[0])
        steps[starts] = ts[starts] - self._last[present]
        self.ascending = self.ascending and bool((steps > 0).all())
        firsts, lasts = np.minimum.reduceat(ts, starts), np.maximum.reduceat(ts, starts)
        self._first[present] = np.minimum(self._first[present], firsts)
        self._last[present] = np.maximum(self._last[present], lasts)


def _pack(numbers: Ints, ids: NDArray[np.int32], batch: Batch) -> bytes:
    """Return rows in the binary format of COPY, so that no number takes the way through text."""
    rows = np.empty(len(numbers), _COPY_ROW)
    rows["fields"] = len(_COPY_FIELDS)
    for name, kind in _COPY_FIELDS.items():
        rows[f"{name}_size"] = np.dtype(kind).itemsize
    rows["row_number"] = numbers
    rows["symbol_id"] = ids
    rows["ts"] = batch.ts - _POSTGRES_EPOCH_US
    for name in PRICES:
        rows[name] = getattr(batch, name)
    return rows.tobytes()
