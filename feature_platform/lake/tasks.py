"""The division of a build into tasks, and the rows of one task.

A task is some symbols in a span of time. It reads the bars of its span and of the look-back before
it, and nothing that another task has computed.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import timedelta

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from feature_platform.lake.bars import LakeBars, Span
from feature_platform.lake.columnar import VOLUME, Bars, Columns, buckets_of, needed_from
from feature_platform.views import compiler
from feature_platform.views.expressions import Expression
from feature_platform.views.view import FeatureView, look_back

_MICROSECOND = timedelta(microseconds=1)
# The rows of a task, at most about this many: a task of one symbol has 30 to 200 arrays of its rows
# in memory at once.
_TASK_ROWS = 250_000
# And at least so many look-backs long, of which it reads one more.
_LOOK_BACKS = 4


@dataclass(frozen=True)
class Task:
    """The rows of some symbols with start <= bucket < end, in microseconds since the epoch.

    end: bars before it are complete, so a bucket that ends later is not computed.
    """

    view: FeatureView
    bars: LakeBars
    symbols: tuple[Span, ...]
    start: int
    end: int


@dataclass(frozen=True)
class Computed:
    """The rows of a task.

    wide: the windows, as expressions, whose exact sums need more than 128 bits, with their symbols.
    """

    rows: pa.Table
    wide: dict[str, set[str]]


def tasks_of(
    view: FeatureView, bars: LakeBars, symbols: Sequence[Span], start: int, end: int
) -> Iterator[Task]:
    """Yield the tasks of a build, symbol by symbol."""
    width = view.width // _MICROSECOND
    back = max(look_back(one, view.width) for one in view.columns.values()) // _MICROSECOND
    length = max(_TASK_ROWS * width, _LOOK_BACKS * back) // width * width
    group: list[Span] = []
    rows = 0
    for one in symbols:
        first = max(start, int(_bucket(view, one.first)))
        until = min(end, int(_bucket(view, one.last)) + width)
        if first >= until:
            continue
        if until - first <= length:
            if group and rows + (until - first) > length:
                yield Task(view, bars, tuple(group), start, end)
                group, rows = [], 0
            group.append(one)
            rows += until - first
            continue
        for low in range(first, until, length):
            yield Task(view, bars, (one,), low, min(low + length, until))
    if group:
        yield Task(view, bars, tuple(group), start, end)


def schema_of(view: FeatureView) -> pa.Schema:
    """Return the columns of the rows of a build: those of the view, and its inner values."""
    fields = [pa.field("symbol", pa.string()), pa.field("bucket", pa.timestamp("us", "UTC"))]
    for name, one in view.columns.items():
        fields.append(pa.field(name, pa.int32() if one.is_integer else pa.float64()))
    for name, one in inner_columns(view).items():
        fields.append(pa.field(name, pa.string() if str(one) == VOLUME else pa.float64()))
    return pa.schema(fields)


def inner_columns(view: FeatureView) -> dict[str, Expression]:
    """Return the values that the database stores beside a view, under names that no column has."""
    plan = compiler.Plan(view)
    return {f"_x{plan.number[key]}": one for key, one in plan.inner.items()}


def compute(task: Task) -> Computed:
    """Return the rows of a task."""
    schema = schema_of(task.view)
    parts = [schema.empty_table()]
    wide: dict[str, set[str]] = defaultdict(set)
    for one in task.symbols:
        bars, start = _bars_of(task, one)
        if not len(bars.ts):
            continue
        columns = Columns(task.view, bars, int(_bucket(task.view, one.first)))
        kept = columns.buckets >= start
        kept &= columns.buckets + task.view.width // _MICROSECOND <= task.end
        parts.append(_table(task.view, one.symbol, columns, kept, schema))
        for key in columns.wide():
            wide[key].add(one.symbol)
    return Computed(pa.concat_tables(parts), dict(wide))


def _bars_of(task: Task, one: Span) -> tuple[Bars, int]:
    """Return the bars that the rows of a symbol need, and from which bucket on they are right."""
    view = task.view
    start = max(task.start, int(_bucket(view, one.first)))
    back = max(look_back(node, view.width) for node in view.columns.values()) // _MICROSECOND
    while True:
        # Across gaps, a lag may need older bars than the look-back on bars without gaps.
        read_from = max(start - back, int(_bucket(view, one.first)))
        bars = task.bars.read(one.symbol, read_from, task.end)
        if read_from <= int(_bucket(view, one.first)):
            return bars, start
        buckets = np.unique(buckets_of(view, bars.ts))
        needed = needed_from(view, buckets, start)
        if needed is not None and needed >= read_from:
            return bars, start
        back *= 2


def _table(
    view: FeatureView,
    symbol: str,
    columns: Columns,
    kept: npt.NDArray[np.bool_],
    schema: pa.Schema,
) -> pa.Table:
    buckets = columns.buckets[kept]
    arrays = [
        pa.array([symbol]).take(pa.array(np.zeros(len(buckets), np.int8))),
        pa.array(buckets).cast(pa.timestamp("us", "UTC")),
    ]
    for name, one in [*view.columns.items(), *inner_columns(view).items()]:
        if name not in view.columns and str(one) == VOLUME:
            arrays.append(columns.volume_texts().filter(pa.array(kept)))
            continue
        values = pa.array(columns.values(one)[kept], from_pandas=True)
        arrays.append(values.cast(schema.field(name).type))
    return pa.Table.from_arrays(arrays, schema=schema)


def _bucket(view: FeatureView, ts: int) -> np.int64:
    return np.int64(buckets_of(view, np.array([ts]))[0])
