"""Guards against incomplete bars of a stream that repeats, reorders or loses messages."""

from __future__ import annotations

from typing import Any

import pytest

from feature_platform.bars import StreamBar
from feature_platform.recorder.bar_builder import BarBuilder, Update
from feature_platform.recorder.trade_bars import TradeSums

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


def test_a_minute_is_emitted_after_its_grace(builder: BarBuilder) -> None:
    builder.add([Update("A/B", EARLY, T), Update("A/B", FINAL, END), Update("C/D", EARLY, END)])
    assert builder.next_due() == OVER
    assert builder.poll(OVER - 1, OVER).bars == []
    assert builder.poll(OVER, OVER).bars == [BAR, StreamBar("C/D", T, *EARLY[1:])]
    assert builder.poll(OVER, OVER).bars == []
    assert builder.next_due() is None


def test_no_minute_is_emitted_without_a_message_after_its_end(builder: BarBuilder) -> None:
    builder.add([Update("A/B", EARLY, T)])
    assert builder.poll(OVER + MINUTE, END - 1).bars == []
    builder.discard_pending()
    assert builder.poll(OVER + MINUTE, OVER).bars == []


def test_an_update_before_the_end_of_the_minute_is_unconfirmed(builder: BarBuilder) -> None:
    builder.add([Update("A/B", EARLY, T), Update("C/D", FINAL, END)])
    ready = builder.poll(OVER, OVER)
    assert (ready.bars, ready.unconfirmed) == ([BAR._replace(symbol="C/D")], [])
    ready = builder.poll(OVER + 2_000_000, OVER)
    assert (ready.bars, ready.unconfirmed) == ([], [("A/B", T)])
    builder.add([Update("A/B", FINAL, OVER + MINUTE)])
    assert builder.poll(OVER + MINUTE, OVER + MINUTE).bars == [BAR]


def test_a_stream_without_closed_bars_is_detected_after_three_minutes(
    builder: BarBuilder,
) -> None:
    bars, unconfirmed = [], []
    for at in range(5):
        builder.add([Update("A/B", [EARLY[0] + at * 60_000, *EARLY[1:]], T + at * MINUTE)])
        ready = builder.poll(OVER + at * MINUTE + 2_000_000, OVER + at * MINUTE)
        bars += [bar.ts for bar in ready.bars]
        unconfirmed += [ts for _, ts in ready.unconfirmed]
    assert bars == [T + 3 * MINUTE, T + 4 * MINUTE]
    assert unconfirmed == [T, T + MINUTE, T + 2 * MINUTE]


def test_a_stale_message_has_no_effect(builder: BarBuilder) -> None:
    builder.add([Update("A/B", FINAL, END), Update("A/B", EARLY, END)])
    assert builder.poll(OVER, OVER).bars == [BAR]


def test_after_the_end_a_smaller_bar_is_unconfirmed_and_a_larger_one_is_a_correction(
    builder: BarBuilder,
) -> None:
    builder.add([Update("A/B", FINAL, END)])
    builder.poll(OVER, OVER)
    builder.add([Update("A/B", FINAL, OVER)])
    ready = builder.poll(OVER, OVER)
    assert (ready.bars, ready.unconfirmed) == ([], [])
    builder.add([Update("A/B", EARLY, OVER)])
    ready = builder.poll(OVER, OVER)
    assert (ready.bars, ready.unconfirmed) == ([], [("A/B", T)])
    builder.add([Update("A/B", [*FINAL[:5], 8.0], OVER)])
    ready = builder.poll(OVER, OVER)
    assert (ready.bars, ready.unconfirmed) == ([BAR._replace(vol=8.0)], [])


def test_the_mark_of_a_message_decides_whether_a_bar_is_closed(builder: BarBuilder) -> None:
    """The time of arrival does not: a message of an open minute may arrive after its end."""
    builder.add([Update("A/B", EARLY, END, final=False), Update("C/D", FINAL, END, final=True)])
    ready = builder.poll(OVER, OVER)
    assert (ready.bars, ready.unconfirmed) == ([BAR._replace(symbol="C/D")], [])
    builder.add([Update("C/D", [*FINAL[:5], 8.0], OVER, final=False)])
    ready = builder.poll(OVER + 2_000_000, OVER)
    assert (ready.bars, ready.unconfirmed) == ([], [("A/B", T)])
    builder.add([Update("A/B", FINAL, OVER + MINUTE, final=True)])
    assert builder.poll(OVER + MINUTE, OVER + MINUTE).bars == [BAR]


def test_a_bar_that_arrives_minutes_late_is_emitted_at_once(builder: BarBuilder) -> None:
    later = OVER + 5 * MINUTE
    builder.add([Update("A/B", FINAL, later)])
    assert builder.poll(later, later).bars == [BAR]


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
def test_an_invalid_update_is_rejected_and_others_are_emitted(
    builder: BarBuilder, row: list[Any], reason: str
) -> None:
    rows = [("A/B", FINAL), ("C/D", row), ("A/B", row), ("C/D", FINAL)]
    builder.add([Update(symbol, values, END) for symbol, values in rows])
    ready = builder.poll(OVER, OVER)
    assert ready.bars == [BAR, BAR._replace(symbol="C/D")]
    assert [one.symbol for one in ready.rejected] == ["C/D", "A/B"]
    assert all(reason in one.reason for one in ready.rejected), ready.rejected


def test_old_minutes_are_forgotten(builder: BarBuilder) -> None:
    for at in range(100):
        now = OVER + at * MINUTE
        builder.add([Update("A/B", [T // 1000 + at * 60_000, *FINAL[1:]], now)])
        builder.poll(now, now)
    assert len(builder._emitted) < 20


def trade(trade_id: str, second: float, price: float, amount: float) -> dict[str, Any]:
    time = T // 1000 + round(second * 1000)
    return {"id": trade_id, "timestamp": time, "price": price, "amount": amount}


def test_trades_in_any_order_make_exact_bars() -> None:
    sums = TradeSums(T)
    trades = [trade("1", 1, 10.0, 0.1), trade("2", 20, 12.0, 0.2), trade("3", 59.9, 11.0, 0.3)]
    for order in (trades, trades[::-1], [trades[1], *trades, trades[0]]):
        rows = [row for one in order if (row := TradeSums.add(sums, "A/B", one)) is not None]
        assert rows[-1] == [T // 1000, 10.0, 12.0, 10.0, 11.0, 0.6]  # 0.1 + 0.2 + 0.3 is not
        sums = TradeSums(T)


def test_trades_of_the_first_incomplete_minute_make_no_bar() -> None:
    sums = TradeSums(T + MINUTE)
    assert sums.add("A/B", trade("1", 59, 10.0, 1.0)) is None
    assert sums.add("A/B", trade("2", 60, 10.0, 1.0)) is not None


def test_an_invalid_trade_rejects_only_its_minute() -> None:
    sums = TradeSums(T)
    assert sums.add("A/B", trade("1", 1, 10.0, 1.0)) is not None
    assert sums.add("A/B", {**trade("2", 2, 10.0, 1.0), "price": None}) is None
    assert sums.add("A/B", trade("3", 3, 10.0, 1.0)) is None
    assert sums.add("A/B", trade("4", 61, 10.0, 1.0)) is not None
