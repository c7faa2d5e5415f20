"""Guards against rows of an answer that are neither bars, rejected, nor out of the range."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from feature_platform.bar_rules import MINUTE_US
from feature_platform.bars import ts_of
from feature_platform.exchange.response import read_answer

START = 1_772_323_200_000_000
END = START + 20 * MINUTE_US
CLOSED = START + 30 * MINUTE_US


def ms(minute: int) -> int:
    return (START + minute * MINUTE_US) // 1000


def row(minute: int, close: float = 2.0) -> list[Any]:
    return [ms(minute), 1.0, 3.0, 1.0, close, 5.0]


def minutes(values: Any) -> list[int]:
    return [(int(ts) - START) // MINUTE_US for ts in values]


def bar(given_row: list[Any]) -> bool:
    """Return whether a row has all values of a bar."""
    numbers = [one for one in given_row if isinstance(one, int | float) and 0 <= one < 2**62]
    return len(numbers) == len(given_row) == 6


PLAIN = [row(minute, close) for minute in range(20) for close in (1.5, 2.0)]

values = st.one_of(st.none(), st.floats(), st.integers(-2, 4), st.just("x"), st.just(2**80))
rows = st.lists(
    st.one_of(
        st.builds(row, st.integers(-5, 35), st.sampled_from([1.5, 2.0])),
        st.tuples(
            st.one_of(st.integers(-5, 35).map(ms), values), values, values, values, values, values
        ).map(list),
        st.lists(values, max_size=4),
    ),
    max_size=30,
)


@given(rows)
def test_every_row_is_a_bar_or_rejected_or_out_of_the_range(given_rows: list[list[Any]]) -> None:
    answer = read_answer(given_rows, START, END, CLOSED)
    bars = minutes(answer.bars.ts)
    assert bars == sorted(set(bars))
    assert all(0 <= minute < 20 for minute in bars)
    named = {minutes([ts_of(one.minute)])[0] for one in answer.rejected if one.minute is not None}
    assert set(minutes(answer.known)) == named | set(bars)
    without_time = sum(one.minute is None for one in answer.rejected)
    assert without_time == answer.without_time
    # A valid row can only be rejected because another row of its minute contradicts it.
    assert set(bars) <= {(one[0] * 1000 - START) // MINUTE_US for one in given_rows if bar(one)}
    good = {one[0] for one in given_rows if one in PLAIN}
    assert {ms(minute) for minute in {*bars, *named}} >= good


def test_bars_are_in_order_without_duplicates() -> None:
    answer = read_answer([row(3), row(1), row(3), row(-1), row(25), row(30)], START, END, CLOSED)
    assert minutes(answer.bars.ts) == [1, 3]
    assert answer.rejected == ()
    assert minutes([answer.first, answer.last]) == [-1, 25]


def test_an_empty_answer_is_valid() -> None:
    answer = read_answer([], START, END, CLOSED)
    assert len(answer.bars) == len(answer.known) == len(answer.rejected) == answer.without_time == 0
    assert answer.first is answer.last is None


@pytest.mark.parametrize(
    ("bad", "reason", "minute"),
    [
        ([None, 1.0, 1.0, 1.0, 1.0, 1.0], "ts is missing", None),
        (["soon", 1.0, 1.0, 1.0, 1.0, 1.0], "time 'soon' is not a whole number", None),
        ([ms(1) + 0.5, 1.0, 1.0, 1.0, 1.0, 1.0], "is not a whole number", None),
        ([ms(1) * 1000, 1.0, 1.0, 1.0, 1.0, 1.0], "is not in the years 1980 to 2099", None),
        ([2**80, 1.0, 1.0, 1.0, 1.0, 1.0], "is not a whole number", None),
        ([ms(1) + 1, 1.0, 1.0, 1.0, 1.0, 1.0], "is not the start of a minute", 1),
        ([ms(1), 1.0, 1.0, 1.0, None, 1.0], "close is missing", 1),
        ([ms(1), 1.0, "x", 1.0, 1.0, 1.0], "not five numbers", 1),
        ([ms(1), 1.0, 1.0], "not five numbers", 1),
        ([ms(1), 1.0], "not five numbers", 1),
        ([ms(1)], "not five numbers", 1),
        ([ms(1), 1.0, 1.0, 2.0, 1.0, 1.0], "high 1.0 is below low 2.0", 1),
        ([], "ts is missing", None),
    ],
)
def test_a_bad_row_is_rejected_with_its_reason(
    bad: list[Any], reason: str, minute: int | None
) -> None:
    answer = read_answer([row(0), bad], START, END, CLOSED)
    assert minutes(answer.bars.ts) == [0]
    (rejected,) = answer.rejected
    assert reason in rejected.reason
    assert rejected.text == str(bad)
    assert (rejected.minute is None) == (minute is None)
    if rejected.minute is not None:
        assert minutes([ts_of(rejected.minute)]) == [minute]


def test_a_time_may_be_a_float() -> None:
    assert minutes(read_answer([[float(ms(2)), *row(2)[1:]]], START, END, CLOSED).bars.ts) == [2]


def test_a_rejected_row_is_shown_unchanged_up_to_a_limit() -> None:
    bad = [None, 1.0, 1.0, 1.0, 1.0, 1.0, "x" * 500]
    (rejected,) = read_answer([bad], START, END, CLOSED).rejected
    assert rejected.text == "x" * 200 + "…"
