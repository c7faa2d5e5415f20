"""A build of a view from the lake, as the history of the view in the database.

Each slice of a symbol is one transaction: it locks the symbol as a refresh does, compares the bars
that the slice needs with those of the build, stores the rows, and takes them from the dirty
buckets. Rows that a changed bar reaches stay dirty, and the refresh computes them.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import numpy as np
import psycopg
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
from psycopg import sql
from psycopg.rows import class_row
from psycopg.types.multirange import Multirange
from psycopg.types.range import Range

from feature_platform.errors import UserError
from feature_platform.lake import delta
from feature_platform.lake.bars import Span
from feature_platform.lake.build import Description, describe
from feature_platform.lake.columnar import Bars
from feature_platform.queries import queries
from feature_platform.views import catalog
from feature_platform.views.expressions import MINUTE
from feature_platform.views.view import FeatureView

if TYPE_CHECKING:
    from pyarrow.dataset import Dataset

Progress = Callable[[int, int], None]
Ranges = Multirange[datetime]

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)
# The rows of a slice: its transaction takes about half a second. A long look-back, whose bars each
# slice reads again, makes slices longer.
_SLICE_ROWS = 50_000
# PostgreSQL counts microseconds from 2000.
_PG_EPOCH = (datetime(2000, 1, 1, tzinfo=UTC) - _EPOCH) // _MICROSECOND
_COPY_HEADER, _COPY_TRAILER = 19, 2
_COPY_ROW = np.dtype(
    [("fields", ">i2")]
    + [
        part
        for name in ("ts", "open", "high", "low", "close", "vol")
        for part in ((f"{name}_size", ">i4"), (name, ">i8" if name == "ts" else ">f8"))
    ]
)


@dataclass
class Taken:
    """The rows that the database took from a build; `left` of the build stay dirty."""

    rows: int = 0
    left: int = 0


@dataclass(frozen=True)
class _Version:
    """A version of the view that is being built, with its bucket width."""

    id: int
    every: timedelta
    look_back: timedelta


@dataclass(frozen=True)
class _Locked:
    """A symbol whose refreshes wait for this transaction.

    first: its first bucket in the database; None where it has no bars.
    dirty: the buckets of the slice that no refresh has computed.
    needs_from: bars from this time on are needed for them.
    """

    first: datetime | None
    dirty: Ranges
    needs_from: datetime


def check_builds(views: list[FeatureView], directory: str) -> None:
    """Raise UserError unless the directory has a build of each view as it is declared."""
    for view in views:
        found, _ = describe(f"{directory}/{view.name}")
        difference = found.difference(view)
        if difference is not None:
            raise UserError(
                f"{directory}/{view.name} is a build of another declaration: {difference}; build it"
                " again: `feature-platform views build`"
            )


def take_history(
    connection: psycopg.Connection[Any],
    view: FeatureView,
    uri: str,
    progress: Progress | None = None,
) -> Taken:
    """Store the rows of a build as the history of the view's version that is being built.

    connection: in autocommit mode, of the schema's owner. Each slice is a transaction of its own;
        where it dies, the slices before it stay, and the refresh computes the others.
    """
    description, table = describe(uri)
    taken = Taken()
    version = _version(connection, view.name)
    if version is None:
        return taken
    with delta.errors_at(uri):
        rows = table.to_pyarrow_dataset()
        spans = [one for one in description.bars.spans() if one.symbol in set(description.symbols)]
        for done, span in enumerate(spans):
            if progress is not None:
                progress(done, len(spans))
            _Copy(connection, version, description, rows, span, taken).run()
    return taken


def _version(connection: psycopg.Connection[Any], name: str) -> _Version | None:
    with connection.cursor(row_factory=class_row(_Version)) as cursor:
        return cursor.execute(queries["history_version"], {"name": name}).fetchone()


class _Copy:
    """The rows of one symbol."""

    def __init__(
        self,
        connection: psycopg.Connection[Any],
        version: _Version,
        description: Description,
        rows: Dataset,
        span: Span,
        taken: Taken,
    ) -> None:
        self._connection = connection
        self._version = version
        self._description = description
        self._rows = rows
        self._span = span
        self._taken = taken

    def run(self) -> None:
        for lo, hi in self._slices():
            rows = self._of_slice(lo, hi)
            if rows.num_rows and not self._take(rows, lo, hi):
                self._taken.left += rows.num_rows
            self._connection.execute(queries["refresh_known"])

    def _slices(self) -> Iterator[tuple[datetime, datetime]]:
        """Yield the times of the slices; each bucket of them has a row in the build, or no bar."""
        every = self._version.every
        length = max(_SLICE_ROWS * every, 2 * self._version.look_back)
        start = self._bucket(_moment(self._description.start) + every - _MICROSECOND)
        lo = max(self._first, start)
        last = self._bucket(_moment(self._span.last)) + every
        end = min(last, self._bucket(_moment(self._description.end)))
        while lo < end:
            yield lo, min(lo + length, end)
            lo += length

    @property
    def _first(self) -> datetime:
        return self._bucket(_moment(self._span.first))

    def _bucket(self, moment: datetime) -> datetime:
        origin = _EPOCH + timedelta(minutes=self._description.offset)
        return origin + (moment - origin) // self._version.every * self._version.every

    def _of_slice(self, lo: datetime, hi: datetime) -> pa.Table:
        field = pc.field
        kept = (
            (field("symbol") == self._span.symbol)
            & (field("bucket") >= pa.scalar(lo))
            & (field("bucket") < pa.scalar(hi))
        )
        return self._rows.to_table(filter=kept).sort_by("bucket")

    def _take(self, rows: pa.Table, lo: datetime, hi: datetime) -> bool:
        """Store the rows of a slice; return whether all of them were stored."""
        at = {"id": self._version.id, "symbol": self._span.symbol, "start": lo, "end": hi}
        with self._connection.transaction():
            catalog.act_as_owner(self._connection)
            locked = self._lock(at)
            if locked is None or locked.first != self._first or not locked.dirty:
                return False
            changed = self._changed(locked.needs_from, hi)
            row = self._connection.execute(
                self._named("history_unchanged"), at | {"dirty": locked.dirty, "changed": changed}
            ).fetchone()
            assert row is not None, "the statement always gives one row"
            ranges: Ranges = row[0]
            kept = rows.filter(_inside(rows["bucket"], ranges))
            if kept.num_rows:
                number = self._connection.execute(queries["history_refresh"]).fetchone()
                assert number is not None, "the statement always gives one row"
                self._store(kept, number[0])
                self._connection.execute(
                    queries["history_settle"], at | {"stored": ranges, "no": number[0]}
                )
        self._taken.rows += kept.num_rows
        self._taken.left += rows.num_rows - kept.num_rows
        return True

    def _lock(self, at: dict[str, object]) -> _Locked | None:
        self._connection.execute(queries["history_lock"])
        self._connection.execute(queries["history_lock_symbol"], at)
        with self._connection.cursor(row_factory=class_row(_Locked)) as cursor:
            return cursor.execute(self._named("history_locked"), at).fetchone()

    def _changed(self, start: datetime, end: datetime) -> Ranges:
        """Return the minutes whose bars differ between the database and the build."""
        symbol = self._span.symbol
        with (
            self._connection.cursor() as cursor,
            cursor.copy(
                queries["history_bars"], {"symbol": symbol, "start": start, "end": end}
            ) as copy,
        ):
            stored = _bars_of(b"".join(bytes(part) for part in copy))
        built = self._description.bars.read(symbol, _micro(start), _micro(end))
        times = _different(stored, built)
        runs = np.split(times, np.flatnonzero(np.diff(times) > MINUTE // _MICROSECOND) + 1)
        return Multirange(
            [
                Range(_moment(int(run[0])), _moment(int(run[-1])) + _MICROSECOND)
                for run in runs
                if len(run)
            ]
        )

    def _store(self, rows: pa.Table, number: int) -> None:
        columns = list(self._description.columns)
        numbers = pa.array(np.full(rows.num_rows, number, np.int64))
        self._copy(
            f"v{self._version.id}_rows",
            rows.select(["symbol", "bucket", *columns]).append_column("refresh_no", numbers),
        )
        inner = list(self._description.inner)
        if inner:
            names = ["symbol", "bucket", *(name.removeprefix("_") for name in inner)]
            kept = rows.select(["symbol", "bucket", *inner]).rename_columns(names)
            self._copy(f"v{self._version.id}_inner", kept)

    def _copy(self, table: str, rows: pa.Table) -> None:
        statement = sql.SQL(queries["history_copy"]).format(
            table=sql.Identifier("feature_views", table),
            columns=sql.SQL(", ").join(map(sql.Identifier, rows.column_names)),
        )
        text = io.BytesIO()
        pyarrow.csv.write_csv(rows, text, pyarrow.csv.WriteOptions(include_header=False))
        with self._connection.cursor() as cursor, cursor.copy(statement) as copy:
            copy.write(text.getbuffer())

    def _named(self, name: str) -> sql.Composed:
        prefix = f"v{self._version.id}"
        return sql.SQL(queries[name]).format(
            start=sql.Identifier("feature_views", f"{prefix}_start"),
            reach=sql.Identifier("feature_views", f"{prefix}_reach"),
            rows=sql.Identifier("feature_views", f"{prefix}_rows"),
        )


def _bars_of(data: bytes) -> Bars:
    """Return bars from the binary format of COPY."""
    rows = np.frombuffer(data[_COPY_HEADER:-_COPY_TRAILER], _COPY_ROW)
    return Bars(
        rows["ts"].astype(np.int64) + _PG_EPOCH,
        *(rows[name].astype(np.float64) for name in ("open", "high", "low", "close", "vol")),
    )


def _different(stored: Bars, built: Bars) -> np.ndarray[Any, np.dtype[np.int64]]:
    """Return the times of bars that only one side has, or that have other values."""
    common, left, right = np.intersect1d(stored.ts, built.ts, True, return_indices=True)
    same = np.ones(len(common), bool)
    for name in ("open", "high", "low", "close", "vol"):
        same &= getattr(stored, name)[left] == getattr(built, name)[right]
    return np.setdiff1d(np.union1d(stored.ts, built.ts), common[same])


def _inside(buckets: pa.ChunkedArray, ranges: Ranges) -> pa.Array:
    times = buckets.cast(pa.int64()).to_numpy()
    found = np.zeros(len(times), bool)
    for one in ranges:
        lower = -np.inf if one.lower is None else _micro(one.lower)
        upper = np.inf if one.upper is None else _micro(one.upper)
        found |= (times >= lower) & (times < upper)
    return pa.array(found)


def _micro(moment: datetime) -> int:
    return (moment - _EPOCH) // _MICROSECOND


def _moment(microseconds: int) -> datetime:
    return _EPOCH + microseconds * _MICROSECOND
