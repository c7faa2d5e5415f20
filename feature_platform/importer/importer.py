"""Store the bars of files, each file whole or not at all; write only bars that differ."""

from __future__ import annotations

import time
from bisect import bisect_left
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import closing, nullcontext, suppress
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Literal, LiteralString

import numpy as np
import psycopg
from numpy.typing import NDArray
from psycopg import errors
from psycopg.pq import TransactionStatus
from tenacity import (
    Retrying,
    retry_if_exception_type,
    stop_after_attempt,
    wait_random_exponential,
)

from feature_platform.bar_rules import MINUTE_US, PRICES, Ints
from feature_platform.errors import UserError, one_line
from feature_platform.importer.intervals import Steps, interval_text, is_wrong
from feature_platform.importer.opening import Input, find_files
from feature_platform.importer.read_ahead import read_ahead
from feature_platform.importer.reader import (
    BadRow,
    Batch,
    ColumnMap,
    Findings,
    TimeRule,
    read_file,
)
from feature_platform.importer.rejects import SkipFile
from feature_platform.queries import queries

Connection = psycopg.Connection[Any]
Source = Literal["stream", "rest", "import"]
KnownAt = Literal["close", "now"]
Span = tuple[datetime, datetime]

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)
_NEVER = np.int64(2**62)

# The binary format of COPY: a header, then rows. A row is the number of its fields, then each
# field's size and value.
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

# The most bad rows that a report shows.
_EXAMPLES = 10

# The attempts to store the staged rows, where another writer causes a deadlock.
_ATTEMPTS = 5


@dataclass(frozen=True, slots=True)
class Progress:
    """The progress of an import.

    share: the share of the current file that has been read, from 0 to 1.
    rows: the number of its rows that have been read.
    """

    path: Path
    phase: Literal["reading", "storing", "stored"]
    share: float
    rows: int


@dataclass(frozen=True, slots=True)
class FileReport:
    """The counts of the rows of one file; each row is in exactly one count.

    duplicates: rows that repeat a bar of the same file with equal values.
    bad: rows that were rejected, and written to the file of bad rows.
    empty: rows with a time and no values, for minutes without trades.
    unclosed: bars of minutes that have not ended.
    unflagged: of an import that is known at close, the bars that count as known only since they
        were stored.
    spans: the times of the first and last good bar, in UTC, by symbol.
    layout: the layout that was recognised.
    times: "exact" where times have an offset or are epochs; otherwise the zone that was assumed.
    interval: the most frequent step between bars, "-" for a single bar.
    notes: assumptions about the file, and ignored files in it, for the user.
    examples: the first bad rows.
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
    empty: int = 0
    unclosed: int = 0
    unflagged: int = 0
    layout: str = ""
    times: str = ""
    interval: str = "-"
    notes: tuple[str, ...] = ()
    examples: tuple[BadRow, ...] = ()

    @property
    def bars_per_second(self) -> float:
        """Return the rows that were read and stored in a second, 0 before any time has passed."""
        return self.rows / self.seconds if self.seconds else 0.0

    @property
    def bars(self) -> int:
        """Return the number of the file's bars that are in the table now."""
        return self.inserted + self.updated + self.unchanged


@dataclass(frozen=True, slots=True)
class ImportReport:
    """The reports of an import's files, in the order of the files."""

    files: tuple[FileReport, ...]

    @property
    def total(self) -> FileReport:
        """Return the sums over all files, under the path of the current directory."""
        spans: dict[str, Span] = {}
        for report in self.files:
            for symbol, (first, last) in report.spans.items():
                known = spans.get(symbol, (first, last))
                spans[symbol] = (min(known[0], first), max(known[1], last))
        counts = ("rows", "inserted", "updated", "unchanged", "duplicates", "bad", "empty")
        sums: dict[str, Any] = {
            name: sum(getattr(report, name) for report in self.files)
            for name in (*counts, "unclosed", "unflagged", "seconds")
        }
        return FileReport(path=Path(), spans=spans, **sums)


class ImportStoppedError(UserError):
    """One of several files cannot be stored.

    report: the reports of the files before it, which are stored.
    """

    def __init__(self, message: str, report: ImportReport) -> None:
        super().__init__(message)
        self.report = report


