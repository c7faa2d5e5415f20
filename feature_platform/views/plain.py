"""The independent computation of a view: plain window functions over all bars of a symbol.

`verify` and the tests compare stored rows with it. It shares the expression tree with the compiler
of the refresh, and nothing else: no cached state, no running sums, no blocks of extremes.

compiled(view, number) gives four SQL functions in the schema feature_views:

    v7_plain(symbol, from, until, first): the rows of all buckets with bars between two times. A
        value is right only where all bars that it needs are read; the warm-up counts from `first`.
    v7_plain_from(symbol, wanted): the time from which on bars are needed for a bucket.
    v7_plain_as_of(symbol, from, until, first, no), v7_plain_from_as_of(symbol, wanted, no): the
        same over the bars as of the number of a refresh.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta

from psycopg import sql

from feature_platform.views.aggregates import aggregate_call
from feature_platform.views.expressions import (
    MINUTE,
    Bar,
    Call,
    Constant,
    Ema,
    Expression,
    Lag,
    Window,
    walk,
)
from feature_platform.views.view import FeatureView, ema_grid, warm_up

_GUARD = sql.SQL(
    "CASE WHEN abs({0}) <= 1e130 THEN CASE WHEN abs({0}) >= 1e-130 THEN {0} ELSE 0 END END"
)

_BARS = sql.SQL("""
SELECT bucket, (array_agg(open ORDER BY ts))[1] AS open, max(high) AS high, min(low) AS low,
       (array_agg(close ORDER BY ts DESC))[1] AS close, sum(vol::text::numeric) AS exact_vol,
       sum(vol::text::numeric)::double precision AS vol,
       CASE WHEN max(vol) > 0
            THEN sum((open + high + low + close) / 4 * vol ORDER BY ts) / sum(vol ORDER BY ts)
            ELSE avg((open + high + low + close) / 4 ORDER BY ts) END AS vwap,
       count(DISTINCT date_bin('1 minute', ts, '1970-01-01 00:00+00'))::double precision AS n
  FROM (SELECT b.*, date_bin({width}, b.ts, {origin}) AS bucket
          FROM {bars}) AS b
 GROUP BY bucket
""")

_FUNCTIONS = sql.SQL("""
-- The rows by plain window functions over the bars{which}.
CREATE OR REPLACE FUNCTION {name}(
    _symbol text, _from timestamptz, _until timestamptz, _first timestamptz{number})
    RETURNS TABLE (bucket timestamptz, {columns})
    LANGUAGE sql STABLE
    SET search_path = pg_catalog, pg_temp
    SET extra_float_digits = 1                  -- from 1 on, double -> text -> numeric loses nothing
    SET jit = off
AS $$
{values}
$$;

-- The time from which on these need bars.
CREATE OR REPLACE FUNCTION {name_from}(_symbol text, _wanted timestamptz{number}) RETURNS timestamptz
    LANGUAGE sql STABLE
    SET search_path = pg_catalog, pg_temp
