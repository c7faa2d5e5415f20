"""Whatever the stream, the exchange or the database do: the bars end as what was traded."""

from __future__ import annotations

import asyncio
from datetime import timedelta
from typing import Any

import pytest

from feature_platform.database import connect
from feature_platform.errors import UserError
from feature_platform.heartbeat import list_feeds
from feature_platform.recorder import Recorder
from feature_platform.settings import get_settings
from feature_platform_tests.fix_recorder import Live, RecorderThread

pytestmark = pytest.mark.parametrize("engine", ["postgres"], indirect=True)


def test_bars_are_stored_as_they_are_closed(live: Live) -> None:
    with RecorderThread(history=timedelta(minutes=30)) as recorder:
        live.wait_for_states("live")
        end = live.pass_minutes(4)
        live.wait_for_truth(end, live.start - timedelta(minutes=20))
        assert live.value("SELECT count(*) FROM ohlcv_1m WHERE source = 'stream'") >= 9
        recorder.stop()
    assert live.value("SELECT max(ts) FROM ohlcv_1m") < live.clock.now() - timedelta(minutes=1)
    with connect(live.database.url) as connection:
        feeds = list_feeds(connection)
    assert {feed.state for feed in feeds} == {"stopped"}
    assert all(feed.bar_at and feed.heard_at and feed.refused == 0 for feed in feeds)


# What goes wrong, in pairs, because each takes minutes of the venue's time.
FAULTS: dict[str, list[dict[str, Any]]] = {
    "connections": [
        {"kind": "dropped", "code": 1001, "second": 30, "probability": 0.5},
        {"kind": "dropped", "second": 59, "probability": 0.5},
    ],
    "messages": [{"kind": "duplicated", "times": 2}, {"kind": "reordered", "probability": 0.7}],
    "holes": [{"kind": "lost", "probability": 0.3}, {"kind": "impossible", "probability": 0.4}],
    "bars": [
        {"kind": "late", "seconds": 100, "probability": 0.3},
        {"kind": "corrected", "seconds": 80, "probability": 0.5},
        {"kind": "quiet_left_out"},
    ],
}
# What the exchange publishes, over REST, too.
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
            live.pass_minutes(2)
        end = live.pass_minutes(1)
        live.wait_for_truth(end)
        live.wait_for_states("live")
        recorder.stop()
    outages = live.value(
        "SELECT count(*) FROM feature_platform.feed_outage WHERE to_at - from_at > '1 minute'"
    )
    assert outages == 1


def test_a_database_that_goes_away_gets_all_bars_when_it_is_back(live: Live) -> None:
    with RecorderThread() as recorder:
        live.wait_for_states("live")
        live.pass_minutes(1)
        with live.database.away():
            live.pass_minutes(3)
        end = live.pass_minutes(1)
        live.wait_for_truth(end)
        recorder.stop()
    # They waited, and were not asked for again, but where a market's turn had come by then.
    assert live.value("SELECT count(*) FROM ohlcv_1m WHERE source = 'stream'") >= 3 * 2


def test_bars_are_built_from_trades(live: Live) -> None:
    with RecorderThread("trades") as recorder:
        live.wait_for_states("live")
        end = live.pass_minutes(4)
        # What was heard from its middle on, and a minute without trades, is asked for.
        live.wait_for_truth(end)
        recorder.stop()
    assert live.value("SELECT count(*) FROM ohlcv_1m WHERE source = 'stream'") >= 6


def test_an_exchange_without_a_stream_is_asked_each_minute(live: Live) -> None:
    with RecorderThread("minutes") as recorder:
        live.wait_for_states("live")
        end = live.pass_minutes(2)
        live.wait_for_truth(end)
        recorder.stop()
    assert live.value("SELECT count(*) FROM ohlcv_1m WHERE source <> 'rest'") == 0


def test_a_market_that_the_exchange_has_not_is_named(
    live: Live, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FEATURE_PLATFORM_SYMBOLS", "BTC/USDT,NONE/SUCH")
    get_settings.cache_clear()

    async def record() -> None:
        await Recorder(get_settings(), timedelta(0)).run()

    with pytest.raises(UserError, match=r"FEATURE_PLATFORM_SYMBOLS: binance has no .NONE/SUCH"):
        asyncio.run(record())
    assert live.value("SELECT count(*) FROM ohlcv_1m WHERE symbol = 'NONE/SUCH'") == 0
