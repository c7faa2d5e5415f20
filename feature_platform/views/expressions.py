"""The expression tree of feature views: bars, lags, windows, and arithmetic on their values.

Every expression has one value for each bucket of a symbol: a double, or NULL. A condition has true,
false or unknown. Values above 1e130 in magnitude are NULL, values below 1e-130 are 0.
"""

from __future__ import annotations

import builtins
import math
import re
from dataclasses import dataclass
from datetime import timedelta

from feature_platform.errors import UserError

MINUTE = timedelta(minutes=1)

BAR_FIELDS = ("open", "high", "low", "close", "vol", "vwap", "n")

# Windows of one argument, of two, and those whose sums have an inverse.
ONE_ARGUMENT = ("sum", "mean", "std", "var", "zscore", "count", "min", "max", "first", "last")
TWO_ARGUMENTS = ("corr", "cov", "beta")
SUMMED = ("sum", "mean", "std", "var", "zscore", "count", *TWO_ARGUMENTS)

COMPARISONS = ("<", "<=", ">", ">=", "=", "<>")

# Python's operators, and how strongly each binds.
_OPERATORS = {
    **{name: ({"=": "==", "<>": "!="}.get(name, name), 1) for name in COMPARISONS},
    "or": ("|", 2),
    "and": ("&", 3),
    "+": ("+", 4),
    "-": ("-", 4),
    "*": ("*", 5),
    "/": ("/", 5),
    "neg": ("-", 6),
    "not": ("~", 6),
    "square": ("** 2", 7),
}
_STRONGEST = 9

_UNITS = {"minute": 1, "hour": 60, "day": 1440, "week": 10080}
_SPAN = re.compile(r"\s*(\d{1,7})\s*(minute|hour|day|week)s?\s*")
_FUNCTION = re.compile(r"[a-z_][a-z0-9_]*(\.[a-z_][a-z0-9_]*)?")

Operand = "Expression | float | int"


def parse_span(text: str) -> timedelta:
    """Return the length of a span such as "90 minutes", "4 hours", "1 day".

    Raises UserError where the text is not a whole number of minutes, hours, days or weeks, above 0.
    """
    match = _SPAN.fullmatch(text) if isinstance(text, str) else None
    if match is None or int(match[1]) == 0:
        raise UserError(
            f"{text!r} is not a span: write a whole number of minutes, hours, days or weeks,"
            ' such as "4 hours"'
        )
    return int(match[1]) * _UNITS[match[2]] * MINUTE


def span_text(span: timedelta) -> str:
    """Return a span in words, in the largest unit that it is a whole number of."""
    minutes = span // MINUTE
    for unit in ("day", "hour", "minute"):
        if minutes % _UNITS[unit] == 0:
            number = minutes // _UNITS[unit]
            return _counted(number, unit)
    raise AssertionError(span)


