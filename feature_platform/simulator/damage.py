"""Invalid bars: changes of the six fields of a bar, as by an error of an exchange."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from feature_platform.simulator.faults import Damage

# Start in milliseconds, open, high, low, close, volume; of a REST row, all fields after them too.
Fields = list[Any]


def damaged(fields: Fields, damage: Damage) -> Any:
    """Return the fields of a bar with a damage, which may leave none."""
    return _DAMAGE[damage](fields)


def _with(at: int, value: Any) -> Callable[[Fields], Any]:
    return lambda fields: [*fields[:at], value, *fields[at + 1 :]]


def _high_below_low(fields: Fields) -> Any:
    return _with(2, f"{float(fields[3]) / 2:.8f}")(fields)


_DAY_MS = 86_400_000

_DAMAGE: dict[Damage, Callable[[Fields], Any]] = {
    "missing_price": _with(1, None),
    "text_price": _with(4, "n/a"),
    "nan_price": _with(4, "NaN"),
    "zero_price": _with(3, "0.00000000"),
    "absurd_price": _with(2, "1e150"),
    "high_below_low": _high_below_low,
    "negative_volume": _with(5, "-1.00000000"),
    "infinite_volume": _with(5, "Infinity"),
    "missing_time": _with(0, None),
    "odd_time": lambda fields: [fields[0] + 1234, *fields[1:]],
    "far_time": lambda fields: [fields[0] * 1000, *fields[1:]],
    "future_time": lambda fields: [fields[0] + _DAY_MS, *fields[1:]],
    "old_time": lambda fields: [fields[0] - 30 * _DAY_MS, *fields[1:]],
    "short_row": lambda fields: fields[:3],
    "not_a_row": lambda _fields: "oops",
}
