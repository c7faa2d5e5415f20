"""Features and bars as frames, for notebooks: `from feature_platform import read_features`.

Arrow comes from the database over ADBC, without a copy row by row. ADBC, pyarrow, pandas and polars
take long to import: each is imported by the first call that needs it.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any, Literal, overload

from psycopg import sql
from psycopg.sql import SQL, Identifier

from feature_platform.errors import UserError, one_line
from feature_platform.knowledge import (
    COMPUTED,
    AfterClose,
    AsOf,
    check_knowledge,
    check_time,
    parse_as_of,
)
from feature_platform.near_names import near_names
from feature_platform.tables import FEATURES

if TYPE_CHECKING:
    import pandas as pd
    import polars as pl
    import pyarrow as pa

    from feature_platform._adbc import Reader

Form = Literal["pandas", "arrow", "polars"]
Source = Literal["lake", "database"]
TimeLike = datetime | str
Symbols = str | Iterable[str]
Views = str | Sequence[str]


@dataclass(frozen=True)
class Table:
    """A table with one row per symbol and minute.

    name, time: names of the table, in schema public, and of its column of minutes.
    columns: its columns of numbers.
    known: the view of all symbols that it has.
    rows: the plural of a row, for messages.
    id, versions, every, built_at: as in knowledge.Versioned; origin: the start of a bucket.
    """

    name: str
    time: str
    columns: tuple[str, ...]
    known: str
    rows: str
    id: int = 0
    versions: Identifier | None = None
    every: timedelta = timedelta(minutes=1)
    built_at: datetime | None = None
    origin: datetime | None = None

    def check_column(self, name: str) -> None:
        """Raise UserError, with the nearest name, unless it has a column."""
        if name not in self.columns:
            raise UserError(
                f"{self.name} has no column {name!r}{near_names(str(name), self.columns)};"
                f" it has {', '.join(self.columns)}"
            )


_FEATURES = Table(
    "features_1m",
    "bucket",
    FEATURES,
    "feature_symbol",
    "features",
)
# The newest row of a recorded symbol is younger; that of another costs a second query.
_RECENT = timedelta(days=1)

_BARS = Table("ohlcv_1m", "ts", ("open", "high", "low", "close", "vol"), "bar_symbol", "bars")


@overload
def read_features(
    symbols: Symbols,
    start: TimeLike,
    end: TimeLike,
    columns: Sequence[str] | None = None,
    as_: Literal["pandas"] = "pandas",
    *,
    view: Views = "features_1m",
    as_of: TimeLike | None = None,
    source: Source | None = None,
) -> pd.DataFrame: ...


@overload
def read_features(
    symbols: Symbols,
    start: TimeLike,
    end: TimeLike,
    columns: Sequence[str] | None = None,
    *,
    as_: Literal["arrow"],
    view: Views = "features_1m",
    as_of: TimeLike | None = None,
    source: Source | None = None,
) -> pa.Table: ...


@overload
def read_features(
    symbols: Symbols,
    start: TimeLike,
    end: TimeLike,
    columns: Sequence[str] | None = None,
    *,
    as_: Literal["polars"],
    view: Views = "features_1m",
    as_of: TimeLike | None = None,
    source: Source | None = None,
) -> pl.DataFrame: ...


def read_features(
    symbols: Symbols,
    start: TimeLike,
    end: TimeLike,
    columns: Sequence[str] | None = None,
    as_: Form = "pandas",
    *,
    view: Views = "features_1m",
    as_of: TimeLike | None = None,
    source: Source | None = None,
) -> Any:
    """Read the features with start <= bucket < end.

    symbols: one name gives a frame indexed by `bucket`; several, in a list, one indexed by
        (`symbol`, `bucket`), sorted. Arrow and polars have columns of these names instead.
    start, end: with a time zone, as a datetime or in ISO-8601 such as "2026-02-01T12:00Z".
    columns: some of those of the view, by default all; every one of them is float64, and NULL is
        NaN (in Arrow and polars null). A bucket without a row in the table has no row here.
    as_: "pandas", "arrow" or "polars".
    view: the name of a feature view; or several, whose rows are joined by symbol and bucket. A
        column that several of them have is named "view.column", in `columns`, too. The row of a
        minute then has the values of an hour that closes later, so views of different widths are
        rejected with "… after close": `training_set` joins them as they were known.
    as_of: by default the rows as they are stored now. A time gives the rows as they were known at
        that time. A delay such as "2 seconds after close" gives each row as it was known that long
        after its own bucket closed; a row that was not known in time is absent. docs/knowledge.md
        explains both.
    source: by default rows come from the lake where one is configured and complete, and the newest
        ones from the database. "lake" gives only the rows that the lake has, "database" reads only
        the database. docs/lake.md explains the lake.
    Raises UserError for a time without a zone, start after end, an unknown view, symbol or column
    (it names the nearest), an `as_of` that cannot be answered, and a database that cannot be
    reached.
    """
    names = _check_texts("view", [view] if isinstance(view, str) else view)
    if names == ["features_1m"] and as_of is None:
        return _read(_FEATURES, symbols, start, end, columns, as_, source)
    known = None if as_of is None else parse_as_of(as_of)
    if known is not None and source == "lake":
        raise UserError("the lake does not know rows as of a time: leave `source` away")
    return _read_views(names, symbols, start, end, columns, as_, known, source)


@overload
def read_bars(
    symbols: Symbols,
    start: TimeLike,
    end: TimeLike,
    columns: Sequence[str] | None = None,
    as_: Literal["pandas"] = "pandas",
    *,
    source: Source | None = None,
) -> pd.DataFrame: ...


@overload
def read_bars(
    symbols: Symbols,
    start: TimeLike,
    end: TimeLike,
    columns: Sequence[str] | None = None,
    *,
    as_: Literal["arrow"],
    source: Source | None = None,
) -> pa.Table: ...


@overload
def read_bars(
    symbols: Symbols,
    start: TimeLike,
    end: TimeLike,
    columns: Sequence[str] | None = None,
    *,
    as_: Literal["polars"],
    source: Source | None = None,
) -> pl.DataFrame: ...


def read_bars(
    symbols: Symbols,
    start: TimeLike,
    end: TimeLike,
    columns: Sequence[str] | None = None,
    as_: Form = "pandas",
    *,
    source: Source | None = None,
) -> Any:
    """Read the bars of start <= ts < end: open, high, low, close in the quote currency, vol in
    the base currency; all else as in `read_features`, with `ts` in the place of `bucket`.
    """
    return _read(_BARS, symbols, start, end, columns, as_, source)


@overload
def latest(
    symbols: Symbols | None = None,
    columns: Sequence[str] | None = None,
    as_: Literal["pandas"] = "pandas",
    *,
    view: str = "features_1m",
) -> pd.DataFrame: ...


@overload
def latest(
    symbols: Symbols | None = None,
    columns: Sequence[str] | None = None,
    *,
    as_: Literal["arrow"],
    view: str = "features_1m",
) -> pa.Table: ...


@overload
def latest(
    symbols: Symbols | None = None,
    columns: Sequence[str] | None = None,
    *,
    as_: Literal["polars"],
    view: str = "features_1m",
) -> pl.DataFrame: ...


def latest(
    symbols: Symbols | None = None,
    columns: Sequence[str] | None = None,
    as_: Form = "pandas",
    *,
    view: str = "features_1m",
) -> Any:
    """Read the newest feature row of each symbol, by default of all that have one.

    The frame is indexed by `symbol`, its first column is `bucket`; one index look-up a symbol,
    however long the history. The rows may be of any age. Columns, forms and errors as in
    `read_features`.
    view: the name of one feature view; two views have no newest row in common.
    """
    if not isinstance(view, str):
        raise UserError(f"latest reads one view, such as view='features_1m', not {view!r}")
    names = None if symbols is None else _check_symbols(symbols)
    import pyarrow as pa

    from feature_platform._adbc import TEXTS, one, reader

    to_form = _converter(as_)
    recent, ever = _starts()
    with reader() as source:
        table = _FEATURES if view == _FEATURES.name else tables_of(source, [view])[0]
        wanted_columns = _check_columns(table, columns)
        names_of = {
            "table": Identifier("public", table.name),
            "columns": _columns(["symbol", table.time, *wanted_columns]),
        }

        def newest(wanted: Sequence[str], since: sql.Literal) -> pa.Table:
            return source.fetch("frames_latest", one(wanted, TEXTS), since=since, **names_of)

        if names is None:
            wanted = source.stream("frames_ever")["symbol"].to_pylist()
        else:
            wanted = names
            check_ever(source, table, names)
        rows = newest(wanted, recent)
        if rest := _absent(wanted, rows):
            older = newest(rest, ever)
            if names is not None and (unknown := _absent(rest, older)):
                raise _unknown(table, unknown, _known_symbols(source, table))
            rows = pa.concat_tables([rows, older]).sort_by("symbol")
    return to_form(_as_float64(rows, wanted_columns), ["symbol"])


def _read(
    table: Table,
    symbols: Symbols,
    start: TimeLike,
    end: TimeLike,
    columns: Sequence[str] | None,
    form: Form,
    place: Source | None,
) -> Any:
    names = _check_symbols(symbols)
    wanted_columns = _check_columns(table, columns)
    window = _check_window(start, end)
    from feature_platform._adbc import reader

    to_form = _converter(form)
    index = [table.time] if isinstance(symbols, str) else ["symbol", table.time]
    with reader() as source:
        if _uses_lake(place):
            source.freeze()  # the lake's state and the newest rows as of one moment
        check_ever(source, table, names)
        rows = _rows(source, table, names, window, (*index, *wanted_columns), place=place)
    return to_form(_as_float64(rows, wanted_columns), index)


def _read_views(
    views: Sequence[str],
    symbols: Symbols,
    start: TimeLike,
    end: TimeLike,
    columns: Sequence[str] | None,
    form: Form,
    as_of: AsOf | None,
    place: Source | None,
) -> Any:
    """Read some views, joined by symbol and bucket."""
    names = _check_symbols(symbols)
    window = _check_window(start, end)
    from feature_platform._adbc import reader

    to_form = _converter(form)
    keys = ["symbol", "bucket"]
    index = ["bucket"] if isinstance(symbols, str) else keys
    joined: pa.Table | None = None
    with reader() as source:
        source.freeze()  # all views as of one moment
        tables = tables_of(source, views)
        if isinstance(as_of, AfterClose):
            _check_widths(tables)
        if as_of is not None:
            check_knowledge(source, as_of, tables, names, window)
        known = [column for table in tables for column in table.columns]
        wanted = {
            table.name: {
                column: column if known.count(column) == 1 else f"{table.name}.{column}"
                for column in table.columns
            }
            for table in tables
        }
        shown = tuple(name for of_view in wanted.values() for name in of_view.values())
        chosen = _check_columns(Table("+".join(views), "bucket", shown, "", ""), columns)
        check_ever(source, tables[0], names)
        for table in tables:
            own = {a: b for a, b in wanted[table.name].items() if b in chosen}
            rows = _rows(source, table, names, window, (*keys, *own), as_of, place)
            rows = rows.rename_columns([*keys, *own.values()])
            joined = rows if joined is None else joined.join(rows, keys, join_type="full outer")
    assert joined is not None, "at least one view is given"
    if len(tables) > 1:  # a join has no order
        joined = joined.sort_by([(key, "ascending") for key in keys])
    return to_form(_as_float64(joined.select([*index, *chosen]), chosen), index)


def tables_of(source: Reader, views: Sequence[str]) -> list[Table]:
    """Return the tables of some views; raises UserError for an unknown one."""
    found = {row["name"]: row for row in source.stream("frames_views").to_pylist()}
    for view in views:
        if view not in found:
            near = near_names(str(view), list(found))
            raise UserError(
                f"there is no feature view {view!r}{near}; there are {', '.join(found)}"
            )
    if not views:
        raise UserError("no view is given; give a name such as 'features_1m'")
    return [
        Table(
            view,
            "bucket",
            tuple(found[view]["columns"]),
            "bar_symbol",
            f"rows in {view}",
            found[view]["id"],
            Identifier(found[view]["schema"], found[view]["versions"]),
            timedelta(seconds=found[view]["seconds"]),
            found[view]["built_at"],
            found[view]["origin"],
        )
        for view in views
    ]


def _rows(
    source: Reader,
    table: Table,
    names: list[str],
    window: tuple[datetime, datetime],
    columns: Sequence[str],
    as_of: AsOf | None = None,
    place: Source | None = None,
) -> pa.Table:
    """Return rows of a table; without the column `symbol`, of one symbol.

    as_of: rows as they were known; without it, UserError is raised for a symbol without any row.
    """
    import pyarrow as pa

    from feature_platform._adbc import TEXTS, one

    names_of = {"table": Identifier("public", table.name), "time": Identifier(table.time)}

    def stored(some: Sequence[str], first: datetime, after: datetime) -> pa.Table:
        """Return rows of the database."""
        of_window = {
            "symbols": sql.Literal(list(some)),
            "start": sql.Literal(first),
            "end": sql.Literal(after),
        }
        if as_of is None:
            return source.stream("frames_read", columns=_columns(columns), **of_window, **names_of)
        statements = dict(as_of.statements(source, table))
        found = [
            source.stream(query, columns=_columns(columns, "v"), **of_window, **parts)
            for query, parts in statements.items()
        ]
        if not statements.keys() & COMPUTED:
            return pa.concat_tables(found)
        # Computed rows have doubles in all columns.
        no_window = {**of_window, "end": of_window["start"]}
        no_rows = source.stream("frames_read", columns=_columns(columns), **no_window, **names_of)
        keys = [(name, "ascending") for name in ("symbol", table.time) if name in columns]
        return pa.concat_tables([rows.cast(no_rows.schema) for rows in found]).sort_by(keys)

    if as_of is None and _uses_lake(place):
        from feature_platform.lake.frames import read_both, read_lake

        if place == "lake":
            rows = read_lake(source, table.name, table.time, names, window, columns)
        else:
            rows = read_both(source, table.name, table.time, names, window, columns, stored)
    else:
        rows = stored(names, *window)
    if as_of is not None:  # each symbol had a bar; that its rows were not known is no error
        return rows
    empty = _absent(names, rows) if "symbol" in columns else names[: not rows.num_rows]
    for since in _starts():
        if empty:
            found = source.fetch("frames_without_rows", one(empty, TEXTS), since=since, **names_of)
            empty = found["symbol"].to_pylist()
    if empty:
        known = _known_symbols(source, table)
        # No bucket of a feature view may have closed yet.
        if unknown := [name for name in empty if name not in known]:
            raise _unknown(table, unknown, known)
    return rows


def _check_widths(tables: Sequence[Table]) -> None:
    """Raise UserError for tables whose buckets have different widths."""
    from feature_platform.views.expressions import span_text

    widths = {table.name: span_text(table.every) for table in tables}
    first = tables[0].name
    for name, width in widths.items():
        if width != widths[first]:
            raise UserError(
                f"the buckets of {first} are {widths[first]} wide, those of {name} {width}: a row"
                " of both would have values from after its bucket; use training_set, or read each"
                " view alone"
            )


def _uses_lake(place: Source | None) -> bool:
    from feature_platform.settings import get_settings

    if place not in (None, "lake", "database"):
        raise UserError(f"source is 'lake' or 'database', not {place!r}")
    return place == "lake" or (place is None and get_settings().lake is not None)


def _check_window(start: TimeLike, end: TimeLike) -> tuple[datetime, datetime]:
    first, after = check_time("start", start), check_time("end", end)
    if first > after:
        raise UserError(f"start, {first.isoformat()}, is after end, {after.isoformat()}")
    return first, after


def _starts() -> tuple[sql.Literal, sql.Literal]:
    """Return the starts of two searches for a newest row: the last day, then all history."""
    from feature_platform.settings import get_settings

    return sql.Literal(get_settings().clock.now() - _RECENT), sql.Literal("-infinity")


def _absent(names: Sequence[str], rows: pa.Table) -> list[str]:
    """Return the names without a row, in their order."""
    present = set(rows["symbol"].unique().to_pylist())
    return [name for name in names if name not in present]


def _columns(names: Iterable[str], *of_table: str) -> Any:
    return SQL(", ").join(Identifier(*of_table, name) for name in names)


def _check_symbols(symbols: Symbols) -> list[str]:
    names = _check_texts("symbols", [symbols] if isinstance(symbols, str) else symbols)
    for name in names:
        if not name.isprintable() or not name:
            raise UserError(f"{name!r} is not a symbol; give names such as 'BTC/USDT'")
    if not names:
        raise UserError("no symbol is given; give names such as 'BTC/USDT'")
    return names


def _check_texts(argument: str, names: Iterable[str]) -> list[str]:
    """Return different names, in their order; raise UserError for anything but texts."""
    if not isinstance(names, Iterable):
        raise UserError(f"{argument} is a {type(names).__name__}, not a name or a list of names")
    found = list(names)
    for name in found:
        if not isinstance(name, str):
            raise UserError(f"{argument} has {one_line(repr(name))}, which is not a name")
    return list(dict.fromkeys(found))


def _check_columns(table: Table, columns: Sequence[str] | None) -> tuple[str, ...]:
    if columns is None:
        return table.columns
    if isinstance(columns, str):
        raise UserError(f"columns is a list of names, such as [{columns!r}]")
    names = _check_texts("columns", columns)
    for name in names:
        table.check_column(name)
    return tuple(names)


def check_ever(source: Reader, table: Table, names: Sequence[str]) -> None:
    """Raise UserError unless each symbol had a bar at some time."""
    from feature_platform._adbc import TEXTS, one

    if unknown := source.fetch("frames_unknown", one(names, TEXTS))["symbol"].to_pylist():
        raise _unknown(table, unknown, _known_symbols(source, table))


def _known_symbols(source: Reader, table: Table) -> list[str]:
    """Return the symbols that a table has rows of; of a feature view those that have bars."""
    view = Identifier("feature_platform", table.known)
    symbols: list[str] = source.stream("frames_known", view=view)["symbol"].to_pylist()
    return symbols


def _unknown(table: Table, unknown: Sequence[str], known: Sequence[str]) -> UserError:
    """Return the error for symbols without rows, with the nearest names."""
    if not known:
        return UserError(f"there are no {table.rows} yet; `feature-platform status` lists all")
    shown = ", ".join(f"{name!r}{near_names(name, known)}" for name in unknown)
    return UserError(f"there are no {table.rows} of {shown}")


def _as_float64(rows: pa.Table, columns: Sequence[str]) -> pa.Table:
    import pyarrow as pa

    for number, field in enumerate(rows.schema):
        if field.name in columns and field.type != pa.float64():
            rows = rows.set_column(number, field.name, rows.column(number).cast(pa.float64()))
    return rows


def _converter(form: Form) -> Any:
    if form == "pandas":
        return _to_pandas
    if form == "arrow":
        return lambda rows, _: rows
    if form == "polars":
        try:
            import polars
        except ImportError:
            raise UserError(
                'polars is not installed: pip install "feature_platform[polars]"'
            ) from None
        return lambda rows, _: polars.from_arrow(rows)
    raise UserError(f"as_ is {form!r}; use 'pandas', 'arrow' or 'polars'")


def _to_pandas(rows: pa.Table, index: Sequence[str]) -> pd.DataFrame:
    import pandas as pd

    values = {name: _array(rows[name]) for name in rows.column_names if name not in index}
    return pd.DataFrame(values, index=_index(rows, index), copy=False)


def _array(column: pa.ChunkedArray) -> Any:
    import pyarrow as pa

    if column.type != pa.float64():
        return column.to_pandas().array
    array = column.to_numpy()
    # Arrow's own memory is not writeable.
    return array if array.flags.writeable else array.copy()


def _index(rows: pa.Table, names: Sequence[str]) -> pd.Index[Any]:
    import pandas as pd

    levels = [pd.Index(rows[name].to_pandas(), name=name) for name in names]
    return levels[0] if len(levels) == 1 else pd.MultiIndex.from_arrays(levels)
