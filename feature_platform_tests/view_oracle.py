"""The values of feature views, computed in Python from the definitions of docs/views.md.

It shares the expression tree with the platform and nothing else: no SQL, no cached state, no
running sums. Each value is computed from the whole history of a symbol, and sums are exact.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import timedelta
from decimal import Decimal
from fractions import Fraction

from feature_platform.views import FeatureView
from feature_platform.views.expressions import Bar, Call, Constant, Ema, Expression, Lag, Window
from feature_platform_tests.oracle import MINUTE
from feature_platform_tests.oracle import Bar as Row

Value = float | None | bool

# The allowed relative difference. math.log and the server's ln may differ in the last bit, and
# nested windows add up such differences.
RELATIVE = 1e-9


@dataclass
class Bucket:
    """The bars of one bucket of a symbol; start in microseconds since the epoch."""

    start: int
    fields: dict[str, float]
    volume: Fraction


def expected_rows(
    view: FeatureView, rows: Sequence[Row], closed: int | None = None
) -> dict[int, dict[str, Value]]:
    """Return the columns of a view by bucket, for the bars of one symbol.

    closed: microseconds since the epoch at which the newest closed bucket ends.
    """
    buckets = _buckets(view, rows)
    oracle = _Oracle(view, buckets)
    columns = {name: oracle.values(expression) for name, expression in view.columns.items()}
    width = _micro(view.width)
    return {
        bucket.start: {name: values[at] for name, values in columns.items()}
        for at, bucket in enumerate(buckets)
        if closed is None or bucket.start + width <= closed
    }


def same(stored: Value, expected: Value, scale: float = 0.0) -> bool:
    """Return whether a stored value is the expected one, but for rounding."""
    if stored is None or expected is None:
        return stored is expected
    return abs(stored - expected) <= RELATIVE * max(abs(stored), abs(expected), scale)


def _micro(span: timedelta) -> int:
    return span // timedelta(microseconds=1)


def _exact(value: float) -> Fraction:
    return Fraction(Decimal(repr(value)))


def _buckets(view: FeatureView, rows: Sequence[Row]) -> list[Bucket]:
    width, shift = _micro(view.width), _micro(view.shift)
    grouped: dict[int, list[Row]] = {}
    for row in sorted(rows, key=lambda row: row.ts):
        grouped.setdefault((row.ts - shift) // width * width + shift, []).append(row)
    found = []
    for start, group in sorted(grouped.items()):
        prices = [(row.open + row.high + row.low + row.close) / 4 for row in group]
        volume = sum((_exact(row.vol) for row in group), Fraction())
        if any(row.vol > 0 for row in group):
            traded = sum(price * row.vol for price, row in zip(prices, group, strict=True))
            vwap = traded / sum(row.vol for row in group)
        else:
            vwap = sum(prices) / len(prices)
        fields = {
            "open": group[0].open,
            "high": max(row.high for row in group),
            "low": min(row.low for row in group),
            "close": group[-1].close,
            "vol": float(volume),
            "vwap": vwap,
            "n": float(len({row.ts // MINUTE for row in group})),
        }
        found.append(Bucket(start, fields, volume))
    return found


def _guarded(value: float | None) -> float | None:
    if value is None or math.isnan(value) or abs(value) > 1e130:
        return None
    return 0.0 if abs(value) < 1e-130 else value


class _Oracle:
    def __init__(self, view: FeatureView, buckets: list[Bucket]) -> None:
        self.width = _micro(view.width)
        self.buckets = buckets
        self.starts = [bucket.start for bucket in buckets]
        self.known: dict[str, list[Value]] = {}

    def values(self, node: Expression) -> list[Value]:
        if node.key not in self.known:
            raw = self._raw(node)
            self.known[node.key] = [
                value if isinstance(value, bool) else _guarded(value) for value in raw
            ]
        return self.known[node.key]

    def _raw(self, node: Expression) -> Sequence[Value]:
        match node:
            case Bar(field=field):
                return [bucket.fields[field] for bucket in self.buckets]
            case Constant(value=value):
                return [value] * len(self.buckets)
            case Call():
                columns = [self.values(one) for one in node.operands]
                return [_call(node.function, list(row)) for row in zip(*columns, strict=True)]
            case Lag():
                return self._lag(node)
            case Ema():
                return self._ema(node)
            case Window():
                return self._window(node)
        raise AssertionError(node)

    def _lag(self, node: Lag) -> list[Value]:
        values = self.values(node.of)
        if node.rows is not None:
            return [None] * min(node.rows, len(values)) + values[: -node.rows]
        assert node.span is not None
        span = _micro(node.span)
        found: list[Value] = []
        for start in self.starts:
            earlier = [at for at, other in enumerate(self.starts) if other <= start - span]
            found.append(values[earlier[-1]] if earlier else None)
        return found

    def _warm_up(self, node: Expression) -> int:
        inner = max((self._warm_up(one) for one in node.arguments), default=0)
        if isinstance(node, Window):
            return inner + _micro(node.span) - self.width
        return inner + 3 * _micro(node.span) if isinstance(node, Ema) else inner

    def _is_warm(self, node: Expression, at: int) -> bool:
        return self.starts[at] >= self.starts[0] + self._warm_up(node)

    def _ema(self, node: Ema) -> list[Value]:
        values = self.values(node.of)
        buckets = _micro(node.span) // self.width
        base = 1 - 2 / (buckets + 1)
        length = 1 if buckets <= 1 else math.ceil(math.log(1e-12) / math.log(base))
        grid = length * self.width
        found: list[Value] = []
        for at, start in enumerate(self.starts):
            anchor = (start // grid - 1) * grid
            mean: float | None = None
            before = 0
            for other in range(at + 1):
                value = values[other]
                if self.starts[other] < anchor or value is None:
                    continue
                if mean is None:
                    mean = float(value)
                else:
                    weight = base ** ((self.starts[other] - before) / self.width) if base else 0.0
                    mean = weight * mean + (1 - weight) * value
                before = self.starts[other]
            found.append(mean if self._is_warm(node, at) else None)
        return found

    def _window(self, node: Window) -> list[Value]:
        span = _micro(node.span)
        arguments = [self.values(one) for one in node.of]
        exact = [self._exact(one) for one in node.of]
        found: list[Value] = []
        for at, start in enumerate(self.starts):
            inside = [other for other in range(at + 1) if self.starts[other] > start - span]
            kept = [i for i in inside if all(values[i] is not None for values in arguments)]
            if node.function == "count":
                found.append(float(len(kept)))
            elif not kept or not self._is_warm(node, at):
                found.append(None)
            elif len(arguments) == 2:
                pairs = [[column[i] for i in kept] for column in exact]
                found.append(_pair(node.function, pairs[0], pairs[1]))
            else:
                column = [float(arguments[0][i]) for i in kept]  # type: ignore[arg-type]
                sums = [exact[0][i] for i in kept]
                newest = arguments[0][at]
                found.append(_of_one(node, column, sums, newest))
        return found

    def _exact(self, node: Expression) -> list[Fraction]:
        if node.key == "bar.vol":
            return [bucket.volume for bucket in self.buckets]
        return [Fraction() if x is None else _exact(float(x)) for x in self.values(node)]


def _of_one(
    node: Window, column: list[float], exact: list[Fraction], newest: Value
) -> float | None:
    n = len(column)
    total, squares = sum(exact, Fraction()), sum((x * x for x in exact), Fraction())
    spread = n * squares - total * total
    deviation = math.sqrt(float(spread)) / n
    mean = float(total) / n
    aggregates: dict[str, Callable[[], float | None]] = {
        "sum": lambda: float(total),
        "mean": lambda: mean,
        "std": lambda: deviation,
        "var": lambda: float(spread) / n / n,
        "zscore": lambda: (
            None if newest is None or not deviation else (float(newest) - mean) / deviation
        ),
        "min": lambda: min(column),
        "max": lambda: max(column),
        "first": lambda: column[0],
        "last": lambda: column[-1],
        "aggregate": lambda: _aggregate(node.aggregate or "", column),
    }
    return aggregates[node.function]()


def _aggregate(name: str, column: list[float]) -> float:
    if name == "pg_catalog.avg":
        return sum(column) / len(column)
    fraction = float(name.removeprefix("pg_catalog.percentile_cont(").removesuffix(")"))
    ordered = sorted(column)
    place = fraction * (len(ordered) - 1)
    low, high = ordered[math.floor(place)], ordered[math.ceil(place)]
    return low + (place - math.floor(place)) * (high - low)


def _pair(function: str, x: list[Fraction], y: list[Fraction]) -> float | None:
    n = len(x)
    sx, sy = sum(x, Fraction()), sum(y, Fraction())
    xy = n * sum((a * b for a, b in zip(x, y, strict=True)), Fraction()) - sx * sy
    xx = n * sum((a * a for a in x), Fraction()) - sx * sx
    yy = n * sum((b * b for b in y), Fraction()) - sy * sy
    if function == "cov":
        return float(xy) / n / n
    if function == "beta":
        return None if not yy else _quotient(xy, yy)
    if not xx or not yy:
        return None
    deviations = math.sqrt(float(xx)) * math.sqrt(float(yy))
    return None if not deviations else max(-1.0, min(1.0, float(xy) / deviations))


def _quotient(x: Fraction, y: Fraction) -> float:
    """Return a quotient, which may be out of the range of a double."""
    try:
        return float(x) / float(y)
    except ZeroDivisionError:
        return math.inf


def _call(function: str, of: list[Value]) -> Value:
    if function in ("least", "greatest"):
        kept = [x for x in of if x is not None]
        return None if not kept else (min if function == "least" else max)(kept)
    if function == "where":
        return of[1] if of[0] is True else of[2]
    if function == "and":
        return False if False in of else None if None in of else True
    if function == "or":
        return True if True in of else None if None in of else False
    if None in of:
        return None
    x = of[0]
    y = of[-1]
    assert x is not None
    assert y is not None
    operators: dict[str, Callable[[], Value]] = {
        "+": lambda: x + y,
        "-": lambda: x - y,
        "*": lambda: x * y,
        "/": lambda: None if y == 0 else x / y,
        "<": lambda: x < y,
        "<=": lambda: x <= y,
        ">": lambda: x > y,
        ">=": lambda: x >= y,
        "=": lambda: x == y,
        "<>": lambda: x != y,
        "not": lambda: not x,
        "neg": lambda: -x,
        "square": lambda: x * x,
        "abs": lambda: abs(x),
        "sign": lambda: float((x > 0) - (x < 0)),
        "ln": lambda: math.log(x) if x > 0 else None,
        "log_ratio": lambda: math.log(x / y) if y != 0 and x / y > 0 else None,
        "sqrt": lambda: math.sqrt(x) if x >= 0 else None,
        "exp": lambda: None if x > 300 else 0.0 if x < -300 else math.exp(x),
    }
    return operators[function]()
