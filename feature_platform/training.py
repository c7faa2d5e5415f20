"""Training sets: for each event the features that were known then, and labels from the final truth.

Every value is joined in the database. docs/knowledge.md explains which rows count as known.
"""

from __future__ import annotations

import sys
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, Literal, TypeVar

import numpy as np
from numpy.typing import NDArray
from psycopg import sql
from psycopg.sql import SQL, Composable, Identifier

from feature_platform.counted import counted
from feature_platform.errors import UserError, one_line
from feature_platform.knowledge import (
    check_begun,
    check_built,
    check_kept,
    computed_parts,
    forgotten,
    forgotten_error,
    parse_delay,
)

if TYPE_CHECKING:
    import pandas as pd
    import polars as pl
    import pyarrow as pa

    from feature_platform._adbc import Reader
    from feature_platform.frames import Table
    from feature_platform.lake.training import Found, Joined

Events = TypeVar("Events", "pd.DataFrame", "pl.DataFrame", "pa.Table")
Engine = Literal["database", "ray"]
Ints = NDArray[np.int64]
Floats = NDArray[np.float64]

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)
_FAR = np.iinfo(np.int64).max
_MOST = (datetime(9000, 1, 1, tzinfo=UTC) - _EPOCH) // _MICROSECOND

# Objects that are similar to frames, and the frame to give in place of each.
_REMEDIES = {
    "LazyFrame": "events.collect()",
    "RecordBatch": "pyarrow.Table.from_batches([events])",
    "DuckDBPyRelation": "events.to_arrow_table()",
}

# The versions that are read back from an event before a search of all rows.
_NEAR = 16


@dataclass(frozen=True)
class Label:
    """A column of the final truth, some time after an event.

    column: "view.column".
    span: the time from the event to the value.
    is_return: the logarithm of the value over that at the event, in place of the value.
    """

    column: str
    span: timedelta
    is_return: bool = False


def forward(column: str, span: str) -> Label:
    """Return the label "the value of `column` a span after the event", such as "15 minutes".

    column: "view.column". The value is the stored one of the newest bucket that has closed by then,
    with all corrections, however old it is. It is NaN where the rows do not reach that time yet.
    Raises UserError for a column or a span of another form.
    """
    _split(column)
    return Label(column, parse_delay("the span of a label", span))


def forward_return(span: str) -> Label:
    """Return the label "ln(close a span after the event / close at the event)".

    Both closes are stored values of `features_1m.last_close`, as in `forward`. Over a gap they are
    those before and after it. Where no minute came in between, both are the same: the return is 0.
    """
    return Label("features_1m.last_close", parse_delay("the span of a label", span), is_return=True)


def training_set(
    events: Events,
    features: Sequence[str],
    labels: Mapping[str, Label],
    delay: str = "2 seconds",
    engine: Engine = "database",
) -> Events:
    """Return the events with the features that were known then, and with labels.

    events: a frame of pandas, polars or Arrow with the columns `symbol` and `time` (with a zone)
        in any order; its other columns stay.
    features: columns "view.column". The value is that of the newest row of the symbol whose bucket
        had closed and which was known at the time of the event, in the version that was known
        then; NaN where there is none. The row may be of any age, such as three days in a gap.
    labels: the labels, by the names of their columns.
    delay: a row of a flagged import counts as known this long after its bucket closes.
    engine: "database" joins in the database. "ray" joins on the Ray cluster of RAY_ADDRESS, with
        the rows of the lake, and gives the same values; docs/lake.md explains it.
    Returns a frame of the same form and order, with a column of float64 for each feature, named as
        in `features`, and for each label.
    Raises UserError for events without a symbol or time, or in the future, for an unknown symbol,
    view or column, for a view whose history is not complete, and for events whose values are not
    known any more.
    """
    from feature_platform._adbc import reader
    from feature_platform.frames import tables_of

    waits = parse_delay("delay", delay)
    if engine not in ("database", "ray"):
        raise UserError(f"engine is 'database' or 'ray', not {engine!r}")
    _check_forms(events, features, labels)
    chosen: list[tuple[str, str]] = [_split(feature) for feature in features]
    _check_names(events, [*features, *labels])
    asked = _Events.of(events)
    wanted = dict.fromkeys([view for view, _ in chosen])
    wanted |= dict.fromkeys(_split(label.column)[0] for label in labels.values())
    if not wanted:
        raise UserError(
            "neither features nor labels are given; give features such as ['features_1m.volume_z']"
        )
    values: dict[str, Floats] = {}
    gone = np.zeros(0, np.int64)
    with reader() as source:
        source.freeze()
        tables = {table.name: table for table in tables_of(source, list(wanted))}
        for view, column in [*chosen, *(_split(label.column) for label in labels.values())]:
            tables[view].check_column(column)
        begins = None
        known: dict[str, list[str]] = {}
        for view, column in chosen:
            known.setdefault(view, []).append(column)
        needed = _needed(labels.values())
        lake: Joined | None = None
        if len(asked):
            begins = _check(source, asked, tables.values())
            gone = _forgotten(source, asked)
            source.stream("training_settings")
            if engine == "ray":
                lake = _joined_on_ray(source, tables, asked, known, needed, waits)
        for view, columns in known.items():
            of_lake = None if lake is None else lake.known[view]
            found = _known(source, tables[view], asked, columns, waits, begins, gone, of_lake)
            values |= {f"{view}.{column}": array for column, array in found.items()}
        truth = _Truth(source, tables, asked, needed, lake)
        for name, label in labels.items():
            values[name] = truth.of(label)
    joined: Events = _joined(events, {name: values[name] for name in [*features, *labels]})
    return joined


