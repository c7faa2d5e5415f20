"""A stream repeats itself, out of order, and stops within a minute: bars must come out whole."""

from __future__ import annotations

from typing import Any

import pytest

from feature_platform.bars import StreamBar
from feature_platform.recorder.bar_builder import BarBuilder, Heard, TradeSums

MINUTE = 60_000_000
T = 1_772_323_200_000_000  # a minute of 2026
GRACE = 500_000
EARLY = [T // 1000, 10.0, 11.0, 9.5, 10.5, 3.0]
FINAL = [T // 1000, 10.0, 12.0, 9.0, 11.5, 7.0]
BAR = StreamBar("A/B", T, 10.0, 12.0, 9.0, 11.5, 7.0)
OVER = T + MINUTE + GRACE


END = T + MINUTE


@pytest.fixture
def builder() -> BarBuilder:
    return BarBuilder(GRACE, 2_000_000)


def test_a_minute_is_handed_out_once_its_grace_is_over(builder: BarBuilder) -> None:
    builder.say([Heard("A/B", EARLY, T), Heard("A/B", FINAL, END), Heard("C/D", EARLY, END)])
    assert builder.next_due() == OVER
    assert builder.take(OVER - 1, OVER).bars == []
    assert builder.take(OVER, OVER).bars == [BAR, StreamBar("C/D", T, *EARLY[1:])]
    assert builder.take(OVER, OVER).bars == []
    assert builder.next_due() is None


def test_no_minute_is_over_for_a_stream_that_was_not_heard_after_it(builder: BarBuilder) -> None:
    builder.say([Heard("A/B", EARLY, T)])
    assert builder.take(OVER + MINUTE, END - 1).bars == []
    builder.forget_open()
    assert builder.take(OVER + MINUTE, OVER).bars == []


def test_what_was_said_before_the_end_is_not_the_last_word(builder: BarBuilder) -> None:
    builder.say([Heard("A/B", EARLY, T), Heard("C/D", FINAL, END)])
    due = builder.take(OVER, OVER)
    assert (due.bars, due.doubts) == ([BAR._replace(symbol="C/D")], [])
    due = builder.take(OVER + 2_000_000, OVER)
    assert (due.bars, due.doubts) == ([], [("A/B", T)])
    builder.say([Heard("A/B", FINAL, OVER + MINUTE)])
    assert builder.take(OVER + MINUTE, OVER + MINUTE).bars == [BAR]


def test_a_stream_that_never_says_a_last_word_is_believed_after_a_while(
    builder: BarBuilder,
) -> None:
    bars, doubts = [], []
    for at in range(5):
        builder.say([Heard("A/B", [EARLY[0] + at * 60_000, *EARLY[1:]], T + at * MINUTE)])
        due = builder.take(OVER + at * MINUTE + 2_000_000, OVER + at * MINUTE)
        bars += [bar.ts for bar in due.bars]
        doubts += [ts for _, ts in due.doubts]
    assert bars == [T + 3 * MINUTE, T + 4 * MINUTE]
    assert doubts == [T, T + MINUTE, T + 2 * MINUTE]


def test_an_old_message_that_comes_late_changes_nothing(builder: BarBuilder) -> None:
    builder.say([Heard("A/B", FINAL, END), Heard("A/B", EARLY, END)])
    assert builder.take(OVER, OVER).bars == [BAR]


def test_after_the_end_a_smaller_bar_is_doubted_and_a_larger_one_is_a_correction(
    builder: BarBuilder,
) -> None:
    builder.say([Heard("A/B", FINAL, END)])
    builder.take(OVER, OVER)
    builder.say([Heard("A/B", FINAL, OVER)])
    due = builder.take(OVER, OVER)
    assert (due.bars, due.doubts) == ([], [])
    builder.say([Heard("A/B", EARLY, OVER)])
    due = builder.take(OVER, OVER)
    assert (due.bars, due.doubts) == ([], [("A/B", T)])
    builder.say([Heard("A/B", [*FINAL[:5], 8.0], OVER)])
    due = builder.take(OVER, OVER)
    assert (due.bars, due.doubts) == ([BAR._replace(vol=8.0)], [])


def test_the_stream_itself_says_what_is_final_where_it_can(builder: BarBuilder) -> None:
    """Not the moment: what was said within a minute may be heard after it."""
    builder.say([Heard("A/B", EARLY, END, final=False), Heard("C/D", FINAL, END, final=True)])
    due = builder.take(OVER, OVER)
    assert (due.bars, due.doubts) == ([BAR._replace(symbol="C/D")], [])
    builder.say([Heard("C/D", [*FINAL[:5], 8.0], OVER, final=False)])
    due = builder.take(OVER + 2_000_000, OVER)
    assert (due.bars, due.doubts) == ([], [("A/B", T)])
    builder.say([Heard("A/B", FINAL, OVER + MINUTE, final=True)])
    assert builder.take(OVER + MINUTE, OVER + MINUTE).bars == [BAR]


def test_a_bar_that_comes_minutes_late_is_handed_out_at_once(builder: BarBuilder) -> None:
    later = OVER + 5 * MINUTE
    builder.say([Heard("A/B", FINAL, later)])
    assert builder.take(later, later).bars == [BAR]


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ([None, 10.0, 12.0, 9.0, 11.0, 1.0], "ts is missing"),
        ([T // 1000 + 1, 10.0, 12.0, 9.0, 11.0, 1.0], "is not the start of a minute"),
        ([T * 1000, 10.0, 12.0, 9.0, 11.0, 1.0], "is not in the years"),
        ([T // 1000, 10.0, 8.0, 9.0, 11.0, 1.0], "high 8.0 is below"),
        ([T // 1000, None, 12.0, 9.0, 11.0, 1.0], "open is missing"),
        ([T // 1000, 10.0, float("nan"), 9.0, 11.0, 1.0], "high is nan"),
        ([T // 1000, 10.0, 12.0, 9.0, 11.0, -1.0], "vol is -1.0"),
        ([T // 1000, 10.0], "not five numbers"),
    ],
)
def test_what_is_no_bar_is_told_and_costs_no_other(
    builder: BarBuilder, row: list[Any], reason: str
) -> None:
    said = [("A/B", FINAL), ("C/D", row), ("A/B", row), ("C/D", FINAL)]
    builder.say([Heard(symbol, values, END) for symbol, values in said])
    due = builder.take(OVER, OVER)
    assert due.bars == [BAR, BAR._replace(symbol="C/D")]
    assert [one.symbol for one in due.refused] == ["C/D", "A/B"]
    assert all(reason in one.reason for one in due.refused), due.refused


def test_what_was_said_is_forgotten_after_a_while(builder: BarBuilder) -> None:
    for at in range(100):
        now = OVER + at * MINUTE
        builder.say([Heard("A/B", [T // 1000 + at * 60_000, *FINAL[1:]], now)])
        builder.take(now, now)
    assert len(builder._handed) < 20


def trade(name: str, second: float, price: float, amount: float) -> dict[str, Any]:
    time = T // 1000 + round(second * 1000)
    return {"id": name, "timestamp": time, "price": price, "amount": amount}


def test_trades_make_bars_exactly_in_any_order_and_once_each() -> None:
    sums = TradeSums(T)
    trades = [trade("1", 1, 10.0, 0.1), trade("2", 20, 12.0, 0.2), trade("3", 59.9, 11.0, 0.3)]
    for order in (trades, trades[::-1], [trades[1], *trades, trades[0]]):
        rows = [row for one in order if (row := TradeSums.add(sums, "A/B", one)) is not None]
        assert rows[-1] == [T // 1000, 10.0, 12.0, 10.0, 11.0, 0.6]  # 0.1 + 0.2 + 0.3 is not
        sums = TradeSums(T)


def test_trades_of_a_minute_that_was_not_heard_whole_make_no_bar() -> None:
    sums = TradeSums(T + MINUTE)
    assert sums.add("A/B", trade("1", 59, 10.0, 1.0)) is None
    assert sums.add("A/B", trade("2", 60, 10.0, 1.0)) is not None


def test_a_trade_that_cannot_be_read_spoils_its_minute_only() -> None:
    sums = TradeSums(T)
    assert sums.add("A/B", trade("1", 1, 10.0, 1.0)) is not None
    assert sums.add("A/B", {**trade("2", 2, 10.0, 1.0), "price": None}) is None
    assert sums.add("A/B", trade("3", 3, 10.0, 1.0)) is None
    assert sums.add("A/B", trade("4", 61, 10.0, 1.0)) is not None