@dataclass(frozen=True, slots=True)
class ImportOptions:
    """The options of an import.

    symbol: the symbol of the bars, for files without a column of symbols.
    columns: the columns that are not found by the known names.
    rule: the rule by which times are read.
    overwrite: whether a later file may correct bars of an earlier file of the same import.
    dry_run: count the rows, and store nothing.
    source: the value of the column `source` of the bars.
    known_at: since when training frames count the bars as known: since the close of their minutes,
        as a live system would have had them, or since they are stored.
    """

    symbol: str | None = None
    columns: ColumnMap = field(default_factory=ColumnMap)
    rule: TimeRule = field(default_factory=TimeRule)
    overwrite: bool = False
    dry_run: bool = False
    source: Source = "import"
    known_at: KnownAt = "close"


def import_bars(
    conn: Connection,
    paths: Sequence[Path],
    *,
    skip_bad: Path | None = None,
    progress: Callable[[Progress], None] | None = None,
    **options: Any,
) -> ImportReport:
    """Store the bars of files in `ohlcv_1m`, each file in a transaction of its own.

    A stored bar with equal values is not changed; one with other values is corrected. An import
    that fails or is killed stores nothing of the current file. The files before it are stored, and
    to import them again changes nothing.

    conn: a connection outside of a transaction.
    paths: files, directories and patterns; `-` is standard input.
    skip_bad: a new CSV file for bad rows (file, line, reason, text); without it, one bad row stops
        the import.
    progress: called after each batch and each file.
    options: the fields of ImportOptions.
    Raises UserError where a file cannot be read or has a bad row, with file, line and reason
    (ImportStoppedError, with the report, if earlier files are stored), psycopg.OperationalError
    where the database fails, and ValueError for a connection inside a transaction.
    """
    if conn.info.transaction_status != TransactionStatus.IDLE:
        raise ValueError("an import needs a connection outside of a transaction")
    chosen = ImportOptions(**{name: value for name, value in options.items() if value is not None})
    files, _ = find_files(paths)
    reports: list[FileReport] = []
    with SkipFile(skip_bad) if skip_bad else nullcontext() as skip:
        for path in files:
            source = Input(path)
            job = _FileImport(conn, source, chosen, skip, progress or _ignore, reports)
            try:
                reports.append(job.run())
            except UserError as error:
                if not reports:
                    raise
                stored = f"{len(reports)} of {len(files)} files, before it, are stored"
                raise ImportStoppedError(
                    f"{error}; {stored}", ImportReport(tuple(reports))
                ) from None
            finally:
                source.close()
    return ImportReport(tuple(reports))


def import_input(conn: Connection, source: Input, **options: Any) -> FileReport:
    """Store the bars of one input, as import_bars does."""
    return _FileImport(conn, source, ImportOptions(**options), None, _ignore, ()).run()


def _ignore(_progress: Progress) -> None:
    pass


