"""The values of a view from columns of bars, in numpy, without a database.

It gives the very doubles that the database stores: the same sums, exact (exact.py), the same
operations in the same order, and logarithms, exponentials and powers of the same C library, which
Arrow calls; numpy's own may differ in the last bit. It shares the expression tree with the compiler
of the refresh and with plain.py, and nothing else.

Times are microseconds since the epoch. NaN stands for NULL: no value of a view is one. A condition
is 1, 0 or NaN.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from functools import partial

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from feature_platform.errors import UserError
from feature_platform.lake.exact import (
    Rounded,
    Running,
    Whole,
    running,
    running_products,
    spreads,
    sums,
    whole_numbers,
)
from feature_platform.views.aggregates import parse_aggregate
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

Doubles = npt.NDArray[np.float64]
Times = npt.NDArray[np.int64]
OfWindows = Callable[[Doubles, Times], Doubles]

_MICROSECOND = timedelta(microseconds=1)
_MINUTE = MINUTE // _MICROSECOND
_EXACT_BITS = 128
# The values of windows that are in memory at once: 30 MB.
_CELLS = 4_000_000

VOLUME = "bar.vol"
"""The expression whose exact sum over the bars of a bucket is used, not its double."""


@dataclass(frozen=True)
class Bars:
    """The bars of one symbol in the order of time."""

    ts: Times
    open: Doubles
    high: Doubles
    low: Doubles
    close: Doubles
    vol: Doubles


def check_aggregates(view: FeatureView) -> None:
    """Raise UserError where a view has an aggregate that only the database has."""
    for column, expression in view.columns.items():
        for node in walk(expression):
            if isinstance(node, Window) and node.aggregate is not None:
                _aggregate(node.aggregate, f"{view.name}.{column}")


def buckets_of(view: FeatureView, ts: Times) -> Times:
    """Return the start of the bucket of each time."""
    width, shift = _micro(view.width), _micro(view.shift)
    return (ts - shift) // width * width + shift


def needed_from(view: FeatureView, buckets: Times, wanted: int) -> int | None:
    """Return the time from which on bars are needed for the values from a bucket on.

    buckets: all existing ones of the symbol from some time on.
    None: some are needed before the first of these.
    """
    times = [_times(one, wanted, view, buckets) for one in view.columns.values()]
    return None if None in times else min(one for one in times if one is not None)


def _times(node: Expression, at: int, view: FeatureView, buckets: Times) -> int | None:
    """Return the earliest time from which on a value at a time needs bars."""
    match node:
        case Lag(rows=rows, span=span):
            before = at if span is None else at - _micro(span) + 1
            place = int(np.searchsorted(buckets, before)) - (rows if span is None else 1)  # type: ignore[operator]
            if place < 0:
                return None
            at = int(buckets[place])
        case Window(span=span):
            at -= _micro(span - view.width)
        case Ema(span=span):
            grid = _micro(ema_grid(span, view.width))
            at = (at // grid - 1) * grid
    found = [at, *(_times(one, at, view, buckets) for one in node.arguments)]
    return None if None in found else min(one for one in found if one is not None)


class Columns:
    """The values of a view at the buckets of some bars.

    A value is right only where all bars that it needs are given.
    bars: at least one.
    first: the first bucket of the symbol, from which the warm-up counts.
    """

    def __init__(self, view: FeatureView, bars: Bars, first: int) -> None:
        self._view = view
        self._first = first
        of_bar = buckets_of(view, bars.ts)
        self._starts = np.flatnonzero(np.diff(of_bar, prepend=of_bar[0] - 1))
        self.buckets = of_bar[self._starts]
        self._bars = bars
        self._known: dict[str, Doubles] = {}
        self._whole: dict[str, Whole] = {}
        self._running: dict[tuple[str, ...], Running] = {}
        self._rounded: dict[tuple[timedelta, tuple[str, ...]], Rounded] = {}
        self._bits: dict[str, int] = {}
        self._lows: dict[timedelta, Times] = {}

    def values(self, node: Expression) -> Doubles:
        """Return the value of an expression at each bucket."""
        if node.key not in self._known:
            with np.errstate(all="ignore"):
                raw = self._raw(node)
                self._known[node.key] = raw if node.is_condition else _guarded(raw)
        return self._known[node.key]

    def volume_texts(self) -> pa.Array:
        """Return the summed volume of each bucket as the text of a decimal."""
        if self._is_single:
            return pa.array(self._bars.vol).cast(pa.string())
        exact = self.exact_volume()
        return pa.array([str(exact.decimal(row)) for row in range(len(self.buckets))], pa.string())

    def exact_volume(self) -> Whole:
        """Return the summed volume of each bucket, without rounding."""
        if VOLUME not in self._whole:
            whole = whole_numbers(self._bars.vol)
            self._whole[VOLUME] = whole if self._is_single else whole.grouped(self._starts)
        return self._whole[VOLUME]

    def wide(self) -> list[str]:
        """Return the windows whose exact sums take more than 128 bits, which costs more time."""
        return [key for key, bits in self._bits.items() if bits > _EXACT_BITS]

    @property
    def _is_single(self) -> bool:
        return len(self._starts) == len(self._bars.ts)

    def _raw(self, node: Expression) -> Doubles:
        match node:
            case Bar(field=field):
                return self._bar(field)
            case Constant(value=value):
                return np.full(len(self.buckets), value)
            case Call(function=function):
                return _call(function, [self.values(one) for one in node.operands])
            case Lag():
                return self._lag(node)
            case Ema():
                return self._ema(node)
            case Window():
                return self._window(node)
        raise AssertionError(node)

    # ==== bars ====

    def _bar(self, field: str) -> Doubles:
        bars, starts = self._bars, self._starts
        match field:
            case "open":
                return bars.open[starts]
            case "high":
                return np.asarray(np.maximum.reduceat(bars.high, starts))
            case "low":
                return np.asarray(np.minimum.reduceat(bars.low, starts))
            case "close":
                last = np.append(starts[1:], len(bars.ts)) - 1
                return np.asarray(bars.close[last])
            case "vol":
                return bars.vol if self._is_single else self.exact_volume().doubles()
            case "vwap":
                return self._vwap()
            case "n":
                minutes = np.diff(bars.ts // _MINUTE, prepend=-1) != 0
                return np.add.reduceat(minutes.astype(np.int64), starts).astype(np.float64)
        raise AssertionError(field)

    def _vwap(self) -> Doubles:
        bars = self._bars
        price = (bars.open + bars.high + bars.low + bars.close) / 4
        volume = self._in_turn(bars.vol)
        count = np.diff(self._starts, append=len(bars.ts))
        traded = np.maximum.reduceat(bars.vol, self._starts) > 0
        return np.where(
            traded, self._in_turn(price * bars.vol) / volume, self._in_turn(price) / count
        )

    def _in_turn(self, values: Doubles) -> Doubles:
        """Return the sum over the bars of each bucket, one after another as the database does."""
        if self._is_single:
            return values
        count = np.diff(self._starts, append=len(values))
        total = values[self._starts].copy()
        for place in range(1, int(count.max())):
            rows = np.flatnonzero(count > place)
            total[rows] += values[self._starts[rows] + place]
        return total

    # ==== earlier buckets ====

    def _lag(self, node: Lag) -> Doubles:
        values = self.values(node.of)
        if node.span is None:
            assert node.rows is not None, "a lag has rows or a span"
            found = np.full(len(values), np.nan)
            found[node.rows :] = values[: -node.rows]
            return found
        place = np.searchsorted(self.buckets, self.buckets - _micro(node.span), "right") - 1
        return np.where(place >= 0, values[place], np.nan)

    def _low(self, span: timedelta) -> Times:
        """Return the first row of each row's window (bucket - span, bucket]."""
        if span not in self._lows:
            self._lows[span] = np.searchsorted(
                self.buckets, self.buckets - _micro(span), "right"
            ).astype(np.int64)
        return self._lows[span]

    def _warm(self, node: Expression, values: Doubles) -> Doubles:
        start = self._first + _micro(warm_up(node, self._view.width))
        return np.where(self.buckets >= start, values, np.nan)

    def _summed(self, node: Expression) -> Whole:
        if str(node) == VOLUME:
            return self.exact_volume()
        if node.key not in self._whole:
            self._whole[node.key] = whole_numbers(self.values(node))
        return self._whole[node.key]

    def _window(self, node: Window) -> Doubles:
        arguments = [self.values(one) for one in node.of]
        lo = self._low(node.span)
        kept = ~np.isnan(np.add.reduce(arguments))
        n = _window_count(kept, lo)
        if node.function == "count":
            return n.astype(np.float64)
        found = self._of_pairs(node, lo, n) if len(node.of) == 2 else self._of_one(node, lo, n)
        return self._warm(node, np.where(n > 0, found, np.nan))

    def _of_one(self, node: Window, lo: Times, n: Times) -> Doubles:
        values = self.values(node.of[0])
        match node.function:
            case "min":
                return _extreme(np.fmin, values, lo)
            case "max":
                return _extreme(np.fmax, values, lo)
            case "first":
                following = _next_kept(values)[lo].clip(max=len(values) - 1)
                return np.asarray(values[following])
            case "last":
                return values[_last_kept(values)]
            case "aggregate":
                return _of_windows(_aggregate(node.aggregate or "", str(node)), values, lo)
        if node.function == "sum":
            return self._sum(node, lo)
        if node.function == "mean":
            return self._sum(node, lo) / n
        spread = self._spread(node, node.of[0], node.of[0], lo, n)
        if node.function == "var":
            return spread / n / n
        deviation = np.sqrt(spread) / n
        if node.function == "std":
            return deviation
        mean = self._sum(node, lo) / n
        return (values - mean) / np.where(deviation == 0, np.nan, deviation)

    def _of_pairs(self, node: Window, lo: Times, n: Times) -> Doubles:
        x, y = node.of
        xy = self._spread(node, x, y, lo, n)
        if node.function == "cov":
            return xy / n / n
        yy = self._spread(node, y, y, lo, n)
        if node.function == "beta":
            return xy / np.where(yy == 0, np.nan, yy)
        xx = self._spread(node, x, x, lo, n)
        below = np.sqrt(xx) * np.sqrt(yy)
        found = np.clip(xy / np.where(below == 0, np.nan, below), -1, 1)
        return np.where((below >= 1e-150) & (np.abs(xy) < below * 1e-130), 0.0, found)

    def _sum(self, node: Window, lo: Times) -> Doubles:
        """Return the sum of a node's argument over each window."""
        key, whole = self._operand(node, node.of[0])
        at = (node.span, key)
        if at not in self._rounded:
            self._rounded[at] = sums(self._sums_of(key, whole), lo)
        return self._noted(node, self._rounded[at])

    def _spread(self, node: Window, x: Expression, y: Expression, lo: Times, n: Times) -> Doubles:
        """Return n * sum(x*y) - sum(x) * sum(y) over each window, of arguments of a node."""
        (key_x, whole_x), (key_y, whole_y) = self._operand(node, x), self._operand(node, y)
        if key_x == key_y:
            whole_y = whole_x
        key = (*key_x, "*", *key_y)
        at = (node.span, key)
        if at not in self._rounded:
            if key not in self._running:
                self._running[key] = running_products(whole_x, whole_y)
            of_x, of_y = self._sums_of(key_x, whole_x), self._sums_of(key_y, whole_y)
            self._rounded[at] = spreads(self._running[key], of_x, of_y, lo, n)
        return self._noted(node, self._rounded[at])

    def _operand(self, node: Window, x: Expression) -> tuple[tuple[str, ...], Whole]:
        """Return the numbers of an argument in the rows where all arguments of a node have one.

        Their name is that of the argument alone where the others lack no row of it.
        """
        whole = self._summed(x)
        is_there = ~np.isnan(self.values(x))
        for other in node.of:
            kept = ~np.isnan(self.values(other))
            if (is_there & ~kept).any():
                return (x.key, other.key), whole.kept(kept)
        return (x.key,), whole

    def _sums_of(self, key: tuple[str, ...], whole: Whole) -> Running:
        if key not in self._running:
            self._running[key] = running(whole)
        return self._running[key]

    def _noted(self, node: Expression, found: Rounded) -> Doubles:
        """Return sums, and note how many bits they take."""
        self._bits[node.key] = max(found.bits, self._bits.get(node.key, 0))
        return found.values

    def _ema(self, node: Ema) -> Doubles:
        """Return the means of all anchors' runs, one bucket of every run after another.

        The run of an anchor covers its own stretch of the grid, where nothing reads it yet, and the
        next one.
        """
        width, grid = self._view.width, _micro(ema_grid(node.span, self._view.width))
        all_values = self.values(node.of)
        rows = np.flatnonzero(~np.isnan(all_values))
        times, values = self.buckets[rows], all_values[rows]
        weights = _weights(times, _micro(width), 1 - 2 / (node.span / width + 1))
        added = (1 - weights) * values
        cell = self.buckets // grid
        cells = np.unique(cell)
        begin, middle, end = (np.searchsorted(times, (cells + at) * grid) for at in (-1, 0, 1))
        longest_first = np.argsort(begin - end, kind="stable")
        lengths = (end - begin)[longest_first]
        place, middle = begin[longest_first], middle[longest_first]
        mean = np.full(len(cells), np.nan)
        before = mean.copy()  # the mean at the end of the anchor's own stretch
        found = np.full(len(rows) + 1, np.nan)
        for step in range(int(lengths.max(initial=0))):
            here = slice(int(np.searchsorted(-lengths, -step)))
            at, is_read = place[here], place[here] >= middle[here]
            if step == 0:
                mean[here] = values[at]
            else:
                moved = weights[at] * mean[here] + added[at]
                mean[here] = np.where(np.abs(moved) < 1e-130, 0.0, moved)
            found[np.where(is_read, at, -1)] = mean[here]
            before[here] = np.where(is_read, before[here], mean[here])
            place[here] += 1
        of_cell = np.empty(len(cells))
        of_cell[longest_first] = before
        # A bucket without a value has the mean of the last one that its run has read.
        last = np.searchsorted(times, self.buckets, "right") - 1
        read = np.append(times, np.iinfo(np.int64).min)[last] >= cell * grid
        return self._warm(node, np.where(read, found[last], of_cell[np.searchsorted(cells, cell)]))


