"""Guards against confusing a symbol without trades with a lost stream."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Any

import psycopg
import pytest

from feature_platform.backfill import backfill_gaps
from feature_platform.exchange.client import Exchange
from feature_platform.gaps import due_gaps, find_gaps, list_gaps, note_answer
from feature_platform.heartbeat import (
    Heartbeat,
    Outage,
    begin_heartbeats,
    list_heartbeats,
    write_heartbeats,
)
from feature_platform.orchestration.metadata import of_bars, of_features
from feature_platform.orchestration.repairs import due_days
from feature_platform.settings import get_settings
from feature_platform.simulator.server import SimulatedExchange
from feature_platform.validation import evaluate
from feature_platform_tests.fix_exchange import quick
from feature_platform_tests.fix_processes import account_for_all, insert_bars, value

Conn = psycopg.Connection[Any]
MINUTE = timedelta(minutes=1)


@pytest.fixture
def first(conn: Conn, monkeypatch: pytest.MonkeyPatch) -> datetime:
    """Return the first of the last thirty closed minutes, during which a recorder ran.

    The recorder began in the eleventh minute; only the first and the 28th minute have a bar.
    """
    monkeypatch.setenv("FEATURE_PLATFORM_SYMBOLS", "A")
    get_settings.cache_clear()
    until = value(conn, "SELECT feature_platform.due_until()")
    first: datetime = until - 30 * MINUTE
    begin_heartbeats(conn, {"A": "binance"})
    write_heartbeats(conn, [Heartbeat("A", "live", until)], [])
    conn.execute("UPDATE feature_platform.heartbeat SET first_at = %s", [first + 10 * MINUTE])
    insert_bars(conn, "A", first, 2, step=27)
    return first


def found(conn: Conn, first: datetime) -> list[tuple[int, int, str | None]]:
    find_gaps(conn)
    return [
        ((gap.start - first) // MINUTE, (gap.end - first) // MINUTE, gap.feed)
        for gap in list_gaps(conn, "A")
    ]


def test_gaps_are_divided_by_the_state_of_the_feed(conn: Conn, first: datetime) -> None:
    outage = Outage(first + 14.5 * MINUTE, first + 16.1 * MINUTE, "it has stalled", "binance")
    write_heartbeats(conn, [], [outage])
    assert found(conn, first) == [
        (1, 10, None),
        (10, 14, "alive"),
        (14, 17, "dead"),
        (17, 27, "alive"),
    ]
    (check,) = evaluate(conn, {"minute_gaps"})
    assert {row["feed"] for row in check.rows} == {"no recorder", "alive", "dead"}
    assert check.measures["open_minutes_of_a_dead_feed"] == 3


def test_an_answer_of_the_exchange_keeps_the_feed_of_a_gap(conn: Conn, first: datetime) -> None:
    find_gaps(conn)
    note_answer(conn, "A", first + 12 * MINUTE, first + 14 * MINUTE)
    gaps = {(gap.start - first) // MINUTE: gap for gap in list_gaps(conn, "A")}
    assert (gaps[12].state, gaps[12].feed) == ("quiet", "alive")
    assert (gaps[14].state, gaps[14].feed) == ("open", "alive")


def test_a_feed_is_dead_from_the_last_heartbeat_of_its_recorder(
    conn: Conn, first: datetime
) -> None:
    last_beat = first + 20 * MINUTE
    conn.execute("UPDATE feature_platform.heartbeat SET beat_at = %s", [last_beat])
    assert found(conn, first) == [(1, 10, None), (10, 20, "alive"), (20, 27, "dead")]
    # The next recorder stores the time without a recorder as an outage.
    begin_heartbeats(conn, {"A": "binance", "B": "binance"})
    assert [feed.state for feed in list_heartbeats(conn)] == ["down", "down"]
    outage = conn.execute("SELECT from_at, reason FROM feature_platform.feed_outage").fetchall()
    assert outage == [(last_beat, "no recorder was running")]


def test_a_continuing_outage_is_one_gap(conn: Conn, first: datetime) -> None:
    conn.execute("UPDATE feature_platform.heartbeat SET beat_at = %s", [first + 10 * MINUTE])
    conn.execute("DELETE FROM ohlcv_1m WHERE ts > %s", [first])
    for grace in ("15 minutes", "9 minutes", "2 minutes"):
        conn.execute("SELECT feature_platform.find_gaps(%s::interval)", [grace])
    gaps = [gap for gap in list_gaps(conn, "A") if gap.feed == "dead"]
    assert len(gaps) == 1


def test_a_removed_symbol_is_not_recorded_until_it_is_configured_again(conn: Conn) -> None:
    begin_heartbeats(conn, {"A": "binance", "B": "binance"})
    for _ in range(2):  # from its last heartbeat on, also after several starts of a recorder
        begin_heartbeats(conn, {"B": "binance"})
        state, since = states(conn)["A"]
        assert state == "not_recorded"
    begin_heartbeats(conn, {"A": "binance", "B": "binance"})
    assert states(conn)["A"][0] == "down"
    first_at = value(conn, "SELECT first_at FROM feature_platform.heartbeat WHERE symbol = 'A'")
    assert first_at > since


def test_minutes_after_a_symbol_was_recorded_are_not_recorded(conn: Conn, first: datetime) -> None:
    conn.execute("UPDATE feature_platform.heartbeat SET beat_at = %s", [first + 20 * MINUTE])
    begin_heartbeats(conn, {"B": "binance"})
    conn.execute("DELETE FROM feature_platform.feed_outage")
    assert found(conn, first) == [(1, 10, None), (10, 20, "alive"), (20, 27, None)]
    assert [gap.state for gap in list_gaps(conn, "A")] == ["open", "open", "not_recorded"]
    due = due_gaps(conn, ["A"])  # by UTC day, so there is one more after midnight
    assert (due[0].start, due[-1].end) == (first + MINUTE, first + 20 * MINUTE)
    assert_accounted_for(conn)


def test_minutes_before_the_end_of_a_recording_are_still_requested(
    conn: Conn, first: datetime, monkeypatch: pytest.MonkeyPatch
) -> None:
    conn.execute("UPDATE feature_platform.heartbeat SET beat_at = %s", [first + 20 * MINUTE])
    find_gaps(conn)
    begin_heartbeats(conn, {"B": "binance"})
    find_gaps(conn)
    monkeypatch.setenv("FEATURE_PLATFORM_SYMBOLS", "B")
    get_settings.cache_clear()
    (end,) = {gap.start for gap in list_gaps(conn, "A", ["not_recorded"])}
    assert end == first + 20 * MINUTE
    due = due_gaps(conn, ["B"])
    assert {gap.symbol for gap in due} == {"A"}
    assert [due[0].start, due[-1].end] == [first + MINUTE, end]
    assert {symbol for day in due_days(conn) for symbol in day.symbols} == {"A"}
    note_answer(conn, "A", first, end)
    assert due_gaps(conn, ["B"]) == []
    find_gaps(conn)
    assert_accounted_for(conn)


def test_minutes_of_a_removed_symbol_that_its_exchange_does_not_have_are_not_recorded(
    conn: Conn, monkeypatch: pytest.MonkeyPatch, simulator: SimulatedExchange
) -> None:
    """A client does not even list swaps while all its symbols are spot ones."""
    monkeypatch.setenv("FEATURE_PLATFORM_GAP_ATTEMPTS", "1")
    monkeypatch.setenv("FEATURE_PLATFORM_SYMBOLS", "BTC/USDT")
    get_settings.cache_clear()
    swap = "BTC/USDT:USDT"
    since = value(conn, "SELECT feature_platform.due_until()") - 30 * MINUTE
    insert_bars(conn, swap, since, 1)
    begin_heartbeats(conn, {swap: "binance", "BTC/USDT": "binance"})
    conn.execute(
        "UPDATE feature_platform.heartbeat SET first_at = %s, beat_at = %s",
        [since, since + 20 * MINUTE],
    )
    begin_heartbeats(conn, {"BTC/USDT": "binance"})
    find_gaps(conn)
    with Exchange("binance", ("BTC/USDT",), url=simulator.url, patience=quick()) as exchange:
        reports = backfill_gaps(conn, exchange)
    assert {one.unknown for one in reports if one.symbol == swap} == {True}
    assert {gap.state for gap in list_gaps(conn, swap)} == {"not_recorded"}
    assert_accounted_for(conn)
    # It is in the settings again.
    begin_heartbeats(conn, {swap: "binance", "BTC/USDT": "binance"})
    find_gaps(conn)
    assert {gap.state for gap in list_gaps(conn, swap)} == {"open"}


def test_an_exchange_that_is_not_used_any_more_gets_no_requests(
    conn: Conn, first: datetime
) -> None:
    find_gaps(conn)
    begin_heartbeats(conn, {"kraken:B": "kraken"})
    assert due_gaps(conn, ["kraken:B"]) == []
    assert {gap.start for gap in due_gaps(conn, ["A"])} > {first + MINUTE}


def test_gaps_follow_a_symbol_that_is_removed_and_configured_again(
    conn: Conn, first: datetime
) -> None:
    conn.execute("DELETE FROM ohlcv_1m WHERE ts > %s", [first])
    conn.execute("UPDATE feature_platform.heartbeat SET beat_at = %s", [first + 20 * MINUTE])
    find_gaps(conn)  # before the recorder begins without the symbol
    begin_heartbeats(conn, {"B": "binance"})
    for grace in ("5 minutes", "3 minutes", "2 minutes"):
        conn.execute("SELECT feature_platform.find_gaps(%s::interval)", [grace])
    (over,) = list_gaps(conn, "A", ["not_recorded"])
    assert over.start == first + 20 * MINUTE
    assert all(gap.end <= over.start for gap in list_gaps(conn, "A", ["open"]))
    assert_accounted_for(conn)
    # Bars and answers of the exchange close a gap.
    insert_bars(conn, "A", first + 22 * MINUTE, 1)
    note_answer(conn, "A", first + 14 * MINUTE, first + 18 * MINUTE)
    conn.execute(
        "SELECT feature_platform.gap_answered('A', %s, %s, '0')",
        [first + 23 * MINUTE, first + 24 * MINUTE],
    )
    find_gaps(conn)
    assert [gap.start for gap in list_gaps(conn, "A", ["quiet"])] == [
        first + 14 * MINUTE,
        first + 23 * MINUTE,
    ]
    assert len(list_gaps(conn, "A", ["not_recorded"])) == 2
    assert_accounted_for(conn)
    # The symbol is in the settings again: its minutes are fetched.
    begin_heartbeats(conn, {"A": "binance", "B": "binance"})
    find_gaps(conn)
    assert list_gaps(conn, "A", ["not_recorded"]) == []
    assert first + 20 * MINUTE in [gap.start for gap in due_gaps(conn, ["A"])]
    assert_accounted_for(conn)


def test_the_lag_of_a_symbol_that_is_not_recorded_does_not_grow(
    conn: Conn, first: datetime
) -> None:
    conn.execute("UPDATE feature_platform.heartbeat SET beat_at = %s", [first + 10 * MINUTE])
    conn.execute("DELETE FROM ohlcv_1m WHERE ts > %s", [first])
    conn.execute("CALL refresh_features_1m(NULL, NULL)")
    shown = [of(conn, first, first + 30 * MINUTE) for of in (of_bars, of_features)]
    assert [one["lag (s)"] for one in shown] == [29 * 60, 29 * 60]
    begin_heartbeats(conn, {"B": "binance"})
    shown = [of(conn, first, first + 30 * MINUTE) for of in (of_bars, of_features)]
    assert [one["lag (s)"] for one in shown] == [9 * 60, 9 * 60]
    assert [one["missing minutes"] for one in shown] == [9, 9]


def assert_accounted_for(conn: Conn) -> None:
    account_for_all(conn)
    (check,) = evaluate(conn, {"minutes_accounted_for"})
    assert (check.passed, check.rows) == (True, ())
    assert check.checked > 20


def test_an_outage_of_one_exchange_does_not_affect_another(conn: Conn, first: datetime) -> None:
    outage = Outage(first + 14.5 * MINUTE, first + 16.1 * MINUTE, "it has stalled", "kraken")
    write_heartbeats(conn, [], [outage])
    assert found(conn, first) == [(1, 10, None), (10, 27, "alive")]


def states(conn: Conn) -> dict[str, tuple[str, datetime]]:
    return {feed.symbol: (feed.state, feed.state_at) for feed in list_heartbeats(conn)}
