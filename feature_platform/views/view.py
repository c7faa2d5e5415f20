"""A feature view: its name, bar width and columns, checked."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from datetime import timedelta
from typing import ClassVar

from feature_platform.errors import UserError
from feature_platform.views.aggregates import parse_aggregate
from feature_platform.views.expressions import (
    Ema,
    Expression,
    Lag,
    Window,
    parse_span,
    span_text,
    walk,
)

_NAME = re.compile(r"[a-z][a-z0-9_]{0,50}")
# The key, the fields of the service's rows, and the columns that every table of PostgreSQL has.
_RESERVED_COLUMNS = frozenset(
    {
        *("symbol", "bucket", "refresh_no", "since", "until"),
        *("symbol_no", "waiting", "waiting_no", "age_seconds", "stale"),
        *("tableoid", "xmin", "cmin", "xmax", "cmax", "ctid"),
    }
)
MAX_COLUMNS = 200
MAX_LOOK_BACK = timedelta(days=400)
DAY = timedelta(days=1)


@dataclass(frozen=True)
class FeatureView:
    """A table of features that the platform keeps exact.

    name: of the table, in the schema public.
    every: the bar width, a whole number of minutes that divides a day: "1 minute", "4 hours".
    columns: an expression by column name; the table also has symbol and bucket.
    offset: moves the buckets: "16 hours" with every="1 day" begins each day at 16:00 UTC.
    description: becomes the table's comment.
    Raises UserError, which names the column and the expression, where a part is not possible.
    """

    name: str
    every: str
    columns: Mapping[str, Expression]
    offset: str | None = None
    description: str = ""
    reserved: ClassVar[frozenset[str]] = frozenset({"ohlcv_1m", "ohlcv_1m_gaps", "features_1m"})

    def __post_init__(self) -> None:
        _check_name(self.name, "the view", self.reserved)
        width = parse_span(self.every)
        if width > DAY or DAY % width:
            raise UserError(
                f"{self.name}: every={self.every!r} does not divide a day: "
                "use 1, 5, 15 minutes, 1 hour, 4 hours, 1 day or the like"
            )
        if self.offset is not None and parse_span(self.offset) >= width:
            raise UserError(
                f"{self.name}: offset {self.offset!r} is not less than every {self.every!r}"
            )
        if not 1 <= len(self.columns) <= MAX_COLUMNS:
            raise UserError(f"{self.name}: a view has 1 to {MAX_COLUMNS} columns")
        for column, expression in self.columns.items():
            _check_name(column, f"{self.name}: the column", _RESERVED_COLUMNS)
            self._check_column(column, expression)

    @property
    def width(self) -> timedelta:
        """Return the bar width."""
        return parse_span(self.every)

    @property
    def shift(self) -> timedelta:
        """Return how far the buckets are moved from midnight UTC."""
        return timedelta() if self.offset is None else parse_span(self.offset)

    def _check_column(self, column: str, expression: object) -> None:
        where = f"{self.name}.{column}"
        if not isinstance(expression, Expression):
            raise UserError(f"{where}: {expression!r} is not an expression")
        if expression.is_condition:
            raise UserError(f"{where}: {expression} is a condition, use where({expression}, 1, 0)")
        width = self.width
        for node in walk(expression):
            span = getattr(node, "span", None)
            if span is not None and span % width:
                raise UserError(
                    f"{where}: span '{span_text(span)}' is not a multiple of every"
                    f" '{self.every}' in {node}"
                )
            if isinstance(node, Window) and node.function == "aggregate":
                parse_aggregate(node.aggregate or "", where)
        back = look_back(expression, width)
        if back > MAX_LOOK_BACK:
            raise UserError(f"{where}: it looks back {back.days} days; the most is 400 days")


def look_back(expression: Expression, width: timedelta) -> timedelta:
    """Return how far before a bucket its value may look on gapless data."""
    inner = max((look_back(one, width) for one in expression.arguments), default=timedelta())
    match expression:
        case Lag(rows=rows, span=span):
            return inner + (span if span is not None else (rows or 0) * width)
        case Window(span=span):
            return inner + span - width
        case Ema(span=span):
            return inner + 2 * ema_grid(span, width)
        case _:
            return inner


def warm_up(expression: Expression, width: timedelta) -> timedelta:
    """Return how long after the first bucket of a symbol a value is NULL for want of history."""
    inner = max((warm_up(one, width) for one in expression.arguments), default=timedelta())
    match expression:
        case Window(span=span):
            return inner + span - width
        case Ema(span=span):
            return inner + 3 * span
        case _:
            return inner


def ema_grid(span: timedelta, width: timedelta) -> timedelta:
    """Return the distance of an ema's anchors: so long that older values weigh less than 1e-12."""
    import math

    n = span / width
    buckets = 1 if n <= 1 else math.ceil(math.log(1e-12) / math.log(1 - 2 / (n + 1)))
    return buckets * width


def _check_name(name: object, which: str, reserved: Collection[str]) -> None:
    if not isinstance(name, str) or not _NAME.fullmatch(name) or name in reserved:
        raise UserError(
            f"{which} {name!r}: a name has lower-case letters, digits and underscores, begins with"
            f" a letter, has at most 51 characters, and is none of {', '.join(sorted(reserved))}"
        )