class _FileImport:
    """Import one file."""

    def __init__(
        self,
        conn: Connection,
        source: Input,
        options: ImportOptions,
        skip: SkipFile | None,
        progress: Callable[[Progress], None],
        earlier: Sequence[FileReport],
    ) -> None:
        self._conn = conn
        self._source = source
        self._path = source.path
        self._options = options
        self._skip = skip
        self._progress = progress
        self._earlier = earlier
        self._findings = Findings()
        self._contents = _Contents()
        self._bad = 0
        self._first_bad: BadRow | None = None
        self._examples: list[BadRow] = []
        self._interval = "-"

    def run(self) -> FileReport:
        started = time.perf_counter()
        stored = False
        try:
            with self._conn.transaction():
                self._conn.execute(queries["import_check_table"])
                (now,) = self._row(queries["clock_now"])
                self._contents.end = int(now.timestamp()) // 60 * MINUTE_US
                duplicates = self._stage()
                inserted, updated, unflagged = self._store()
                stored = True
        except psycopg.Error as error:
            raise _explained(error, self._source.label, committing=stored) from error
        if self._skip is not None:
            self._skip.keep()
        contents = self._contents
        self._progress(Progress(self._path, "stored", 1.0, contents.rows))
        left_out = self._bad + duplicates + contents.empty + contents.unclosed
        return FileReport(
            path=self._path,
            rows=contents.rows,
            inserted=inserted,
            updated=updated,
            unchanged=contents.rows - left_out - inserted - updated,
            duplicates=duplicates,
            bad=self._bad,
            seconds=time.perf_counter() - started,
            spans=contents.spans(),
            empty=contents.empty,
            unclosed=contents.unclosed,
            unflagged=unflagged,
            layout=", ".join(layout.name for layout in self._findings.layouts),
            times=self._times(),
            interval=self._interval,
            notes=tuple(self._notes()),
            examples=tuple(self._examples),
        )

    def _times(self) -> str:
        if not self._findings.local:
            return "exact"
        return self._options.rule.zone or "UTC (assumed)"

    def _notes(self) -> Generator[str, None, None]:
        assumed = self._findings.local and self._options.rule.zone is None
        if assumed:
            hint = next((one.hint for one in self._findings.layouts if one.hint), "")
            yield "times without an offset are read as UTC" + (
                f"; {hint}" if hint else "; --timezone ZONE reads them as local times"
            )
        for name in self._findings.skipped:
            yield f"not a file of bars, ignored: {name}"

    def _stage(self) -> int:
        """Copy the good rows into the staging table; return the number of duplicates."""
        self._conn.execute(queries["import_create_staging"])
        with (
            self._conn.cursor() as cursor,
            cursor.copy(queries["import_copy"]) as copy,
            closing(read_ahead(self._packed())) as pieces,
        ):
            copy.write(_COPY_HEADER)
            for rows, state in pieces:
                copy.write(rows)
                self._progress(state)
            copy.write(_COPY_TRAILER)
        duplicates = 0 if self._contents.ascending else self._reject_repeats()
        if self._first_bad is not None and self._skip is None and not self._options.dry_run:
            raise UserError(self._rejection(self._first_bad))
        if not self._options.rule.ticks:
            self._check_interval()
        if not self._options.overwrite:
            self._check_earlier_files()
        return duplicates

    def _check_interval(self) -> None:
        """Raise UserError where the bars of a symbol are not one minute apart."""
        coarse = self._findings.coarse
        if coarse and self._contents.symbols:
            raise UserError(
                f"{self._source.label}: the times are {coarse} without minutes: only one-minute "
                "bars can be imported, and nothing of the file is stored"
            )
        if self._contents.steps.ordered:
            usual = self._contents.steps.usual()
        else:
            usual = {
                symbol: (int(step), count, total, int(shortest))
                for symbol, step, count, total, shortest in self._conn.execute(
                    queries["import_steps"]
                )
            }
        names = list(self._contents.symbols)
        for symbol, (step, count, total, shortest) in usual.items():
            if is_wrong(step, count, total, shortest):
                raise UserError(
                    f"{self._source.label}: the bars of {names[symbol - 1]} are "
                    f"{interval_text(step)} apart ({count:,} of {total:,} steps): only one-minute "
                    "bars can be imported, and nothing of the file is stored"
                )
        if usual:
            step = max(usual.values(), key=lambda found: found[1])[0]
            self._interval = interval_text(step)

    def _check_earlier_files(self) -> None:
        """Raise UserError where a bar differs from that of an earlier file of the same import."""
        spans = self._contents.spans()
        before = [
            (symbol, *span, str(report.path))
            for report in self._earlier
            for symbol, span in report.spans.items()
            if symbol in spans and span[0] <= spans[symbol][1] and span[1] >= spans[symbol][0]
        ]
        if not before or self._options.dry_run:
            return
        names, firsts, lasts, files = (list(column) for column in zip(*before, strict=True))
        found = self._conn.execute(
            queries["import_contradicted"],
            {
                "symbols": list(self._contents.symbols),
                "earlier": names,
                "first": firsts,
                "last": lasts,
                "files": files,
            },
        ).fetchone()
        if found is not None:
            number, symbol, bar_time, earlier, count = found
            file, line = self._contents.place(number)
            others = f"{count:,} such bars" if count > 1 else "the only such bar"
            raise UserError(
                f"{file}:{line}: other values for {symbol} at {bar_time.astimezone(UTC):%F %R} "
                f"than in {earlier} ({others}; nothing of the file is stored; --overwrite lets a "
                "later file correct an earlier one)"
            )

    def _batches(self) -> Generator[Batch, None, None]:
        return read_file(
            self._source,
            symbol=self._options.symbol,
            columns=self._options.columns,
            rule=self._options.rule,
            findings=self._findings,
        )

    def _packed(self) -> Generator[tuple[bytes, Progress], None, None]:
        """Read the file, and yield its good rows in the format of COPY."""
        for batch in self._batches():
            rows = self._contents.add(batch)
            self._reject(batch.bad)
            yield rows, Progress(self._path, "reading", batch.done, self._contents.rows)

    def _reject(self, rows: Sequence[BadRow]) -> None:
        self._bad += len(rows)
        self._examples += rows[: _EXAMPLES - len(self._examples)]
        first = [self._first_bad] if self._first_bad is not None else []
        self._first_bad = min([*first, *rows[:1]], key=self._contents.order, default=None)
        if self._skip is not None:
            self._skip.add(rows)

    def _rejection(self, first: BadRow) -> str:
        others = f"{self._bad:,} bad rows in total" if self._bad > 1 else "the only bad row"
        return (
            f"{first.file}:{first.line}: {first.reason} ({others}; nothing of the file is stored; "
            "--skip-bad FILE stores the good rows and writes the bad ones there)"
        )

    def _reject_repeats(self) -> int:
        """Delete rows that repeat the symbol and time of a row; return the number of equal ones."""
        self._conn.execute(queries["import_find_repeats"])
        agreeing, contradicting = self._row(queries["import_count_repeats"])
        if contradicting:
            self._reject_conflicts()
        if agreeing or contradicting:
            self._conn.execute(queries["import_delete_repeats"])
        return int(agreeing)

    def _reject_conflicts(self) -> None:
        """Reject the rows that contradict an earlier row; read the file again for their texts."""
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
                    self._reject([BadRow(batch.file, int(batch.line[at]), reason, batch.text(at))])
                    conflict = next(conflicts, None)
            if conflict is not None:
                raise UserError(f"{self._source.label}: the file was changed while it was read")

    def _store(self) -> tuple[int, int, int]:
        """Move the staged rows into the table.

        Returns the numbers of inserted and of updated bars, and of bars that are not flagged.
        """
        spans = self._contents.spans()
        if not spans:
            return 0, 0, 0
        self._progress(Progress(self._path, "storing", 1.0, self._contents.rows))
        ranges = {
            "symbols": list(self._contents.symbols),
            "first": [first for first, _ in spans.values()],
            "last": [last for _, last in spans.values()],
            "source": self._options.source,
            "known_at": self._options.known_at,
        }
        if self._options.dry_run:
            self._conn.execute(queries["import_analyze"])
            inserted, updated = self._row(queries["import_compare"], ranges)
            return int(inserted), int(updated), 0
        (overlaps,) = self._row(queries["import_overlaps"], ranges)
        # Without a pause, the import would lock its first bars again before the other writer can.
        retrying = Retrying(
            retry=retry_if_exception_type(errors.DeadlockDetected),
            wait=wait_random_exponential(multiplier=0.2, max=2),
            stop=stop_after_attempt(_ATTEMPTS),
            reraise=True,
        )
        inserted, updated = retrying(self._move, ranges, overlaps)
        return inserted, updated, self._count_unflagged(ranges)

    def _move(self, ranges: dict[str, Any], overlaps: bool) -> tuple[int, int]:
        """Move the staged rows once; overlaps: the table may have some of the bars."""
        if not overlaps:
            # Another writer may insert one of the bars meanwhile.
            with suppress(errors.UniqueViolation), self._conn.transaction():
                return self._insert(ranges)
        with self._conn.transaction():
            return self._upsert(ranges)

    def _insert(self, ranges: dict[str, Any]) -> tuple[int, int]:
        insert = "import_insert_in_order" if self._contents.in_order else "import_insert"
        inserted = self._conn.execute(queries[insert], ranges).rowcount
        if self._options.known_at == "close":
            self._conn.execute(queries["import_flag"], ranges)
        return inserted, 0

    def _upsert(self, ranges: dict[str, Any]) -> tuple[int, int]:
        self._conn.execute(queries["import_analyze"])
        inserted, updated, *runs = self._row(queries["import_upsert"], ranges)
        if runs[0] is not None:
            flagged = dict(zip(("symbols", "first", "last"), runs, strict=True))
            self._conn.execute(queries["import_flag"], flagged)
        return int(inserted), int(updated)

    def _count_unflagged(self, ranges: dict[str, Any]) -> int:
        if self._options.known_at == "now":
            return 0
        (count,) = self._row(queries["import_unflagged"], ranges)
        return int(count)

    def _row(self, query: LiteralString, values: dict[str, Any] | None = None) -> tuple[Any, ...]:
        row = self._conn.execute(query, values).fetchone()
        assert row is not None
        return tuple(row)


