"""Determine the interval of a file's bars: each symbol's most frequent step."""

from __future__ import annotations

from collections import Counter, defaultdict

import numpy as np
from numpy.typing import NDArray

from feature_platform.bar_rules import MINUTE_US, Ints

_MINUTE = MINUTE_US
_NO_STEP = np.int64(2**62)

# All steps longer than a day are counted as this one, so that the counters remain small.
_LONGEST = 1441 * _MINUTE

# Usual intervals, in minutes. A single step of another length is read as a gap between two
# one-minute bars.
_USUAL = frozenset({3, 5, 15, 30, 60, 120, 180, 240, 360, 480, 720, 1440})
# In a file of fewer steps than this, one step of a minute shows that the bars are one-minute bars.
_FEW = 10


class Steps:
    """Count the steps between successive bars of each symbol in a file."""

    def __init__(self) -> None:
        self._counts: defaultdict[int, Counter[int]] = defaultdict(Counter)
        self._ways: defaultdict[int, set[bool]] = defaultdict(set)

    @property
    def ordered(self) -> bool:
        """Return whether each symbol's times only ascend or only descend.

        Only then are the steps the intervals between the bars.
        """
        return all(len(ways) < 2 for ways in self._ways.values())

    def add(self, symbol: int, steps: Ints) -> None:
        """Count steps of one symbol, in microseconds; steps backward are negative."""
        moved = steps[steps != 0]
        if not len(moved):
            return
        self._ways[symbol].update(np.unique(moved > 0).tolist())
        values, counts = np.unique(np.minimum(np.abs(moved), _LONGEST), return_counts=True)
        self._counts[symbol].update(dict(zip(values.tolist(), counts.tolist(), strict=True)))

    def usual(self) -> dict[int, tuple[int, int, int, int]]:
        """Return by symbol: the most frequent step, its count, the count of all, the shortest."""
        found = {}
        for symbol, counts in self._counts.items():
            step, count = min(counts.items(), key=lambda item: (-item[1], item[0]))
            found[symbol] = (step, count, counts.total(), min(counts))
        return found


def is_wrong(step: int, count: int, total: int, shortest: int) -> bool:
    """Return whether the most frequent step shows bars of another interval than a minute.

    count: the number of times that the step occurs.
    total: the number of all steps.
    shortest: the shortest step.
    """
    if step == _MINUTE or (total < _FEW and shortest == _MINUTE):
        return False
    return count > 1 or step // _MINUTE in _USUAL or step >= _LONGEST


def interval_text(step: int) -> str:
    """Return an interval, of microseconds, in words, such as "5 minutes"."""
    if step >= _LONGEST:
        return "more than a day"
    for unit, size in (("day", 1440), ("hour", 60), ("minute", 1)):
        if step % (size * _MINUTE) == 0:
            number = step // (size * _MINUTE)
            return f"{number} {unit}{'s' if number > 1 else ''}"
    return f"{step / 1_000_000:g} seconds"


def steps_of(ts: Ints, first: NDArray[np.int64]) -> Ints:
    """Return the steps between times, in microseconds, one fewer than there are times.

    first: one time before those of `ts`, or none.
    """
    return np.diff(np.concatenate([first, ts]))
