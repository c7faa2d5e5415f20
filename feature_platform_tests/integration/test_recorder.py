"""Guards against wrong bars after faults of the stream, the exchange or the database."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from datetime import datetime, timedelta
from typing import Any

import pytest

from feature_platform.database import connect
from feature_platform.errors import UserError
from feature_platform.heartbeat import list_heartbeats
from feature_platform.recorder.recorder import Recorder
from feature_platform.settings import get_settings
from feature_platform.simulator.server import SimulatedExchange
from feature_platform.simulator.truth import GeneratedTruth
from feature_platform.validation import evaluate
from feature_platform_tests.fix_processes import wait_until
from feature_platform_tests.fix_recorder import (
    Live,
    RecorderThread,
    differences,
    true_bars,
)

HOUR = timedelta(hours=1)

pytestmark = pytest.mark.parametrize("engine", ["postgres"], indirect=True)


def test_bars_are_stored_as_they_are_closed(live: Live) -> None:
    with RecorderThread(history=timedelta(minutes=30)) as recorder:
        live.wait_for_states("live")
        live.wait_for_stream_bars(9)
        end = live.pass_minutes(1)
        live.wait_for_truth(end, live.start - timedelta(minutes=20))
        recorder.stop()
    assert live.value("SELECT max(ts) FROM ohlcv_1m") < live.clock.now() - timedelta(minutes=1)
    with connect(live.database.url) as connection:
        feeds = list_heartbeats(connection)
    assert {feed.state for feed in feeds} == {"stopped"}
    assert all(feed.bar_at and feed.update_at and feed.rejected == 0 for feed in feeds)


# Faults in groups, because each group takes minutes of the exchange's time.
FAULTS: dict[str, list[dict[str, Any]]] = {
    "connections": [
        {"kind": "dropped", "code": 1001, "second": 30, "probability": 0.5},
        {"kind": "dropped", "second": 59, "probability": 0.5},
    ],
    "messages": [{"kind": "duplicated", "times": 2}, {"kind": "reordered", "probability": 0.7}],
    "losses": [{"kind": "lost", "probability": 0.3}, {"kind": "impossible", "probability": 0.4}],
    "bars": [
        {"kind": "late", "seconds": 100, "probability": 0.3},
        {"kind": "corrected", "seconds": 80, "probability": 0.5},
        {"kind": "quiet_left_out"},
    ],
}
# Faults of the published bars themselves, also over REST.
WORLD = ("late", "corrected", "quiet_left_out")


@pytest.mark.parametrize("name", FAULTS)
def test_bars_end_as_the_truth_after_every_fault(live: Live, name: str) -> None:
    live.venue.set_faults(*FAULTS[name])
    with RecorderThread() as recorder:
        live.wait_for_states("live")
        live.pass_minutes(3)
        live.venue.set_faults(*(fault for fault in FAULTS[name] if fault["kind"] in WORLD))
        end = live.pass_minutes(2)
        live.wait_for_truth(end, quiet_left_out=name == "bars")
        recorder.stop()


def test_a_stall_is_a_drop(live: Live) -> None:
    live.venue.set_faults({"kind": "stalled", "second": 30, "count": 1, "pongs": True})
    with RecorderThread() as recorder:
        live.wait_for_states("live")
        end = live.pass_minutes(3)
        live.wait_for_truth(end)
        recorder.stop()
    reasons = live.value("SELECT array_agg(reason) FROM feature_platform.feed_outage")
    assert any("stalled" in reason for reason in reasons), reasons


def test_a_venue_that_goes_away_and_comes_back_costs_nothing(live: Live) -> None:
    with RecorderThread() as recorder:
        live.wait_for_states("live")
        with live.venue_away():
            live.wait_for_states("down")
            down = live.clock.now()
            live.pass_minutes(2)
        end = live.pass_minutes(1)
        live.wait_for_truth(end)
        live.wait_for_states("live")
        recorder.stop()
    # On a busy machine, a stalled stream may add outages at other times.
    assert exchanges_out(live, down) == ["binance"]


def test_a_database_that_goes_away_gets_all_bars_when_it_is_back(live: Live) -> None:
    with RecorderThread() as recorder:
        live.wait_for_states("live")
        # The recorder also fetches missing minutes, perhaps before its writer is connected again.
        # Without answers over REST, each bar of the outage comes from the writer's memory.
        live.venue.set_faults({"kind": "server_error"})
        with live.database.away():
            wait_until(lambda: len(recorder.waiting()) >= 3 * 2, "bars wait in memory")
            waiting = recorder.waiting()
        wait_until(lambda: waiting <= live.stored().keys(), "the bars in memory are stored")
        live.venue.set_faults()
        end = live.pass_minutes(1)
        live.wait_for_truth(end)
        recorder.stop()


def test_bars_are_built_from_trades(live: Live) -> None:
    with RecorderThread("trades") as recorder:
        live.wait_for_states("live")
        live.wait_for_stream_bars(6)
        # The first, incomplete minute and minutes without trades are fetched over REST.
        end = live.pass_minutes(1)
        live.wait_for_truth(end)
        recorder.stop()


def test_an_exchange_without_a_stream_is_asked_each_minute(live: Live) -> None:
    with RecorderThread("minutes") as recorder:
        live.wait_for_states("live")
        end = live.pass_minutes(2)
        live.wait_for_truth(end)
        recorder.stop()
    assert live.value("SELECT count(*) FROM ohlcv_1m WHERE source <> 'rest'") == 0


@pytest.mark.parametrize("binary", [False, True])
def test_a_frame_that_cannot_be_decoded_costs_no_bar(live: Live, binary: bool) -> None:
    """ccxt reads nothing more after one, while the connection stays open."""
    live.venue.set_faults({"kind": "undecodable", "binary": binary})
    with RecorderThread() as recorder:

        def is_reported() -> object:
            return live.value(
                "SELECT EXISTS (SELECT FROM feature_platform.feed_outage"
                " WHERE reason LIKE 'a frame that cannot be decoded%')"
            )

        # On a busy machine, a connection can be lost for another reason before it reads the frame.
        wait_until(is_reported, "the frame is the reason of an outage")
        live.venue.set_faults()
        end = live.pass_minutes(3)
        live.wait_for_truth(end)
        live.wait_for_states("live")
        live.wait_for_stream_bars(1)
        recorder.stop()


def test_a_connection_without_valid_updates_is_not_live(live: Live) -> None:
    live.venue.set_faults({"kind": "lost", "updates": True})
    seen: set[str] = set()
    with RecorderThread() as recorder, connect(live.database.url) as connection:
        wait_until(lambda: live.value("SELECT count(*) FROM ohlcv_1m") > 0, "bars over REST")
        end = live.clock.now() + timedelta(minutes=3)

        def is_over() -> bool:
            seen.update(feed.state for feed in list_heartbeats(connection))
            return live.clock.now() > end

        wait_until(is_over, "three minutes")
        assert "catching_up" in seen
        assert "live" not in seen
        live.venue.set_faults()
        live.wait_for_states("live")
        recorder.stop()


def test_replaced_connections_without_valid_updates_fail_the_check(live: Live) -> None:
    """Neither a new connection nor a new recorder begins the check's two minutes again."""
    with RecorderThread() as recorder:
        live.wait_for_states("live")
        recorder.stop()
    stopped = live.clock.now()
    live.venue.set_faults(
        {"kind": "lost", "updates": True}, {"kind": "dropped", "second": 5}, {"kind": "dropped"}
    )
    with connect(live.database.url) as connection:
        connected: set[datetime | None] = set()

        def are_replaced() -> bool:
            feeds = list_heartbeats(connection)
            connected.update(feed.connected_at for feed in feeds)
            return len(connected) >= 4 and live.clock.now() > stopped + timedelta(minutes=3)

        for _ in range(2):
            connected.clear()
            with RecorderThread() as recorder:
                wait_until(are_replaced, "the connection was replaced")
                (check,) = evaluate(connection, {"recorder_alive"})
                assert {row["symbol"] for row in check.rows} == set(live.venue.truth.markets), check
                assert max(float(row["state_seconds"]) for row in check.rows) < 120
                recorder.stop()
        live.venue.set_faults()
        with RecorderThread() as recorder:
            live.wait_for_states("live")
            assert all(one.passed for one in evaluate(connection, {"recorder_alive"}))
            recorder.stop()