def span_words(span: timedelta) -> str:
    """Return a span as people read it, such as "16 hours 8 minutes", "7 days" or "none".

    It has two units at most: beside days, minutes are rounded up to an hour.
    """
    minutes = span // MINUTE
    if minutes >= _UNITS["day"]:
        minutes = -(-minutes // _UNITS["hour"]) * _UNITS["hour"]
    parts = []
    for unit in ("day", "hour", "minute"):
        number, minutes = divmod(minutes, _UNITS[unit])
        if number:
            parts.append(_counted(number, unit))
    return " ".join(parts) or "none"


def _counted(number: int, unit: str) -> str:
    return f"{number} {unit}{'' if number == 1 else 's'}"


@dataclass(frozen=True, eq=False)
class Expression:
    """A value, or with `is_condition` a condition, for each bucket of a symbol."""

    @property
    def arguments(self) -> tuple[Expression, ...]:
        """Return the expressions that this one is computed from."""
        return ()

    @property
    def is_condition(self) -> bool:
        """Return whether the expression is true, false or unknown, and not a number."""
        return False

    @property
    def is_integer(self) -> bool:
        """Return whether the values are whole numbers: those of `count`."""
        return False

    @property
    def key(self) -> str:
        """Return the text that equal expressions share: the source of the expression."""
        return str(self)

    def __add__(self, other: Expression | float) -> Expression:
        return _call("+", self, other)

    def __radd__(self, other: float) -> Expression:
        return _call("+", other, self)

    def __sub__(self, other: Expression | float) -> Expression:
        return _call("-", self, other)

    def __rsub__(self, other: float) -> Expression:
        return _call("-", other, self)

    def __mul__(self, other: Expression | float) -> Expression:
        return _call("*", self, other)

    def __rmul__(self, other: float) -> Expression:
        return _call("*", other, self)

    def __truediv__(self, other: Expression | float) -> Expression:
        return _call("/", self, other)

    def __rtruediv__(self, other: float) -> Expression:
        return _call("/", other, self)

    def __pow__(self, exponent: int) -> Expression:
        if exponent != 2:
            raise UserError(f"({self}) ** {exponent!r}: only the square, ** 2, is known")
        return _call("square", self)

    def __neg__(self) -> Expression:
        return _call("neg", self)

    def __lt__(self, other: Expression | float) -> Expression:
        return _call("<", self, other)

    def __le__(self, other: Expression | float) -> Expression:
        return _call("<=", self, other)

    def __gt__(self, other: Expression | float) -> Expression:
        return _call(">", self, other)

    def __ge__(self, other: Expression | float) -> Expression:
        return _call(">=", self, other)

    def __eq__(self, other: object) -> Expression:  # type: ignore[override]
        return _call("=", self, other)

    def __ne__(self, other: object) -> Expression:  # type: ignore[override]
        return _call("<>", self, other)

    def __and__(self, other: Expression) -> Expression:
        return _call("and", self, other)

    def __or__(self, other: Expression) -> Expression:
        return _call("or", self, other)

    def __invert__(self) -> Expression:
        return _call("not", self)

    def __hash__(self) -> int:
        return hash(self.key)

    def __bool__(self) -> bool:
        raise UserError(
            f"{self} has no truth value in Python: use where(condition, a, b), &, | and ~"
        )


@dataclass(frozen=True, eq=False)
class Bar(Expression):
    """A field of the symbol's bar."""

    field: str

    def __str__(self) -> str:
        return f"bar.{self.field}"


@dataclass(frozen=True, eq=False)
class Constant(Expression):
    """A number."""

    value: float

    def __str__(self) -> str:
        return repr(self.value).removesuffix(".0")


@dataclass(frozen=True, eq=False)
class Call(Expression):
    """An operator or function of values of the same bucket."""

    function: str
    operands: tuple[Expression, ...]

    @property
    def arguments(self) -> tuple[Expression, ...]:
        return self.operands

    @property
    def is_condition(self) -> bool:
        return self.function in (*COMPARISONS, "and", "or", "not")

    def __str__(self) -> str:
        """Return the Python text of this tree and of no other one, without needless parentheses."""
        sign, strength = _OPERATORS.get(self.function, ("", _STRONGEST))
        if not sign:
            return f"{self.function}({', '.join(map(str, self.operands))})"
        if self.function in ("neg", "not"):
            return f"{sign}{_operand(self.operands[0], strength)}"
        if self.function == "square":
            return f"{_operand(self.operands[0], strength + 1)} ** 2"
        left, right = self.operands
        # Operators of one strength are read from the left; comparisons would be chained.
        weakest_left = strength + (self.function in COMPARISONS)
        return f"{_operand(left, weakest_left)} {sign} {_operand(right, strength + 1)}"


def _operand(one: Expression, weakest: int) -> str:
    """Return the text of an operand, in parentheses if its operator binds less than `weakest`."""
    match one:
        case Call():
            strength = _OPERATORS.get(one.function, ("", _STRONGEST))[1]
        case Constant() if one.value < 0:
            strength = _OPERATORS["neg"][1]
        case _:
            strength = _STRONGEST
    return str(one) if strength >= weakest else f"({one})"


@dataclass(frozen=True, eq=False)
class Lag(Expression):
    """The value at an earlier bucket: so many existing buckets before, or at least a span before.

    rows: how many existing buckets; None where `span` is given.
    """

    of: Expression
    rows: int | None
    span: timedelta | None

    @property
    def arguments(self) -> tuple[Expression, ...]:
        return (self.of,)

    def __str__(self) -> str:
        if self.span is not None:
            return f'lag({self.of}, "{span_text(self.span)}")'
        return f"lag({self.of})" if self.rows == 1 else f"lag({self.of}, {self.rows})"


@dataclass(frozen=True, eq=False)
class Window(Expression):
    """A function of the values in (bucket - span, bucket].

    function: one of ONE_ARGUMENT or TWO_ARGUMENTS, or "aggregate".
    aggregate: the name of the database's aggregate, where the function is "aggregate".
    """

    function: str
    of: tuple[Expression, ...]
    span: timedelta
    aggregate: str | None = None

    @property
    def arguments(self) -> tuple[Expression, ...]:
        return self.of

    @property
    def is_integer(self) -> bool:
        return self.function == "count"

    def __str__(self) -> str:
        name = "" if self.aggregate is None else f'"{self.aggregate}", '
        shown = ", ".join(str(one) for one in self.of)
        return f'{self.function}({name}{shown}, "{span_text(self.span)}")'


@dataclass(frozen=True, eq=False)
class Ema(Expression):
    """The time-decayed mean of all values, with the weight of an exponential mean over a span."""

    of: Expression
    span: timedelta

    @property
    def arguments(self) -> tuple[Expression, ...]:
        return (self.of,)

    def __str__(self) -> str:
        return f'ema({self.of}, "{span_text(self.span)}")'


class _Bars:
    """The fields of a symbol's bars."""

    open = Bar("open")
    high = Bar("high")
    low = Bar("low")
    close = Bar("close")
    vol = Bar("vol")
    vwap = Bar("vwap")
    n = Bar("n")

    def __getattr__(self, name: str) -> Bar:
        raise UserError(f"bar.{name} is unknown: a bar has {', '.join(BAR_FIELDS)}")


bar = _Bars()


def lag(x: Expression | float, back: int | str = 1) -> Expression:
    """Return x at an earlier bucket.

    back: a number n, for the n-th previous existing bucket; or a span such as "1 hour", for the
        newest existing bucket at or before bucket - span.
    """
    of = _value(x, "lag")
    if isinstance(back, str):
        return Lag(of, None, parse_span(back))
    if isinstance(back, bool) or not isinstance(back, int) or not 1 <= back <= 10_000:
        raise UserError(f'lag({of}, {back!r}): give a number from 1 to 10000, or a span, "1 hour"')
    return Lag(of, back, None)


def sum(x: Expression | float, span: str) -> Expression:
    """Return the sum of x over (bucket - span, bucket]."""
    return _window("sum", span, x)


def mean(x: Expression | float, span: str) -> Expression:
    """Return the mean of x over (bucket - span, bucket]."""
    return _window("mean", span, x)


def std(x: Expression | float, span: str) -> Expression:
    """Return the population standard deviation of x over (bucket - span, bucket]."""
    return _window("std", span, x)


def var(x: Expression | float, span: str) -> Expression:
    """Return the population variance of x over (bucket - span, bucket]."""
    return _window("var", span, x)


def zscore(x: Expression | float, span: str) -> Expression:
    """Return (x - mean) / std over (bucket - span, bucket]; NULL where std is 0."""
    return _window("zscore", span, x)


def count(x: Expression | float, span: str) -> Expression:
    """Return how many values of x in (bucket - span, bucket] are not NULL; never NULL."""
    return _window("count", span, x)


def min(x: Expression | float, span: str) -> Expression:
    """Return the smallest x over (bucket - span, bucket]."""
    return _window("min", span, x)


def max(x: Expression | float, span: str) -> Expression:
    """Return the greatest x over (bucket - span, bucket]."""
    return _window("max", span, x)


def first(x: Expression | float, span: str) -> Expression:
    """Return the oldest x in (bucket - span, bucket] that is not NULL."""
    return _window("first", span, x)


def last(x: Expression | float, span: str) -> Expression:
    """Return the newest x in (bucket - span, bucket] that is not NULL."""
    return _window("last", span, x)


def corr(x: Expression | float, y: Expression | float, span: str) -> Expression:
    """Return the correlation of x and y over (bucket - span, bucket]."""
    return _window("corr", span, x, y)


def cov(x: Expression | float, y: Expression | float, span: str) -> Expression:
    """Return the population covariance of x and y over (bucket - span, bucket]."""
    return _window("cov", span, x, y)


def beta(x: Expression | float, y: Expression | float, span: str) -> Expression:
    """Return the slope of x on y, cov(x, y) / var(y), over (bucket - span, bucket]."""
    return _window("beta", span, x, y)


def ema(x: Expression | float, span: str) -> Expression:
    """Return the time-decayed mean of x: e = w*e + (1-w)*x, NULL in the first three spans.

    w is (1 - a) ^ (time since the previous bucket / every) with a = 2 / (span / every + 1).
    """
    return Ema(_value(x, "ema"), parse_span(span))


def aggregate(name: str, x: Expression | float, span: str) -> Expression:
    """Return an aggregate of the database over the values of x in (bucket - span, bucket].

    name: of an immutable aggregate of one double, with its schema, "public.my_aggregate"; or of an
        ordered-set aggregate with its fraction, "percentile_cont(0.5)". A name without a schema is
        one of PostgreSQL's own, in pg_catalog.
    """
    if isinstance(name, str) and "." not in name.partition("(")[0]:
        name = f"pg_catalog.{name}"
    return Window("aggregate", (_value(x, "aggregate"),), parse_span(span), name)


def ln(x: Expression | float) -> Expression:
    """Return the natural logarithm; NULL where x <= 0."""
    return _call("ln", x)


def log_ratio(x: Expression | float, y: Expression | float) -> Expression:
    """Return ln(x / y); NULL where x / y <= 0. The quotient itself may be beyond 1e130."""
    return _call("log_ratio", x, y)


def exp(x: Expression | float) -> Expression:
    """Return e to the power of x."""
    return _call("exp", x)


def sqrt(x: Expression | float) -> Expression:
    """Return the square root; NULL where x < 0."""
    return _call("sqrt", x)


def abs(x: Expression | float) -> Expression:
    """Return the absolute value."""
    return _call("abs", x)


def sign(x: Expression | float) -> Expression:
    """Return -1, 0 or 1."""
    return _call("sign", x)


def least(*values: Expression | float) -> Expression:
    """Return the smallest of the values that are not NULL."""
    return _call("least", *values)


def greatest(*values: Expression | float) -> Expression:
    """Return the greatest of the values that are not NULL."""
    return _call("greatest", *values)


def where(condition: Expression, a: Expression | float, b: Expression | float) -> Expression:
    """Return a where the condition is true, else b."""
    if not isinstance(condition, Expression) or not condition.is_condition:
        raise UserError(f"where({condition}, …): the first argument is not a condition")
    return Call("where", (condition, _value(a, "where"), _value(b, "where")))


def _value(x: object, where: str) -> Expression:
    """Return x as an expression that has a number as its value."""
    if isinstance(x, Expression):
        if x.is_condition:
            raise UserError(f"{where} of {x}: a condition is not a number, use where(…, 1, 0)")
        return x
    if isinstance(x, bool) or not isinstance(x, int | float) or not math.isfinite(x):
        raise UserError(f"{where} of {x!r}: it is neither an expression nor a finite number")
    if x and not 1e-130 <= builtins.abs(x) <= 1e130:
        raise UserError(f"{where} of {x!r}: a number is 0 or from 1e-130 to 1e130 in magnitude")
    return Constant(float(x) + 0.0)


def _condition(x: object, where: str) -> Expression:
    if isinstance(x, Expression) and x.is_condition:
        return x
    raise UserError(f"{where} of {x}: it is not a condition")


def _call(function: str, *operands: object) -> Expression:
    take = _condition if function in ("and", "or", "not") else _value
    found = tuple(take(one, function) for one in operands)
    if not found:
        raise UserError(f"{function} needs at least one value")
    return Call(function, found)


def _window(function: str, span: str, *of: object) -> Expression:
    return Window(function, tuple(_value(one, function) for one in of), parse_span(span))


def walk(expression: Expression) -> list[Expression]:
    """Return an expression and all that it is computed from, arguments first, each once."""
    found: dict[str, Expression] = {}

    def visit(one: Expression) -> None:
        if one.key not in found:
            for argument in one.arguments:
                visit(argument)
            found[one.key] = one

    visit(expression)
    return list(found.values())