def _micro(span: timedelta) -> int:
    return span // _MICROSECOND


def _guarded(raw: Doubles) -> Doubles:
    size = np.abs(raw)
    return np.where(size <= 1e130, np.where(size >= 1e-130, raw, 0.0), np.nan)


def _weights(times: Times, every: int, base: float) -> Doubles:
    """Return the weight that a mean keeps at each value, for the time since the value before."""
    passed = np.diff(times, prepend=times[:1]) / every
    found = np.full(len(times), base)
    for row in np.flatnonzero(passed != 1).tolist():
        gap = float(passed[row])
        is_gone = base == 0 or gap * math.log(base) < -300
        found[row] = 0.0 if is_gone else math.pow(base, gap)
    return found


def _where_true(
    function: Callable[[pa.Array], pa.Array], x: Doubles, rows: npt.NDArray[np.bool_]
) -> Doubles:
    found = np.full(len(x), np.nan)
    found[rows] = np.asarray(function(pa.array(x[rows])))
    return found


def _call(function: str, of: list[Doubles]) -> Doubles:
    x = of[0]
    y = of[-1]
    match function:
        case "+":
            return x + y
        case "-":
            return x - y
        case "*":
            return x * y
        case "/":
            return x / np.where(y == 0, np.nan, y)
        case "neg":
            return -x
        case "square":
            return np.asarray(pc.power(pa.array(x), 2.0))
        case "abs":
            return np.abs(x)
        case "sign":
            return np.sign(x)
        case "sqrt":
            return np.sqrt(np.where(x >= 0, x, np.nan))
        case "ln":
            return _where_true(pc.ln, x, x > 0)
        case "log_ratio":
            ratio = x / np.where(y == 0, np.nan, y)
            return _where_true(pc.ln, ratio, ratio > 0)
        case "exp":
            found = _where_true(pc.exp, x, (x <= 300) & (x >= -300))
            return np.where(x < -300, 0.0, found)
        case "least":
            return np.asarray(np.fmin.reduce(of))
        case "greatest":
            return np.asarray(np.fmax.reduce(of))
        case "where":
            return np.where(x == 1, of[1], of[2])
        case "not":
            return 1 - x
        case "and":
            return np.where((x == 0) | (y == 0), 0.0, x * y)
        case "or":
            return np.where((x == 1) | (y == 1), 1.0, x + y)
    compared: npt.NDArray[np.bool_] = _COMPARISONS[function](x, y)
    return np.where(np.isnan(x) | np.isnan(y), np.nan, compared)


