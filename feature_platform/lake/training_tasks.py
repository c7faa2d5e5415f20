"""The division of a training set into tasks over the lake, and the rows that they need of the
database.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

import numpy as np
import pyarrow as pa
from psycopg import sql
from psycopg.sql import SQL, Composable, Identifier

from feature_platform._adbc import Reader
from feature_platform.frames import Table
from feature_platform.lake import delta
from feature_platform.lake.frames import known_table, waiting_days
from feature_platform.lake.read import micro
from feature_platform.lake.training import NONE, Found, Ints, Joined, Mirror, TrainingTask, ViewRows

_MICROSECOND = timedelta(microseconds=1)
_DAY = timedelta(days=1) // _MICROSECOND
# The rows of a task, at most about this many.
_TASK_ROWS = 500_000
# Rows so long before an event are read; the database has the row of an event without any.
_BEFORE = _DAY


@dataclass(frozen=True)
class _View:
    """A view that the events need, and its rows in the lake: outdated spans by symbol."""

    table: Table
    known: tuple[str, ...]
    labels: Mapping[int, tuple[str, ...]]
    mirror: Mirror | None
    outdated: Mapping[str, list[tuple[int, int]]]
    flags: pa.Table

    @property
    def every(self) -> int:
        return self.table.every // _MICROSECOND

    @property
    def columns(self) -> tuple[str, ...]:
        """Return all columns that are needed."""
        return tuple(dict.fromkeys([*self.known, *(c for of in self.labels.values() for c in of)]))


class LakeJoin:
    """The events of a training set, their views, and the tasks that join them.

    ids: the number of each event's symbol in `names`, from 1; us: the times, in microseconds since
        1970.
    known: the columns of the features by view; labels: those of the labels by view and span.
    delay: how long after their close imported rows are known, in microseconds.
    """

    def __init__(
        self,
        source: Reader,
        tables: Mapping[str, Table],
        names: Sequence[str],
        ids: Ints,
        us: Ints,
        known: Mapping[str, Sequence[str]],
        labels: Mapping[tuple[str, timedelta], Sequence[str]],
        delay: timedelta,
    ) -> None:
        self._source = source
        self._names = names
        self._ids = ids
        self._us = us
        self._delay = delay // _MICROSECOND
        spans: dict[str, dict[int, tuple[str, ...]]] = defaultdict(dict)
        for (name, span), columns in labels.items():
            spans[name][span // _MICROSECOND] = tuple(columns)
        self._views = [
            self._view(table, tuple(known.get(name, ())), spans[name])
            for name, table in tables.items()
        ]
        end = sql.Literal(_time(int(us.max()) + 1))
        found = source.stream("training_refreshes", end=end)
        self._numbers = found["no"].to_numpy().astype(np.int64)
        self._known_by = found["known_by"].to_numpy().astype(np.int64)
        self._groups: list[Ints] = []
        self.joined = Joined({}, {})
        for view in self._views:
            if view.known:
                self.joined.known[view.table.name] = _empty(len(us), view.known)
            for of_span, columns in view.labels.items():
                self.joined.labels[view.table.name, of_span] = _empty(len(us), columns)

    def tasks(self) -> Iterator[TrainingTask]:
        """Yield the tasks; the rows of the database are read for each when it is its turn."""
        for places in self._places():
            self._groups.append(places)
            yield self._task(places)

    def take(self, number: int, joined: Joined) -> None:
        """Note the values of a task by its number."""
        places = self._groups[number]
        for mine, part in (
            *((self.joined.known[name], found) for name, found in joined.known.items()),
            *((self.joined.labels[key], found) for key, found in joined.labels.items()),
        ):
            mine.buckets[places] = part.buckets
            for name, array in mine.values.items():
                array[places] = part.values[name]

    def _view(
        self, table: Table, known: tuple[str, ...], labels: Mapping[int, tuple[str, ...]]
    ) -> _View:
        """Return a view with the state of its table in the lake, as of the snapshot."""
        in_lake = known_table(self._source, table.name)
        outdated: dict[str, list[tuple[int, int]]] = defaultdict(list)
        for symbol, first, after in waiting_days(self._source, table.name, self._names):
            outdated[symbol].append((micro(first), micro(after)))
        flags = self._source.stream(
            "training_flags",
            view=sql.Literal(table.id),
            symbols=sql.Literal(list(self._names)),
            every=sql.Literal(table.every.total_seconds()),
        )
        mirror = None
        if in_lake is not None and in_lake["is_served"] and in_lake["mirrored_until"] is not None:
            until = micro(in_lake["mirrored_until"])
            mirror = Mirror(delta.uri_of(table.name), in_lake["table_version"], until)
        return _View(table, known, labels, mirror, outdated, flags)

    def _places(self) -> Iterator[Ints]:
        """Yield the places of the events of each task: of some symbols, or a part of one's time."""
        order = np.lexsort((self._us, self._ids))
        ids, us = self._ids[order], self._us[order]
        rows_of_us = sum(1 / view.every for view in self._views)
        start, rows = 0, 0.0
        for first in np.flatnonzero(np.diff(ids, prepend=0)).tolist():
            after = int(np.searchsorted(ids, ids[first], "right"))
            own = (us[after - 1] - us[first] + _BEFORE) * rows_of_us
            if rows and rows + own > _TASK_ROWS:
                yield order[start:first]
                start, rows = first, 0.0
            rows += own
            if rows > _TASK_ROWS:
                # Parts of about the same time.
                parts = int(np.ceil(rows / _TASK_ROWS))
                steps = np.linspace(us[first], us[after - 1] + 1, parts + 1)[1:-1]
                for cut in (np.searchsorted(us[first:after], steps) + first).tolist():
                    if cut > start:
                        yield order[start:cut]
                    start = cut
                if after > start:
                    yield order[start:after]
                start, rows = after, 0.0
        if start < len(order):
            yield order[start:]

    def _task(self, places: Ints) -> TrainingTask:
        present, ids = np.unique(self._ids[places], return_inverse=True)
        symbols = tuple(self._names[number - 1] for number in present.tolist())
        us = self._us[places]
        low, high = int(us.min()), int(us.max())
        # A day allows for clocks that were set back.
        first = min(_first(view, low) for view in self._views) - _DAY
        kept = (self._known_by >= first) & (self._known_by <= high)
        return TrainingTask(
            symbols,
            ids.astype(np.int64),
            us,
            tuple(self._rows(view, symbols, low, high) for view in self._views),
            self._numbers[kept],
            self._known_by[kept],
            self._delay,
        )

    def _rows(self, view: _View, symbols: tuple[str, ...], low: int, high: int) -> ViewRows:
        table = view.table
        start = _first(view, low)
        end = high + max(view.labels, default=0) + 1
        until = start if view.mirror is None else max(start, view.mirror.until)
        outdated = [
            (symbol, max(first, start), min(after, until))
            for symbol in symbols
            for first, after in view.outdated.get(symbol, ())
            if max(first, start) < min(after, until)
        ]
        spans = [*outdated, *((symbol, until, end) for symbol in symbols if until < end)]
        return ViewRows(
            table.name,
            view.every,
            micro(table.origin) if table.origin is not None else 0,
            NONE if table.built_at is None else micro(table.built_at),
            view.known,
            view.labels,
            start,
            end,
            view.mirror,
            tuple(outdated),
            self._stored(view, spans),
            self._versions(view, symbols, start, end),
            view.flags.filter(pa.compute.is_in(view.flags["symbol"], pa.array(symbols))),
        )

    def _stored(self, view: _View, spans: Sequence[tuple[str, int, int]]) -> pa.Table:
        symbols, lows, highs = zip(*spans, strict=True) if spans else ((), (), ())
        return self._source.stream(
            "training_rows",
            columns=_columns(view.columns),
            table=Identifier("public", view.table.name),
            symbols=sql.Literal(list(symbols)),
            lows=_array(lows),
            highs=_array(highs),
        )

    def _versions(self, view: _View, symbols: tuple[str, ...], start: int, end: int) -> pa.Table:
        assert view.table.versions is not None
        return self._source.stream(
            "training_versions",
            columns=_columns(view.known),
            versions=view.table.versions,
            symbols=sql.Literal(list(symbols) if view.known else []),
            start=sql.Literal(_time(start)),
            end=sql.Literal(_time(end)),
        )


def _first(view: _View, low: int) -> int:
    """Return the first bucket that is read for events from a time on."""
    return low - _BEFORE - 2 * view.every


def _empty(count: int, columns: Sequence[str]) -> Found:
    values = {name: np.full(count, np.nan) for name in columns}
    return Found(values, np.full(count, NONE, np.int64))


def _columns(names: Sequence[str]) -> Composable:
    """Return more columns of a query."""
    return SQL("").join(SQL(", {}").format(Identifier("v", name)) for name in names)


def _array(numbers: Sequence[int]) -> sql.Literal:
    return sql.Literal("{" + ",".join(map(str, numbers)) + "}")


def _time(us: int) -> datetime:
    return datetime(1970, 1, 1, tzinfo=UTC) + us * _MICROSECOND