def _explained(error: psycopg.Error, path: str, *, committing: bool) -> Exception:
    """Return an error that names the current file and states whether it is stored."""
    reason = one_line(error) or type(error).__name__
    if committing:
        return psycopg.OperationalError(
            f"{path}: the database failed during the commit of the file, so the whole file is "
            "stored or nothing; import it again, which does not change bars that are stored: "
            f"{reason}"
        )
    if isinstance(error, psycopg.OperationalError):
        return type(error)(f"{path}: nothing of it is stored: {reason}")
    if isinstance(error, errors.UndefinedTable | errors.InvalidSchemaName):
        return UserError(
            f"the database is not set up: run `feature-platform db apply` first ({reason})"
        )
    return UserError(f"{path}: nothing of it is stored: the database rejects it: {reason}")


class _Numbering:
    """Give each row of a file its own number, across all files of a zip."""

    def __init__(self) -> None:
        self._files: list[str] = []
        self._before: list[int] = []
        self._last = 0

    def of(self, batch: Batch) -> Ints:
        """Return the numbers of the good rows of the next batch."""
        # A zip may hold two files with the same name.
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
        """Return the file and the line of a row by its number."""
        at = bisect_left(self._before, number) - 1
        return self._files[at], number - self._before[at]

    def order(self, row: BadRow) -> tuple[int, int]:
        """Return the key that sorts rows by their place in the file."""
        return self._files.index(row.file), row.line