_COMPARISONS: dict[str, np.ufunc] = {
    "<": np.less,
    "<=": np.less_equal,
    ">": np.greater,
    ">=": np.greater_equal,
    "=": np.equal,
    "<>": np.not_equal,
}


def _window_count(kept: npt.NDArray[np.bool_], lo: Times) -> Times:
    running = np.zeros(len(kept) + 1, np.int64)
    np.cumsum(kept, out=running[1:])
    return running[1:] - running[lo]


def _extreme(better: np.ufunc, values: Doubles, lo: Times) -> Doubles:
    """Return the extreme of each window from those of two runs of 2^k rows that cover it."""
    here = np.arange(len(values))
    sizes = here - lo + 1
    found = np.full(len(values), np.nan)
    runs, length = values, 1  # runs[i] is the extreme of `length` rows from i on
    longest = int(sizes.max(initial=1))
    while True:
        rows = np.flatnonzero((sizes >= length) & (sizes < 2 * length))
        found[rows] = better(runs[lo[rows]], runs[rows - length + 1])
        if 2 * length > longest:
            return found
        runs = better(runs[:-length], runs[length:])
        length *= 2


def _next_kept(values: Doubles) -> Times:
    """Return for each row the first row from it on that has a value; the length where none."""
    place = np.where(np.isnan(values), len(values), np.arange(len(values)))
    return np.minimum.accumulate(place[::-1])[::-1]