def test_bars_of_the_future_or_of_long_ago_are_not_stored(live: Live) -> None:
    live.venue.set_faults({"kind": "impossible", "damages": ["future_time", "old_time"]})
    with RecorderThread() as recorder:
        live.wait_for_states("live")
        end = live.pass_minutes(3)
        live.wait_for_truth(end)
        recorder.stop()
    assert live.value("SELECT count(*) FROM ohlcv_1m WHERE ts > %s", live.clock.now()) == 0
    assert live.value("SELECT count(*) FROM ohlcv_1m WHERE ts < %s", live.start - HOUR) == 0
    assert live.value("SELECT sum(rejected) FROM feature_platform.heartbeat") > 0
    error = live.value("SELECT max(last_error) FROM feature_platform.heartbeat")
    assert "in the future" in error


def test_a_symbol_that_the_exchange_does_not_have_stops_no_other(
    live: Live, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FEATURE_PLATFORM_SYMBOLS", "BTC/USDT,NONE/SUCH,LINK/USDT,XRP/ETH")
    get_settings.cache_clear()
    with RecorderThread() as recorder:
        wait_until(lambda: states(live).get("BTC/USDT") == "live", "the others are live")
        end = live.pass_minutes(2)
        live.wait_for_truth(end)
        live.pass_minutes(2)
        assert states(live)["NONE/SUCH"] == "down"
        with connect(live.database.url) as connection:
            (check,) = evaluate(connection, {"recorder_alive"})
        assert [row["symbol"] for row in check.rows] == ["NONE/SUCH"]
        assert check.rows[0]["last_error"] == "binance has no symbol 'NONE/SUCH'"
        recorder.stop()


@pytest.mark.usefixtures("live")
def test_an_exchange_that_has_none_of_the_symbols_is_an_error(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("FEATURE_PLATFORM_SYMBOLS", "NONE/SUCH")
    get_settings.cache_clear()

    async def record() -> None:
        await Recorder(get_settings(), timedelta(0)).run()

    with pytest.raises(UserError, match=r"FEATURE_PLATFORM_SYMBOLS: binance has no symbol"):
        asyncio.run(record())


@pytest.fixture
def second(live: Live, monkeypatch: pytest.MonkeyPatch) -> Iterator[SimulatedExchange]:
    """Yield a second exchange, of other bars, of which two symbols are recorded, too."""
    truth = GeneratedTruth(["BTC/USDT", "LINK/USDT"], seed=8)
    with SimulatedExchange(truth, seed=8, clock=live.clock) as exchange:
        own = ",".join(live.venue.truth.markets)
        monkeypatch.setenv(
            "FEATURE_PLATFORM_SYMBOLS", f"{own},binanceus:BTC/USDT,binanceus:LINK/USDT"
        )
        monkeypatch.setenv(
            "FEATURE_PLATFORM_EXCHANGE_URL", f"{live.venue.url},binanceus={exchange.url}"
        )
        get_settings.cache_clear()
        yield exchange


def test_two_exchanges_are_recorded_each_by_itself(live: Live, second: SimulatedExchange) -> None:
    with RecorderThread() as recorder:
        live.wait_for_states("live")
        live.pass_minutes(2)
        with live.venue_away():  # the other one goes on
            wait_until(lambda: states(live)["BTC/USDT"] == "down", "the first one is down")
            down = live.clock.now()
            wait_until(lambda: states(live)["binanceus:BTC/USDT"] == "live", "the other is live")
            end = live.pass_minutes(2)
            wait_until(lambda: not of_second(live, second, end), "the second one's bars are stored")
            assert states(live)["BTC/USDT"] == "down"
        end = live.pass_minutes(1)
        wait_until(lambda: not of_first(live, end), "the first one's bars are stored")
        recorder.stop()
    assert of_second(live, second, end) == of_first(live, end) == []
    assert exchanges_out(live, down) == ["binance"]


@pytest.mark.usefixtures("second")
def test_an_exchange_without_its_symbols_stops_no_other(
    live: Live, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FEATURE_PLATFORM_SYMBOLS", "BTC/USDT,binanceus:NONE/SUCH")
    get_settings.cache_clear()
    with RecorderThread() as recorder:
        wait_until(lambda: states(live).get("BTC/USDT") == "live", "the other one is live")
        wait_until(lambda: states(live)["binanceus:NONE/SUCH"] == "down", "it is down")
        live.wait_for_stream_bars(1)
        recorder.stop()
    error = live.value(
        "SELECT last_error FROM feature_platform.heartbeat WHERE symbol = 'binanceus:NONE/SUCH'"
    )
    assert error.endswith("binanceus has no symbol 'NONE/SUCH'")


def states(live: Live) -> dict[str, str]:
    with connect(live.database.url) as connection:
        return {feed.symbol: feed.state for feed in list_heartbeats(connection)}


def exchanges_out(live: Live, time: datetime) -> list[str]:
    """Return the exchange of each outage that a time lies in."""
    found: list[str] = live.value(
        "SELECT array_agg(exchange) FROM feature_platform.feed_outage"
        " WHERE %s BETWEEN from_at AND to_at",
        time,
    )
    return found


def of_first(live: Live, end: datetime) -> list[str]:
    stored = {key: bar for key, bar in live.stored(end).items() if ":" not in key[0]}
    return differences(stored, true_bars(live.venue.truth, live.start, end))


def of_second(live: Live, second: SimulatedExchange, end: datetime) -> list[str]:
    prefix = "binanceus:"
    stored = {
        (symbol.removeprefix(prefix), ts): bar
        for (symbol, ts), bar in live.stored(end).items()
        if symbol.startswith(prefix)
    }
    return differences(stored, true_bars(second.truth, live.start, end))