class _Contents:
    """The rows of a file that were read so far.

    end: the start of the current minute, in microseconds since 1970; later bars are not closed.
    symbols: each symbol with its number, from 1.
    rows: the number of rows that were read, good or bad.
    empty, unclosed: as in FileReport.
    steps: the steps between the bars.
    ascending: whether the times of each symbol ascend, so that no two rows have the same key.
    """

    def __init__(self) -> None:
        self.end = int(_NEVER)
        self.symbols: dict[str, int] = {}
        self.rows = 0
        self.empty = 0
        self.unclosed = 0
        self.steps = Steps()
        self.ascending = True
        self._numbering = _Numbering()
        self._first = np.empty(0, np.int64)
        self._last = np.empty(0, np.int64)
        self._newest = np.empty(0, np.int64)

    @property
    def in_order(self) -> bool:
        """Return whether the rows have the order of the table's key."""
        return self.ascending and len(self.symbols) == 1

    def add(self, batch: Batch) -> bytes:
        """Count a batch; return its good rows in the format of COPY."""
        self.rows += batch.rows
        self.empty += batch.empty
        numbers = self._numbering.of(batch)
        closed = batch.ts < self.end
        if not closed.all():
            self.unclosed += int((~closed).sum())
            numbers, batch = numbers[closed], _taken(batch, closed)
        if not len(numbers):
            return b""
        # A name of a batch may occur only in bad rows.
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
        """Return the key that sorts rows by their place in the file."""
        return self._numbering.order(row)

    def place(self, number: int) -> tuple[str, int]:
        """Return the file and the line of a row by its number."""
        return self._numbering.place(number)

    def _note_times(self, ids: NDArray[np.int32], ts: Ints) -> None:
        new = len(self.symbols) - len(self._first)
        if new:
            self._first = np.append(self._first, np.full(new, _NEVER))
            self._last = np.append(self._last, np.full(new, -_NEVER))
            self._newest = np.append(self._newest, np.full(new, -_NEVER))
        if len(self.symbols) > 1:
            by_symbol = np.argsort(ids, kind="stable")
            ids, ts = ids[by_symbol], ts[by_symbol]
        starts = np.flatnonzero(np.diff(ids, prepend=0))
        present = ids[starts] - 1
        steps = np.diff(ts, prepend=ts[0])
        before = self._newest[present]
        steps[starts] = np.where(before == -_NEVER, _NEVER, ts[starts] - before)
        ends = np.append(starts[1:], len(ts)) - 1
        self._newest[present] = ts[ends]
        for symbol, start, end in zip(
            present.tolist(), starts.tolist(), ends.tolist(), strict=True
        ):
            of_symbol = steps[start : end + 1]
            self.steps.add(symbol + 1, of_symbol[of_symbol != _NEVER])
        self.ascending = self.ascending and bool((steps > 0).all())
        firsts, lasts = np.minimum.reduceat(ts, starts), np.maximum.reduceat(ts, starts)
        self._first[present] = np.minimum(self._first[present], firsts)
        self._last[present] = np.maximum(self._last[present], lasts)


def _taken(batch: Batch, kept: NDArray[np.bool_]) -> Batch:
    """Return a batch with some of its good rows."""
    columns = ("symbol", "ts", *PRICES, "line")
    return replace(batch, **{name: getattr(batch, name)[kept] for name in columns})


def _pack(numbers: Ints, ids: NDArray[np.int32], batch: Batch) -> bytes:
    """Return rows in the binary format of COPY, which converts no number to text."""
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