def _last_kept(values: Doubles) -> Times:
    """Return for each row the last row up to it that has a value; 0 where none."""
    return np.maximum.accumulate(np.where(np.isnan(values), 0, np.arange(len(values))))


def _of_windows(of_windows: OfWindows, values: Doubles, lo: Times) -> Doubles:
    """Return a function of the values of each window, in the order of time."""
    here = np.arange(len(values))
    longest = int((here - lo).max(initial=0)) + 1
    back = np.arange(1 - longest, 1)
    found = np.full(len(values), np.nan)
    for rows in np.array_split(here, len(values) * longest // _CELLS + 1):
        place = rows[:, None] + back
        window = np.where(place >= lo[rows, None], values[place], np.nan)
        found[rows] = of_windows(window, np.count_nonzero(~np.isnan(window), axis=1))
    return found


def _aggregate(text: str, where: str) -> OfWindows:
    """Return the function of an aggregate; raises UserError for one that only the database has."""
    schema, name, fraction = parse_aggregate(text, where)
    if schema == "pg_catalog":
        if name in _PLAIN_AGGREGATES and fraction is None:
            return _PLAIN_AGGREGATES[name]
        if name == "percentile_cont" and fraction is not None:
            return partial(_percentile, fraction)
    known = ", ".join([*_PLAIN_AGGREGATES, "percentile_cont(fraction)"])
    raise UserError(
        f"{where}: aggregate {text} exists only in the database; outside of it there are {known}:"
        " build the view there, with `views apply`"
    )


def _total(window: Doubles, _: Times) -> Doubles:
    """Return the sums, each of one value after another, as the database adds them."""
    total = np.zeros(len(window))
    for column in np.where(np.isnan(window), 0.0, window).T:
        total += column
    return total


_PLAIN_AGGREGATES: dict[str, OfWindows] = {
    "avg": lambda window, n: _total(window, n) / n,
    "sum": _total,
    "min": lambda window, _: np.fmin.reduce(window, axis=1),
    "max": lambda window, _: np.fmax.reduce(window, axis=1),
    "count": lambda _, n: n.astype(np.float64),
}


def _percentile(fraction: float, window: Doubles, n: Times) -> Doubles:
    ordered = np.sort(window, axis=1)  # NaN comes last
    place = fraction * (n - 1).clip(min=0)
    below = np.floor(place).astype(np.int64)
    rows = np.arange(len(window))
    low, high = ordered[rows, below], ordered[rows, np.ceil(place).astype(np.int64)]
    return low + (place - below) * (high - low)
