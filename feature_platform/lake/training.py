"""The join of a training set over the rows of the lake, in tasks.

A task is the events of some symbols. It reads their rows from the lake, and gets from the database
the rows that the lake does not have: the newest ones, days that wait for a sync, and the versions
that refreshes have replaced. It returns the same values as the database's join.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from feature_platform.errors import UserError
from feature_platform.lake import delta
from feature_platform.lake.read import read

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]

NEVER = np.iinfo(np.int64).max
NONE = -1
"""The bucket of an event without a row."""


@dataclass(frozen=True)
class Mirror:
    """A version of a table of the lake; it has the rows before `until`, in microseconds."""

    uri: str
    version: int
    until: int


@dataclass(frozen=True)
class ViewRows:
    """The rows of a view that a task joins. Times are in microseconds since the epoch.

    every, origin: the width of a bucket, and the start of one.
    built: when the view was built; earlier events see imported rows only.
    known: columns of the features; labels: columns of the labels, by span.
    start, end: rows with start <= bucket < end are read.
    mirror: None where the lake does not have the view.
    outdated: spans of a symbol that the mirror has not right: symbol, start, end.
    stored: rows of the database: symbol, bucket, since, and all columns.
    versions: replaced versions of rows, with `until`, too.
    flags: imported buckets that are known at close: symbol, first, last, no.
    """

    name: str
    every: int
    origin: int
    built: int
    known: tuple[str, ...]
    labels: Mapping[int, tuple[str, ...]]
    start: int
    end: int
    mirror: Mirror | None
    outdated: tuple[tuple[str, int, int], ...]
    stored: pa.Table
    versions: pa.Table
    flags: pa.Table


@dataclass(frozen=True)
class TrainingTask:
    """The events of some symbols: of each the place of its symbol in `symbols`, and its time.

    numbers, known_by: since when each refresh is known, by its number.
    delay: how long after their close imported rows are known.
    """

    symbols: tuple[str, ...]
    ids: Ints
    us: Ints
    views: tuple[ViewRows, ...]
    numbers: Ints
    known_by: Ints
    delay: int


@dataclass(frozen=True)
class Found:
    """Values by column, and the bucket of the row of each event, or NONE."""

    values: dict[str, Floats]
    buckets: Ints


@dataclass(frozen=True)
class Joined:
    """The known rows by view, and the stored ones by view and span."""

    known: dict[str, Found]
    labels: dict[tuple[str, int], Found]


def join(task: TrainingTask) -> Joined:
    """Return the values of the events of a task."""
    joined = Joined({}, {})
    for view in task.views:
        rows = _Rows(task, view)
        if view.known:
            joined.known[view.name] = _known(task, view, rows)
        for span, columns in view.labels.items():
            joined.labels[view.name, span] = _stored(task, view, rows, columns, span)
    return joined


class _Rows:
    """All versions of the rows of a view, sorted by symbol and bucket.

    is_stored: the versions that are the rows of now.
    """

    def __init__(self, task: TrainingTask, view: ViewRows) -> None:
        columns = list(
            dict.fromkeys([*view.known, *(c for of in view.labels.values() for c in of)])
        )
        parts = [view.stored]
        if view.mirror is not None and view.start < view.mirror.until:
            parts.append(_of_mirror(view, view.mirror, task.symbols, columns))
        stored = [_arrays(part, task.symbols, columns) for part in parts]
        versions = _arrays(view.versions, task.symbols, columns)
        parts_of = [*stored, versions]
        codes = np.concatenate([part["symbol"] for part in parts_of])
        buckets = np.concatenate([part["bucket"] for part in parts_of])
        order = np.lexsort((buckets, codes))
        count = len(order) - len(versions["bucket"])
        self.codes = codes[order]
        self.buckets = buckets[order]
        self.is_stored = order < count
        self.since = np.concatenate([part["since"] for part in parts_of])[order]
        self.until = np.concatenate(
            [np.full(count, NEVER), versions.get("until", np.empty(0, np.int64))]
        )[order]
        self.values = {
            name: np.concatenate([part[name] for part in parts_of])[order] for name in columns
        }

    def of(self, code: int) -> slice:
        """Return the place of the versions of a symbol."""
        low, high = np.searchsorted(self.codes, (code, code + 1)).tolist()
        return slice(low, high)


def _of_mirror(
    view: ViewRows, mirror: Mirror, symbols: tuple[str, ...], columns: list[str]
) -> pa.Table:
    """Return the rows of the lake that are right."""
    table = delta.open_at(mirror.uri, mirror.version)
    if table is None:
        raise UserError(f"{mirror.uri} is no longer there")
    if "refresh_no" not in {field.name for field in table.schema().fields}:
        raise UserError(
            f"{mirror.uri}: an earlier version of the platform wrote it: run `feature-platform lake"
            " sync`"
        )
    end = min(view.end, mirror.until)
    names = ["symbol", "bucket", "refresh_no", *columns]
    rows = read(table, mirror.uri, "bucket", symbols, _time(view.start), _time(end), names)
    rows = rows.rename_columns(["symbol", "bucket", "since", *columns])
    times = rows["bucket"].cast(pa.int64())
    rows = rows.set_column(1, "bucket", times)
    if view.outdated:
        us = times.to_numpy()
        of_symbol = np.array(rows["symbol"].cast(pa.string()).to_pylist(), dtype=object)
        kept = np.ones(len(us), bool)
        for symbol, low, high in view.outdated:
            kept &= ~((of_symbol == symbol) & (us >= low) & (us < high))
        rows = rows.filter(pa.array(kept))
    return rows


def _arrays(rows: pa.Table, symbols: tuple[str, ...], columns: list[str]) -> dict[str, Any]:
    """Return the columns of rows as arrays, with the place of each symbol in `symbols`."""
    place = {symbol: code for code, symbol in enumerate(symbols)}
    coded = rows["symbol"].dictionary_encode().combine_chunks()
    codes = np.array([place[name] for name in coded.dictionary.to_pylist()], np.int64)
    found: dict[str, Any] = {"symbol": codes[coded.indices.to_numpy()]}
    for name in ("bucket", "since", "until"):
        if name in rows.column_names:
            found[name] = rows[name].to_numpy().astype(np.int64)
    for name in columns:
        if name in rows.column_names:
            found[name] = rows[name].to_numpy().astype(np.float64)
        else:  # versions lack the columns of labels
            found[name] = np.full(rows.num_rows, np.nan)
    return found


def _known(task: TrainingTask, view: ViewRows, rows: _Rows) -> Found:
    """Return the newest known row of each event."""
    found = Found({name: np.full(len(task.us), np.nan) for name in view.known}, _none(task))
    for code, symbol in enumerate(task.symbols):
        of = rows.of(code)
        mine = np.flatnonzero(task.ids == code)
        flag = _flags(view.flags, symbol, rows.buckets[of])
        for early in (False, True):
            some = mine[(task.us[mine] < view.built) == early]
            if not len(some):
                continue
            first, last = _times(task, view, rows, of, flag, early=early)
            places = newest_known(
                rows.buckets[of], first, last, task.us[some], view.every, view.origin
            )
            _take(found, rows, of, some, places)
    return found


def _times(
    task: TrainingTask, view: ViewRows, rows: _Rows, of: slice, flag: Ints, *, early: bool
) -> tuple[Ints, Ints]:
    """Return from when and until when each version of a symbol is known.

    flag: the greatest number of an imported version, or NONE.
    early: for events before the view was built, which know no refresh of it.
    """
    since, until = rows.since[of], rows.until[of]
    close = rows.buckets[of] + view.every + task.delay
    flagged = (since <= flag) & (flag > NONE)
    ended = (until <= flag) & (until < NEVER)
    if early:
        return np.where(flagged, close, NEVER), np.where(ended, close, NEVER)
    flagged |= since == 0
    first = np.minimum(_known_by(task, since), np.where(flagged, close, NEVER))
    last = np.minimum(_known_by(task, until), np.where(ended, close, NEVER))
    return first, last


def _known_by(task: TrainingTask, numbers: Ints) -> Ints:
    """Return since when refreshes are known; NEVER for those that are not."""
    if not len(task.numbers):
        return np.full(len(numbers), NEVER)
    places = np.minimum(np.searchsorted(task.numbers, numbers), len(task.numbers) - 1)
    return np.where(task.numbers[places] == numbers, task.known_by[places], NEVER)


def _flags(flags: pa.Table, symbol: str, buckets: Ints) -> Ints:
    """Return the greatest number of an imported version for each bucket, or NONE."""
    found = np.full(len(buckets), NONE)
    for name, first, last, number in zip(*flags.to_pydict().values(), strict=True):
        if name == symbol:
            low = np.searchsorted(buckets, first)
            found[low : np.searchsorted(buckets, last, "right")] = number
    return found


def newest_known(buckets: Ints, first: Ints, last: Ints, us: Ints, every: int, origin: int) -> Ints:
    """Return the place of the newest closed version that is known at each time, or NONE.

    buckets: of the versions, in order; first, last: the version is known with first <= time < last.
    """
    places = np.full(len(us), NONE)
    if not len(buckets):
        return places
    # No version of a bucket after this one is known, so the search begins there.
    order = np.argsort(first, kind="stable")
    newest = np.maximum.accumulate(buckets[order])
    begun = np.searchsorted(first[order], us, "right") - 1
    limit = np.minimum((us - every - origin) // every * every + origin, newest[begun])
    own, starts, counts = np.unique(buckets, return_index=True, return_counts=True)
    bucket = np.where(begun < 0, NONE, np.searchsorted(own, limit, "right") - 1)
    left = np.flatnonzero(bucket >= 0)
    while len(left):
        for number in range(int(counts[bucket[left]].max())):
            at = bucket[left]
            there = number < counts[at]
            place = starts[at] + np.where(there, number, 0)
            known = there & (first[place] <= us[left]) & (us[left] < last[place])
            places[left[known]] = place[known]
        left = left[places[left] == NONE]
        bucket[left] -= 1
        left = left[bucket[left] >= 0]
    return places


def _stored(
    task: TrainingTask, view: ViewRows, rows: _Rows, columns: tuple[str, ...], span: int
) -> Found:
    """Return the newest stored row that has closed a span after each event."""
    found = Found({name: np.full(len(task.us), np.nan) for name in columns}, _none(task))
    for code in range(len(task.symbols)):
        of = rows.of(code)
        mine = np.flatnonzero(task.ids == code)
        kept = np.flatnonzero(rows.is_stored[of])
        limit = (task.us[mine] + span - view.every - view.origin) // view.every * view.every
        places = np.searchsorted(rows.buckets[of][kept], limit + view.origin, "right") - 1
        if len(kept):
            _take(found, rows, of, mine, np.where(places < 0, NONE, kept[places]))
    return found


def _take(found: Found, rows: _Rows, of: slice, events: Ints, places: Ints) -> None:
    """Note the rows of some events by their places."""
    events, places = events[places != NONE], places[places != NONE]
    found.buckets[events] = rows.buckets[of][places]
    for name, array in found.values.items():
        array[events] = rows.values[name][of][places]


def _none(task: TrainingTask) -> Ints:
    return np.full(len(task.us), NONE, np.int64)


def _time(us: int) -> datetime:
    return _EPOCH + us * _MICROSECOND