AS $$
SELECT least({times})
$$;
""")


@dataclass(frozen=True)
class _Bars:
    """The bars that the functions read.

    suffix: of the functions' names; which: in their comments; number: their last parameter.
    source: all bars of a symbol between two times; before: a bucket before a time.
    """

    suffix: str
    which: str
    number: str
    source: str
    before: str


_STORED = _Bars(
    "",
    ", for `verify`",
    "",
    "public.ohlcv_1m b WHERE b.symbol = _symbol AND b.ts >= _from AND b.ts < _until",
    "feature_platform.plain_before(_symbol, {}, {}, {}, {})",
)
_AS_OF = _Bars(
    "_as_of",
    " as of the number of a refresh",
    ", _no bigint",
    "feature_platform.bars_as_of(_symbol, _from, _until, _no) AS b",
    "feature_platform.bucket_before_as_of(_symbol, {}, {}, {}, {}, _no)",
)


def compiled(view: FeatureView, number: int) -> sql.Composed:
    """Return the functions that compute the rows of a view.

    number: of the version, which begins their names in the schema feature_views.
    """
    parts = [_functions(view, "feature_views", f"v{number}", bars) for bars in (_STORED, _AS_OF)]
    return sql.Composed(parts)


def compiled_as_of(view: FeatureView, schema: str) -> sql.Composed:
    """Return the functions that compute the rows of a view as of the number of a refresh."""
    return _functions(view, schema, view.name, _AS_OF)


def _functions(view: FeatureView, schema: str, prefix: str, bars: _Bars) -> sql.Composed:
    columns = [
        sql.SQL("{} {}").format(
            sql.Identifier(name),
            sql.SQL("integer" if expression.is_integer else "double precision"),
        )
        for name, expression in view.columns.items()
    ]
    times = {
        time.as_string(): time
        for expression in view.columns.values()
        for time in _times(expression, sql.SQL("_wanted"), view, bars)
    }
    return _FUNCTIONS.format(
        name=sql.Identifier(schema, f"{prefix}_plain{bars.suffix}"),
        name_from=sql.Identifier(schema, f"{prefix}_plain_from{bars.suffix}"),
        which=sql.SQL(bars.which),
        number=sql.SQL(bars.number),
        columns=sql.SQL(", ").join(columns),
        values=_values(view, bars),
        times=sql.SQL(", ").join(times.values()),
    )


def _times(
    node: Expression, at: sql.Composable, view: FeatureView, bars: _Bars
) -> list[sql.Composable]:
    """Return the times from which on a value at a time needs bars."""
    before = sql.SQL(bars.before)
    grid = _interval(view.width), _origin(view)
    match node:
        case Lag(rows=int() as rows):
            at = before.format(at, sql.Literal(rows), *grid)
        case Lag(span=timedelta() as span):
            newest = sql.SQL("{} - {} + interval '1 microsecond'").format(at, _interval(span))
            at = before.format(newest, sql.Literal(1), *grid)
        case Window(span=span):
            at = sql.SQL("{} - {}").format(at, _interval(span - view.width))
        case Ema(span=span):
            seconds = sql.Literal(ema_grid(span, view.width) // MINUTE * 60)
            at = sql.SQL("to_timestamp((floor(extract(epoch FROM {}) / {}) - 1) * {})").format(
                at, seconds, seconds
            )
    return [at] + [time for one in node.arguments for time in _times(one, at, view, bars)]


def _values(view: FeatureView, bars: _Bars) -> sql.Composed:
    """Return a SELECT of the bucket and the columns of a view, for one symbol."""
    nodes: dict[str, Expression] = {}
    for column in view.columns.values():
        for node in walk(column):
            nodes[node.key] = node
    number = {key: at for at, key in enumerate(nodes)}
    level: dict[str, int] = {}
    for key, node in nodes.items():
        level[key] = 1 + max((level[one.key] for one in node.arguments), default=-1)
    relations = [
        _BARS.format(width=_interval(view.width), origin=_origin(view), bars=sql.SQL(bars.source))
    ]
    for depth in range(1 + max(level.values())):
        here = [node for key, node in nodes.items() if level[key] == depth]
        raw = [
            _named(_raw(node, number, view, len(relations) - 1), "r", number[node.key])
            for node in here
        ]
        relations.append(_next(len(relations), raw))
        guarded = [_named(_guarded(node, number), "v", number[node.key]) for node in here]
        relations.append(_next(len(relations), guarded))
    columns = [
        sql.SQL("{}{} AS {}").format(
            _value(expression, number),
            sql.SQL("::integer" if expression.is_integer else ""),
            sql.Identifier(name),
        )
        for name, expression in view.columns.items()
    ]
    return sql.SQL("WITH {} SELECT bucket, {} FROM {}").format(
        sql.SQL(", ").join(
            sql.SQL("{} AS MATERIALIZED ({})").format(_relation(at), one)
            for at, one in enumerate(relations)
        ),
        sql.SQL(", ").join(columns),
        _relation(len(relations) - 1),
    )


def _relation(at: int) -> sql.Identifier:
    return sql.Identifier(f"p{at}")


def _next(at: int, columns: list[sql.Composed]) -> sql.Composed:
    return sql.SQL("SELECT *, {} FROM {}").format(sql.SQL(", ").join(columns), _relation(at - 1))


def _named(value: sql.Composable, letter: str, at: int) -> sql.Composed:
    return sql.SQL("{} AS {}").format(value, sql.Identifier(f"{letter}{at}"))


def _guarded(node: Expression, number: dict[str, int]) -> sql.Composable:
    raw = sql.Identifier(f"r{number[node.key]}")
    if isinstance(node, Window) and node.aggregate is not None:
        return _aggregate(raw, node.aggregate)
    return raw if node.is_condition else _GUARD.format(raw)


def _value(node: Expression, number: dict[str, int]) -> sql.Composable:
    return sql.Identifier(f"v{number[node.key]}")


def _raw(
    node: Expression, number: dict[str, int], view: FeatureView, before: int
) -> sql.Composable:
    of = [_value(one, number) for one in node.arguments]
    match node:
        case Bar(field=field):
            return sql.Identifier(field)
        case Constant(value=value):
            return sql.SQL("{}::double precision").format(sql.Literal(repr(value)))
        case Call(function=function):
            return _call(function, of)
        case Lag(rows=rows, span=None):
            return sql.SQL("lag({}, {}) OVER (ORDER BY bucket)").format(of[0], sql.Literal(rows))
        case Lag(span=timedelta() as span):
            return sql.SQL(
                "last_value({}) OVER (ORDER BY bucket"
                " RANGE BETWEEN UNBOUNDED PRECEDING AND {} PRECEDING)"
            ).format(of[0], _interval(span))
        case Ema():
            return _ema(node, of[0], view, before)
        case Window():
            return _window(node, of, view)
    raise AssertionError(node)


def _call(function: str, of: list[sql.Composable]) -> sql.Composable:
    match function:
        case "neg":
            text = "-{0}"
        case "square":
            text = "power({0}, 2)"
        case "not":
            text = "NOT {0}"
        case "/":
            text = "{0} / nullif({1}, 0)"
        case "ln":
            text = "CASE WHEN {0} > 0 THEN ln({0}) END"
        case "log_ratio":
            text = "CASE WHEN {0} / nullif({1}, 0) > 0 THEN ln({0} / {1}) END"
        case "sqrt":
            text = "CASE WHEN {0} >= 0 THEN sqrt({0}) END"
        case "exp":
            text = "CASE WHEN {0} > 300 THEN NULL WHEN {0} < -300 THEN 0 ELSE exp({0}) END"
        case "where":
            text = "CASE WHEN {0} THEN {1} ELSE {2} END"
        case "abs" | "sign":
            text = function + "({0})"
        case "least" | "greatest":
            text = function + "(" + ", ".join(f"{{{at}}}" for at in range(len(of))) + ")"
        case _:
            text = f"{{0}} {function} {{1}}"
    return sql.SQL(text).format(*of)


def _window(node: Window, of: list[sql.Composable], view: FeatureView) -> sql.Composable:
    frame = sql.SQL("(ORDER BY bucket RANGE BETWEEN {} PRECEDING AND CURRENT ROW)").format(
        _interval(node.span - view.width)
    )
    warm = sql.SQL("bucket >= _first + {}").format(_interval(warm_up(node, view.width)))
    x = (
        sql.SQL("exact_vol")
        if str(node.of[0]) == "bar.vol"
        else sql.SQL("{}::text::numeric").format(of[0])
    )
    part = {"x": x, "v": of[0], "w": frame, "warm": warm}
    n = "count({v}) OVER {w}"
    square = (
        f"({n} * sum({{x}} * {{x}}) OVER {{w}} - sum({{x}}) OVER {{w}} * sum({{x}}) OVER {{w}})"
    )
    deviation = f"sqrt({square}::double precision) / {n}"
    average = f"(sum({{x}}) OVER {{w}})::double precision / {n}"
    match node.function:
        case "count":
            return sql.SQL("(" + n + ")::double precision").format(**part)
        case "sum":
            text = "(sum({x}) OVER {w})::double precision"
        case "mean":
            text = average
        case "std":
            text = deviation
        case "var":
            text = f"{square}::double precision / {n} / {n}"
        case "zscore":
            text = f"({{v}} - {average}) / nullif({deviation}, 0)"
        case "min" | "max":
            text = node.function + "({v}) OVER {w}"
        case "first":
            text = "(array_agg({v}) FILTER (WHERE {v} IS NOT NULL) OVER {w})[1]"
        case "last":
            text = "(array_agg({v}) FILTER (WHERE {v} IS NOT NULL) OVER {w})[count({v}) OVER {w}]"
        case "aggregate":
            text = "array_agg({v}) FILTER (WHERE {v} IS NOT NULL) OVER {w}"
        case _:
            return _pair(node, of, part)
    return sql.SQL("CASE WHEN {warm} THEN " + text + " END").format(**part)


def _pair(
    node: Window, of: list[sql.Composable], part: dict[str, sql.Composable]
) -> sql.Composable:
    y = (
        sql.SQL("exact_vol")
        if str(node.of[1]) == "bar.vol"
        else sql.SQL("{}::text::numeric").format(of[1])
    )
    both = sql.SQL("FILTER (WHERE {} IS NOT NULL AND {} IS NOT NULL) OVER {}").format(
        of[0], of[1], part["w"]
    )
    sums = {
        "n": sql.SQL("count(*) {}").format(both),
        "sx": sql.SQL("sum({}) {}").format(part["x"], both),
        "sy": sql.SQL("sum({}) {}").format(y, both),
        "sxx": sql.SQL("sum({0} * {0}) {1}").format(part["x"], both),
        "syy": sql.SQL("sum({0} * {0}) {1}").format(y, both),
        "sxy": sql.SQL("sum({} * {}) {}").format(part["x"], y, both),
    }
    return sql.SQL(
        "CASE WHEN {warm} THEN feature_platform.plain_pair({name}, {n}, {sx}, {sy}, {sxx}, {syy}, {sxy}) END"
    ).format(warm=part["warm"], name=sql.Literal(node.function), **sums)


def _aggregate(raw: sql.Composable, name: str) -> sql.Composable:
    """Return the value of an aggregate over an array of the window's values."""
    guarded = _GUARD.format(sql.SQL("a.value"))
    return sql.SQL(
        "(SELECT {guarded} FROM (SELECT {call} AS value"
        " FROM unnest({raw}) WITH ORDINALITY AS u (value, place)) AS a)"
    ).format(guarded=guarded, call=aggregate_call(name), raw=raw)


def _ema(node: Ema, of: sql.Composable, view: FeatureView, before: int) -> sql.Composable:
    grid = ema_grid(node.span, view.width)
    return sql.SQL(
        "CASE WHEN bucket >= _first + {warm} THEN"
        " (SELECT feature_platform.plain_ema(array_agg(bucket ORDER BY bucket),"
        " array_agg({x} ORDER BY bucket), {base}::double precision, {every}, {grid}) FROM {before})"
        "[row_number() OVER (ORDER BY bucket)] END"
    ).format(
        warm=_interval(warm_up(node, view.width)),
        x=of,
        before=_relation(before),
        base=sql.Literal(repr(1 - 2 / (node.span / view.width + 1))),
        every=sql.Literal(view.width // MINUTE * 60),
        grid=sql.Literal(grid // MINUTE * 60),
    )


def _interval(span: timedelta) -> sql.Composable:
    return sql.SQL("interval {}").format(sql.Literal(f"{span // MINUTE} minutes"))


def _origin(view: FeatureView) -> sql.Composable:
    return sql.SQL("timestamptz '1970-01-01 00:00+00' + {}").format(_interval(view.shift))