@dataclass(frozen=True)
class _Events:
    """Events as arrays.

    names: the symbols; ids: the number of each event's symbol in them, from 1.
    us: the times, in microseconds since 1970.
    """

    names: list[str]
    ids: Ints
    us: Ints

    def __len__(self) -> int:
        return len(self.us)

    @classmethod
    def of(cls, events: Any) -> _Events:
        """Read a frame; raises UserError where it is not one of events."""
        import pyarrow as pa
        import pyarrow.compute as pc

        for name in ("symbol", "time"):
            if name not in _columns_of(events):
                raise UserError(f"events has no column {name!r}; it needs symbol and time")
        if isinstance(events, pa.Table):
            table = events.select(["symbol", "time"])
        elif hasattr(events, "to_arrow"):
            table = events.select(["symbol", "time"]).to_arrow()
        else:
            table = pa.Table.from_pandas(events[["symbol", "time"]], preserve_index=False)
        for name in table.column_names:
            if count := table[name].null_count:
                raise UserError(f"{counted(count, 'event')} without a {name}")
        kind = table["time"].type
        if not pa.types.is_timestamp(kind) or kind.tz is None:
            raise UserError(f"the times of events are {kind}; they need a time zone, such as UTC")
        try:
            symbols = table["symbol"].cast(pa.string())
        except pa.ArrowInvalid:
            found = table["symbol"].type
            raise UserError(f"the symbols of events are {found}, not texts") from None
        # Parts of a microsecond are cut off, which is never later than the event.
        us = table["time"].cast(pa.timestamp("us", kind.tz), safe=False).cast(pa.int64())
        if table.num_rows:
            _check_years(*pc.min_max(us).as_py().values())
        names = pc.unique(symbols)
        ids = pc.index_in(symbols, names).to_numpy().astype(np.int64) + 1
        return cls(names.to_pylist(), ids, us.to_numpy())

    def take(self, which: Ints) -> _Events:
        """Return some of the events, with their symbols only."""
        present, ids = np.unique(self.ids[which], return_inverse=True)
        names = [self.names[number - 1] for number in present.tolist()]
        return _Events(names, ids.astype(np.int64) + 1, self.us[which])

    def after(self, span: timedelta) -> _Events:
        """Return the same symbols at times that are later by a span."""
        return _Events(self.names, self.ids, self.us + span // _MICROSECOND)

    def parts(self, table: Table) -> dict[str, Composable]:
        """Return the identifiers and values of the queries."""
        width = table.every // _MICROSECOND
        first, last = _time(int(self.us.min()) - 3 * width), _time(int(self.us.max()) + 1)
        assert table.versions is not None
        return {
            "ids": _array(self.ids),
            "times": _array(self.us),
            "symbols": sql.Literal(self.names),
            "start": sql.Literal(first),
            "end": sql.Literal(last),
            "every": sql.Literal(table.every.total_seconds()),
            "origin": sql.Literal(table.origin),
            "view": sql.Literal(table.id),
            "table": Identifier("public", table.name),
            "versions": table.versions,
        }


def _joined_on_ray(
    source: Reader,
    tables: Mapping[str, Table],
    events: _Events,
    known: Mapping[str, Sequence[str]],
    labels: Mapping[tuple[str, timedelta], Sequence[str]],
    delay: timedelta,
) -> Joined:
    """Return the values that the tasks find; the database has those of the other events."""
    from feature_platform.lake.engines import on_ray
    from feature_platform.lake.training import join
    from feature_platform.lake.training_tasks import LakeJoin

    made = LakeJoin(source, tables, events.names, events.ids, events.us, known, labels, delay)
    for number, joined in enumerate(on_ray(join, made.tasks())):
        made.take(number, joined)
    return made.joined


def _known(
    source: Reader,
    table: Table,
    events: _Events,
    columns: list[str],
    delay: timedelta,
    begins: datetime | None,
    gone: Ints,
    lake: Found | None,
) -> dict[str, Floats]:
    """Return the values of the newest known row of each event.

    begins: the first time of a refresh that is noted.
    gone: when the symbol of each event was forgotten, else 0.
    lake: the rows that were found in the lake; of events before a view was built, imported ones.
    """
    values = _Values(len(events), columns, lake)
    early = np.zeros(len(events), bool)
    if table.built_at is not None:
        early = events.us < _micro(table.built_at)
    _read_known(source, table, events, values, np.flatnonzero(~early), delay)
    which = np.flatnonzero(early)
    if len(which):
        _compute_known(source, table, events, values, which, delay)
        _check_begin(source, table, events.take(values.rest(which)), delay, begins)
    late = values.rest(np.flatnonzero(events.us < gone))
    if len(late):
        event = late[0]
        shown = f"an event, at {_time(int(events.us[event])).isoformat()},"
        raise forgotten_error(shown, events.names[events.ids[event] - 1], _time(int(gone[event])))
    return values.of


def _read_known(
    source: Reader, table: Table, events: _Events, values: _Values, which: Ints, delay: timedelta
) -> None:
    """Read the rows of events since a view was built, from the versions of rows."""
    width = table.every // _MICROSECOND
    waits: dict[str, Composable] = {"delay": sql.Literal(delay.total_seconds())}
    for back in (timedelta(0), table.every):
        part = {**waits, "back": sql.Literal(back.total_seconds())}
        values.read(source, "training_known", table, events, part, values.rest(which))
    rest = values.rest(which)
    part = {**waits, "most": sql.Literal(_NEAR), "buckets": _array(events.us[rest] - width)}
    values.read(source, "training_known_before", table, events, part, rest)
    rest = values.rest(which)
    if not len(rest):
        return
    found = source.stream("training_newest", **events.take(rest).parts(table), **waits)
    # Without a known row, an event has nothing to search.
    rest = rest[found["place"].to_numpy() - 1]
    part = {**waits, "most": SQL("ALL"), "buckets": _array(found["newest"].to_numpy())}
    values.read(source, "training_known_before", table, events, part, rest)


def _compute_known(
    source: Reader, table: Table, events: _Events, values: _Values, which: Ints, delay: timedelta
) -> None:
    """Read the rows of events before a view was built: computed ones, and those of imports."""
    waits: dict[str, Composable] = {"delay": sql.Literal(delay.total_seconds())}
    values.read(source, "training_flagged", table, events, waits, values.rest(which))
    afters = values.buckets[which]
    later = which[afters + 2 * (table.every // _MICROSECOND) <= events.us[which]]
    part = {**computed_parts(table), "afters": _array(values.buckets[later])}
    values.read(source, "training_computed", table, events, part, later)


class _Values:
    """The values of some columns by event, filled step by step.

    of: the values by column; buckets: of the rows, where a query returns it, else -1.
    """

    def __init__(self, count: int, columns: list[str], lake: Found | None = None) -> None:
        self.of = {column: np.full(count, np.nan) for column in columns}
        self.buckets: Ints = np.full(count, -1, np.int64)
        if lake is not None:
            self.of = {column: lake.values[column] for column in columns}
            self.buckets = lake.buckets
        self._has_row = self.buckets >= 0

    def rest(self, which: Ints) -> Ints:
        """Return the events of some that have no row so far."""
        return which[~self._has_row[which]]

    def read(
        self,
        source: Reader,
        query: str,
        table: Table,
        events: _Events,
        parts: Mapping[str, Composable],
        which: Ints,
    ) -> None:
        """Read rows for some of the events."""
        if not len(which):
            return
        some = events.take(which)
        shown = [
            SQL("{} AS {}").format(Identifier("v", column), Identifier(f"c{number}"))
            for number, column in enumerate(self.of)
        ]
        columns = SQL(", ").join(shown) if shown else SQL("1 AS c0")
        found = source.stream(query, columns=columns, **{**some.parts(table), **parts})
        places = which[found["place"].to_numpy() - 1]
        for number, array in enumerate(self.of.values()):
            array[places] = found[f"c{number}"].to_numpy().astype(np.float64)
        if "bucket" in found.column_names:
            self.buckets[places] = found["bucket"].to_numpy()
        self._has_row[places] = True


def _needed(labels: Collection[Label]) -> dict[tuple[str, timedelta], list[str]]:
    """Return the stored columns that some labels need, by view and span."""
    needed: dict[tuple[str, timedelta], list[str]] = {}
    for label in labels:
        view, column = _split(label.column)
        for span in {label.span, timedelta(0)} if label.is_return else {label.span}:
            columns = needed.setdefault((view, span), [])
            if column not in columns:
                columns.append(column)
    return needed


class _Truth:
    """Stored values at and after the events.

    needed: their columns, by view and span.
    lake: the rows that were found in the lake.
    """

    def __init__(
        self,
        source: Reader,
        tables: Mapping[str, Table],
        events: _Events,
        needed: Mapping[tuple[str, timedelta], list[str]],
        lake: Joined | None,
    ) -> None:
        self._source = source
        self._events = events
        self._values = {
            (view, span): self._stored(
                tables[view],
                span,
                columns,
                None if lake is None else lake.labels[view, span // _MICROSECOND],
            )
            for (view, span), columns in needed.items()
        }

    def of(self, label: Label) -> Floats:
        """Return the values of a label."""
        view, column = _split(label.column)
        later = self._values[view, label.span][column]
        if not label.is_return:
            return later
        with np.errstate(divide="ignore", invalid="ignore"):
            return np.log(later / self._values[view, timedelta(0)][column])

    def _stored(
        self, table: Table, span: timedelta, columns: list[str], lake: Found | None
    ) -> dict[str, Floats]:
        events = self._events.after(span)
        values = _Values(len(events), columns, lake)
        if not len(events):
            return values.of
        every = np.arange(len(events))
        for query in ("training_stored", "training_stored_before"):
            values.read(self._source, query, table, events, {}, values.rest(every))
        found = self._source.stream("training_ends", **events.parts(table))
        ends = np.full(len(events.names) + 1, np.iinfo(np.int64).min)
        ends[found["id"].to_numpy()] = found["us"].to_numpy()
        unknown = events.us - table.every // _MICROSECOND >= ends[events.ids]
        for array in values.of.values():
            array[unknown] = np.nan
        return values.of


def _check(source: Reader, events: _Events, tables: Collection[Table]) -> datetime | None:
    """Raise UserError for unknown symbols, and for events whose knowledge cannot be read.

    Returns the first time of a refresh that is noted.
    """
    from feature_platform.frames import check_ever

    check_ever(source, next(iter(tables)), events.names)
    check_built(tables)
    limits = check_kept(source, "an event", _time(int(events.us.min())))
    last = _time(int(events.us.max()))
    check_begun(f"an event, at {last.isoformat()},", limits)
    if last > limits["now"]:
        raise UserError(
            f"an event, at {last.isoformat()}, is in the future: it is {limits['now'].isoformat()}"
            " now"
        )
    begins: datetime | None = limits["begins"]
    return begins


def _forgotten(source: Reader, events: _Events) -> Ints:
    """Return when the symbol of each event was forgotten, in microseconds since 1970, else 0."""
    since = forgotten(source, events.names, _EPOCH)
    of_symbol = [_micro(since[name]) if name in since else 0 for name in events.names]
    return np.array(of_symbol, np.int64)[events.ids - 1]


def _check_begin(
    source: Reader, table: Table, events: _Events, delay: timedelta, begins: datetime | None
) -> None:
    """Raise UserError where a view has rows of events from before all knowledge of bars."""
    early = events.take(np.flatnonzero(events.us < (_FAR if begins is None else _micro(begins))))
    stored = _Values(len(early), [])
    every = np.arange(len(early))
    for query in ("training_stored", "training_stored_before"):
        stored.read(source, query, table, early.after(-delay), {}, stored.rest(every))
    if len(stored.rest(every)) < len(early):
        at = int(np.setdiff1d(every, stored.rest(every))[0])
        when = "has not begun" if begins is None else f"begins at {begins.isoformat()}"
        raise UserError(
            f"{table.name} had no row of {early.names[early.ids[at] - 1]!r} at the event of"
            f" {_time(int(early.us[at])).isoformat()}: knowledge {when}, with the first refresh"
            " whose time was noted; use newer events"
        )


def _split(column: str) -> tuple[str, str]:
    """Return view and column of "view.column"."""
    view, dot, name = column.partition(".") if isinstance(column, str) else ("", "", "")
    if not (view and dot and name):
        shown = one_line(repr(column))
        raise UserError(f"{shown} is not a column; write it as 'features_1m.volume_z'")
    return view, name


def _check_forms(events: Any, features: Any, labels: Any) -> None:
    """Raise UserError for arguments of another kind."""
    if not _is_frame(events):
        kind = type(events).__name__
        remedy = f"; give {_REMEDIES[kind]}" if kind in _REMEDIES else ""
        raise UserError(
            f"events is a {kind}, not a DataFrame of pandas or polars or a Table of Arrow{remedy}"
        )
    if isinstance(features, str) or not isinstance(features, Sequence):
        shown = one_line(repr(features))
        raise UserError(f"features is {shown}; give a list such as ['features_1m.volume_z']")
    if not isinstance(labels, Mapping):
        raise UserError(f"labels is {one_line(repr(labels))}; give a dict, {{}} for none")
    for name, label in labels.items():
        if not isinstance(name, str):
            raise UserError(f"the name of a label is {one_line(repr(name))}; give a text")
        if not isinstance(label, Label):
            raise UserError(
                f"the label {name!r} is {one_line(repr(label))}; write it as"
                " forward_return('15 minutes') or forward('features_1m.vol', '1 hour')"
            )


def _is_frame(events: Any) -> bool:
    """Return whether it is a frame; no module is imported that its caller has not imported."""
    for module, kind in (("pandas", "DataFrame"), ("polars", "DataFrame"), ("pyarrow", "Table")):
        if module in sys.modules and isinstance(events, getattr(sys.modules[module], kind)):
            return True
    return False


def _check_years(first: int, last: int) -> None:
    """Raise UserError for events that are in no year of bars, in microseconds since 1970."""
    for us in (first, last):
        if not 0 <= us <= _MOST:
            raise UserError(f"an event, {us // 1_000_000:,} s after 1970, is in no year of bars")


def _check_names(events: Any, names: Sequence[str]) -> None:
    """Raise UserError where two columns of the result would have the same name."""
    columns = _columns_of(events)
    for name in ("symbol", "time"):
        if columns.count(name) > 1:
            raise UserError(f"events has the column {name!r} {columns.count(name)} times; keep one")
    seen = set(columns)
    for name in names:
        if name in seen:
            raise UserError(f"the result would have the column {name!r} twice; rename one")
        seen.add(name)


def _columns_of(events: Any) -> list[str]:
    """Return the names of the columns of a frame; those of Arrow have another attribute."""
    return list(events.column_names if hasattr(events, "column_names") else events.columns)


def _joined(events: Any, values: dict[str, Floats]) -> Any:
    """Return the events with more columns, in their own form."""
    import pyarrow as pa

    if isinstance(events, pa.Table):
        for name, array in values.items():
            events = events.append_column(name, pa.array(array))
        return events
    if hasattr(events, "with_columns"):
        import polars as pl

        return events.with_columns(pl.Series(name, array) for name, array in values.items())
    return events.assign(**values)


def _time(us: int) -> datetime:
    return _EPOCH + us * _MICROSECOND


def _micro(moment: datetime) -> int:
    return (moment - _EPOCH) // _MICROSECOND


def _array(numbers: Ints) -> sql.Literal:
    """Return integers as the text of an array."""
    return sql.Literal("{" + ",".join(map(str, numbers.tolist())) + "}")
